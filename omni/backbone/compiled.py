"""One decoding step through compiled code: optional, for a CPU with a C++ compiler.

A step of one row is hundreds of small operations, whose calls cost as much as their work.
`torch.compile` turns the parts of a block into a few loops each. What is compiled are the blocks'
own functions, once for each kind of block, since all blocks of a kind have the same shapes:

    Mamba        all of it; its states have a constant size
    attention    the projections before and after; the attention itself, whose keys grow, is not
    MoE, MLP     all of it; the chosen experts stay a tensor, so that other choices fit too
    head         the product with the vocabulary

No shape in there depends on how much has been read, so nothing is compiled again as an answer
grows (docs/adr/0014).
"""

import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from omni.backbone.attention import Attention, Mask
from omni.backbone.cache import KeyValueState, LayerState, MambaState
from omni.backbone.layers import upcast
from omni.backbone.mamba import MambaMixer

UNGUARDED = (
    "EMPTY_NN_MODULE_HOOKS_DICT",
    "NOT_PRESENT_IN_GENERIC_DICT",
    "CLOSURE_MATCH",
    "BUILTIN_MATCH",
    "MODULE_MATCH",
)
"""Checks left out: that nobody hooks into a layer later, or replaces a function of a module."""

TOLERANCE = 0.1
"""Largest difference of the scores in the self-test, over their norm: rounding of activations in
int8 and int4 is near 0.01, in float32 near 1e-6; a wrong step is an error near 1."""


def compile_step(model: Any) -> bool:
    """Let a `HybridForCausalLM` decode through compiled code from now on, if that works here.

    Compiles, which takes seconds (PyTorch keeps the code on disk for the next time), and compares
    a step with the eager one. Prompts and batches of several rows go on as before.

    Returns:
        Whether it does. If not, a warning has said why, and the model decodes as before.
    """
    reason = _refusal(model.device)
    if not reason:
        try:
            reason = _examine(model)
        except (RuntimeError, ImportError, OSError) as failure:
            first = str(failure).strip().splitlines()[:1]
            reason = f"{type(failure).__name__}: {' '.join(first)}"
    if reason:
        model.model.compiled = None
        warnings.warn(f"Decoding is not compiled, and goes on as usual: {reason}", stacklevel=2)
    return not reason


def _refusal(device: torch.device) -> str:
    """Why nothing can be compiled here, or nothing."""
    if device.type != "cpu":
        return f"the model is on {device}; only steps on a CPU are compiled."
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return (
            f"no C++ compiler {compiler!r} was found. Install one (on Debian and Ubuntu: apt "
            "install g++ python3-dev), or name yours in CXX."
        )
    return ""


@torch.no_grad()
def _examine(model: Any) -> str:
    """Compile, and say what is wrong with the scores of a compiled step, or nothing."""
    ids = torch.zeros(1, 1, dtype=torch.long)
    cache = model.new_cache()
    model(ids, cache=cache)
    start = cache.snapshot()
    expected = model(ids, cache=cache).logits
    cache.restore(start)
    model.model.compiled = CompiledStep()
    found = model(ids, cache=cache).logits
    error = ((found - expected).norm() / expected.norm()).item()
    if not error <= TOLERANCE:  # also refuses NaN
        return f"its scores differ by {error:.1e}, allowed are {TOLERANCE:.0e}."
    return ""


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
    options: dict[str, Any] = {"cpp_wrapper": True, "guard_filter_fn": _choose_guards}
    return torch.compile(function, dynamic=False, options=options)


def _choose_guards(guards: Sequence[Any]) -> list[bool]:
    """What to compare before each call; all of it would take an eighth of a step.

    Types, shapes and settings of the layers are compared, so that another model, or one with an
    adapter, gets code of its own.
    """
    return [guard.guard_type not in UNGUARDED for guard in guards]
