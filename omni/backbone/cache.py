"""What the decoder remembers of the tokens it has read: Mamba states, keys and values.

    HybridCache
    ├── layers[i]: MambaState      conv window + state, constant size
    ├── layers[i]: KeyValueState   keys and values, grow with the sequence
    └── layers[i]: None            MoE and MLP layers remember nothing

A snapshot costs almost nothing. Keys and values live in an append-only buffer: a snapshot remembers
how much of it was filled, and only somebody who continues from an older point copies. Mamba states
are written in place until a snapshot shares them; the next write then goes to a copy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from omni.errors import RequestError

MIN_CAPACITY = 64
"""Positions of the first key buffer unless more are foretold; each further one is twice as long, so
copies are rare."""


@dataclass(slots=True, kw_only=True)
class MambaState:
    """State of one Mamba layer, empty before the first token."""

    conv_state: Float[Tensor, "batch window channels"] | None = None
    """The last `conv_kernel - 1` real inputs of the convolution, oldest first."""
    ssm_state: Float[Tensor, "batch heads head_dim state"] | None = None
    """State of the recurrence, in at least float32."""
    shared: bool = False
    """True while a snapshot refers to the same tensors; they must not be written to then."""

    def writable(
        self,
    ) -> tuple[Float[Tensor, "batch window channels"], Float[Tensor, "batch heads head_dim state"]]:
        """Return both tensors for writing in place.

        They are copied if a snapshot shares them, or if they were made in `torch.inference_mode`,
        which is off now: PyTorch refuses to write to such tensors.
        """
        assert self.conv_state is not None
        assert self.ssm_state is not None
        if self.shared or _is_read_only(self.conv_state) or _is_read_only(self.ssm_state):
            self.conv_state, self.ssm_state = self.conv_state.clone(), self.ssm_state.clone()
            self.shared = False
        return self.conv_state, self.ssm_state

    def fork(self) -> "MambaState":
        """Return a second state with the same content."""
        self.shared = True
        return replace(self)

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Keep the given batch rows, in that order."""
        if self.conv_state is not None and self.ssm_state is not None:
            self.conv_state, self.ssm_state = self.conv_state[rows], self.ssm_state[rows]
            self.shared = False


def _is_read_only(tensor: Tensor) -> bool:
    return tensor.is_inference() and not torch.is_inference_mode_enabled()


@dataclass(slots=True, kw_only=True)
class AppendLog:
    """A growing tensor (batch, ..., seq, ...) along `dim`, with room for more at its end."""

    dim: int
    capacity: int = MIN_CAPACITY
    """Room of the first buffer."""
    data: Tensor | None = None
    filled: list[int] = field(default_factory=lambda: [0])
    """How much of `data` anybody has written: shared by all logs on the same `data`."""
    length: int = 0
    """How much of `data` belongs to this log."""

    def append(self, new: Tensor) -> Tensor:
        """Add `new` at the end and return a view of everything so far."""
        start = self.length
        data = self.make_room(new, new.shape[self.dim])
        data.narrow(self.dim, start, self.length - start).copy_(new)
        return data.narrow(self.dim, 0, self.length)

    def make_room(self, like: Tensor, count: int) -> Tensor:
        """Take `count` more places, which the caller writes to, and return the whole buffer.

        Args:
            like: A tensor such as `append` takes, of any length; read are its type and shape.
            count: How many places.
        """
        end = self.length + count
        has_room = self.data is not None and end <= self.data.shape[self.dim]
        if not has_room or self.filled[0] != self.length:
            self._reallocate(like, end)
        assert self.data is not None
        self.length = self.filled[0] = end
        return self.data

    def _reallocate(self, like: Tensor, needed: int) -> None:
        shape = list(like.shape)
        shape[self.dim] = max(self.capacity, 2 * self.length, needed)
        with torch.inference_mode(False):  # a buffer that may be written to in either mode
            data = like.new_empty(shape)
        if self.data is not None:
            data.narrow(self.dim, 0, self.length).copy_(self.view())
        self.data, self.filled = data, [self.length]

    def view(self) -> Tensor:
        """Everything appended so far."""
        assert self.data is not None
        return self.data.narrow(self.dim, 0, self.length)

    def give_back(self, length: int) -> None:
        """Let the place behind `length` be written to again, if this log wrote it last."""
        if self.filled[0] == self.length:
            self.filled[0] = self.length = length

    def select(self, rows: Tensor) -> None:
        """Keep the given batch rows, in that order."""
        if self.data is not None:
            self.data, self.filled = self.view()[rows], [self.length]


