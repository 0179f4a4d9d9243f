"""Mixture of experts: a router picks a few of many MLPs for each token.

Letters: t tokens, k experts chosen per token, e experts, d width of the experts' input.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import NemotronHConfig

from omni.backbone.columns import is_in_columns, multiply_chosen, suits_columns, to_columns
from omni.backbone.layers import MLP, ResidualLinear, find_activation, upcast
from omni.backbone.products import Linear, grouped_linear, linear
from omni.errors import ConfigError

MAX_COLUMN_TOKENS = 8
"""Most tokens whose experts are read column by column, one token at a time."""
STRETCH_STEP = 8
"""Rows to a multiple of which an expert's stretch is filled up, at least; see `Stretches`."""
LARGE = 2**20
"""Numbers in a weight of an expert from which on the library of `native` multiplies many rows."""
MANY = 128
"""Tokens from which on it does."""
STRETCH_SHARE = 4
"""Of a longer stretch, the multiple is 2 to the minus this of the power of 2 below its rows."""


class Router(nn.Module):
    """Choose experts by sigmoid score plus a correction bias that balances their load.

    The bias only takes part in the choice; the weights are the scores themselves. It stays float32
    when the model is cast, since the steps by which it is trained are below bfloat16's resolution.
    """

    e_score_correction_bias: Tensor

    def __init__(self, config: NemotronHConfig) -> None:
        super().__init__()
        num_experts = config.n_routed_experts
        if num_experts % config.n_group:
            raise ConfigError(
                f"n_routed_experts is {num_experts}, which n_group {config.n_group} does not "
                "divide; experts are chosen from groups of equal size."
            )
        self.num_experts_per_tok = config.num_experts_per_tok
        self.num_groups = config.n_group
        self.num_groups_per_tok = config.topk_group
        self.normalise = config.norm_topk_prob
        self.scale = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(num_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(num_experts))

    def forward(
        self, x: Float[Tensor, "tokens hidden"]
    ) -> tuple[Float[Tensor, "tokens chosen"], Int[Tensor, "tokens chosen"]]:
        """Return weight (at least float32) and index of the experts chosen for each token."""
        scores = linear(upcast(x), upcast(self.weight)).sigmoid()
        chosen = self._choose(scores.detach() + self.e_score_correction_bias)
        weights = scores.gather(1, chosen)
        if self.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * self.scale, chosen

    def _choose(self, scores: Float[Tensor, "tokens experts"]) -> Int[Tensor, "tokens chosen"]:
        if self.num_groups_per_tok < self.num_groups:
            # Only experts of the best groups compete; a group is as good as its two best experts.
            grouped = scores.unflatten(1, (self.num_groups, -1))  # (t, groups, e / groups)
            quality = grouped.topk(2, dim=-1).values.sum(-1)
            best = quality.topk(self.num_groups_per_tok, dim=-1).indices
            competing = torch.zeros_like(quality, dtype=torch.bool).scatter_(1, best, True)
            scores = grouped.masked_fill(~competing[..., None], -torch.inf).flatten(1)
        return scores.topk(self.num_experts_per_tok, dim=-1, sorted=False).indices

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = self.e_score_correction_bias
        super()._apply(fn, recurse)
        moved = self.e_score_correction_bias
        if moved.dtype != torch.float32:
            self.e_score_correction_bias = kept.to(device=moved.device, dtype=torch.float32)
        return self


