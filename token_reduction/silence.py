"""Removes the quietest steps of a recording, by the energy that the gateway measured.

kept = the K tokens with the largest layout.cues["energy"] (decibels), ties to the earliest
"""

from jaxtyping import Float
from torch import Tensor

from token_reduction.base import Reducer, Stage, check_rate, count_kept
from token_reduction.layout import TokenLayout, TokenShape
from token_reduction.similarity import largest_per_item


class Silence(Reducer):
    """Keeps the loudest steps.

    K follows from the rate, not from a threshold, so that the count is known beforehand: a
    rate above the share of silence removes quiet speech as well.

    Args:
        rate: Fraction of tokens to remove, in [0, 1).

    Raises:
        ValueError: If `rate` is outside its range.
    """

    stage: Stage = "after_projector"
    cues = ("energy",)

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = check_rate(rate)

    def plan(self, shape: TokenShape) -> TokenShape:
        """The same grid with num_tokens * (1 - rate), a half rounded down, at least 1.

        Raises:
            ValueError: If the item is not audio.
        """
        if shape.modality != "audio":
            raise ValueError(
                f"Found {shape.modality}; silence takes only audio. "
                "Leave it out of the reduction of other modalities."
            )
        num_kept = count_kept(shape.num_tokens, self.rate)
        return TokenShape(modality="audio", grid=shape.grid, num_tokens=num_kept)

    def reduce(
        self, features: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> tuple[Float[Tensor, "reduced dim"], TokenLayout]:
        """Select rows; values are untouched.

        Raises:
            ValueError: If the layout has no cue `energy`, or the cue has values that are no
                numbers.
        """
        energy = layout.cues.get("energy")
        if energy is None:
            raise ValueError(
                f"Found cues {sorted(layout.cues)}; silence needs 'energy', the loudness of each "
                "token in decibels. Hand it over in TokenLayout.full(..., cues=...), or choose "
                "adjacent_merge, which needs no cue."
            )
        if bool(energy.isnan().any()):
            raise ValueError(
                f"Found {int(energy.isnan().sum())} NaN in the cue 'energy'; expected decibels. "
                "Use -inf or a floor for digital silence."
            )
        kept = largest_per_item(energy[None], self.num_tokens(layout.shape))[0]
        return features[kept.to(features.device)], layout.select(kept)
