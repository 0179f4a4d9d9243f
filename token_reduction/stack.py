"""Frame stacking: neighbouring steps of sound side by side in one wider token.

Nothing is lost; the projector must be made for the wider rows, as in SLAM-ASR
(https://arxiv.org/abs/2402.08846), which stacks 5 frames to 10 tokens a second.
"""

from jaxtyping import Float
from torch import Tensor

from token_reduction.base import Reducer, Stage, check_full
from token_reduction.layout import TokenLayout, TokenShape
from token_reduction.tubelet import steps_side_by_side


class Stack(Reducer):
    """Lays `num_steps` consecutive steps side by side, in time order.

    A recording whose length is not a multiple repeats its own last step.

    Args:
        num_steps: Steps in a token, at least 1.

    Raises:
        ValueError: If `num_steps` is below 1.
    """

    stage: Stage = "before_projector"

    def __init__(self, num_steps: int = 2) -> None:
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"Found stack of {num_steps} steps; expected at least 1.")
        self.num_steps = num_steps

    def plan(self, shape: TokenShape) -> TokenShape:
        """Steps divided by the steps in a token, rounded up.

        Raises:
            ValueError: If the item is not audio, or steps were already pruned.
        """
        if shape.modality != "audio":
            raise ValueError(
                f"Found {shape.modality}; stack takes only audio. "
                "Choose tubelet for video, pixel_shuffle for pictures."
            )
        check_full(shape, "stack")
        return TokenShape.full("audio", (-(-shape.grid[0] // self.num_steps), 1, 1))

    def output_dim(self, dim: int) -> int:
        """Width of one row from each step side by side."""
        return dim * self.num_steps

    def reduce(
        self, features: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> tuple[Float[Tensor, "reduced out_dim"], TokenLayout]:
        """Group steps; a source cell weighs as much as it occurs in the token."""
        return steps_side_by_side(features, layout, self.num_steps)