@dataclass(slots=True, kw_only=True)
class KeyValueState:
    """Keys and values of one attention layer, each (batch, kv_heads, seq, head_dim)."""

    keys: AppendLog
    values: AppendLog

    @classmethod
    def with_room(cls, capacity: int) -> "KeyValueState":
        """Return an empty state with room for `capacity` positions."""
        return cls(
            keys=AppendLog(dim=2, capacity=capacity), values=AppendLog(dim=2, capacity=capacity)
        )

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values of new positions; return those of all positions."""
        return self.keys.append(keys), self.values.append(values)

    def make_room(self) -> tuple[Tensor, Tensor]:
        """Take the place of one more position, not for the first; return both whole buffers."""
        assert self.keys.data is not None
        assert self.values.data is not None
        return self.keys.make_room(self.keys.data, 1), self.values.make_room(self.values.data, 1)

    def fork(self) -> "KeyValueState":
        """Return a second state with the same content."""
        return KeyValueState(keys=replace(self.keys), values=replace(self.values))

    def select(self, rows: Tensor) -> None:
        """Keep the given batch rows, in that order."""
        self.keys.select(rows)
        self.values.select(rows)


LayerState = MambaState | KeyValueState | None


def _new_state(kind: str, capacity: int) -> LayerState:
    """Return the empty state of a layer of the given type."""
    match kind:
        case "linear_attention":
            return MambaState()
        case "full_attention":
            return KeyValueState.with_room(capacity)
    return None


@dataclass(frozen=True, slots=True)
class CacheSnapshot:
    """A point to which a `HybridCache` can return, any number of times."""

    layers: tuple[LayerState, ...]
    length: int
    key_mask: AppendLog | None

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of all states of unpadded rows by name, such as `3.keys`, to be stored."""
        assert self.key_mask is None
        found: dict[str, Tensor] = {}
        for index, layer in enumerate(self.layers):
            if isinstance(layer, MambaState):
                assert layer.conv_state is not None
                assert layer.ssm_state is not None
                found[f"{index}.conv_state"] = layer.conv_state
                found[f"{index}.ssm_state"] = layer.ssm_state
            elif isinstance(layer, KeyValueState):
                found[f"{index}.keys"] = layer.keys.view()
                found[f"{index}.values"] = layer.values.view()
        return {name: t.clone(memory_format=torch.contiguous_format) for name, t in found.items()}


