"""Melt an adapter into its base, and prove that the result answers the same."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from omni.adapters import load_adapter, read_adapter
from omni.assistant import Assistant
from omni.errors import CheckpointError
from omni.inputs import OmniInputs

# Largest difference of a score, as a share of the largest score: merging rounds every weight once.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def merge(adapter: Path, out: Path, *, base: str | None = None, dtype: str | None = None) -> float:
    """Write base and adapter as one checkpoint in the released layout.

    1. Score sample inputs of every modality with the adapter beside the weights.
    2. Merge, score again, compare.
    3. Save the model, its processor, and the adapter's reduction as the checkpoint's default.

    Args:
        adapter: Folder that `omni finetune` wrote.
        out: Folder for the checkpoint.
        base: Checkpoint that the adapter was trained on; by default the one it names.
        dtype: Number format to merge in; by default float32 on a CPU.

    Returns:
        The largest difference between scores before and after, as a share of the largest score.

    Raises:
        CheckpointError: The adapter does not belong to the base, the scores differ, or there is a
            checkpoint in `out`.
    """
    if (out / "config.json").exists():
        raise CheckpointError(f"{out} holds a checkpoint already; choose another --out.")
    assistant = Assistant.from_pretrained(base or read_adapter(adapter)["base"], dtype=dtype)
    model = assistant.model
    wrapped = load_adapter(model, adapter)
    inputs = sample_inputs(assistant)
    with torch.no_grad():
        before = model(**inputs).logits.float()
        wrapped.merge_and_unload(safe_merge=True)
        after = model(**inputs).logits.float()
    difference = ((after - before).abs().max() / before.abs().max()).item()
    allowed = TOLERANCE.get(model.dtype, max(TOLERANCE.values()))
    if not difference <= allowed:
        raise CheckpointError(
            f"After merging, scores differ by {difference:.2e} of the largest, more than "
            f"{allowed:.0e} for {model.dtype}; nothing was written. Merge in float32."
        )
    model.save_pretrained(out)
    assistant.processor.save_pretrained(out)
    return difference


def sample_inputs(assistant: Assistant) -> OmniInputs:
    """A prompt with a picture, a clip and, if the model hears, a recording."""
    rng = np.random.default_rng(0)
    load = assistant.processor.load_media
    picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    clip = rng.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    media = [("image", load(picture)), ("video", load(clip, fps=2.0))]
    if assistant.model.audio_tower is not None:
        tone = np.sin(np.arange(16_000) * 0.2).astype(np.float32)
        media.append(("audio", load(tone, sampling_rate=16_000)))
    parts = [{"type": kind, kind: medium} for kind, medium in media]
    turns = [{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}]
    return assistant.processor(turns).to(assistant.model.device)
