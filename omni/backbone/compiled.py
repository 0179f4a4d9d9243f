"""One decoding step through compiled code: optional, for a CPU with a C++ compiler.

A step of one row is hundreds of small operations, whose calls cost as much as their work.
`torch.compile` turns the parts of a block into a few loops each. What is compiled are the blocks' own
functions, once for each kind of block, since all blocks of a kind have the same shapes:

    Mamba        all of it; its states have a constant size
    attention    the projections before and after; the attention itself, whose keys grow, is not
    MoE, MLP     all of it; the chosen experts stay a tensor, so that other choices fit too
    head         the product with the vocabulary

No shape in there depends on how much has been read, so nothing is compiled again as an answer
grows (docs/adr/0013).
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from omni.backbone.attention import Attention, Mask
from omni.backbone.cache import KeyValueState, LayerState, MambaState
from omni.backbone.layers import upcast
from omni.backbone.mamba import MambaMixer

logger = logging.getLogger(__name__)


def step_mamba(block: Any, hidden: Tensor, conv_state: Tensor, ssm_state: Tensor) -> Tensor:
    """A Mamba block; the states are written in place."""
    mixed: Tensor = block.mixer.step(block.norm(hidden), conv_state, ssm_state)
    return hidden + mixed


def step_stateless(block: Any, hidden: Tensor) -> Tensor:
    """A block that remembers nothing."""
    mixed: Tensor = block.mixer(block.norm(hidden))
    return hidden + mixed


def begin_attention(block: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of an attention block."""
    projected: tuple[Tensor, Tensor, Tensor] = block.mixer.project(block.norm(hidden))
    return projected


def end_attention(block: Any, hidden: Tensor, attended: Tensor) -> Tensor:
    """What follows the attention itself."""
    mixed: Tensor = block.mixer.o_proj(attended)
    return hidden + mixed


def score(head: Any, hidden: Tensor) -> Tensor:
    """The language head."""
    return upcast(head(hidden))


class CompiledStep:
    """The compiled parts; called with one position of one row, see `takes`."""

    def __init__(self) -> None:
        self.step_mamba = _compile(step_mamba)
        self.step_stateless = _compile(step_stateless)
        self.begin_attention = _compile(begin_attention)
        self.end_attention = _compile(end_attention)
        self.score = _compile(score)

    def takes(self, hidden: Tensor, mask: Tensor | None, past: int) -> bool:
        """Whether this is a step of one row behind others, on a CPU; all else is left eager."""
        is_step = past > 0 and hidden.shape[:2] == (1, 1) and mask is None
        return is_step and hidden.device.type == "cpu"

    def block(self, block: Any, hidden: Tensor, visible: Mask | None, state: LayerState) -> Tensor:
        """`HybridBlock.forward` of such a step."""
        if isinstance(block.mixer, MambaMixer):
            assert isinstance(state, MambaState)
            stepped: Tensor = self.step_mamba(block, hidden, *state.writable())
            return stepped
        if isinstance(block.mixer, Attention):
            assert isinstance(state, KeyValueState)
            q, k, v = self.begin_attention(block, hidden)
            ended: Tensor = self.end_attention(
                block, hidden, block.mixer.mix(q, k, v, visible, state)
            )
            return ended
        mixed: Tensor = self.step_stateless(block, hidden)
        return mixed


def _compile(function: Any) -> Any:
    # Shapes stay numbers: those of one row never change, and loops of known length are faster.
    return torch.compile(function, dynamic=False)