class Experts(nn.Module):
    """The experts' weights, stacked, applied to the tokens routed to them."""

    def __init__(self, config: NemotronHConfig) -> None:
        super().__init__()
        width = config.moe_latent_size or config.hidden_size
        shape = (config.n_routed_experts, config.moe_intermediate_size, width)
        self.up_proj = nn.Parameter(torch.empty(shape))
        self.down_proj = nn.Parameter(torch.empty(shape[0], shape[2], shape[1]))
        self.activation = find_activation(config.mlp_hidden_act)

    def forward(
        self,
        x: Float[Tensor, "tokens width"],
        weights: Float[Tensor, "tokens chosen"],
        chosen: Int[Tensor, "tokens chosen"],
    ) -> Float[Tensor, "tokens width"]:
        """Return the weighted sum of the chosen experts for each token."""
        if not torch.is_grad_enabled():
            if not len(x):
                return torch.zeros_like(x)
            if len(x) <= MAX_COLUMN_TOKENS and self.has_columns:
                return self._read_columns(x, weights, chosen)
            if len(x) == 1:
                return self._step(x, weights, chosen)
            if len(x) >= MANY and self._is_large(x):
                # Not above: the library's tables describe this class.
                from omni.backbone.native.float_experts import run_float_experts

                total = run_float_experts(self, x, weights, chosen)
                if total is not None:
                    return total
        return self.sorted_by_expert(x, weights, chosen)

    def sorted_by_expert(
        self,
        x: Float[Tensor, "tokens width"],
        weights: Float[Tensor, "tokens chosen"],
        chosen: Int[Tensor, "tokens chosen"],
    ) -> Float[Tensor, "tokens width"]:
        """`forward` by PyTorch, for any number of tokens.

        1. Lay out the (token, expert) pairs so that each expert's tokens are neighbours.
        2. Run each expert that has tokens on its stretch.
        3. Weight the results and add them up per token.
        """
        stretches = Stretches.of(chosen, num_experts=self.up_proj.shape[0])
        rows: Tensor = _Gather.apply(x, stretches.tokens, stretches.slots)
        if torch.is_grad_enabled():
            hidden = self.activation(grouped_linear(rows, self.up_proj, stretches.sizes))
            results = grouped_linear(hidden, self.down_proj, stretches.sizes)
        else:  # expert by expert, so that what lies between the products stays in the cache
            results = torch.cat(
                [
                    linear(self.activation(linear(stretch, self.up_proj[e])), self.down_proj[e])
                    for e, stretch in enumerate(rows.split(stretches.sizes))
                    if len(stretch)
                ]
            )
        total: Tensor = _Combine.apply(
            results.to(weights.dtype), weights, stretches.tokens, stretches.slots
        )
        return total.to(x.dtype)

    def _is_large(self, x: Tensor) -> bool:
        """Whether an expert is large enough for the library, and its weights are plain floats."""
        is_plain = x.dtype == self.up_proj.dtype == torch.float32 and x.device.type == "cpu"
        return (
            is_plain
            and {"up_proj", "down_proj"} <= self._parameters.keys()  # not made by an adapter
            and self.up_proj[0].numel() >= LARGE
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )

    @property
    def has_columns(self) -> bool:
        """Whether the weights lie in memory as `lay_columns` leaves them."""
        return is_in_columns(self.up_proj) and is_in_columns(self.down_proj)

    def lay_columns(self) -> None:
        """Let each expert's weights lie column by column: faster for a few tokens, see `columns`.

        Nothing else changes, and nothing happens where the columns are too long to be faster.
        """
        for name in ("up_proj", "down_proj"):
            weight = getattr(self, name)
            if isinstance(weight, nn.Parameter) and suits_columns(weight):
                weight.data = to_columns(weight.data)

    def _read_columns(
        self,
        x: Float[Tensor, "tokens width"],
        weights: Float[Tensor, "tokens chosen"],
        chosen: Int[Tensor, "tokens chosen"],
    ) -> Float[Tensor, "tokens width"]:
        """`forward` of a few tokens: one operation for all first layers, one for all second."""
        experts = chosen.view(-1)  # (t k,)
        rows = x[:, None].expand(-1, chosen.shape[1], -1).reshape(len(experts), -1)
        hidden = self.activation(multiply_chosen(rows, self.up_proj, experts))
        hidden.mul_(weights.view(-1, 1))
        results = multiply_chosen(hidden, self.down_proj, experts)
        return results.view(*chosen.shape, -1).sum(1)

    def _step(
        self,
        x: Float[Tensor, "1 width"],
        weights: Float[Tensor, "1 chosen"],
        chosen: Int[Tensor, "1 chosen"],
    ) -> Float[Tensor, "1 width"]:
        """`forward` of a single token: nothing to sort, and only its experts are read."""
        results = torch.cat(
            [
                linear(self.activation(linear(x, self.up_proj[e])), self.down_proj[e])
                for e in chosen[0].tolist()
            ]
        )
        return (weights @ results.to(weights.dtype)).to(x.dtype)


