"""Where the real positions of each row are, and how to bring them to its front.

Every layer is causal, so padding *behind* the real positions cannot reach them. Rows that have
padding elsewhere are therefore sorted once, real positions first, before the first layer, and put
back after the last. No layer needs to know more than how many real positions a row has.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from omni.errors import AlignmentError


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Order of the positions of a batch.

    `mask` and `order` are None where they would say nothing: no padding, nothing to move.
    """

    mask: Bool[Tensor, "batch seq"] | None = None
    """True at real positions, after sorting: True first."""
    order: Int[Tensor, "batch seq"] | None = None
    """Original position of each sorted one."""

    @classmethod
    def from_mask(cls, attention_mask: Tensor | None, *, batch: int, seq: int, past: int) -> "Rows":
        """Read a padding mask.

        Args:
            attention_mask: (batch, seq) or, as transformers' `generate` gives it, (batch,
                past + seq), of which only the end is read. True or 1 at real positions.
            batch: Rows of the input.
            seq: Positions of the input.
            past: Positions in the cache.

        Raises:
            AlignmentError: The mask has another shape.
        """
        if attention_mask is None:
            return cls()
        if attention_mask.shape not in {(batch, seq), (batch, past + seq)}:
            raise AlignmentError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, but the input is "
                f"{(batch, seq)} after {past} cached positions: give {(batch, seq)} or "
                f"{(batch, past + seq)}."
            )
        mask = attention_mask[:, attention_mask.shape[1] - seq :].bool()
        if mask.all():
            return cls()
        if (mask[:, 1:] <= mask[:, :-1]).all():
            return cls(mask=mask)
        order = mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
        return cls(mask=mask.gather(1, order), order=order)

    def sort(self, x: Float[Tensor, "batch seq hidden"]) -> Float[Tensor, "batch seq hidden"]:
        """Bring the real positions to the front."""
        if self.order is None:
            return x
        return x.gather(1, self.order[..., None].expand_as(x))

    def sort_ids(self, ids: Int[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
        """Bring ids of real positions to the front."""
        return ids if self.order is None else ids.gather(1, self.order)

    def restore(
        self, x: Float[Tensor, "batch seq hidden"], last: int = 0
    ) -> Float[Tensor, "batch kept hidden"]:
        """Put the positions back and keep the `last` ones of the original order (0: all)."""
        if self.order is None:
            return x[:, -last:]
        original = self.order.argsort(dim=1)[:, -last:]
        return x.gather(1, original[..., None].expand(-1, -1, x.shape[2]))
