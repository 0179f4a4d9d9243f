r"""Give a trained decoder more layers and more key heads, without changing what it says.

    python -m finetune.tiny.grow --joint runs/omni-tiny/long --out runs/omni-tiny/grown

For `train_joint --initial` after `PATTERN` or `KEY_VALUE_HEADS` of `finetune.tiny.model_config` was
enlarged. A new layer is a copy of the last one of its kind with its output at zero, so that it adds
nothing at first (Net2Net's function-preserving growth: Chen, Goodfellow and Shlens 2016); a new key
head is a copy of the one that its queries read.
"""

import argparse
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from finetune.tiny.model_config import KEY_VALUE_HEADS, PATTERN
from omni.errors import RequestError

LAYER = re.compile(r"(language_model\.model\.layers\.)(\d+)(\..*)")
KEYS = re.compile(r"language_model\..*\.(k_proj|v_proj)\.weight")
# What a layer adds goes through these: of attention, of Mamba-2, of experts and the shared one.
OUTPUTS = re.compile(r".*\.(o_proj|out_proj|down_proj)(\.\w+)?")


def grow(state: Mapping[str, Tensor], pattern: str, grown: str) -> dict[str, Tensor]:
    """Repeat layers of a decoder at its end, with outputs at zero.

    Args:
        state: Of the decoder and projectors, as in `checkpoint.pt`.
        pattern: Kinds of its layers, such as `MEM*EM*E`.
        grown: Kinds of the layers that are wanted; begins with `pattern`.

    Raises:
        RequestError: `grown` does not begin with `pattern`, or has a kind that `pattern` lacks.
    """
    if not grown.startswith(pattern) or not set(grown) <= set(pattern):
        raise RequestError(
            f"Found the layers {grown}; expected {pattern} and more of the same kinds after them."
        )
    result = dict(state)
    for new in range(len(pattern), len(grown)):
        source = pattern.rindex(grown[new])
        for name, tensor in state.items():
            found = LAYER.fullmatch(name)
            if found is None or int(found[2]) != source:
                continue
            is_output = OUTPUTS.fullmatch(name)
            copy = torch.zeros_like(tensor) if is_output else tensor.clone()
            result[f"{found[1]}{new}{found[3]}"] = copy
    return result


def share_keys(state: Mapping[str, Tensor], heads: int, grown: int) -> dict[str, Tensor]:
    """Give groups of queries that read one key head a head each, at first all the same.

    Args:
        state: Of the decoder, as in `checkpoint.pt`.
        heads: Its heads of keys and values.
        grown: Heads that are wanted, a multiple of `heads`.

    Raises:
        RequestError: `grown` is no multiple of `heads`.
    """
    if grown % heads:
        raise RequestError(f"Found {grown} key heads; expected a multiple of {heads}.")
    return {
        name: tensor.unflatten(0, (heads, -1)).repeat_interleave(grown // heads, 0).flatten(0, 1)
        if KEYS.fullmatch(name)
        else tensor
        for name, tensor in state.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the grown decoder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--joint", type=Path, required=True, help="folder of train_joint")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--pattern", default="MEM*EM*E", help="layers of --joint (%(default)s)")
    parser.add_argument("--heads", type=int, default=2, help="its key heads (%(default)s)")
    options = parser.parse_args(arguments)
    state = torch.load(options.joint / "checkpoint.pt", weights_only=True)["model"]
    options.out.mkdir(parents=True, exist_ok=True)
    grown = share_keys(grow(state, options.pattern, PATTERN), options.heads, KEY_VALUE_HEADS)
    torch.save({"model": grown}, options.out / "checkpoint.pt")
    shutil.copytree(options.joint / "tokenizer", options.out / "tokenizer", dirs_exist_ok=True)


if __name__ == "__main__":
    main()
