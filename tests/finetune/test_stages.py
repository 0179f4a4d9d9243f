"""Stages: each starts where the one before ended, and a stage that is done is not run again."""

import shutil
from dataclasses import replace

import pytest
import torch

from finetune import stages as module
from finetune.data import open_dataset
from finetune.stages import run_stages
from omni import OmniModel
from omni.errors import CheckpointError
from tests.finetune.test_loop import SETTINGS, conversation, losses
from tests.support import tiny_omni
from tests.support.rows import write_jsonl, write_media

PRESETS = ("projectors", "lora-all", "towers")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_media(tmp_path_factory.mktemp("data"))
    kinds = [("image", "a.png"), ("audio", "s.wav"), (None, "")]
    return write_jsonl(folder / "data.jsonl", [conversation(*k, i) for i, k in enumerate(kinds)])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    assistant = tiny_omni.assistant()
    assistant.model.save_pretrained(folder)
    assistant.processor.save_pretrained(folder)
    return folder


def run(data, base, out, **more):
    assistant = tiny_omni.assistant()
    stages = [replace(SETTINGS, preset=preset, max_steps=2) for preset in PRESETS]
    return run_stages(
        assistant.model,
        assistant.processor,
        open_dataset(data),
        stages,
        out,
        base=str(base),
        **more,
    )


def test_each_stage_goes_on_from_the_one_before(data, base, tmp_path):
    results = run(data, base, tmp_path)
    assert [result.explanation.preset for result in results] == list(PRESETS)
    assert results[0].explanation.trained != results[1].explanation.trained
    for number in (2, 3):
        assert losses(tmp_path / f"stage-{number}")[0] < losses(tmp_path / "stage-1")[0]
    final = OmniModel.from_pretrained(tmp_path).state_dict()
    start = tiny_omni.omni_model().state_dict()
    changed = {name for name, value in final.items() if not torch.equal(value, start[name])}
    for part in ("multi_modal_projector", "language_model", "vision_model", "audio_tower"):
        assert any(name.startswith(part) for name in changed), part


def test_a_stage_that_is_trained_anew_is_merged_anew(data, base, tmp_path):
    stages = [
        replace(SETTINGS, preset=preset, max_steps=1) for preset in ("lora-all", "projectors")
    ]
    assistant = tiny_omni.assistant()

    def train(stages, out, **more):
        rows = open_dataset(data)
        run_stages(assistant.model, assistant.processor, rows, stages, out, base=str(base), **more)
        return (out / "model.safetensors").read_bytes()

    other = [replace(stages[0], learning_rate=3e-2), stages[1]]
    train(stages, tmp_path / "twice")
    assistant = tiny_omni.assistant()
    with pytest.raises(CheckpointError, match=r"run with learning_rate=0.01, but now it is 0.03"):
        train(other, tmp_path / "twice", resume=True)
    for number in (1, 2):
        shutil.rmtree(tmp_path / "twice" / f"stage-{number}" / "state")
    assistant = tiny_omni.assistant()
    again = train(other, tmp_path / "twice")
    assistant = tiny_omni.assistant()
    assert again == train(other, tmp_path / "once")


def test_a_stage_that_is_done_is_not_run_again(data, base, tmp_path, monkeypatch):
    run(data, base, tmp_path / "whole")
    train, started = module.finetune, []

    def die_in_the_second(*arguments, **more):
        started.append(arguments[3].preset)
        if started == ["projectors", "lora-all"]:
            raise KeyboardInterrupt
        return train(*arguments, **more)

    monkeypatch.setattr(module, "finetune", die_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(data, base, tmp_path / "cut")
    results = run(data, base, tmp_path / "cut", resume=True)
    assert started == ["projectors", "lora-all", "lora-all", "towers"]
    assert len(results) == 2
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
