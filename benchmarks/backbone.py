"""Our hybrid decoder against transformers' NemotronH: same weights, in turns, in float32.

    python benchmarks/backbone.py mamba-prefill      # one Mamba layer, 2,048 tokens, real widths
    python benchmarks/backbone.py stack-prefill      # layers M, E, *, M, E (needs 12 GB)
    python benchmarks/backbone.py stack-decode       # the same layers, one token at a time
    python benchmarks/backbone.py small-decode       # 90 M parameters: 12 layers, hidden 512
    python benchmarks/backbone.py small-training     # forward + backward of 1,024 tokens
    python benchmarks/backbone.py scan-memory        # peak extra memory of the scan alone

"Real widths" are those of Nemotron 3 Nano. Three processes share one set of random weights and run
in turns: ours as the `omni` program runs it, transformers as installed, and transformers with our
allocator setting. `ratio` is theirs over ours as installed, `ratio_same_allocator` the other;
`limit_fraction` is the time that the weights' multiplications would take at the rate of a plain
matrix product (prefill) or that reading the weights would take at the rate of a matrix-vector
product (decode), measured in the same run, over our time.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from backbone_sides import (
    DECODE_PROMPT,
    Side,
    alternate,
    decode_ours,
    decode_theirs,
    machine,
    next_token_loss,
    ratio,
)
from torch import Tensor, nn
from transformers import NemotronHConfig, NemotronHForCausalLM
from transformers.models.nemotron_h.modeling_nemotron_h import (
    NemotronHMamba2Mixer,
    mamba2_chunk_scan,
)

from omni.backbone import HybridForCausalLM
from omni.backbone.mamba import MambaMixer
from omni.backbone.moe import lay_columns
from omni.backbone.ssd import ssd_scan
from omni.presets import nano_30b_a3b


def real_config(layers: str) -> NemotronHConfig:
    """Widths of Nemotron 3 Nano, a few layers, a small vocabulary."""
    fields = nano_30b_a3b().to_dict() | {"hybrid_override_pattern": layers, "vocab_size": 1024}
    fields["layers_block_type"] = None
    return NemotronHConfig(**fields)


def small_config() -> NemotronHConfig:
    """A 90 M decoder of 12 layers with the proportions of the released ones."""
    return NemotronHConfig(
        vocab_size=8192,
        hidden_size=512,
        hybrid_override_pattern="MEMEM*EMEM*E",
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=1024,
        mamba_num_heads=16,
        mamba_head_dim=64,
        n_groups=2,
        ssm_state_size=128,
        conv_kernel=4,
        chunk_size=128,
        n_routed_experts=36,
        num_experts_per_tok=6,
        moe_intermediate_size=352,
        moe_shared_expert_intermediate_size=704,
        routed_scaling_factor=2.5,
    )


def random_weights(
    build: Callable[[], nn.Module], *, tie_experts: bool = False
) -> dict[str, Tensor]:
    """Make a state dict of random weights.

    Args:
        build: Builds the model which gives names and shapes.
        tie_experts: Let all MoE layers share one set of experts; no cache holds them anyway.
    """
    with torch.device("meta"):
        model = build()
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}
    experts: dict[str, Tensor] = {}
    for name, like in model.state_dict().items():
        leaf = name.split("mixer.experts.")[-1]
        if tie_experts and leaf != name and leaf in experts:
            weights[name] = experts[leaf]
            continue
        tensor = torch.empty(like.shape)
        tensor.normal_(0, like.shape[-1] ** -0.5 if like.ndim > 1 else 0.02, generator=generator)
        if "norm" in name or name.endswith(".D"):
            tensor.add_(1)
        elif name.endswith("A_log"):
            tensor.uniform_(0, 2.7, generator=generator)
        elif name.endswith("dt_bias"):
            tensor.uniform_(-6, -2, generator=generator)  # softplus: 0.0025 to 0.13
        weights[name] = experts[leaf] = tensor
    return weights


def load(
    build: Callable[[], nn.Module], weights: dict[str, Tensor], *, training: bool = False
) -> nn.Module:
    """Build a model around the given tensors."""
    with torch.device("meta"):
        model = build()
    model.load_state_dict(weights, strict=True, assign=True)
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    return model.train(training).requires_grad_(training)


def three_sides(
    ours: Callable[[], Any], theirs: Callable[[], Any], threads: int
) -> tuple[Side, Side, Side]:
    """Ours, transformers with our allocator setting, transformers as installed."""
    return (
        Side("ours", ours, True, threads),
        Side("transformers, same allocator", theirs, True, threads),
        Side("transformers", theirs, False, threads),
    )


def mamba_prefill(options: argparse.Namespace) -> dict[str, Any]:
    """One Mamba layer."""
    config = real_config("M")
    builders = {
        "ours": lambda: MambaMixer(config),
        "theirs": lambda: NemotronHMamba2Mixer(config, 0),
    }
    weights = random_weights(builders["ours"])
    x = torch.randn(1, options.tokens, config.hidden_size)

    def build(side: str) -> Callable[[], None]:
        layer = load(builders[side], weights)

        def work() -> None:
            layer(x)

        return work

    sides = three_sides(lambda: build("ours"), lambda: build("theirs"), options.threads)
    limits = alternate(list(sides), options, ("gemm",))
    products = sum(t.numel() for name, t in weights.items() if "proj" in name) * options.tokens
    return report(sides, 2 * products / limits["gemm"], limits)


def stack_prefill(options: argparse.Namespace) -> dict[str, Any]:
    """Layers M, E, *, M, E."""
    config = real_config(options.layers)
    models, weights = causal_models(config, tie_experts=True)
    x = torch.randn(1, options.tokens, config.hidden_size)

    def build(side: str) -> Callable[[], None]:
        model = load(models[side], weights)
        arguments = {} if side == "ours" else {"use_cache": False}

        def work() -> None:
            model(inputs_embeds=x, logits_to_keep=1, **arguments)

        return torch.no_grad()(work)

    sides = three_sides(lambda: build("ours"), lambda: build("theirs"), options.threads)
    limits = alternate(list(sides), options, ("gemm",))
    products = active_weights(config, weights) * options.tokens
    attention = config.layer_types.count("full_attention") * options.tokens**2
    products += attention * config.num_attention_heads * config.head_dim
    return report(sides, 2 * products / limits["gemm"], limits)


def decode(options: argparse.Namespace) -> dict[str, Any]:
    """One token at a time, after a short prompt; seconds are those of a token."""
    is_small = options.what == "small-decode"
    config = small_config() if is_small else real_config(options.layers)
    models, weights = causal_models(config, tie_experts=not is_small)
    prompt = torch.randint(config.vocab_size, (1, DECODE_PROMPT))

    def ours(native: bool = True) -> Callable[[], float]:
        model = load(models["ours"], weights)
        lay_columns(model)
        return decode_ours(model, prompt, native=native)

    def theirs() -> Callable[[], float]:
        model = load(models["theirs"], weights)
        if options.experts:
            model.set_experts_implementation(options.experts)
        return decode_theirs(model, prompt)

    sides = list(three_sides(ours, theirs, options.threads))
    if options.eager:
        eager = Side("ours, by PyTorch", lambda: ours(native=False), True, options.threads)
        sides.append(eager)
    limits = alternate(sides, options, ("bandwidth",))
    bytes_read = 4 * active_weights(config, weights)
    return report(sides, bytes_read / limits["bandwidth"], limits)


def small_training(options: argparse.Namespace) -> dict[str, Any]:
    """Forward and backward."""
    config = small_config()
    models, weights = causal_models(config)
    ids = torch.randint(config.vocab_size, (1, options.tokens))

    def build(side: str) -> Callable[[], None]:
        model = load(models[side], weights, training=True)
        arguments = {} if side == "ours" else {"use_cache": False}

        def work() -> None:
            model.zero_grad()
            next_token_loss(model(ids, **arguments).logits, ids).backward()

        return work

    sides = three_sides(lambda: build("ours"), lambda: build("theirs"), options.threads)
    limits = alternate(list(sides), options, ("gemm",))
    products = 3 * active_weights(config, weights) * options.tokens
    return report(sides, 2 * products / limits["gemm"], limits)


def scan_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak extra memory of the scan, both with the allocator as installed."""
    config = real_config("M")
    heads, groups, seq = config.mamba_num_heads, config.n_groups, options.tokens
    x = torch.randn(1, seq, heads, config.mamba_head_dim)
    dt, A, D = torch.rand(1, seq, heads) * 0.1, -torch.rand(heads), torch.rand(heads)
    B, C = torch.randn(2, 1, seq, groups, config.ssm_state_size)

    def ours() -> Callable[[], None]:
        def work() -> None:
            ssd_scan(x, dt, A, B, C, D)

        return torch.no_grad()(work)

    def theirs() -> Callable[[], None]:
        def work() -> None:
            mamba2_chunk_scan(
                x, dt, A, B, C, chunk_size=config.chunk_size, D=D, return_final_states=True
            )

        return torch.no_grad()(work)

    sides = [Side("ours", ours, False, options.threads), Side("t", theirs, False, options.threads)]
    alternate(sides, options)
    peaks = [statistics.median(side.ask("peak") for _ in range(options.repeats)) for side in sides]
    for side in sides:
        side.close()
    return {
        "ratio": round(peaks[0] / peaks[1], 3),
        "ratio_seconds": round(ratio(sides[1], sides[0]), 3),
        "peak_mib": {"ours": peaks[0] / 2**20, "transformers": peaks[1] / 2**20},
    }


