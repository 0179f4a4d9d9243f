"""The state of a run on disk: complete or not there, whenever the process dies.

A checkpoint is a folder ``state/step-000050`` that is written under another name and then renamed.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from omni.errors import CheckpointError

FOLDER = "state"
BEST = "best.safetensors"
KEPT = 2  # the newest checkpoints; older ones are removed


def refuse_to_start_over(out: Path, states: str = f"{FOLDER}/step-*") -> None:
    """Keep a new run from removing the state of another, and from being resumed with it.

    Args:
        out: Folder of the new run.
        states: Pattern of the states of runs in it.

    Raises:
        CheckpointError: It holds a state.
    """
    if found := sorted(out.glob(states)):
        raise CheckpointError(
            f"{out} holds the state of a run, {found[-1].name}. Go on with it by --resume, choose "
            f"another folder, or remove {out / Path(states).parts[0]} to start over."
        )


def save_state(
    out: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    progress: Mapping[str, Any],
) -> None:
    """Write a checkpoint.

    Args:
        out: Folder of the run.
        step: Steps done.
        tensors: What is trained, by name.
        optimizer: Its state is saved whole.
        progress: JSON: whatever else the run has to know.
    """
    folder = out / FOLDER
    new = folder / f"new-{step:06d}"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_file(_on_cpu(tensors), new / "trained.safetensors")
    torch.save(optimizer.state_dict(), new / "optimizer.pt")
    (new / "progress.json").write_text(json.dumps({"step": step, **progress}, indent=1))
    final = folder / f"step-{step:06d}"
    shutil.rmtree(final, ignore_errors=True)
    new.rename(final)
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)


def save_best(out: Path, tensors: Mapping[str, Tensor]) -> None:
    """Keep these weights as the best so far; what was kept before is replaced whole."""
    new = out / FOLDER / "new-best"
    new.parent.mkdir(parents=True, exist_ok=True)
    save_file(_on_cpu(tensors), new)
    new.replace(out / FOLDER / BEST)


def load_best(out: Path, tensors: Mapping[str, Tensor]) -> None:
    """Bring tensors back to the best weights."""
    _fill(tensors, load_file(out / FOLDER / BEST))


def load_state(
    out: Path, tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Bring tensors and optimiser to the newest checkpoint of a run.

    Args:
        out: Folder of the run.
        tensors: What is trained; filled in place.
        optimizer: Filled.

    Returns:
        What `save_state` got as progress, and ``step``; None if there is no checkpoint.

    Raises:
        CheckpointError: The checkpoint holds other tensors.
    """
    newest = _newest(out)
    if newest is None:
        return None
    saved = load_file(newest / "trained.safetensors")
    if set(saved) != set(tensors) or any(saved[n].shape != t.shape for n, t in tensors.items()):
        raise CheckpointError(
            f"{newest} holds {len(saved)} trained tensor(s) that are not the {len(tensors)} of "
            "this run. Resume with the preset and base that it was started with, or choose another "
            "folder."
        )
    _fill(tensors, saved)
    optimizer.load_state_dict(torch.load(newest / "optimizer.pt", weights_only=True))
    return _progress(newest)


def saved_run(out: Path) -> dict[str, Any] | None:
    """What `check_same_run` compares, of the newest checkpoint of a run; None if there is none."""
    newest = _newest(out)
    return None if newest is None else _progress(newest)["run"]


def check_same_run(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was another one.

    Args:
        saved: Settings that the state was saved with.
        now: Settings of this run.

    Raises:
        CheckpointError: They differ; the message names the first.
    """
    for name, value in now.items():
        if saved.get(name, value) != value:  # an earlier version saved fewer
            raise CheckpointError(
                f"The state is of a run with {name}={saved[name]!r}, but now it is {value!r}. "
                "Resume with the same data and settings, or choose another folder."
            )


def _newest(out: Path) -> Path | None:
    return max((out / FOLDER).glob("step-*"), default=None)


def _progress(state: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((state / "progress.json").read_text())
    return found


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}


@torch.no_grad()
def _fill(tensors: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(saved[name])