class HybridCache:
    """Memory of a `HybridModel` between calls. It carries no gradients.

    Args:
        layer_types: Kind of each layer, as in `NemotronHConfig.layer_types`.
        capacity: Positions to have room for at once, if it is known how many will come; with more
            the buffers are copied to longer ones.
    """

    # Read by transformers' `generate`; Mamba's state takes no step back without a snapshot.
    is_compileable = False
    is_croppable = False

    def __init__(self, layer_types: list[str], capacity: int = MIN_CAPACITY) -> None:
        self.layers: list[LayerState] = [_new_state(kind, capacity) for kind in layer_types]
        self.length = 0
        self._key_mask: AppendLog | None = None

    @property
    def is_linear(self) -> list[bool]:
        """Of each layer, whether it cannot tell how many tokens it has read: no layer is like that.

        transformers' `generate` then passes on only what was not read yet.
        """
        return [False] * len(self.layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions read so far, padding included; the same for every layer."""
        return self.length

    @property
    def key_mask(self) -> Bool[Tensor, "batch seq"] | None:
        """Which positions read so far are real; None when all are."""
        return None if self._key_mask is None else self._key_mask.view()

    def advance(self, seq: int, mask: Bool[Tensor, "batch seq"] | None) -> None:
        """Count `seq` new positions, of which `mask` tells the real ones (None: all)."""
        if mask is not None and self._key_mask is None:
            self._key_mask = AppendLog(dim=1)
            self._key_mask.append(mask.new_ones(mask.shape[0], self.length))
        if self._key_mask is not None:
            if mask is None:
                rows = self._key_mask.view().shape[0]
                mask = self._key_mask.view().new_ones(rows, seq)
            self._key_mask.append(mask)
        self.length += seq

    def snapshot(self) -> CacheSnapshot:
        """Remember the present point. Later steps do not alter the snapshot."""
        return CacheSnapshot(
            tuple(layer.fork() if layer is not None else None for layer in self.layers),
            self.length,
            replace(self._key_mask) if self._key_mask is not None else None,
        )

    def restore(self, snapshot: CacheSnapshot) -> None:
        """Return to a snapshot of this cache or of another one of the same model.

        Raises:
            RequestError: The snapshot has another number of layers.
        """
        if len(snapshot.layers) != len(self.layers):
            raise RequestError(
                f"The snapshot holds {len(snapshot.layers)} layers but the cache has "
                f"{len(self.layers)}; restore snapshots only into caches of the same model."
            )
        self.layers = [layer.fork() if layer is not None else None for layer in snapshot.layers]
        self.length = snapshot.length
        mask = snapshot.key_mask
        self._key_mask = replace(mask) if mask is not None else None

    def rewind(self, snapshot: CacheSnapshot) -> None:
        """Return to the snapshot that this cache continued, and free what it wrote behind it.

        Whoever continues from there next writes to the same place instead of copying. Nobody may
        have taken a snapshot of this cache in between.
        """
        for layer, before in zip(self.layers, snapshot.layers, strict=True):
            if isinstance(layer, KeyValueState) and isinstance(before, KeyValueState):
                for log, old in ((layer.keys, before.keys), (layer.values, before.values)):
                    if log.data is old.data:
                        log.give_back(old.length)
        self.restore(snapshot)

    def load_tensors(self, tensors: Mapping[str, Tensor], length: int) -> None:
        """Continue from what `CacheSnapshot.tensors` gave, in an empty cache of the same model.

        Raises:
            RequestError: Tensors are missing, left over, or hold another number of positions.
        """
        left = dict(tensors)
        try:
            for index, layer in enumerate(self.layers):
                if isinstance(layer, MambaState):
                    layer.conv_state = left.pop(f"{index}.conv_state")
                    layer.ssm_state = left.pop(f"{index}.ssm_state")
                elif isinstance(layer, KeyValueState):
                    layer.append(left.pop(f"{index}.keys"), left.pop(f"{index}.values"))
        except KeyError as error:
            raise RequestError(f"The stored states have no tensor {error}.") from None
        attention = [layer for layer in self.layers if isinstance(layer, KeyValueState)]
        lengths = {layer.keys.length for layer in attention}
        if left or lengths - {length}:
            raise RequestError(
                f"The stored states hold keys of {sorted(lengths)} positions and unknown tensors "
                f"{sorted(left)}; expected {length} positions and none."
            )
        self.length = length

    def select(self, rows: Int[Tensor, " rows"] | list[int]) -> None:
        """Keep the given batch rows, in that order; a row may appear several times."""
        rows = torch.as_tensor(rows, dtype=torch.long)
        for layer in (*self.layers, self._key_mask):
            if layer is not None:
                layer.select(rows)

    def reorder_cache(self, beam_idx: Int[Tensor, " rows"]) -> None:
        """Name of `select` in transformers' beam search."""
        self.select(beam_idx)
