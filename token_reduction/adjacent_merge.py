"""Adjacent token merging for sound (A-ToMe, https://arxiv.org/abs/2306.16009).

    while more than K segments are left:
        join the two neighbours whose touching frames are most similar,
        cos(x[i], x[i + 1]) with i the last frame of one and i + 1 the first of the other
    y[s] = mean of the source cells in segment s

Joining the N - K most similar boundaries in one go is the same, and costs one comparison a
frame. The paper merges by keys inside the encoder, layer by layer; this is its fixed merge
ratio applied once to the projected frames, so that the count is known beforehand.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from token_reduction.base import Reducer, Stage, check_rate, count_kept
from token_reduction.grouping import merge_groups
from token_reduction.layout import TokenLayout, TokenShape
from token_reduction.similarity import largest_per_item

# Rows compared at once: bounds the float32 copies to about 2 * 4096 rows.
CHUNK_ROWS = 4096


class AdjacentMerge(Reducer):
    """Averages stretches of similar frames; order in time stays.

    The token of a stretch sits at its first step and the steps keep their time spans. On
    a pruned recording, neighbours are the frames that are left.

    Args:
        rate: Fraction of tokens to remove, in [0, 1).

    Raises:
        ValueError: If `rate` is outside its range.
    """

    stage: Stage = "after_projector"

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
                f"Found {shape.modality}; adjacent_merge takes only audio. "
                "Choose merge or avg_pool for pictures."
            )
        num_kept = count_kept(shape.num_tokens, self.rate)
        return TokenShape(modality="audio", grid=shape.grid, num_tokens=num_kept)

    def reduce(
        self, features: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> tuple[Float[Tensor, "reduced dim"], TokenLayout]:
        """Join boundaries, then average; every step of a segment counts by its source cells."""
        shape = self.plan(layout.shape)
        similarity = _similarity_to_next(features)
        joined = largest_per_item(similarity[None], len(features) - shape.num_tokens)[0].cpu()
        starts = torch.ones(len(features), dtype=torch.bool)
        starts[joined + 1] = False
        return merge_groups(
            features,
            layout,
            group=starts.cumsum(0) - 1,
            weights=layout.source_ptr.diff().float(),
            shape=shape,
            cells=layout.cells[starts],
            time_spans=layout.time_spans,
        )


@torch.no_grad()
def _similarity_to_next(features: Float[Tensor, "tokens dim"]) -> Float[Tensor, " boundaries"]:
    """Cosine of each row and the next one, in float32 whatever the features are."""
    pairs = zip(features[:-1].split(CHUNK_ROWS), features[1:].split(CHUNK_ROWS), strict=True)
    return torch.cat([F.cosine_similarity(a.float(), b.float(), dim=1) for a, b in pairs])
