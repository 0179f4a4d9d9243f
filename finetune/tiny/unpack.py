r"""Take `omni-tiny` apart, so that its training can go on from the checkpoint that is shipped.

    python -m finetune.tiny.unpack --weights omni/weights/omni-tiny --out runs/omni-tiny/start

Writes what the stages write: the towers' weights, `checkpoint.pt` without optimisers, and
`tokenizer/`. `train_joint --initial runs/omni-tiny/start` begins there; `export` is the way back.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from finetune.tiny.export import load_tokenizer
from finetune.tiny.train_joint import trained_state
from omni.model import OmniModel

TOWERS = {"vision_model": "vision_model.safetensors", "audio_tower": "audio_tower.safetensors"}


def unpack(weights: Path, out: Path) -> None:
    """Write towers, decoder and tokenizer of a checkpoint as the stages of training do, in float32.

    Args:
        weights: From `finetune.tiny.export`.
        out: Folder; made if missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    model = OmniModel.from_pretrained(weights, dtype=torch.float32)
    for part, file in TOWERS.items():
        save_file(getattr(model, part).state_dict(), out / file)
    torch.save({"model": trained_state(model)}, out / "checkpoint.pt")
    load_tokenizer(weights).save_pretrained(out / "tokenizer")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the parts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="checkpoint to take apart")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    unpack(options.weights, options.out)


if __name__ == "__main__":
    main()
