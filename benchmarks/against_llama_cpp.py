"""Our hybrid decoder against llama.cpp: the same random weights, in turns.

    python benchmarks/against_llama_cpp.py small-decode      # 90 M parameters, token by token
    python benchmarks/against_llama_cpp.py stack-prefill     # layers M, E, *, M, E, 2,048 tokens
    python benchmarks/against_llama_cpp.py stack-decode      # the same layers, token by token

Ours in float32, int8 and int4, with native steps, beside llama.cpp's f32, q8_0 and q4_0, each in a
process of its own. `ratio` is llama.cpp's time over ours at the same bits,
`ratio_best` that of its fastest. At released widths f32 is left out, whose file alone takes 11 GB.
Needs `llama-cpp-python` and `gguf`.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from backbone import causal_models, load, real_config, small_config
from backbone_sides import DECODE_PROMPT, Side, alternate, decode_ours, machine
from llama_cpp_side import decode_work, difference, prefill_work, write_gguf
from quantization import quantized

from omni.backbone.moe import lay_columns

BITS = {"f32": 32, "q8_0": 8, "q4_0": 4}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time all sides."""
    is_small = options.what == "small-decode"
    config = small_config() if is_small else real_config(options.layers)
    models, weights = causal_models(config, tie_experts=not is_small)
    kinds = ["f32", "q8_0", "q4_0"] if is_small else ["q8_0", "q4_0"]
    files = {kind: folder / f"{kind}.gguf" for kind in kinds}
    for kind, path in files.items():
        write_gguf(path, config, weights, kind)
    is_prefill = options.what == "stack-prefill"
    ids = torch.randint(config.vocab_size, (1, options.tokens if is_prefill else DECODE_PROMPT))

    def ours(bits: int) -> Callable[[], Any]:
        if bits == 32:
            model = load(models["ours"], weights)
            lay_columns(model)
        else:
            model = torch.no_grad()(quantized)(models["ours"], weights, bits)
        if not is_prefill:
            return decode_ours(model, ids)

        @torch.no_grad()
        def work() -> None:
            model(ids, logits_to_keep=1)

        return work

    def theirs(path: Path) -> Callable[[], Any]:
        work = prefill_work if is_prefill else decode_work
        return work(path, options.threads, ids)

    threads, sides = options.threads, {}
    for kind in kinds:
        sides[kind] = Side(kind, lambda kind=kind: theirs(files[kind]), False, threads)
        name = f"ours {BITS[kind]}"
        sides[name] = Side(name, lambda kind=kind: ours(BITS[kind]), True, threads)
    alternate(list(sides.values()), options)
    for side in sides.values():
        side.close()
    found = {name: statistics.median(side.seconds) for name, side in sides.items()}
    best = min(found[kind] for kind in kinds)
    result = {
        "ratio": {k: round(found[k] / found[f"ours {BITS[k]}"], 3) for k in kinds},
        "ratio_best": {f"ours {BITS[k]}": round(best / found[f"ours {BITS[k]}"], 3) for k in kinds},
        "seconds": {name: round(value, 5) for name, value in found.items()},
        "runs": {name: [round(s, 5) for s in side.seconds] for name, side in sides.items()},
    }
    if is_small:  # that both compute the same
        model = load(models["ours"], weights)
        with torch.no_grad():
            expected = model(ids[:, :8], logits_to_keep=1).logits[0, -1]
        result["difference_f32"] = round(difference(files["f32"], expected, ids[:, :8]), 6)
    return result


def main() -> None:
    """Measure and print the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("small-decode", "stack-prefill", "stack-decode"))
    parser.add_argument("--layers", default="ME*ME", help="M Mamba-2, E experts, * attention")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)  # before the fork: OpenMP's threads do not survive it
    torch.manual_seed(0)
    result = {"benchmark": f"llama-cpp-{options.what}"}
    with tempfile.TemporaryDirectory() as folder:
        result |= measure(options, Path(folder))
    print(json.dumps(result | {"machine": machine(options.threads)}))


if __name__ == "__main__":
    main()
