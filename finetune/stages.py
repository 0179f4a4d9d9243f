"""Runs one after another, each from where the one before ended: projectors, adapters, towers.

A stage that ends with an adapter melts it into the weights, so that the next can train anything.
With one stage this is `finetune.loop.finetune`; with several, each has a folder of its own, and the
last result is a whole checkpoint.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune.data import Dataset
from finetune.loop import Result, finetune, identity_of
from finetune.merging import merge
from finetune.settings import FinetuneSettings
from finetune.state import check_same_run, refuse_to_start_over, saved_run
from omni.adapters import PEFT_FILE, fingerprint
from omni.model import OmniModel
from omni.processor import OmniProcessor

DONE = "README.md"  # the card, which a run writes last
MERGED = "merged"  # folder of the checkpoint that a stage with an adapter led to


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

    Raises:
        CheckpointError: As from `finetune.loop.finetune`, also for a stage that is done.
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
        if resume and (folder / DONE).exists():
            _check_done(folder, identity_of(settings, dataset, fingerprint(model)))
        else:
            if not resume:
                refuse_to_start_over(folder)
            _remove_result(folder)
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


def _check_done(folder: Path, identity: dict[str, Any]) -> None:
    """Refuse to go on from a stage that was trained otherwise, if its state is still there."""
    if (saved := saved_run(folder)) is not None:
        check_same_run(saved, identity)


def _remove_result(folder: Path) -> None:
    """Remove what an earlier training of a stage led to, which would be taken for the new one's."""
    shutil.rmtree(folder / MERGED, ignore_errors=True)
    for name in (DONE, PEFT_FILE):
        (folder / name).unlink(missing_ok=True)


def _checkpoint(folder: Path, base: str) -> Path:
    """The whole checkpoint that a stage led to."""
    if not (folder / PEFT_FILE).exists():
        return folder
    merged = folder / MERGED
    if not (merged / "config.json").exists():
        merge(folder, merged, base=base)
    return merged
