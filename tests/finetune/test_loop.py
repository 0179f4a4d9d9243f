"""The training loop: what its result depends on, and what it does not."""

import json
import shutil
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from finetune.balancing import Balancer
from finetune.batches import Batches, indices_of_step, num_targets
from finetune.data import open_dataset
from finetune.loop import finetune
from finetune.merging import sample_inputs
from finetune.settings import FinetuneSettings
from omni.adapters import ADAPTER_FILE, embedding_fingerprint, load_adapter, read_adapter
from omni.errors import CheckpointError, RequestError
from omni.model import OmniModel
from tests.support import tiny_omni
from tests.support.rows import write_jsonl, write_media

SETTINGS = FinetuneSettings(
    preset="lora-all",
    max_steps=4,
    samples_per_step=3,
    max_length=600,
    learning_rate=1e-2,
    warmup_steps=1,
    lora_rank=4,
    metric="none",
    save_steps=1,
)


def conversation(kind: str | None, name: str, number: int) -> dict:
    question: list[dict] = [{"type": "text", "text": f"What is in number {number}?"}]
    if kind is not None:
        question.insert(0, {"type": kind, kind: name})
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"Thing {number}."},
        ],
        "shown": [{"medium": 0, "text": "Thing"}] if kind == "image" else [],
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_media(tmp_path_factory.mktemp("data"))
    files = {p.suffix: p.name for p in folder.iterdir()}
    kinds = [("image", files[".png"]), ("audio", files[".wav"]), (None, "")]
    rows = [conversation(*kinds[i % 3], i) for i in range(9)]
    return write_jsonl(folder / "data.jsonl", rows)


def run(data, out, settings=SETTINGS, *, model=None, resume=False, held_out=None):
    assistant = tiny_omni.assistant()
    model = model or assistant.model
    result = finetune(
        model,
        assistant.processor,
        open_dataset(data),
        settings,
        out,
        base="tiny",
        held_out=held_out,
        resume=resume,
    )
    return model, result


def weights(out):
    return (out / "adapter_model.safetensors").read_bytes()


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out):
    return [row["loss"] for row in rows(out)]


def missed(out):
    """What attention missed, in the steps that have rows with known places."""
    return [row["missed"] for row in rows(out) if row.get("missed") is not None]


def test_guided_attention_learns_where_the_answer_is_shown(data, tmp_path):
    settings = replace(SETTINGS, preset="full", guidance=3.0, max_steps=24, learning_rate=1e-2)
    run(data, tmp_path / "guided", settings)
    run(data, tmp_path / "alone", replace(settings, guidance=1e-9))
    guided, alone = (missed(tmp_path / name) for name in ("guided", "alone"))
    assert guided[0] == pytest.approx(alone[0], rel=1e-5)
    assert guided[-1] < 0.8 * alone[-1]


def test_guidance_and_gradient_checkpointing_do_not_mix():
    with pytest.raises(RequestError, match="0 with gradient_checkpointing"):
        replace(SETTINGS, guidance=0.1, gradient_checkpointing=True)


