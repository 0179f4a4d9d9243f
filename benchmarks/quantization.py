"""Int8 and int4 of our hybrid decoder against transformers in float32, in turns.

    python benchmarks/quantization.py stack-prefill --bits 8   # layers M, E, *, M, E, 2,048 tokens
    python benchmarks/quantization.py stack-decode --bits 4    # the same layers, token by token
    python benchmarks/quantization.py small-decode --bits 4    # 90 M parameters
    python benchmarks/quantization.py kernels                  # one product, by format and rows

Widths, weights, processes and ratios are those of `backbone.py`. `limit_fraction` is the time of
the weights' multiplications at the rate of one large integer product (prefill), or of reading the
quantised weights at the rate of a matrix-vector product in float32 (decode), measured in the same
run, over our time.
"""

import argparse
import contextlib
import functools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from backbone import (
    active_weights,
    causal_models,
    load,
    real_config,
    report,
    small_config,
    three_sides,
)
from backbone_sides import (
    DECODE_PROMPT,
    LIMITS,
    Side,
    alternate,
    decode_ours,
    decode_theirs,
    machine,
)
from torch import Tensor, nn

from omni.backbone.native.library import Library, UnavailableError
from omni.quantization import QuantizationConfig, formats, quantize_modules, quantize_weights
from omni.quantization.formats import (
    linear_int4,
    linear_int8,
    quantize_int4,
    quantize_int8,
)
from omni.quantization.modules import QuantizedWeight

KERNEL_SHAPES = ((10304, 2688), (2688, 4096), (1856, 2688), (512, 512))
KERNEL_ROWS = (1, 2, 4, 8, 16, 24, 48, 96, 512)
CACHE_BYTES = 2**28  # of copies of a weight that take turns, so that none is read from a cache


def measure_int8_gemm() -> float:
    """OP/s of an integer product of the size of a projection, without allocation."""
    a = torch.randint(-127, 128, (2048, 2688), dtype=torch.int8)
    b = torch.randint(-127, 128, (8192, 2688), dtype=torch.int8)
    out = torch._int_mm(a, b.t())
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        torch._int_mm(a, b.t(), out=out)
        seconds.append(time.perf_counter() - start)
    return 2 * a.numel() * b.shape[0] / min(seconds)


LIMITS["int8_gemm"] = measure_int8_gemm


def active_bytes(model: nn.Module, chosen_share: float) -> float:
    """Bytes of the weights that one token reads, of the experts the chosen share."""
    total = 0.0
    for module in model.modules():
        if isinstance(module, QuantizedWeight):
            share = chosen_share if len(module.shape) == 3 else 1.0
            total += share * sum(t.nbytes for t in module.tensors())
    for name, parameter in model.named_parameters():
        total += parameter.nbytes * ("embeddings" not in name)
    return total


def quantized(build: Callable[[], nn.Module], weights: dict[str, Tensor], bits: int) -> nn.Module:
    """Our model with quantised copies of the weights, and the library, if it can be had."""
    with contextlib.suppress(UnavailableError):
        Library.get()
    model = load(build, weights)
    quantize_weights(model, QuantizationConfig(bits=bits))
    return model


def stack_prefill(options: argparse.Namespace) -> dict[str, Any]:
    """Layers M, E, *, M, E."""
    config = real_config(options.layers)
    models, weights = causal_models(config, tie_experts=True)
    x = torch.randn(1, options.tokens, config.hidden_size)

    def ours() -> Callable[[], None]:
        model = torch.no_grad()(quantized)(models["ours"], weights, options.bits)

        @torch.no_grad()
        def work() -> None:
            model(inputs_embeds=x, logits_to_keep=1)

        return work

    def theirs() -> Callable[[], None]:
        model = load(models["theirs"], weights)

        @torch.no_grad()
        def work() -> None:
            model(inputs_embeds=x, logits_to_keep=1, use_cache=False)

        return work

    sides = three_sides(ours, theirs, options.threads)
    limits = alternate(list(sides), options, ("int8_gemm",))
    products = active_weights(config, weights) * options.tokens
    return report(sides, 2 * products / limits["int8_gemm"], limits)


