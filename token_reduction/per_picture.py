"""What reducers of still pictures share: an image is one picture, a video one for each step.

Every picture loses the same fraction, so a prompt with a label for each step never meets an
empty one. Redundancy over time is left to the reducers made for it.
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from token_reduction.base import Reducer, Stage, check_full, check_rate, count_kept
from token_reduction.grouping import merge_groups
from token_reduction.layout import TokenLayout, TokenShape
from token_reduction.similarity import nearest


class Grouping(NamedTuple):
    """Which tokens of each picture stay, and which of those the others join."""

    kept: Int[Tensor, "pictures kept"]  # ascending indices; a group sits at the cell of this token
    place: Int[Tensor, "pictures tokens"]  # group of each token: an index into kept
    weights: Float[Tensor, "pictures tokens"]  # of each token in the mean of its group, positive


class PerPicture(Reducer):
    """Leaves num_tokens * (1 - rate) of every picture, a half rounded down, at least 1.

    Args:
        rate: Fraction of tokens to remove, in [0, 1).

    Raises:
        ValueError: If `rate` is outside its range.
    """

    stage: Stage = "after_projector"
    name: str

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = check_rate(rate)

    def plan(self, shape: TokenShape) -> TokenShape:
        """The same grid with the fraction left in every picture.

        Raises:
            ValueError: If tokens of a video were already pruned: its pictures may then differ
                in length, and no count could be promised.
        """
        pictures, tokens = self.pictures(shape)
        return TokenShape(
            modality=shape.modality,
            grid=shape.grid,
            num_tokens=pictures * count_kept(tokens, self.rate),
        )

    def pictures(self, shape: TokenShape) -> tuple[int, int]:
        """How many pictures, and how many tokens each has; a recording counts as one."""
        if shape.modality != "video" or shape.grid[0] == 1:
            return 1, shape.num_tokens
        check_full(shape, self.name)
        t, h, w = shape.grid
        return t, h * w


class MergePerPicture(PerPicture):
    """Replaces groups of tokens of a picture by their weighted means.

    A subclass says which groups (`group`), looking at rows that have no gradient; gradients
    reach every token through the means.
    """

    @abstractmethod
    def group(
        self, rows: Float[Tensor, "pictures tokens dim"], num_kept: int, layout: TokenLayout
    ) -> Grouping:
        """Choose `num_kept` groups in every picture."""

    def plan(self, shape: TokenShape) -> TokenShape:
        """The same grid with the fraction left in every picture.

        Raises:
            ValueError: If the item is audio, which would lose its order, or a pruned video.
        """
        if shape.modality == "audio":
            raise ValueError(
                f"Found audio; {self.name} joins tokens that look alike wherever they are, and "
                "sound would lose its order. Choose adjacent_merge for audio."
            )
        return super().plan(shape)

    def reduce(
        self, features: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> tuple[Float[Tensor, "reduced dim"], TokenLayout]:
        """Group, then average; each mean sits where the token that stayed was."""
        shape = self.plan(layout.shape)
        pictures, tokens = self.pictures(layout.shape)
        num_kept = shape.num_tokens // pictures
        kept, place, weights = self.group(
            features.detach().unflatten(0, (pictures, tokens)), num_kept, layout
        )
        first = torch.arange(pictures, device=kept.device)[:, None]
        return merge_groups(
            features,
            layout,
            group=(place + first * num_kept).flatten(),
            weights=weights.flatten(),
            shape=shape,
            cells=layout.cells[(kept + first * tokens).flatten().cpu()],
            time_spans=layout.time_spans,
        )


def token_sizes(layout: TokenLayout, pictures: int) -> Float[Tensor, "pictures tokens"]:
    """How many source cells each token stands for; on the CPU, as layouts are."""
    return layout.source_ptr.diff().float().unflatten(0, (pictures, -1))


def join_nearest(
    rows: Float[Tensor, "pictures tokens dim"], kept: Int[Tensor, "pictures kept"]
) -> Int[Tensor, "pictures tokens"]:
    """For each token the kept one most similar to it, as an index into `kept`.

    Args:
        rows: Of length one.
        kept: Indices of tokens that stay; each of them joins itself.
    """
    _, place = nearest(rows, rows.take_along_dim(kept[:, :, None], dim=1))
    pictures, num_kept = kept.shape
    own = torch.arange(num_kept, device=kept.device).expand(pictures, num_kept)
    return place.scatter(1, kept, own)
