"""Write `omni-tiny` as a checkpoint of the product.

Towers, projectors and decoder become one folder that `omni.load` opens:

    omni finetune --recipe omni-tiny-5
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from encoders.audio.parakeet import deterministic_config
from finetune.tiny.model_config import build_model, load_towers, processor_settings
from omni.model import OmniModel
from omni.processor import OmniProcessor

logger = logging.getLogger(__name__)

DTYPE = torch.float16  # ten bits of mantissa; no weight comes near the largest number, 65,504


def assemble(joint: Path, vision: Path, audio: Path) -> OmniModel:
    """Put the trained parts together in float32.

    Args:
        joint: Checkpoint of `finetune.tiny.train_joint`.
        vision: Weights of the vision tower that it was trained with.
        audio: Weights of the audio tower that it was trained with.
    """
    model = build_model(len(load_tokenizer(joint.parent / "tokenizer")))
    load_towers(model, vision, audio)
    trained = torch.load(joint, weights_only=True)["model"]
    towers = {n: t for n, t in model.state_dict().items() if n not in trained}
    model.load_state_dict({**towers, **trained})
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a checkpoint; that of stage 2 lies in `tokenizer/` beside it."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    for where_from in ("is_local", "local_files_only"):  # would be saved with it
        tokenizer.init_kwargs.pop(where_from, None)
    return tokenizer


def export(
    model: OmniModel,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    reduction: dict[str, str] | None = None,
) -> int:
    """Save a model with tokenizer and settings.

    Args:
        model: From `assemble`.
        tokenizer: From `load_tokenizer`.
        out: Folder; made if missing.
        reduction: Default reduction of each modality.

    Returns:
        Bytes of the weights file.

    Raises:
        ValueError: A weight does not fit the number format.
    """
    model.config.reduction = dict(reduction or {})
    # Dropout is for training; whoever fine-tunes the checkpoint shall ask for it.
    model.config.audio_config = deterministic_config(model.config.audio_config)
    largest = max(float(tensor.abs().max()) for tensor in model.state_dict().values())
    if largest > torch.finfo(DTYPE).max:
        raise ValueError(f"The largest weight is {largest:.0f}; {DTYPE} cannot hold it.")
    model.to(DTYPE).save_pretrained(out)
    OmniProcessor(tokenizer, model.config, processor_settings()).save_pretrained(out)
    return (out / "model.safetensors").stat().st_size


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--joint", type=Path, required=True, help="checkpoint of stage 2")
    parser.add_argument("--vision", type=Path, required=True, help="weights of the vision tower")
    parser.add_argument("--audio", type=Path, required=True, help="weights of the audio tower")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--reduce-video", default="", help="default reduction, such as evs(0.5)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model = assemble(options.joint, options.vision, options.audio)
    reduction = {"video": options.reduce_video} if options.reduce_video else {}
    size = export(model, load_tokenizer(options.joint.parent / "tokenizer"), options.out, reduction)
    parameters = sum(p.numel() for p in model.parameters())
    logger.info("%s parameters, %.1f MB in %s", f"{parameters:,}", size / 1e6, options.out)


if __name__ == "__main__":
    main()
