"""Prefill time with and without `evs(0.7)`, at the widths of Nemotron 3 Nano.

    python benchmarks/pruned_prefill.py                   # 64 tubelets, layers MEM*E, 8 GB
    python benchmarks/pruned_prefill.py --layers "M*E" --repeats 5 --label-tokens 0

Builds a few layers of the released decoder (its widths, its 128 experts, random weights in
bfloat16) and the projected features of a video of which most places change a little and some a
lot: 64 tubelets of 16 x 16 tokens. Reduces them, lays every tubelet behind as many text tokens as
its label and delimiters have, and reads the prompt with and without reduction, in turns, in the
same chunks as `omni.generation.prefill`. Prints one JSON line: median seconds and their ratio, the
reducer's seconds as a share of the unpruned prefill, and the ratio of the multiplications that the
two prompts need: more than that is saved where long prompts also cost memory traffic. Seconds are
of processor time, over all threads, so that another program on the machine does not count; wall
seconds stand beside them.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from omni.backbone.cache import HybridCache
from omni.backbone.model import HybridForCausalLM
from omni.memory import PREFILL_CHUNK
from omni.presets import nano_30b_a3b
from token_reduction import TokenLayout, build

PLACES = (16, 16)  # tokens of a tubelet: 1,024 patches, folded 2 x 2
TUBELET_FRAMES = 2
SECONDS_PER_FRAME = 0.5
# "25-30 text tokens per tubelet" with the released tokenizer; labels and delimiters stay.
LABEL_TOKENS = 28


def build_decoder(layers: str) -> HybridForCausalLM:
    """A few layers of the released decoder; a small vocabulary, since prefill scores one token."""
    config = nano_30b_a3b()
    config = type(config)(**{**config.to_dict(), "hybrid_override_pattern": layers,
                             "layers_block_type": None, "vocab_size": 1024})  # fmt: skip
    with torch.device("meta"):
        model = HybridForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02, generator=generator)
        for buffer in model.buffers():
            buffer.zero_()
    return model.eval()


def make_video(num_steps: int, width: int) -> tuple[Tensor, TokenLayout]:
    """Projected tokens of a drifting scene in which a twentieth of the places is new each step."""
    generator = torch.Generator().manual_seed(0)
    cells = PLACES[0] * PLACES[1]
    scene = torch.randn(cells, width, generator=generator)
    steps = []
    for _ in range(num_steps):
        fresh = torch.randn(cells, width, generator=generator)
        is_new = torch.rand(cells, 1, generator=generator) < 0.05
        scene = torch.where(is_new, fresh, scene + 0.05 * fresh)
        steps.append(scene)
    seconds = TUBELET_FRAMES * SECONDS_PER_FRAME
    spans = tuple((t * seconds, (t + 1) * seconds) for t in range(num_steps))
    return torch.cat(steps).bfloat16(), TokenLayout.full("video", (num_steps, *PLACES), spans)


def lay(features: Tensor, layout: TokenLayout, label_tokens: int) -> Tensor:
    """Put each tubelet's tokens behind the embeddings of its label: (1, seq, hidden)."""
    generator = torch.Generator().manual_seed(1)
    label = torch.randn(label_tokens, features.shape[1], generator=generator).to(features.dtype)
    pieces = [
        part
        for step in features.split(list(layout.tokens_per_step))
        for part in (label, step)
    ]  # fmt: skip
    return torch.cat(pieces)[None]


@torch.no_grad()
def prefill(model: HybridForCausalLM, embeddings: Tensor) -> None:
    """Read a prompt chunk by chunk into a fresh cache."""
    cache = HybridCache(model.config.layer_types, capacity=embeddings.shape[1])
    for piece in embeddings.split(PREFILL_CHUNK, dim=1):
        model(inputs_embeds=piece, cache=cache, logits_to_keep=1)


class Clock:
    """Processor and wall seconds of named pieces of work, run by run."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, list[float]] = defaultdict(list)
        self.wall_s: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Time the block under a name."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.cpu_s[name].append(round(time.process_time() - cpu, 3))
        self.wall_s[name].append(round(time.perf_counter() - wall, 3))


def multiplications(model: HybridForCausalLM, num_tokens: int) -> float:
    """Multiply-adds of a prefill: active weights of each token, and attention to all before it."""
    config = model.config
    total = 0.0
    for kind, block in zip(config.layer_types, model.model.layers, strict=True):
        weights = 0.0
        for name, parameter in block.named_parameters():
            share = config.num_experts_per_tok / config.n_routed_experts
            weights += parameter.numel() * (share if "mixer.experts." in name else 1)
        total += weights * num_tokens
        if kind == "attention":
            total += num_tokens**2 * config.num_attention_heads * config.head_dim
    return total


def main() -> None:
    """Measure and print the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", default="MEM*E", help="M Mamba-2, E experts, * attention")
    parser.add_argument("--tubelets", type=int, default=64)
    parser.add_argument("--reduce", default="evs(0.7)", help="spec of the reduction")
    parser.add_argument("--label-tokens", type=int, default=LABEL_TOKENS)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    model = build_decoder(options.layers)
    features, layout = make_video(options.tubelets, model.config.hidden_size)
    reducer = build(options.reduce)
    reducer(features, layout)  # first calls are slower

    clock = Clock()
    full = lay(features, layout, options.label_tokens)
    prefill(model, full[:, :PREFILL_CHUNK])
    for _ in range(options.repeats):
        with clock.measure("reduce"):
            kept, kept_layout = reducer(features, layout)
        pruned = lay(kept, kept_layout, options.label_tokens)
        with clock.measure("pruned"):
            prefill(model, pruned)
        with clock.measure("unpruned"):
            prefill(model, full)

    median = {name: statistics.median(values) for name, values in clock.cpu_s.items()}
    share = multiplications(model, full.shape[1]) / multiplications(model, pruned.shape[1])
    result: dict[str, Any] = {
        "benchmark": "pruned_prefill",
        "layers": options.layers,
        "reduce": options.reduce,
        "tubelets": options.tubelets,
        "label_tokens": options.label_tokens,
        "prompt_tokens": {"unpruned": full.shape[1], "pruned": pruned.shape[1]},
        "media_tokens": {"unpruned": len(features), "pruned": len(kept)},
        "seconds": median,
        "ratio": round(median["unpruned"] / median["pruned"], 3),
        "multiplications_ratio": round(share, 3),
        "reducer_share": round(median["reduce"] / median["unpruned"], 5),
        "runs": {"cpu_s": clock.cpu_s, "wall_s": clock.wall_s},
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