def decode(options: argparse.Namespace) -> dict[str, Any]:
    """One token at a time, after a short prompt; seconds are those of a token."""
    is_small = options.what == "small-decode"
    config = small_config() if is_small else real_config(options.layers)
    models, weights = causal_models(config, tie_experts=not is_small)
    prompt = torch.randint(config.vocab_size, (1, DECODE_PROMPT))
    with torch.device("meta"):
        shape_of = models["ours"]()
    quantize_modules(shape_of, QuantizationConfig(bits=options.bits))
    read = active_bytes(shape_of, config.num_experts_per_tok / config.n_routed_experts)

    def ours(native: bool = True) -> Callable[[], float]:
        model = quantized(models["ours"], weights, options.bits)
        return decode_ours(model, prompt, native=native)

    def theirs() -> Callable[[], float]:
        return decode_theirs(load(models["theirs"], weights), prompt)

    sides = list(three_sides(ours, theirs, options.threads))
    if options.eager:
        eager = Side("ours, by PyTorch", lambda: ours(native=False), True, options.threads)
        sides.append(eager)
    limits = alternate(sides, options, ("bandwidth",))
    return report(sides, read / limits["bandwidth"], limits) | {"megabytes": round(read / 1e6, 1)}


def kernels(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of one layer in each format, by rows: what the rule in `formats` rests on."""
    torch.set_num_threads(options.threads)
    rule = dict(formats.WEIGHT_ONLY_ROWS)
    found: dict[str, Any] = {}
    for n, k in KERNEL_SHAPES:
        copies = max(CACHE_BYTES // (4 * n * k), 1)
        weights = [torch.randn(n, k) for _ in range(copies)]
        packed = {
            8: [quantize_int8(w) for w in weights],
            4: [quantize_int4(w, 64) for w in weights],
        }
        for rows in KERNEL_ROWS:
            x = torch.randn(rows, k)
            plain = functools.partial(nn.functional.linear, x)
            row = {"float32": _median_ms(plain, [(w,) for w in weights], options)}
            for bits, multiply in ((8, linear_int8), (4, linear_int4)):
                for name, most in (("weight_only", rows), ("integers", 0)):
                    formats.WEIGHT_ONLY_ROWS[bits] = most
                    work = functools.partial(multiply, x)
                    row[f"int{bits}_{name}"] = _median_ms(work, packed[bits], options)
            formats.WEIGHT_ONLY_ROWS.update(rule)
            found[f"{rows} x {n} x {k}"] = row
    return {"milliseconds": found, "weight_only_rows": rule}


def _median_ms(work: Callable[..., Any], weights: list[Any], options: argparse.Namespace) -> float:
    seconds = []
    for repeat in range(options.repeats + 2):
        start = time.perf_counter()
        work(*weights[repeat % len(weights)])
        seconds.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(seconds[2:]), 4)


WORK = {
    "stack-prefill": stack_prefill,
    "stack-decode": decode,
    "small-decode": decode,
    "kernels": kernels,
}


def main() -> None:
    """Measure and print the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=WORK)
    parser.add_argument("--bits", type=int, default=8, choices=(8, 4))
    parser.add_argument("--layers", default="ME*ME", help="M Mamba-2, E experts, * attention")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2, help="runs before the first that counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="also our steps without the library")
    options = parser.parse_args()
    # Before the fork everything runs on one thread: OpenMP's do not survive it.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    result = {"benchmark": f"quantization-{options.what}", "bits": options.bits}
    result |= WORK[options.what](options)
    print(json.dumps(result | {"machine": machine(options.threads)}))


if __name__ == "__main__":
    main()