def lay_columns(model: nn.Module) -> None:
    """Lay the experts of a model for decoding on a CPU; what they compute stays the same."""
    for module in model.modules():
        if isinstance(module, Experts):
            module.lay_columns()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretches:
    """Where each (token, expert) pair lies when the pairs are laid out expert by expert.

    Long stretches are filled up by a sixteenth at most, with rows whose results nobody reads: the
    library that multiplies prepares itself anew for every number of rows that it has not met, which
    takes a millisecond or two and 0.65 MiB each, and so there are only 16 numbers to an octave.
    """

    tokens: Int[Tensor, " rows"]
    """Token of each row; token 0 in the rows that fill up."""
    slots: Int[Tensor, "tokens chosen"]
    """Row of each pair."""
    sizes: list[int]
    """Rows of each expert, 0 where nobody chose it."""

    @classmethod
    def of(cls, chosen: Int[Tensor, "tokens chosen"], *, num_experts: int) -> "Stretches":
        """Lay out the pairs."""
        experts, order = chosen.flatten().sort()
        counts = torch.bincount(experts, minlength=num_experts)
        sizes = torch.where(counts < 2 * STRETCH_STEP, counts, _round_up(counts))
        shift = (sizes - counts).cumsum(0) - (sizes - counts)  # rows filled up before an expert
        rows = torch.arange(len(order), device=chosen.device) + shift[experts]
        numbers = sizes.tolist()
        tokens = order.new_zeros(sum(numbers)).scatter_(0, rows, order // chosen.shape[1])
        slots = torch.empty_like(order).scatter_(0, order, rows)
        return cls(tokens=tokens, slots=slots.view_as(chosen), sizes=numbers)


def _round_up(counts: Tensor) -> Tensor:
    octave = torch.frexp(counts.double()).exponent - 1  # of 2 to the power of it, at most count
    step = (2.0 ** (octave - STRETCH_SHARE)).long().clamp(min=STRETCH_STEP)
    return (counts + step - 1) // step * step


class _Gather(torch.autograd.Function):
    """x[tokens], with a gradient that sums the rows of each token instead of scattering them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        return x.index_select(0, tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slots,) = ctx.saved_tensors
        dtype = torch.promote_types(grad.dtype, torch.float32)
        return F.embedding_bag(slots, grad.to(dtype), mode="sum").to(grad.dtype), None, None


class _Combine(torch.autograd.Function):
    """The sum of weight times result over the pairs of each token.

    `embedding_bag` reads each result once and writes nothing but the total.
    """

    @staticmethod
    def forward(
        ctx: Any, results: Tensor, weights: Tensor, tokens: Tensor, slots: Tensor
    ) -> Tensor:
        ctx.save_for_backward(results, weights, tokens, slots)
        return F.embedding_bag(slots, results, mode="sum", per_sample_weights=weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        results, weights, tokens, slots = ctx.saved_tensors
        grad_rows = grad.index_select(0, tokens)
        grad_weights = (grad_rows * results).sum(1)[slots]
        share = weights.new_zeros(len(tokens)).scatter_(0, slots.flatten(), weights.flatten())
        return grad_rows.mul_(share[:, None]), grad_weights, None, None


class MoE(nn.Module):
    """Routed experts, optionally in a narrower latent space, plus an expert for all tokens."""

    def __init__(self, config: NemotronHConfig) -> None:
        super().__init__()
        hidden_size, latent_size = config.hidden_size, config.moe_latent_size
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = MLP(
            hidden_size,
            config.moe_shared_expert_intermediate_size,
            bias=config.mlp_bias,
            activation=config.mlp_hidden_act,
        )
        self.fc1_latent_proj: nn.Module = nn.Identity()
        self.fc2_latent_proj: nn.Module = nn.Identity()
        if latent_size is not None:
            self.fc1_latent_proj = Linear(hidden_size, latent_size, bias=config.mlp_bias)
            self.fc2_latent_proj = ResidualLinear(latent_size, hidden_size, bias=config.mlp_bias)

    def forward(
        self, hidden_states: Float[Tensor, "batch seq hidden"]
    ) -> Float[Tensor, "batch seq hidden"]:
        """Return the sum of routed and shared experts for each position."""
        x = hidden_states.flatten(0, 1)
        weights, chosen = self.gate(x)
        routed = self.fc2_latent_proj(self.experts(self.fc1_latent_proj(x), weights, chosen))
        return (routed + self.shared_experts(x)).view_as(hidden_states)