def test_a_resumed_run_ends_with_the_bytes_of_an_uninterrupted_one(data, tmp_path, monkeypatch):
    settings = replace(SETTINGS, lora_dropout=0.2, balance_rate=0.01, guidance=0.5)
    run(data, tmp_path / "whole", settings)

    class Killed(Exception):
        pass

    from finetune import loop

    save = loop.save_state

    def save_then_die(out, step, *rest):
        save(out, step, *rest)
        if step == 2:
            raise Killed

    monkeypatch.setattr(loop, "save_state", save_then_die)
    with pytest.raises(Killed):
        run(data, tmp_path / "cut", settings)
    monkeypatch.setattr(loop, "save_state", save)
    run(data, tmp_path / "cut", settings, resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_an_adapter_has_the_balanced_routers(data, tmp_path):
    settings = replace(SETTINGS, balance_rate=0.05)
    model, _ = run(data, tmp_path, settings)
    assistant = tiny_omni.assistant()
    wrapped = load_adapter(assistant.model, tmp_path)
    inputs = sample_inputs(assistant)
    with torch.no_grad():
        expected = model(**inputs).logits
        torch.testing.assert_close(assistant.model(**inputs).logits, expected)
        wrapped.merge_and_unload()
        torch.testing.assert_close(assistant.model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    facts = read_adapter(tmp_path)
    (tmp_path / ADAPTER_FILE).write_text(json.dumps({**facts, "router_biases": {"no.bias": [0.1]}}))
    with pytest.raises(CheckpointError, match=r"1 biases for no.bias, for which this model has no"):
        load_adapter(tiny_omni.assistant().model, tmp_path)


@pytest.mark.parametrize("preset", ["projectors", "lora-all"])
def test_what_was_trained_under_a_reduction_answers_under_it(data, tmp_path, preset):
    run(data, tmp_path, replace(SETTINGS, preset=preset, reduction={"image": "uniform(0.5)"}))
    if preset == "lora-all":
        model = tiny_omni.assistant().model
        load_adapter(model, tmp_path)
    else:
        model = OmniModel.from_pretrained(tmp_path)
    assert model.config.reduction["image"] == "uniform(0.5)"


def test_a_run_that_diverges_ends_and_keeps_its_last_good_state(data, tmp_path):
    settings = replace(SETTINGS, learning_rate=1e20, warmup_steps=0)
    with pytest.raises(RequestError, match=r"Training has diverged: the loss is (nan|inf)"):
        run(data, tmp_path, settings)
    kept = sorted((tmp_path / "state").glob("step-*"))
    assert kept
    saved = load_file(kept[-1] / "trained.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())
    assert not (tmp_path / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("guidance", [0.0, 0.5])
def test_packed_rows_learn_what_separate_rows_learn(data, tmp_path, guidance):
    settings = replace(SETTINGS, guidance=guidance)
    run(data, tmp_path / "packed", settings)
    run(data, tmp_path / "separate", replace(settings, packing=False))
    assert ("missed" in rows(tmp_path / "packed")[0]) == bool(guidance)
    assert missed(tmp_path / "packed") == pytest.approx(missed(tmp_path / "separate"), rel=1e-4)
    assert losses(tmp_path / "packed") == pytest.approx(losses(tmp_path / "separate"), rel=1e-4)
    packed = load_file(tmp_path / "packed" / "adapter_model.safetensors")
    separate = load_file(tmp_path / "separate" / "adapter_model.safetensors")
    for name, value in packed.items():
        torch.testing.assert_close(value, separate[name], rtol=1e-2, atol=1e-3)


def test_packing_loses_no_token_and_no_target(data):
    processor = tiny_omni.assistant().processor
    packed = Batches(open_dataset(data), processor, SETTINGS).make(0)
    separate = Batches(open_dataset(data), processor, replace(SETTINGS, packing=False)).make(0)
    assert packed.num_tokens == separate.num_tokens
    assert packed.num_targets == separate.num_targets == sum(map(num_targets, separate.rows))
    for rows in (packed.rows, separate.rows):
        assert all(row.input_ids.numel() <= SETTINGS.max_length for row in rows)
    assert sum(len(row.input_ids) for row in packed.rows) < 3  # samples share a row
    assert sum(len(row.input_ids) for row in separate.rows) == 3


def test_the_loss_falls(data, tmp_path):
    run(data, tmp_path / "out", replace(SETTINGS, preset="full", max_steps=25))
    found = losses(tmp_path / "out")
    assert sum(found[-3:]) < 0.5 * sum(found[:3])


@pytest.mark.parametrize("preset", ["lora-all", "full"])
def test_mixed_precision_learns_nearly_what_float32_learns(data, tmp_path, preset):
    found = []
    for precision in ("bf16", "no"):
        AcceleratorState._reset_state()  # of a process, which other tests share
        settings = replace(SETTINGS, preset=preset, mixed_precision=precision)
        run(data, tmp_path / precision, settings)
        found.append(losses(tmp_path / precision))
    AcceleratorState._reset_state()
    assert found[0] != found[1]
    assert found[0] == pytest.approx(found[1], rel=0.02)


def test_the_adapter_gives_the_trained_model_back(data, tmp_path):
    settings = replace(SETTINGS, learning_rate=0.1)
    model, _ = run(data, tmp_path / "out", settings)
    again = tiny_omni.assistant()
    load_adapter(again.model, tmp_path / "out")
    assert read_adapter(tmp_path / "out")["preset"] == "lora-all"
    batch = Batches(open_dataset(data), again.processor, settings).make(0).rows[0]
    with torch.no_grad():
        expected = model(**batch).logits
        torch.testing.assert_close(again.model(**batch).logits, expected)
        base = tiny_omni.omni_model()(**batch).logits
    assert not torch.allclose(base, expected, atol=1e-2)


def test_an_adapter_of_another_base_is_refused(data, tmp_path):
    run(data, tmp_path / "out", replace(SETTINGS, max_steps=1))
    load_adapter(tiny_omni.omni_model().to(torch.bfloat16), tmp_path / "out")
    nearly = tiny_omni.omni_model()
    with torch.no_grad():  # as if the adapter had been merged: the embeddings are the same
        nearly.language_model.model.layers[0].mixer.out_proj.weight.mul_(1.1)
    with pytest.raises(CheckpointError, match="was trained on 'tiny'"):
        load_adapter(nearly, tmp_path / "out")
    with pytest.raises(CheckpointError, match="was trained on 'tiny'"):
        load_adapter(tiny_omni.omni_model(seed=1), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"has no adapter_config.json"):
        load_adapter(tiny_omni.omni_model(), tmp_path)


def test_adapters_that_know_their_base_by_its_embeddings_are_loaded(data, tmp_path):
    run(data, tmp_path, replace(SETTINGS, max_steps=1))
    facts = json.loads((tmp_path / ADAPTER_FILE).read_text())
    facts["base_fingerprint"] = embedding_fingerprint(tiny_omni.omni_model())
    (tmp_path / ADAPTER_FILE).write_text(json.dumps(facts))
    load_adapter(tiny_omni.omni_model(), tmp_path)
    with pytest.raises(CheckpointError, match="was trained on 'tiny'"):
        load_adapter(tiny_omni.omni_model(seed=1), tmp_path)


def test_bad_rows_are_left_out_and_listed_once(data, tmp_path):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[4] = {"messages": []}
    rows[7]["messages"][0]["content"] = [{"type": "image", "image": "missing.png"}]
    broken = write_jsonl(data.parent / "broken.jsonl", rows)
    settings = replace(SETTINGS, max_steps=6, max_bad_share=0.5)
    _, result = run(broken, tmp_path / "out", settings)
    assert [bad.origin.row for bad in result.bad] == [5, 8]
    listed = (tmp_path / "out" / "bad_rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in listed] == [5, 8]
    assert result.steps == 6

    with pytest.raises(RequestError, match=r"2 of 9 rows are bad(.|\n)*missing.png"):
        run(broken, tmp_path / "strict", replace(settings, max_bad_share=0.1))


def test_evaluation_answers_and_keeps_the_best_weights(data, tmp_path):
    settings = replace(
        SETTINGS, metric="cer", eval_steps=1, eval_samples=2, max_new_tokens=4, patience=1,
        learning_rate=0.5,
    )  # fmt: skip
    held_out = open_dataset(data)
    _, result = run(data, tmp_path / "out", settings, held_out=held_out)
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    ]
    figures = [row["eval"]["score"][0] for row in rows if "eval" in row]
    assert figures
    assert result.after is not None
    assert result.after.figure >= max(figures) - 1e-6
    assert len(result.after.examples) == 2
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| loss |" in card
    assert (tmp_path / "out" / "curve.png").stat().st_size > 1000


def test_answers_of_an_evaluation_follow_its_schema(data, tmp_path):
    """Given as YAML gives it, and as a file."""
    schema = {"enum": ["cash", "card"]}
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    for given in (schema, str(file)):
        settings = SETTINGS.changed(
            {"metric": "exact", "eval_samples": 2, "max_new_tokens": 16, "max_steps": 1}
        ).changed({"answer_schema": given})
        out = tmp_path / f"out{isinstance(given, str)}"
        _, result = run(data, out, settings, held_out=open_dataset(data))
        assert {example.found for example in result.after.examples} <= {'"cash"', '"card"'}
    assert SETTINGS.changed({"answer_schema": "none"}).answer_schema is None


def test_whole_training_writes_a_checkpoint(data, tmp_path):
    model, _ = run(data, tmp_path / "out", replace(SETTINGS, preset="projectors", max_steps=2))
    loaded = type(model).from_pretrained(tmp_path / "out")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)


def test_another_preset_cannot_resume_a_run(data, tmp_path):
    run(data, tmp_path / "out", replace(SETTINGS, max_steps=1))
    with pytest.raises(CheckpointError, match="not the"):
        run(data, tmp_path / "out", replace(SETTINGS, preset="lora-mamba"), resume=True)


def test_a_run_is_neither_started_over_nor_resumed_on_other_data_or_another_base(data, tmp_path):
    settings = replace(SETTINGS, max_steps=2, save_steps=1)
    run(data, tmp_path, settings)
    before = weights(tmp_path)
    with pytest.raises(CheckpointError, match=r"step-000002. Go on with it by --resume"):
        run(data, tmp_path, settings)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    other = write_jsonl(data.parent / "other.jsonl", rows[::-1])
    with pytest.raises(CheckpointError, match="is of a run with data="):
        run(other, tmp_path, settings, resume=True)
    with pytest.raises(CheckpointError, match="is of a run with base="):
        run(data, tmp_path, settings, resume=True, model=tiny_omni.omni_model(seed=1))
    assert weights(tmp_path) == before
    moved = shutil.copy(data, data.with_name("moved.jsonl"))
    run(moved, tmp_path, settings, resume=True)
    assert weights(tmp_path) == before


def test_a_step_of_bad_rows_alone_stops_nothing(data, tmp_path):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[2] = {"messages": []}
    broken = write_jsonl(data.parent / "one_bad.jsonl", rows)
    settings = replace(SETTINGS, samples_per_step=1, max_steps=9, max_bad_share=0.5)
    _, result = run(broken, tmp_path, settings)
    assert result.steps == 9
    assert [bad.origin.row for bad in result.bad] == [3]
    assert losses(tmp_path).count(None) == 1
    assert (tmp_path / "curve.png").exists()


def test_a_run_goes_on_with_its_own_settings_only(data, tmp_path):
    run(data, tmp_path, replace(SETTINGS, max_steps=2))
    with pytest.raises(CheckpointError, match=r"learning_rate=0.01, but now it is 0.1"):
        run(data, tmp_path, replace(SETTINGS, learning_rate=0.1), resume=True)
    _, result = run(data, tmp_path, SETTINGS, resume=True)  # more steps are no other run
    assert result.steps == SETTINGS.max_steps


def test_balancing_moves_biases_towards_the_experts_that_are_chosen_less(data):
    assistant = tiny_omni.assistant()
    model = assistant.model
    row = Batches(open_dataset(data), assistant.processor, SETTINGS).make(0).rows[0]
    with Balancer(model, 0.1) as balancer, torch.no_grad():
        model(**row)
        loads = [load.clone() for load in balancer._loads]
    assert balancer.biases
    for bias, load in zip(balancer.biases.values(), loads, strict=True):
        assert torch.equal(bias, 0.1 * torch.sign(load.mean() - load))
    assert not Balancer(model, 0.0).biases


def test_held_out_rows_without_a_last_answer_are_listed_not_fatal(data, tmp_path):
    rows = [json.loads(line) for line in data.read_text().splitlines()][:3]
    rows[1]["messages"].append({"role": "user", "content": "And now?"})
    held_out = open_dataset(write_jsonl(data.parent / "held.jsonl", rows))
    settings = replace(SETTINGS, max_steps=1, metric="cer", max_new_tokens=2)
    _, result = run(data, tmp_path, settings, held_out=held_out)
    assert result.after is not None
    assert len(result.after.examples) == 2
    assert [bad.origin.row for bad in result.after.bad] == [2]


def test_each_pass_over_the_data_has_every_row_once():
    settings = replace(SETTINGS, samples_per_step=4)
    seen = [i for step in range(5) for i in indices_of_step(step, 10, settings)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_tensorboard_gets_the_figures_or_its_absence_is_said(data, tmp_path, monkeypatch):
    settings = replace(SETTINGS, max_steps=2, tensorboard=True)
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            assert purge_step == 1

        def add_scalar(self, name, value, step):
            written.append((name, step))

        def flush(self):
            pass

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    run(data, tmp_path / "with", settings)
    assert {("loss", 1), ("loss", 2), ("learning_rate", 2)} <= set(written)

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RequestError, match="needs the package tensorboard"):
        run(data, tmp_path / "without", settings)
