"""Fine-tuning, answering with an adapter and merging it, as a user types them."""

import json
import re
import shlex

import pytest
import torch
import typer
from typer.testing import CliRunner

import omni
from finetune import cli_run
from finetune.cli import register
from finetune.data import open_dataset
from finetune.merging import merge, sample_inputs
from finetune.recipes import Job, load_recipe, split
from omni.adapters import load_adapter
from omni.errors import CheckpointError, RequestError
from tests.support import tiny_omni
from tests.support.rows import turns, write_jsonl, write_media


@pytest.fixture(scope="module")
def app():
    app = typer.Typer()
    register(app)
    return app


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_media(tmp_path_factory.mktemp("data"))
    rows = [{"messages": turns("<image>What is this?", f"number {i}"), "images": ["a.png"]}
            for i in range(6)]  # fmt: skip
    return write_jsonl(folder / "data.jsonl", rows)


@pytest.fixture(scope="module")
def adapter(app, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    words = ["finetune", str(data), "--out", str(out), "--preset", "lora-all+projectors"]
    words += ["--max-steps", "2", "metric=cer", "max_new_tokens=4", "reduction=image=uniform(0.5)"]
    ran = CliRunner().invoke(app, [*words, "learning_rate=1e-2", "--json"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    said = json.loads(ran.stdout)
    assert said["steps"] == 2
    assert said["after"]["loss"] < said["before"]["loss"]
    return out


def test_the_adapter_answers_and_carries_its_reduction(adapter):
    plain, tuned = omni.load(), omni.load(adapter=adapter)
    assert tuned.model.config.reduction["image"] == "uniform(0.5)"
    picture = tiny_omni.picture(64, 64, 0)
    few, many = (a.ask("What is this?", picture, max_new_tokens=4) for a in (tuned, plain))
    assert few.ledger.prompt_tokens < many.ledger.prompt_tokens


def test_plain_peft_loads_it(adapter):
    from peft import PeftModel

    tuned = omni.load()
    load_adapter(tuned.model, adapter)
    inputs = sample_inputs(tuned)
    plain = PeftModel.from_pretrained(omni.load().model, str(adapter)).eval()
    with torch.no_grad():
        expected = tuned.model(**inputs).logits
        torch.testing.assert_close(plain(**inputs).logits, expected)


def test_merging_keeps_every_score(app, adapter, tmp_path):
    words = ["merge", str(adapter), "--out", str(tmp_path), "--json"]
    ran = CliRunner().invoke(app, words, catch_exceptions=False)
    assert json.loads(ran.stdout)["max_logit_difference"] < 1e-4
    tuned, merged = omni.load(adapter=adapter), omni.load(tmp_path)
    inputs = sample_inputs(tuned)
    with torch.no_grad():
        expected = tuned.model(**inputs).logits
        torch.testing.assert_close(merged.model(**inputs).logits, expected, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(omni.load().model(**inputs).logits, expected, atol=1e-2)
    assert merged.model.config.reduction["image"] == "uniform(0.5)"
    with pytest.raises(CheckpointError, match="holds a checkpoint already"):
        merge(adapter, tmp_path)
    with pytest.raises(CheckpointError, match="was trained on"):  # once is enough
        omni.load(tmp_path, adapter=adapter)


def test_a_merge_that_changes_scores_writes_nothing(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.merging.TOLERANCE", {torch.float32: -1.0})
    with pytest.raises(CheckpointError, match="nothing was written"):
        merge(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_answers_to_own_data_are_measured(app, adapter, data):
    words = ["eval", str(data), "--metric", "cer", "--max-new-tokens", "4", "--json"]
    said = {
        name: json.loads(CliRunner().invoke(app, [*words, *more], catch_exceptions=False).stdout)
        for name, more in (("base", []), ("tuned", ["--adapter", str(adapter)]))
    }
    assert said["tuned"]["loss"] < said["base"]["loss"]
    mean, low, high = said["base"]["score"]
    assert 0 <= low <= mean <= high <= 1
    with pytest.raises(RequestError, match="expected 'tiny', or a data file"):
        CliRunner().invoke(app, ["eval", "nothing"], catch_exceptions=False)
    info = {"one": {"file_name": data.name, "formatting": "sharegpt"}}
    (data.parent / "dataset_info.json").write_text(json.dumps(info))
    words = ["eval", f"{data.parent}/dataset_info.json#two", "--metric", "none"]
    with pytest.raises(RequestError, match="'two'"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_explain_stops_before_weights(app):
    words = ["finetune", "--explain", "--base", "nano-omni-30b-a3b", "lora_rank=64", "--json"]
    ran = CliRunner().invoke(app, words, catch_exceptions=False)
    assert json.loads(ran.stdout)["trained"] == 55_422_976


def test_explain_knows_the_embedded_model_by_its_name(app):
    words = ["finetune", "--explain", "--json"]
    plain, named = (
        CliRunner().invoke(app, [*words, *more], catch_exceptions=False).stdout
        for more in ([], ["--base", "omni-tiny"])
    )
    assert plain == named


def test_the_command_line_replaces_what_stages_say(app, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(cli_run, "_train", lambda job, stages, *_: trained.extend(stages))
    path = tmp_path / "mine.yaml"
    path.write_text(
        "# omni finetune --recipe mine.yaml\ndata: a.jsonl\nout: run\nsettings: {lora_rank: 4}\n"
        "stages: [{preset: projectors, max_steps: 100, learning_rate: 1e-3}, {preset: lora-all}]\n"
    )
    words = ["finetune", "--recipe", str(path), "learning_rate=1e-6", "--max-steps", "2"]
    CliRunner().invoke(app, words, catch_exceptions=False)
    found = [(s.preset, s.max_steps, s.learning_rate, s.lora_rank) for s in trained]
    assert found == [("projectors", 2, 1e-6, 4), ("lora-all", 2, 1e-6, 4)]


def test_a_row_alone_cannot_be_held_out(data):
    with pytest.raises(RequestError, match=r"Found 1 row\(s\).* eval_share=0"):
        split(open_dataset(data).subset([0]), 0.3, seed=0)


def test_held_out_rows_are_always_the_same_and_never_trained_on(data):
    rows = open_dataset(data)
    kept, held = split(rows, 0.3, seed=0)
    again = split(rows, 0.3, seed=0)[1]
    assert (len(kept), len(held)) == (4, 2)
    names = [{str(part.origin(i)) for i in range(len(part))} for part in (kept, held, again)]
    assert names[0].isdisjoint(names[1])
    assert names[1] == names[2]


def test_a_recipe_says_what_it_does_not_know(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("# omni finetune --recipe mine.yaml\ndata: a.jsonl\nsettings: {epochs: 2}\n")
    assert load_recipe(path).settings.epochs == 2
    path.write_text("dta: a.jsonl\n")
    with pytest.raises(RequestError, match=r"found 'dta'; expected keys data"):
        load_recipe(path)
    with pytest.raises(RequestError, match="no such recipe"):
        load_recipe("unknown")
    path.write_text("settings:\nstages:\n")
    assert load_recipe(path) == Job()
    for text, message in (
        ("data: [a, b]", r"found data \['a', 'b'\]; expected text"),
        ("settings: [a]", r"found settings \['a'\]; expected NAME: VALUE pairs"),
        ("stages: {preset: full}", r"found stages .*; expected a list of NAME: VALUE pairs"),
        ("settings: {samples_per_step: 8.9}", r"samples_per_step is 8.9; expected a int"),
    ):
        path.write_text(text)
        with pytest.raises(RequestError, match=message):
            load_recipe(path)


def test_a_recipe_of_omni_tiny_is_a_program_with_the_words_of_the_command_line(app, monkeypatch):
    words = ["finetune", "--recipe", "omni-tiny-4", "--max-steps", "3", "pool=100", "--resume"]
    ran = CliRunner().invoke(app, [*words, "--explain"], catch_exceptions=False)
    assert ran.stdout.startswith("python -m finetune.tiny.train_joint --data ../shared/data")
    shares = load_recipe("omni-tiny-4").arguments["share"]
    assert len(shares) > 2
    each = " ".join(f"--share {share}" for share in shares)
    for part in ("--steps 3", "--pool 100", each, "--resume"):
        assert part in ran.stdout
    given = []
    monkeypatch.setattr("finetune.tiny.train_joint.main", given.append)
    CliRunner().invoke(app, words, catch_exceptions=False)
    assert shlex.split(ran.stdout)[3:] == given[0]
    with pytest.raises(RequestError, match="Found preset full; the recipe runs a program"):
        CliRunner().invoke(app, [*words, "--preset", "full"], catch_exceptions=False)


def test_words_give_flags_and_lists_to_a_program(app):
    words = ["finetune", "--recipe", "omni-tiny-4", "resume=true", "share=[band=0.5, line=0.2]"]
    ran = CliRunner().invoke(app, [*words, "--explain", "--json"], catch_exceptions=False)
    command = shlex.split(json.loads(ran.stdout)["command"])
    assert command[command.index("--share") :][:4] == ["--share", "band=0.5", "--share", "line=0.2"]
    assert "--resume" in command
    assert "true" not in command
    off = CliRunner().invoke(app, [*words[:3], "resume=false", "--explain"], catch_exceptions=False)
    assert "--resume" not in off.stdout
    with pytest.raises(RequestError, match=r"Found share=\[; expected a YAML value"):
        CliRunner().invoke(app, [*words[:3], "share=[", "--explain"], catch_exceptions=False)


def test_a_word_names_what_also_has_an_option_and_the_option_wins(app):
    words = ["finetune", "--recipe", "omni-tiny-4", "out=mine", "steps=3", "seed=7", "--explain"]
    ran = CliRunner().invoke(app, words, catch_exceptions=False)
    for part in ("--out mine", "--steps 3", "--seed 7"):
        assert part in ran.stdout
    both = CliRunner().invoke(app, [*words, "--out", "yours"], catch_exceptions=False)
    assert "--out yours" in both.stdout


def test_a_recipe_runs_only_the_programs_of_omni_tiny(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("program: os\n")
    with pytest.raises(RequestError, match="found program 'os'; expected one of train_vision"):
        load_recipe(path)
    path.write_text("program: export\ndata: x\n")
    with pytest.raises(RequestError, match="found 'data'; expected keys program, arguments"):
        load_recipe(path)
    path.write_text("program: export\narguments: [x]\n")
    with pytest.raises(RequestError, match="expected KEY: VALUE pairs"):
        load_recipe(path)


def test_the_first_word_may_be_a_setting_whose_value_is_a_path(app, tmp_path):
    words = ["finetune", f"data={tmp_path}/none.jsonl", "--out", str(tmp_path / "run")]
    with pytest.raises(RequestError, match=f"^{re.escape(str(tmp_path))}/none.jsonl: no such file"):
        CliRunner().invoke(app, words, catch_exceptions=False)