def causal_models(
    config: NemotronHConfig, *, tie_experts: bool = False
) -> tuple[dict[str, Callable[[], nn.Module]], dict[str, Tensor]]:
    """Return builders of both models and weights for them."""
    fields = config.to_dict()
    models: dict[str, Callable[[], nn.Module]] = {
        "ours": lambda: HybridForCausalLM(NemotronHConfig(**fields)),
        "theirs": lambda: NemotronHForCausalLM(NemotronHConfig(**fields)),
    }
    weights = random_weights(models["ours"], tie_experts=tie_experts)
    return models, weights


def active_weights(config: NemotronHConfig, weights: dict[str, Tensor]) -> float:
    """Weights that take part in one token: matrices, of the experts the chosen share."""
    total = 0.0
    for name, weight in weights.items():
        if weight.ndim > 1 and "embeddings" not in name:
            share = config.num_experts_per_tok / config.n_routed_experts
            total += weight.numel() * (share if ".experts." in name else 1)
    return total


def report(sides: Sequence[Side], limit_s: float, limits: dict[str, float]) -> dict[str, Any]:
    """Sum up the sides of `three_sides`, and others behind them."""
    ours, same, installed, *others = sides
    for side in sides:
        side.close()
    seconds = {side.name: statistics.median(side.seconds) for side in sides}
    return {
        "ratio": round(ratio(installed, ours), 3),
        "ratio_same_allocator": round(ratio(same, ours), 3),
        **{f"ratio of {other.name}": round(ratio(installed, other), 3) for other in others},
        "limit_fraction": round(limit_s / seconds["ours"], 3),
        "limit_fraction_transformers": round(limit_s / seconds["transformers"], 3),
        "seconds": {name: round(value, 5) for name, value in seconds.items()},
        "limits": {name: round(value / 1e9, 1) for name, value in limits.items()},
        "runs": {side.name: [round(s, 5) for s in side.seconds] for side in sides},
    }


WORK = {
    "mamba-prefill": mamba_prefill,
    "stack-prefill": stack_prefill,
    "stack-decode": decode,
    "small-decode": decode,
    "small-training": small_training,
    "scan-memory": scan_memory,
}


def main() -> None:
    """Measure and print the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=WORK)
    parser.add_argument("--layers", default="ME*ME", help="M Mamba-2, E experts, * attention")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1, help="runs before the first that counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="also our steps without the library")
    parser.add_argument("--experts", help="transformers' experts_implementation [default: its own]")
    options = parser.parse_args()
    options.tokens = options.tokens or (1024 if options.what == "small-training" else 2048)
    # Before the fork everything runs on one thread: OpenMP's do not survive it.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    result = {"benchmark": f"backbone-{options.what}", "tokens": options.tokens}
    result |= WORK[options.what](options)
    print(json.dumps(result | {"machine": machine(options.threads)}))


if __name__ == "__main__":
    main()
