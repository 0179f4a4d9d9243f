"""Linear layers and experts with int8 or int4 weights, in place of `nn.Linear` and `Experts`.

Weights are buffers: they are not trained, and `model.dtype` stays that of the other weights. They
may lie in a memory-mapped file, and no forward call writes to them or copies them whole.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import BFloat16, Float, Int
from torch import Tensor, nn

from omni.backbone.native import table
from omni.backbone.native.experts import run_experts
from omni.backbone.native.watch import UnknownError, Watch
from omni.errors import RequestError
from omni.quantization.formats import (
    BLOCK,
    GROUP_SIZES,
    WEIGHT_ONLY_ROWS,
    dequantize_int4,
    dequantize_int8,
    few_arguments_int4,
    few_rows,
    integer_product,
    is_readable,
    linear_int4,
    linear_int8,
    quantize_int4,
    quantize_int8,
    quantize_rows,
    unpack_int4,
)

NOT_TRAINED = (
    "Layers with int8 or int4 weights pass no gradients on. Train the model in its float weights, "
    "and quantise it afterwards."
)


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How one weight is stored."""

    bits: int
    """8 or 4."""
    group_size: int = 0
    """Weights that share a multiplier; 0 for int8, which has none."""

    def tensors(self, *shape: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each stored tensor of a weight (..., N, K), by leaf name."""
        *experts, n, k = shape
        if self.bits == 8:
            return {
                "weight": ((*experts, n, k), torch.int8),
                "row_scale": ((*experts, n), torch.bfloat16),
            }
        padded = -(-n // BLOCK) * BLOCK
        return {
            "weight": ((*experts, padded // BLOCK, k, BLOCK // 2), torch.uint8),
            "row_scale": ((*experts, padded), torch.float32),
            "group_scale": ((*experts, k // self.group_size, padded, 2), torch.bfloat16),
        }

    def rows(self, leaf: str, tensor: Tensor, rows: slice) -> Tensor:
        """The part of a stored tensor that belongs to some outputs, whole blocks of them."""
        if self.bits == 8:
            return tensor[rows]
        blocks = slice(rows.start // BLOCK, -(-rows.stop // BLOCK))
        if leaf == "weight":
            return tensor[blocks]
        outputs = slice(blocks.start * BLOCK, blocks.stop * BLOCK)
        return tensor[outputs] if leaf == "row_scale" else tensor[:, outputs]

    def quantize(self, weight: Float[Tensor, "n k"]) -> dict[str, Tensor]:
        """The stored tensors of one weight, by leaf name."""
        if self.bits == 8:
            return dict(zip(("weight", "row_scale"), quantize_int8(weight), strict=True))
        names = ("weight", "row_scale", "group_scale")
        return dict(zip(names, quantize_int4(weight, self.group_size), strict=True))


def choose_format(bits: int, num_inputs: int, group_size: int = 64) -> WeightFormat:
    """The format of a weight with so many inputs; int8 where no group size divides them."""
    if bits == 4:
        for size in sorted(GROUP_SIZES, reverse=True):
            if size <= group_size and num_inputs % size == 0:
                return WeightFormat(4, size)
    return WeightFormat(8)


class QuantizedWeight(nn.Module):
    """The stored tensors of one weight (N, K), or of a stack of weights (E, N, K)."""

    weight: Tensor
    row_scale: Tensor

    def __init__(self, form: WeightFormat, *shape: int, two_steps: bool = False) -> None:
        super().__init__()
        self.form = form
        self.two_steps = two_steps
        self.shape = shape
        self._ready: dict[int | None, tuple[Any, ...]] = {}
        self._ready_of: Tensor | None = None
        for name, (size, dtype) in form.tensors(*shape).items():
            self.register_buffer(name, torch.empty(size, dtype=dtype))

    @property
    def is_int8(self) -> bool:
        """Whether the weights take 8 bits; else they take 4."""
        return self.form.bits == 8

    def tensors(self, expert: int | None = None) -> tuple[Tensor, ...]:
        """The stored tensors, or those of one of the stacked weights."""
        tensors = tuple(t for t in self._buffers.values() if t is not None)
        return tensors if expert is None else tuple(tensor[expert] for tensor in tensors)

    def multiply_few(
        self, x: BFloat16[Tensor, "rows k"], expert: int | None = None
    ) -> BFloat16[Tensor, "rows n"]:
        """Return `x @ weight.T` weight-only, in bfloat16."""
        arguments = self._few_arguments(expert)
        if self.form.bits == 8:
            return torch._weight_int8pack_mm(x, *arguments)
        product = torch._weight_int4pack_mm_for_cpu(x, *arguments)
        return product if product.shape[1] == self.shape[-2] else product[:, : self.shape[-2]]

    def _few_arguments(self, expert: int | None) -> tuple[Any, ...]:
        """What the weight-only kernel gets, kept where it is made of views of the weight.

        In a step of one token, making views takes as long as small products.
        """
        if self._ready_of is not self.weight:
            self._ready_of, self._ready = self.weight, {}
        if (found := self._ready.get(expert)) is not None:
            return found
        tensors = self.tensors(expert)
        arguments = tensors if self.form.bits == 8 else few_arguments_int4(*tensors)
        if arguments[0].untyped_storage().data_ptr() == self.weight.untyped_storage().data_ptr():
            self._ready[expert] = arguments
        return arguments

    def multiply(
        self, x: Float[Tensor, "rows k"], expert: int | None = None
    ) -> Float[Tensor, "rows n"]:
        """Return `x @ weight.T` in float32, by the rule of `formats`."""
        if self.is_int8:
            return linear_int8(x, *self.tensors(expert), two_steps=self.two_steps)
        return linear_int4(x, *self.tensors(expert))[:, : self.shape[-2]]

    def integers(self, expert: int | None = None) -> tuple[Tensor, Tensor]:
        """The weight as an int8 matrix (K, N), padded if int4, and the scale of each output."""
        if self.is_int8:
            weight, scale = self.tensors(expert)
            return weight.t(), scale.float()
        weight, scale, scales = self.tensors(expert)
        return unpack_int4(weight, scale, scales), scale

    def dequantize(self, expert: int | None = None) -> Float[Tensor, "n k"]:
        """The float32 weight that is stood for; slow, for reference."""
        if self.is_int8:
            return dequantize_int8(*self.tensors(expert))
        return dequantize_int4(*self.tensors(expert))[: self.shape[-2]]

    def load(self, weight: Tensor, expert: int | None = None) -> None:
        """Quantise a float weight (N, K) into place."""
        for name, tensor in self.form.quantize(weight).items():
            own = getattr(self, name)
            (own if expert is None else own[expert]).copy_(tensor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move with the model, but keep the number formats when it is cast."""
        kept = {name: tensor.dtype for name, tensor in self._buffers.items() if tensor is not None}
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, dtype in kept.items():
            moved, old = self._buffers[name], before[name]
            if moved is not None and old is not None and moved.dtype != dtype:
                self._buffers[name] = old.to(moved.device)
        return self


class _NotTrained(torch.autograd.Function):
    """Gives a result that was computed without gradients, and refuses to pass one on."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, *inputs: Tensor) -> Tensor:
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise RequestError(NOT_TRAINED)


def _refuse_gradient(y: Tensor, *inputs: Tensor) -> Tensor:
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        refusing: Tensor = _NotTrained.apply(y, *inputs)
        return refusing
    return y


class QuantizedLinear(QuantizedWeight):
    """A linear layer with an int8 or int4 weight; inference only, on a CPU.

    Args:
        form: Format of the weight.
        linear: What it stands in for; its bias is taken over, its weight is not read.
        two_steps: Round activations twice, see `formats.linear_int8`; only for int8.
    """

    def __init__(self, form: WeightFormat, linear: nn.Linear, *, two_steps: bool = False) -> None:
        super().__init__(form, linear.out_features, linear.in_features, two_steps=two_steps)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch n"]:
        """Apply the layer; the result has the dtype of `x`, and no gradient can pass."""
        return _refuse_gradient(self._multiply_rows(x), x)

    @torch.no_grad()
    def _multiply_rows(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        few = len(rows) <= WEIGHT_ONLY_ROWS[self.form.bits] and is_readable(self.weight)
        y = self.multiply_few(few_rows(rows)) if few else self.multiply(rows.float())
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        return f"{self.in_features}, {self.out_features}, {self.form}"


class QuantizedExperts(nn.Module):
    """The stacked weights of `Experts` in int8 or int4; inference only, on a CPU.

    Args:
        up: Format of the first layers.
        down: Format of the second ones.
        experts: What it stands in for; its weights are not read.
    """

    def __init__(self, up: WeightFormat, down: WeightFormat, experts: Any) -> None:
        super().__init__()
        self.up_proj = QuantizedWeight(up, *experts.up_proj.shape)
        self.down_proj = QuantizedWeight(down, *experts.down_proj.shape)
        self.activation: Callable[[Tensor], Tensor] = experts.activation

    def forward(
        self,
        x: Float[Tensor, "tokens width"],
        weights: Float[Tensor, "tokens chosen"],
        chosen: Int[Tensor, "tokens chosen"],
    ) -> Float[Tensor, "tokens width"]:
        """Return the weighted sum of the chosen experts for each token; no gradient can pass."""
        return _refuse_gradient(self._run(x, weights, chosen), x, weights)

    @torch.no_grad()
    def _run(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """`forward`."""
        readable = is_readable(self.up_proj.weight) and is_readable(self.down_proj.weight)
        if len(x) == 1 and readable:
            return self._step(x, weights, chosen)

        def by_pytorch() -> Tensor:
            return self.sorted_by_expert(x, weights, chosen)

        if len(x) > 0 and x.is_cpu:
            total = run_experts(
                lambda: _read_experts(self, Watch()),
                self.activation,
                *(x, weights, chosen),
                WEIGHT_ONLY_ROWS[8],
                by_pytorch,
            )
            if total is not None:
                return total.to(x.dtype)
        return by_pytorch().to(x.dtype)

    def sorted_by_expert(
        self,
        x: Float[Tensor, "tokens width"],
        weights: Float[Tensor, "tokens chosen"],
        chosen: Int[Tensor, "tokens chosen"],
    ) -> Float[Tensor, "tokens width"]:
        """`forward` by PyTorch, in float32.

        1. Sort the (token, expert) pairs by expert, so that each expert's tokens are neighbours.
        2. Run each expert that has tokens on its stretch: weight-only if it is short, else with
           activations that were quantised once for all experts.
        3. Weight the results and add them up per token.
        """
        order = chosen.flatten().argsort()  # (t k,)
        tokens = order // chosen.shape[1]
        counts = torch.bincount(chosen.flatten(), minlength=self.up_proj.shape[0]).tolist()
        share = weights.flatten()[order, None]
        x32 = x.float()
        q, row_scale = quantize_rows(x32)
        total = torch.zeros(x.shape, dtype=torch.float32)
        end = 0
        for expert, count in enumerate(counts):
            if not count:
                continue
            start, end = end, end + count
            own = tokens[start:end]
            if count <= WEIGHT_ONLY_ROWS[self.up_proj.form.bits]:
                hidden = self.up_proj.multiply(x32[own], expert)
            else:
                product = integer_product(q[own], *self.up_proj.integers(expert))
                hidden = product[:, : self.up_proj.shape[1]].mul_(row_scale[own])
            result = self.down_proj.multiply(self.activation(hidden), expert)
            total.index_add_(0, own, result.mul_(share[start:end]))
        return total

    def _step(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """`forward` of a single token, in the fewest operations; arguments are as there."""
        experts = chosen[0].tolist()
        up, down, row = self.up_proj, self.down_proj, few_rows(x)
        hidden = torch.cat([up.multiply_few(row, expert) for expert in experts])
        # In bfloat16: it would be rounded to that once in any case.
        active = self.activation(hidden).split(1)
        pairs = zip(active, experts, strict=True)
        results = torch.cat([down.multiply_few(own, expert) for own, expert in pairs])
        return (weights.float() @ results.float()).to(x.dtype)  # (1, width)


# ------------------------------------------------------------------------- for the native step


def _read_weight(module: QuantizedWeight, watch: Watch) -> table.Matrix:
    """Describe the stored tensors, which are read where they are."""
    *_, outputs, inputs = module.shape
    weight = watch.tensor(module, "weight")
    scale = watch.tensor(module, "row_scale" if module.is_int8 else "group_scale")
    if not weight.is_contiguous() or not scale.is_contiguous():
        raise UnknownError(f"a weight has strides {weight.stride()}, {scale.stride()}")
    is_stack = len(module.shape) == 3
    return table.Matrix(
        format=table.INT8 if module.is_int8 else table.INT4,
        num_outputs=outputs,
        num_inputs=inputs,
        group_size=module.form.group_size,
        weight=weight.data_ptr(),
        scale=scale.data_ptr(),
        weight_stride=weight[0].nbytes if is_stack else 0,
        scale_stride=scale[0].nbytes if is_stack else 0,
    )


def _read_linear(module: QuantizedLinear, watch: Watch) -> table.Matrix:
    matrix = _read_weight(module, watch)
    matrix.bias = watch.floats_or_none(module, "bias")
    return matrix


def _read_experts(module: QuantizedExperts, watch: Watch) -> tuple[table.Matrix, table.Matrix]:
    for weight in (module.up_proj, module.down_proj):
        watch.module(weight, QuantizedWeight)
    return _read_weight(module.up_proj, watch), _read_weight(module.down_proj, watch)


table.LINEAR_READERS[QuantizedLinear] = _read_linear
table.EXPERTS_READERS[QuantizedExperts] = _read_experts
