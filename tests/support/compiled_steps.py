"""Compare compiled steps with eager ones and print what was found as JSON.

In a process of its own: the shape checks of the test run would be compiled too.
"""

import json
import sys
import warnings

import torch
import torch._dynamo

from omni.backbone import HybridForCausalLM
from omni.backbone.moe import lay_columns
from omni.quantization import QuantizationConfig, quantize_weights
from tests.support.backbone import tiny_model

# Widths that the kernels of int8 and int4 read: multiples of 16 and of a group.
READABLE = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "moe_intermediate_size": 96,
    "moe_shared_expert_intermediate_size": 64,
}
STEPS = 70  # behind a prompt of 9: past the first buffer of keys, which holds 64


def build(kind: str) -> HybridForCausalLM:
    """A tiny decoder of every kind of layer, two of each kind that remembers."""
    model = tiny_model("ME*-M*E", **READABLE).requires_grad_(False)
    if kind in ("int8", "int4"):
        quantize_weights(model, QuantizationConfig(bits=int(kind.removeprefix("int"))))
    elif kind == "columns":
        lay_columns(model)
    elif kind == "bfloat16":
        model.bfloat16()
    return model


@torch.no_grad()
def run(model: HybridForCausalLM, prompt: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Scores of the ids, token by token behind the prompt."""
    cache = model.new_cache()
    model(prompt, cache=cache, logits_to_keep=1)
    return torch.cat([model(token, cache=cache).logits for token in ids.split(1, dim=1)], dim=1)


@torch.no_grad()
def examine(kind: str) -> dict[str, object]:
    """Errors of compiled steps and what was compiled while an answer grew."""
    model = build(kind)
    prompt, ids = torch.randint(40, (3, 9)), torch.randint(40, (3, STEPS))
    expected = run(model, prompt[:1], ids[:1])
    batch = run(model, prompt, ids[:, :4])
    is_compiled = model.compile_step()
    before = dict(torch._dynamo.utils.counters["stats"])
    found = run(model, prompt[:1], ids[:1])
    for length in (2, 3, 5, 8):  # prompts are left eager, whatever their length
        run(model, prompt[:1, :length], ids[:1, :2])

    errors = (found - expected).norm(dim=-1) / expected.norm(dim=-1)

    # A snapshot taken between two steps is not written to.
    cache = model.new_cache()
    model(prompt[:1], cache=cache)
    model(ids[:1, :1], cache=cache)
    start = cache.snapshot()
    kept = start.tensors()
    once = model(ids[:1, 1:2], cache=cache).logits
    cache.restore(start)
    again = model(ids[:1, 1:2], cache=cache).logits
    return {
        "compiled": is_compiled,
        "worst": errors.max().item(),
        "median": errors.median().item(),
        "batch_is_equal": torch.equal(run(model, prompt, ids[:, :4]), batch),
        "snapshot_is_kept": all(torch.equal(t, kept[n]) for n, t in start.tensors().items()),
        "restored_repeats": torch.equal(once, again),
        "graphs": before.get("unique_graphs", 0),
        "graphs_after": torch._dynamo.utils.counters["stats"].get("unique_graphs", 0),
        "graph_breaks": list(torch._dynamo.utils.counters["graph_break"]),
    }


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sys.stdout.write(json.dumps(examine(sys.argv[1])) + "\n")
