"""Every recipe: its first line is its command, its settings hold, and it takes two steps."""

import argparse
import importlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from finetune.cli_run import explain
from finetune.data import open_dataset
from finetune.loop import finetune
from finetune.recipes import FOLDER, load_recipe, recipe_names
from finetune.recipes.prepare import prepare
from finetune.recipes.receipts import QUESTION, READING
from finetune.tiny.receipts import is_held_out
from omni.errors import RequestError
from tests.support import tiny_omni

BIG = [name for name in recipe_names() if name.startswith("nano-omni")]
TINY = [name for name in recipe_names() if name.startswith("omni-tiny")]  # their own programs
ACCELERATORS = {"nano-omni-lora-1gpu": 1, "nano-omni-sft-8gpu": 8}  # of 80 GB


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Folders in the layout of SROIE and Speech Commands, with made-up content."""
    folder = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    receipts, words = [], []
    for name in ("sroie/images", "words/audio"):
        (folder / name).mkdir(parents=True)
    for i in range(20):
        page = np.full((300, 200), 250, np.uint8)
        for top, bottom in ((4, 20), (80, 100)):  # print is about half ink
            page[top:bottom, 20:90] = rng.integers(0, 2, (bottom - top, 70)) * 200 + 20
        Image.fromarray(page).save(folder / f"sroie/images/{i}.png")
        key = {"company": f"SHOP {i // 2}", "address": f"{i} HIGH STREET"}
        lines = [
            {"box": [5, 80, 90, 100], "text": key["address"]},
            {"box": [5, 4, 90, 20], "text": key["company"]},
        ]
        receipts.append({"id": str(i), "file": f"images/{i}.png", "key": key, "lines": lines})
        path = f"audio/{i}.wav"
        soundfile.write(folder / "words" / path, rng.normal(0, 0.1, 8000), 16_000)
        words.append({"file": path, "label": "yes" if i % 2 else "no", "speaker": f"s{i // 2}"})
    for name, rows in (("sroie", receipts), ("words", words)):
        (folder / name / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def prepared(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    prepare("words", sources / "words", out / "words")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune.recipes.receipts.NUM_TRAINING", 200)
        prepare("receipts", sources / "sroie", out / "receipts")
        patch.setattr("finetune.recipes.prepare.NUM_CLIPS", {"train": 4, "test": 2})
        prepare("clips", sources, out / "clips")
    return out


@pytest.mark.parametrize("name", recipe_names())
def test_the_first_line_is_the_command(name):
    first = (FOLDER / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")
    assert f"--recipe {name}" in first


@pytest.mark.parametrize("name", sorted(set(recipe_names()) - set(TINY)))
def test_it_takes_two_steps(name, prepared, tmp_path):
    job = load_recipe(name)
    data = prepared / (job.data.parent.name if job.data else "receipts")
    assistant = tiny_omni.assistant()
    settings = replace(
        job.settings,
        max_steps=2,
        samples_per_step=2,
        eval_samples=2,
        max_new_tokens=4,
        answer_schema=None,  # would need more
        mixed_precision="no",
        lora_rank=4,
        cache_features=str(tmp_path / "features") if job.settings.cache_features else None,
    )
    result = finetune(
        assistant.model,
        assistant.processor,
        open_dataset(data / "train.jsonl"),
        settings,
        tmp_path / "run",
        base="tiny",
        held_out=open_dataset(data / "test.jsonl"),
    )
    assert result.steps == 2
    assert not result.bad


def test_the_stages_of_omni_tiny_hand_their_results_on():
    made = set()
    for name in TINY:
        given = load_recipe(name).arguments
        for key in ("vision", "audio", "voices", "joint"):
            assert key not in given or str(Path(given[key]).parent) in made
        assert given.get("initial", given["out"]) in {*made, given["out"]}
        made.add(given["out"])
    assert len(made) == len(TINY) == 5


@pytest.mark.parametrize("name", TINY)
def test_the_programs_of_omni_tiny_know_their_arguments(name, monkeypatch):
    program = load_recipe(name)
    module = importlib.import_module(f"finetune.tiny.{program.name}")
    asked = []

    class Parsed(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, words):
        asked.append(vars(parse(parser, words)))
        raise Parsed

    monkeypatch.setattr(module.argparse.ArgumentParser, "parse_args", parse_and_stop)
    with pytest.raises(Parsed):
        program.changed({"seed": None}).run()
    for key, value in program.arguments.items():
        found = asked[0][key]
        if key == "share":
            found = [f"{task}={share:.2f}" for task, share in found]
        if key == "items":
            found = [f"{task}={count}" for task, count in found]
        assert str(found) == str(value)


@pytest.mark.parametrize("name", BIG)
def test_the_released_model_fits_the_machines_that_the_recipe_names(name):
    job = load_recipe(name)
    found = explain(job.base, job.settings)
    sharded = found.weight_bytes + found.gradient_bytes + found.optimizer_bytes
    assert sharded / ACCELERATORS[name] + found.activation_bytes < 80e9
    if name == "nano-omni-lora-1gpu":
        assert found.trained == 55_422_976


def test_a_shop_is_on_one_side_the_same_as_in_the_training_of_omni_tiny(prepared):
    rows = {
        part: list(map(json.loads, (prepared / f"receipts/{part}.jsonl").read_text().splitlines()))
        for part in ("train", "test")
    }
    pictures = {
        part: {name for row in found for name in row["images"]} for part, found in rows.items()
    }
    assert pictures["train"]
    assert pictures["test"]
    assert not pictures["train"] & pictures["test"]
    for row in rows["test"]:
        answer = json.loads(row["messages"][1]["content"])
        assert is_held_out(answer["company"])
        assert row["messages"][0]["content"].count("<image>") == len(row["images"]) == 2
    kinds = Counter(row["messages"][0]["content"].split("\n")[-1] for row in rows["train"])
    assert set(kinds) == {QUESTION, READING}
    written = "\n".join(row["messages"][1]["content"] for row in rows["train"])
    for shop in map("SHOP {}".format, range(10)):
        assert (f'"{shop}"' in written) != is_held_out(shop)


def test_branches_of_a_chain_that_is_held_out_are_not_trained_on(sources, tmp_path, monkeypatch):
    rows = [json.loads(r) for r in (sources / "sroie/manifest.jsonl").read_text().splitlines()]
    held_out = next(
        n for n in map("MART {}".format, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") if is_held_out(n)
    )
    branch = next(
        n for n in (f"{held_out} ({i}) SDN. BHD." for i in range(99)) if not is_held_out(n)
    )
    for row, name in zip(rows, [held_out, branch, "OTHER SHOP"], strict=False):
        row["key"]["company"] = row["lines"][1]["text"] = name
        row["file"] = str(sources / "sroie" / row["file"])
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows[:3])))
    monkeypatch.setattr("finetune.recipes.receipts.NUM_TRAINING", 50)
    prepare("receipts", tmp_path, tmp_path / "out")
    text = {part: (tmp_path / f"out/{part}.jsonl").read_text() for part in ("train", "test")}
    assert held_out in text["test"]
    assert branch not in text["train"] + text["test"]
    assert "OTHER SHOP" in text["train"]


def test_missing_data_say_what_was_expected(tmp_path):
    with pytest.raises(RequestError, match=r"manifest.jsonl: no such file"):
        prepare("words", tmp_path, tmp_path)
