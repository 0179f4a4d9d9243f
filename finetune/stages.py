"""Runs one after another, each from where the one before ended: projectors, adapters, towers.

A stage that ends with an adapter melts it into the weights, so that the next can train anything.
With one stage this is `finetune.loop.finetune`; with several, each has a folder of its own, and the
last result is a whole checkpoint.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.data import Dataset
from finetune.loop import Result, finetune
from finetune.merging import merge
from finetune.settings import FinetuneSettings
from omni.adapters import PEFT_FILE
from omni.model import OmniModel
from omni.processor import OmniProcessor

DONE = "README.md"  # the card, which a run writes last


def run_stages(
    model: OmniModel,
    processor: OmniProcessor,
    dataset: Dataset,
    stages: Sequence[FinetuneSettings],
    out: Path,
    *,
    base: str,
    held_out: Dataset | None = None,
    resume: bool = False,
    **told: Any,
) -> list[Result]:
    """Train in stages.

    Args:
        model: Changed in place by a single stage.
        processor: Of the same checkpoint.
        dataset: Rows to learn from, in every stage.
        stages: Settings of each, in order.
        out: Folder; several stages write ``stage-1`` and so on, and the checkpoint.
        base: Checkpoint that the model came from: a directory, a hub id, or ``omni-tiny``.
        held_out: Rows to evaluate on.
        resume: Skip stages that are done and go on with the one that is not.
        told: ``tell`` and ``report`` of `finetune.loop.finetune`.

    Returns:
        What each stage that ran did.
    """
    if len(stages) == 1:
        return [
            finetune(
                model, processor, dataset, stages[0], out,
                base=base, held_out=held_out, resume=resume, **told,
            )
        ]  # fmt: skip
    results = []
    for number, settings in enumerate(stages, start=1):
        folder = out / f"stage-{number}"
        if not (resume and (folder / DONE).exists()):
            result = finetune(
                model, processor, dataset, settings, folder,
                base=base, held_out=held_out, resume=resume, **told,
            )  # fmt: skip
            results.append(result)
        base = str(_checkpoint(folder, base))
        model = OmniModel.from_pretrained(base, dtype=model.dtype, device=model.device)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return results


def _checkpoint(folder: Path, base: str) -> Path:
    """The whole checkpoint that a stage led to."""
    if not (folder / PEFT_FILE).exists():
        return folder
    merged = folder / "merged"
    if not (merged / "config.json").exists():
        merge(folder, merged, base=base)
    return merged
