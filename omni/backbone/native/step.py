"""Steps of one row on a CPU, in one call each; everything else is left to PyTorch.

    step     embedding -> all layers -> last norm, states brought up to date in place
    score    the language head

The first step with a new table is done both ways and compared, so a wrong one is never used.
"""

import contextlib
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omni.backbone.attention import Mask
from omni.backbone.cache import HybridCache
from omni.backbone.native.library import Library, UnavailableError
from omni.backbone.native.table import Decoder, Head
from omni.backbone.native.watch import UnknownError

TOLERANCE = 1e-3
"""Largest difference of the result, over its norm: another order of sums gives 1e-6."""
WAIT_S = 2.0
"""Longest that an answer waits for the library to be built; if it takes longer, PyTorch writes this
answer and the library the next one."""
ROUNDED_TOLERANCE = 0.5
"""The same with int8 or int4 weights, whose activations PyTorch rounds to 8 bits: that gives 1e-2,
and more where it tips the choice of an expert. A wrong step is an error near 1."""


class NativeStep:
    """The native steps of one decoder.

    Args:
        is_wanted: False leaves every step to PyTorch.
    """

    def __init__(self, *, is_wanted: bool = True) -> None:
        self.is_wanted = is_wanted
        self.reason = ""
        """Why the last step that might have been native was not, or nothing."""
        self._library: Library | None = None
        self._decoder: Decoder | None = None
        self._head: Head | None = None
        self._head_of: nn.Module | None = None
        self._is_proven = self._is_head_proven = False
        self._refused: weakref.ref[HybridCache] | None = None
        # Threads that decode with one model share its table, in which each enters its own states.
        self._lock = threading.Lock()

    def __reduce__(self) -> Any:
        """Copies of a model make tables of their own."""
        return _copy, (self.is_wanted,)

    @property
    def is_in_use(self) -> bool:
        """Whether steps have been native."""
        return self._is_proven

    def takes(self, hidden: Tensor, mask: Tensor | None, visible: Mask | None, past: int) -> bool:
        """Whether this is a step of one row behind others that nothing is hidden from."""
        return (
            self.is_wanted
            and past > 0
            and hidden.shape[:2] == (1, 1)
            and mask is None
            and visible is None
            and hidden.is_cpu
            and hidden.dtype is torch.float32
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )

    def step(
        self,
        model: Any,
        hidden: Float[Tensor, "1 1 hidden"],
        cache: HybridCache,
        eager: Callable[[], Tensor],
    ) -> Float[Tensor, "1 1 hidden"] | None:
        """Take one step of a `HybridModel`.

        Args:
            model: The model, whose blocks and last norm are run.
            hidden: Embedding of the position.
            cache: Memory of the positions before it, brought up to date.
            eager: Does the same by PyTorch, from the present state of the cache.

        Returns:
            What the last norm gives; None if PyTorch is to do the step.
        """
        with self._lock:
            try:
                decoder = self._decoder_of(model, cache)
                if hidden.shape[-1] != decoder.hidden_size:
                    return None  # PyTorch says what is wrong
                if not self._is_proven:
                    return self._prove(decoder, hidden, cache, eager)
                decoder.enter(cache.layers)
            except (UnavailableError, UnknownError) as reason:
                self.reason = str(reason)
                self._refused = weakref.ref(cache)
                return None
            return self._run(decoder, hidden)

    def score(
        self, head: nn.Module, hidden: Float[Tensor, "1 1 hidden"]
    ) -> Float[Tensor, "1 1 vocab"] | None:
        """Scores of all tokens; None if PyTorch is to compute them."""
        with self._lock:
            return self._score(head, hidden)

    def _score(self, head: nn.Module, hidden: Tensor) -> Tensor | None:
        """`score`, one thread at a time."""
        if self._library is None or not self._is_proven:
            return None
        if self._head is None or self._head_of is not head or not self._head.watch.is_unchanged():
            self._head_of, self._head, self._is_head_proven = head, None, False
            try:
                self._head = Head(head)
            except UnknownError as reason:
                self.reason = str(reason)
        if self._head is None or hidden.shape[-1] != self._head.num_inputs:
            return None
        hidden = hidden.contiguous()
        scores = hidden.new_empty(1, 1, self._head.num_outputs)
        threads = min(torch.get_num_threads(), self._head.num_threads)
        self._library.product(self._head.address, hidden.data_ptr(), scores.data_ptr(), threads)
        if not self._is_head_proven:
            expected = head(hidden).float()
            if not expected.isfinite().all():
                return expected
            self._is_head_proven = self._agrees(scores, expected, ROUNDED_TOLERANCE)
            return scores if self._is_head_proven else None
        return scores

    def _decoder_of(self, model: Any, cache: HybridCache) -> Decoder:
        """The table, made anew when the model has changed."""
        if self._decoder is not None and self._decoder.watch.is_unchanged():
            return self._decoder
        if self._refused is not None and self._refused() is cache:
            raise UnknownError(self.reason)
        if self._library is None:
            self._library = Library.get(WAIT_S)
        self._decoder, self._is_proven = None, False
        self._decoder = Decoder(model, type(model).block_type)
        self.reason = ""
        return self._decoder

    def _run(self, decoder: Decoder, hidden: Tensor) -> Tensor:
        assert self._library is not None
        hidden = hidden.contiguous()
        output = torch.empty_like(hidden)
        threads = min(torch.get_num_threads(), decoder.num_threads)
        self._library.step(decoder.address, hidden.data_ptr(), output.data_ptr(), threads)
        return output

    def _prove(
        self, decoder: Decoder, hidden: Tensor, cache: HybridCache, eager: Callable[[], Tensor]
    ) -> Tensor | None:
        """Take the first step with a table by PyTorch, and once more from the same state.

        PyTorch first: it refuses shapes that do not fit together, which the library would not see.
        """
        decoder.check(cache.layers)
        before = cache.snapshot()
        expected = eager()
        if not expected.isfinite().all():
            return expected  # which proves nothing
        after = cache.snapshot()
        cache.restore(before)
        decoder.enter(cache.layers)
        found = self._run(decoder, hidden)
        tolerance = ROUNDED_TOLERANCE if decoder.rounds else TOLERANCE
        self._is_proven = self._agrees(found, expected, tolerance)
        cache.restore(after)
        if not self._is_proven:
            return expected
        # Back to the buffers of before, which snapshots share: behind what `restore` has put in
        # their place, every later question to such a snapshot would copy them whole.
        cache.rewind(before)
        decoder.enter(cache.layers)
        return self._run(decoder, hidden)

    def _agrees(self, found: Tensor, expected: Tensor, tolerance: float) -> bool:
        error = ((found - expected).norm() / expected.norm()).item()
        if error <= tolerance:  # NaN is not
            return True
        self.is_wanted = False
        self.reason = f"its results differ by {error:.1e}, allowed are {tolerance:.0e}."
        warnings.warn(
            f"Native decoding steps are not used, decoding goes on as usual: {self.reason}",
            stacklevel=2,
        )
        return False


@torch.no_grad()
def try_steps(model: Any) -> bool:
    """Take a step of a `HybridForCausalLM`, whose library is built first if it is missing.

    Returns:
        Whether it was native. If not, a warning has said why, and the model decodes by PyTorch.
    """
    if model.device.type != "cpu":
        reason = f"the model is on {model.device}; only steps on a CPU are compiled."
    else:
        with contextlib.suppress(UnavailableError):  # the step will say why
            Library.get()
        ids = torch.zeros(1, 1, dtype=torch.long)
        cache = model.new_cache()
        for _ in range(2):
            model(ids, cache=cache)
        native = model.model.native
        reason = "" if native.is_in_use else native.reason or f"{model.dtype} is not compiled."
    if reason:
        warnings.warn(f"Decoding is not compiled, and goes on as usual: {reason}", stacklevel=3)
    return not reason


def _copy(is_wanted: bool) -> NativeStep:
    return NativeStep(is_wanted=is_wanted)
