"""A decoder in the words of the library: tables of numbers and pointers to the model's tensors.

Only modules of exactly the known types are described, and only tensors that lie as the library
reads them; anything else raises `UnknownError`, and PyTorch does the step. Nothing is copied: the
table holds the tensors, and its `watch` tells whether the model still has them.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from omni.backbone.attention import Attention
from omni.backbone.cache import KeyValueState, LayerState, MambaState
from omni.backbone.columns import is_in_columns
from omni.backbone.layers import MLP, GatedRMSNorm, ResidualLinear, RMSNorm, find_activation
from omni.backbone.mamba import CausalConv, MambaMixer
from omni.backbone.moe import Experts, MoE, Router
from omni.backbone.native.watch import UnknownError, Watch
from omni.backbone.products import Linear

NONE, FLOAT_ROWS, FLOAT_COLUMNS, INT8, INT4 = range(5)
"""Formats of a matrix, as in `src/products.h`."""
BITS = (0, 32, 32, 8, 4)
"""Of a weight in each format."""
BYTES_OF_A_THREAD = 2**20
"""Weights that one more thread is worth waiting for: it reads them in 30 microseconds or more,
while the layers wait for each other some dozen times for half a microsecond, or for much longer on
a busy machine."""
MAMBA, ATTENTION, MOE, MLP_ONLY = range(4)
"""Kinds of a layer, as in `src/layers.h`."""
ACTIVATIONS = [find_activation(name) for name in ("relu2", "silu", "gelu", "relu")]
"""In the order of `src/numbers.h`."""


def _integers(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_int64) for name in names]


def _pointers(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_void_p) for name in names]


def _numbers(*names: str) -> list[tuple[str, Any]]:
    return [(name, ctypes.c_double) for name in names]


class Matrix(ctypes.Structure):
    """A weight, or a stack of weights; see `src/products.h`."""

    _fields_ = (
        _integers("format", "num_outputs", "num_inputs", "group_size")
        + _pointers("weight", "scale", "bias")
        + _integers("weight_stride", "scale_stride")
    )


def _matrices(*names: str) -> list[tuple[str, Any]]:
    return [(name, Matrix) for name in names]


class MambaTable(ctypes.Structure):
    """A Mamba layer; see `src/layers.h`, here and below."""

    _fields_ = (
        _matrices("in_proj", "out_proj")
        + _pointers("conv_weight", "conv_bias", "dt_bias", "A_log", "D", "norm")
        + _pointers("conv_state", "ssm_state")
        + _integers("num_heads", "head_dim", "num_groups", "state_size", "window", "activation")
        + _numbers("dt_min", "dt_max", "eps")
    )


class AttentionTable(ctypes.Structure):
    """An attention layer."""

    _fields_ = (
        _matrices("q_proj", "k_proj", "v_proj", "o_proj")
        + _pointers("keys", "values")
        + _integers("capacity", "length", "num_heads", "num_kv_heads", "head_dim")
    )


class MoETable(ctypes.Structure):
    """A mixture of experts."""

    _fields_ = (
        _matrices("gate", "up", "down", "shared_up", "shared_down", "latent_in", "latent_out")
        + _pointers("correction")
        + _integers("num_experts", "num_chosen", "num_groups", "num_groups_chosen", "normalises")
        + _integers("activation", "shared_activation")
        + _numbers("scale")
    )


class MLPTable(ctypes.Structure):
    """A plain MLP."""

    _fields_ = _matrices("up", "down") + _integers("activation")


class LayerTable(ctypes.Structure):
    """A block."""

    _fields_ = _integers("kind") + _pointers("norm") + _numbers("eps") + _pointers("mixer")


class DecoderTable(ctypes.Structure):
    """All blocks and the last norm."""

    _fields_ = (
        _integers("num_layers", "hidden_size") + _pointers("layers", "norm") + _numbers("eps")
    )


class ExpertRows(ctypes.Structure):
    """Which tokens go to which expert; see `src/experts.h`."""

    _fields_ = _pointers("ends", "tokens", "shares") + _integers(
        "num_experts", "num_tokens", "activation", "few"
    )


STRUCTS = (
    *(Matrix, MambaTable, AttentionTable, MoETable, MLPTable, LayerTable, DecoderTable),
    ExpertRows,
)


# ------------------------------------------------------------------------------------ products


def read_floats(module: nn.Module, name: str, watch: Watch) -> Matrix:
    """Describe a float32 weight (N, K) or a stack of weights (E, N, K)."""
    weight = watch.tensor(module, name)
    *_, outputs, inputs = weight.shape
    if weight.dtype == torch.float32 and weight.is_contiguous():
        form = FLOAT_ROWS
    elif weight.dim() == 3 and is_in_columns(weight):
        form = FLOAT_COLUMNS
    else:
        raise UnknownError(f"a weight is {weight.dtype} with strides {weight.stride()}")
    return Matrix(
        format=form,
        num_outputs=outputs,
        num_inputs=inputs,
        weight=weight.data_ptr(),
        weight_stride=4 * outputs * inputs if weight.dim() == 3 else 0,
    )


def read_linear(module: nn.Module, watch: Watch) -> Matrix:
    """Describe a float32 linear layer."""
    matrix = read_floats(module, "weight", watch)
    matrix.bias = watch.floats_or_none(module, "bias")
    return matrix


def read_experts(module: nn.Module, watch: Watch) -> tuple[Matrix, Matrix]:
    """Describe the two stacks of float32 experts."""
    return read_floats(module, "up_proj", watch), read_floats(module, "down_proj", watch)


LINEAR_READERS: dict[type, Callable[[Any, Watch], Matrix]] = {
    Linear: read_linear,
    ResidualLinear: read_linear,
}
"""How each type of linear layer is described; `omni.quantization` adds its own."""

EXPERTS_READERS: dict[type, Callable[[Any, Watch], tuple[Matrix, Matrix]]] = {Experts: read_experts}
"""The same of experts."""


def describe_linear(module: nn.Module, watch: Watch) -> Matrix:
    """Describe a linear layer of any known type."""
    watch.module(module, *LINEAR_READERS)
    return LINEAR_READERS[type(module)](module, watch)


# -------------------------------------------------------------------------------------- layers


def _activation(module: nn.Module, watch: Watch) -> int:
    function = watch.settings(module, "activation")
    if function not in ACTIVATIONS:
        raise UnknownError(f"the activation {function} is not known")
    return ACTIVATIONS.index(function)


def _describe_mamba(m: Any, watch: Watch) -> MambaTable:
    watch.module(m, MambaMixer)
    watch.module(m.conv1d, CausalConv)
    watch.module(m.norm, GatedRMSNorm)
    if m.conv1d.weight.shape[-1] < 2:
        raise UnknownError("the convolution has no window")
    return MambaTable(
        in_proj=describe_linear(m.in_proj, watch),
        out_proj=describe_linear(m.out_proj, watch),
        conv_weight=watch.floats(m.conv1d, "weight"),
        conv_bias=watch.floats_or_none(m.conv1d, "bias"),
        dt_bias=watch.floats(m, "dt_bias"),
        A_log=watch.floats(m, "A_log"),
        D=watch.floats(m, "D"),
        norm=watch.floats(m.norm, "weight"),
        num_heads=m.num_heads,
        head_dim=m.head_dim,
        num_groups=m.num_groups,
        state_size=m.group_size // m.num_groups,
        window=m.conv1d.weight.shape[-1] - 1,
        activation=_activation(m, watch),
        dt_min=watch.settings(m, "time_step_limit")[0],
        dt_max=m.time_step_limit[1],
        eps=watch.settings(m.norm, "eps"),
    )


def _describe_attention(a: Any, watch: Watch) -> AttentionTable:
    watch.module(a, Attention)
    dropout, training = watch.settings(a, "dropout", "training")
    if dropout and training:
        raise UnknownError("attention drops keys out")
    matrices = {name: describe_linear(child, watch) for name, child in a.named_children()}
    return AttentionTable(
        **matrices,
        num_heads=matrices["q_proj"].num_outputs // a.head_dim,
        num_kv_heads=matrices["k_proj"].num_outputs // a.head_dim,
        head_dim=a.head_dim,
    )


def _describe_moe(m: Any, watch: Watch) -> MoETable:
    watch.module(m, MoE)
    watch.module(m.gate, Router)
    watch.module(m.experts, *EXPERTS_READERS)
    watch.module(m.shared_experts, MLP)
    up, down = EXPERTS_READERS[type(m.experts)](m.experts, watch)
    names = ("num_experts_per_tok", "num_groups", "num_groups_per_tok", "normalise", "scale")
    chosen, groups, groups_chosen, normalises, scale = watch.settings(m.gate, *names)
    latent = [m.fc1_latent_proj, m.fc2_latent_proj]
    has_latent = any(type(module) is not nn.Identity for module in latent)
    if not has_latent:
        for module in latent:
            watch.module(module, nn.Identity)
    return MoETable(
        gate=read_floats(m.gate, "weight", watch),
        up=up,
        down=down,
        shared_up=describe_linear(m.shared_experts.up_proj, watch),
        shared_down=describe_linear(m.shared_experts.down_proj, watch),
        latent_in=describe_linear(latent[0], watch) if has_latent else Matrix(),
        latent_out=describe_linear(latent[1], watch) if has_latent else Matrix(),
        correction=watch.floats(m.gate, "e_score_correction_bias"),
        num_experts=m.gate.weight.shape[0],
        num_chosen=chosen,
        num_groups=groups,
        num_groups_chosen=groups_chosen,
        normalises=normalises,
        activation=_activation(m.experts, watch),
        shared_activation=_activation(m.shared_experts, watch),
        scale=scale,
    )


def _describe_mlp(m: Any, watch: Watch) -> MLPTable:
    watch.module(m, MLP)
    return MLPTable(
        up=describe_linear(m.up_proj, watch),
        down=describe_linear(m.down_proj, watch),
        activation=_activation(m, watch),
    )


_MIXERS: dict[type, tuple[int, Callable[[Any, Watch], ctypes.Structure]]] = {
    MambaMixer: (MAMBA, _describe_mamba),
    Attention: (ATTENTION, _describe_attention),
    MoE: (MOE, _describe_moe),
    MLP: (MLP_ONLY, _describe_mlp),
}


class Decoder:
    """The table of a decoder without its head.

    Args:
        model: Its owner, with the blocks in `layers`, a module list, and the last norm in `norm_f`.
        block_type: Type of the blocks.

    Raises:
        UnknownError: The library cannot run it.
    """

    def __init__(self, model: nn.Module, block_type: type) -> None:
        self.watch = Watch()
        self._mixers: list[Any] = []
        layers, norm = self.watch.children(model, "layers", "norm_f")
        self.watch.module(layers, nn.ModuleList)
        blocks = list(layers.children())
        self._layers = (LayerTable * len(blocks))()
        for block, layer in zip(blocks, self._layers, strict=True):
            self._describe(block, layer, block_type)
        self.watch.module(norm, RMSNorm)
        assert isinstance(norm, RMSNorm)
        self.hidden_size = norm.weight.shape[0]
        self._table = DecoderTable(
            num_layers=len(blocks),
            hidden_size=self.hidden_size,
            layers=ctypes.addressof(self._layers),
            norm=self.watch.floats(norm, "weight"),
            eps=self.watch.settings(norm, "eps"),
        )
        self.address = ctypes.addressof(self._table)
        self.num_threads = _threads_for(sum(map(_bytes_read, self._mixers)))
        """Most threads that find enough to do in a step."""
        self.watch.refuse_hooks()

    def _describe(self, block: Any, layer: LayerTable, block_type: type) -> None:
        self.watch.module(block, block_type)
        self.watch.module(block.norm, RMSNorm)
        if type(block.mixer) not in _MIXERS:
            raise UnknownError(f"{type(block.mixer).__name__} is not known to the library")
        kind, describe = _MIXERS[type(block.mixer)]
        mixer = describe(block.mixer, self.watch)
        self._mixers.append(mixer)
        layer.kind, layer.mixer = kind, ctypes.addressof(mixer)
        layer.norm = self.watch.floats(block.norm, "weight")
        layer.eps = self.watch.settings(block.norm, "eps")

    @property
    def rounds(self) -> bool:
        """Whether any weight is int8 or int4, so that PyTorch rounds activations on the way."""
        return any(
            matrix.format in (INT8, INT4) for mixer in self._mixers for matrix in _parts(mixer)
        )

    def check(self, states: list[LayerState]) -> None:
        """Point to the Mamba states of a cache and look at its keys; nothing in it changes.

        Raises:
            UnknownError: They do not lie as the library reads them.
        """
        if len(states) != len(self._mixers):
            raise UnknownError(f"the cache is of {len(states)} layers, not {len(self._mixers)}")
        for mixer, state in zip(self._mixers, states, strict=True):
            if isinstance(state, MambaState):
                _enter_mamba(mixer, state)
            elif isinstance(state, KeyValueState):
                _check_keys(mixer, state)

    def enter(self, states: list[LayerState]) -> None:
        """Point to the states of a cache and make room in it for one more position.

        Raises:
            UnknownError: They do not lie as the library reads them; the cache is as it was.
        """
        self.check(states)
        for mixer, state in zip(self._mixers, states, strict=True):
            if isinstance(state, KeyValueState):
                mixer.length = state.keys.length
                keys, values = state.make_room()
                mixer.keys, mixer.values = keys.data_ptr(), values.data_ptr()
                mixer.capacity = keys.shape[2]


def _parts(mixer: ctypes.Structure) -> list[Matrix]:
    return [getattr(mixer, field[0]) for field in mixer._fields_ if field[1] is Matrix]


def _threads_for(size: int) -> int:
    return max(size // BYTES_OF_A_THREAD, 1)


def _size(matrix: Matrix) -> int:
    return matrix.num_outputs * matrix.num_inputs * BITS[matrix.format] // 8


def _bytes_read(mixer: ctypes.Structure) -> int:
    """Bytes of the weights that one step reads in a layer."""
    total = 0
    for matrix in _parts(mixer):
        is_chosen = matrix.weight_stride > 0 and isinstance(mixer, MoETable)
        total += _size(matrix) * (mixer.num_chosen if is_chosen else 1)
    return total


def _enter_mamba(mixer: Any, state: MambaState) -> None:
    if state.conv_state is None:
        raise UnknownError("the cache is empty")
    window, recurrence = state.writable()
    heads = (mixer.num_heads, mixer.head_dim, mixer.state_size)
    channels = heads[0] * heads[1] + 2 * mixer.num_groups * heads[2]
    mixer.conv_state = _address(window, (1, mixer.window, channels))
    mixer.ssm_state = _address(recurrence, (1, *heads))


def _check_keys(mixer: Any, state: KeyValueState) -> None:
    keys, values = state.keys.data, state.values.data
    if keys is None or values is None:
        raise UnknownError("the cache is empty")
    for data in (keys, values):
        _address(data, (1, mixer.num_kv_heads, keys.shape[2], mixer.head_dim))


def _address(tensor: Tensor, shape: tuple[int, ...]) -> int:
    """Address of a tensor of a cache, if it lies as the library reads it."""
    fits = tensor.shape == shape and tensor.dtype is torch.float32 and tensor.is_contiguous()
    if not fits or not tensor.is_cpu:
        raise UnknownError(
            f"a state is {tensor.dtype} {tuple(tensor.shape)} with strides {tensor.stride()}"
        )
    return tensor.data_ptr()


class Head:
    """The table of the language head.

    Raises:
        UnknownError: The library cannot multiply with it.
    """

    def __init__(self, head: nn.Module) -> None:
        self.watch = Watch()
        self._table = describe_linear(head, self.watch)
        self.num_outputs, self.num_inputs = self._table.num_outputs, self._table.num_inputs
        self.num_threads = _threads_for(_size(self._table))
        self.address = ctypes.addressof(self._table)
        self.watch.refuse_hooks()
