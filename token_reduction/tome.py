"""Token merging inside the vision tower (ToMe, https://arxiv.org/abs/2210.09461).

Between attention and MLP of every block the r most similar pairs of tokens become one, their mean
weighted by size, where the keys of the attention say what is similar. A token that stands for s
patches counts s times in every later attention: softmax(q k / sqrt(d) + log s).

    r = N * rate / L, the same in every block but for rounding     N patches, L blocks

After the last block every patch gets the vector of the token it went into, so that what follows
(pixel shuffle, projector, the prompt) finds the grid that its weights were made for. The tower
gets faster; how many tokens the decoder reads is for the reducers after the projector.
"""

from jaxtyping import Float
from torch import Tensor

from token_reduction.base import Reducer, Stage, check_rate
from token_reduction.layout import TokenLayout, TokenShape


class Tome(Reducer):
    """Asks the tower to merge patches on their way; `omni.encoding` hands it `bipartite_match`.

    Args:
        rate: Fraction of the patches that are gone after the last block, in [0, 1). A block merges
            at most half of its patches, so a shallow tower may end a little above.

    Raises:
        ValueError: If `rate` is outside its range.
    """

    stage: Stage = "tower"

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = check_rate(rate)

    def plan(self, shape: TokenShape) -> TokenShape:
        """The same shape: merged patches are spread over the grid again.

        Raises:
            ValueError: If the item is audio.
        """
        if shape.modality == "audio":
            raise ValueError(
                "Found audio; tome merges patches inside the vision tower and takes only image and "
                "video. Choose another reducer for audio."
            )
        return shape

    def reduce(
        self, features: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> tuple[Float[Tensor, "tokens dim"], TokenLayout]:
        """Nothing is left to do after the tower."""
        return features, layout
