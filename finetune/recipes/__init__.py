"""Recipes: a YAML file each, whose first line is the command that runs it.

data: train.jsonl          # as on the command line; relative to the current folder
held_out: test.jsonl
base: omni-tiny
out: runs/mine
settings: {preset: lora-all, learning_rate: 2e-4}
stages:                    # optional: runs one after another, each with settings of its own
  - {preset: projectors, max_steps: 100}
  - {preset: lora-all}

Those of `omni-tiny` itself name a program instead: `finetune.recipes.programs`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from finetune.data import Dataset
from finetune.recipes.programs import Program, read_program
from finetune.settings import FinetuneSettings
from omni.errors import RequestError

FOLDER = Path(__file__).parent
FIELDS = ("data", "held_out", "media", "base", "out")
_KEYS = (*FIELDS, "settings", "stages")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What `omni finetune` is asked to do.

    Attributes:
        data: Rows to learn from.
        held_out: Rows to evaluate on.
        media: Folder of relative media paths; None is that of the data.
        base: Checkpoint; None is the embedded one.
        out: Folder for state and result.
        settings: How to train.
        stages: What each stage sets differently; empty for one run.
    """

    data: Path | None = None
    held_out: Path | None = None
    media: Path | None = None
    base: str | None = None
    out: Path | None = None
    settings: FinetuneSettings = field(default_factory=FinetuneSettings)
    stages: tuple[Mapping[str, Any], ...] = ()

    def changed(self, words: Mapping[str, str], **given: Any) -> "Job":
        """The same job with what the command line gives in place.

        Args:
            words: Settings, or one of data, held_out, media, base, out.
            given: Fields; None leaves what there is.
        """
        own = {k: v for k, v in words.items() if k in FIELDS}
        settings = self.settings.changed({k: v for k, v in words.items() if k not in own})
        fields: dict[str, Any] = {**own, **{k: v for k, v in given.items() if v is not None}}
        paths: dict[str, Any] = {k: Path(v) for k, v in fields.items() if k != "base"}
        base = fields.get("base", self.base)
        return replace(self, settings=settings, base=base, **paths)


def recipe_names() -> list[str]:
    """Recipes that come with the toolkit."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(name: str | Path) -> Job | Program:
    """Read a recipe.

    Args:
        name: One of `recipe_names`, or a YAML file.

    Raises:
        RequestError: No such recipe, or keys or values that nobody knows.
    """
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise RequestError(
            f"{name}: no such recipe; expected a YAML file or one of {', '.join(recipe_names())}."
        )
    try:
        found = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise RequestError(f"{path} is no YAML: {error}") from error
    if isinstance(found, dict) and "program" in found:
        return read_program(found, str(path))
    unknown = sorted(set(found or {}) - set(_KEYS)) if isinstance(found, dict) else ["no mapping"]
    if unknown:
        raise RequestError(f"{path}: found {unknown[0]!r}; expected keys {', '.join(_KEYS)}.")
    _check_types(found, str(path))
    settings = FinetuneSettings().changed(found.get("settings") or {})
    given = {key: found[key] for key in FIELDS if key in found}
    stages = tuple(found.get("stages") or ())
    for stage in stages:
        settings.changed(stage)  # refuses what nobody knows, before anything runs
    return Job(settings=settings, stages=stages).changed({}, **given)


def _check_types(found: Mapping[str, Any], source: str) -> None:
    stages = found.get("stages") or []
    is_list = isinstance(stages, list) and all(isinstance(stage, dict) for stage in stages)
    expected = {
        **{key: (isinstance(found.get(key), str | None), "text") for key in FIELDS},
        "settings": (isinstance(found.get("settings"), dict | None), "NAME: VALUE pairs"),
        "stages": (is_list, "a list of NAME: VALUE pairs, such as - {preset: lora-all}"),
    }
    for key, (is_right, what) in expected.items():
        if not is_right:
            raise RequestError(f"{source}: found {key} {found[key]!r}; expected {what}.")


def split(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Hold rows out at random, always the same ones.

    Rows of one source may fall on both sides: give held-out data of their own where speakers,
    documents or places repeat.

    Args:
        dataset: At least two rows.
        share: Held out, at least one row.
        seed: Of the choice.

    Returns:
        Rows to train on, and rows held out, both in the order of the data.

    Raises:
        RequestError: There are fewer than two rows.
    """
    if len(dataset) < 2:
        raise RequestError(
            f"Found {len(dataset)} row(s), of which none can be held out; expected at least 2. "
            "Give more, held-out data of their own (--held-out), or eval_share=0."
        )
    order = np.random.default_rng([seed, 3]).permutation(len(dataset))
    count = min(max(1, round(share * len(dataset))), len(dataset) - 1)
    held, kept = sorted(order[:count].tolist()), sorted(order[count:].tolist())
    return dataset.subset(kept), dataset.subset(held)
