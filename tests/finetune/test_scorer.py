"""Training the scorers: what it touches, what it repeats, and that it learns."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import settings as few_settings
from hypothesis import strategies as st
from PIL import Image

from encoders import init_small_audio_tower
from finetune import scorer as scorer_module
from finetune.cli import register
from finetune.data import open_dataset
from finetune.scorer import STATE_FILE, ScorerTraining, train_scorers
from omni import load
from omni.assistant import Assistant
from omni.errors import CheckpointError, RequestError
from omni.media import load_media
from omni.reduction import ReductionWarning
from tests.support import tiny_omni

few = few_settings(max_examples=40, deadline=None)


def conversation(seed: int, kind: str = "image") -> list[dict[str, Any]]:
    medium: Any
    if kind == "image":
        medium = load_media(tiny_omni.picture(32, 48, seed))
    elif kind == "video":
        medium = load_media(tiny_omni.clip(4, 32, 32, seed), fps=4.0)
    else:
        medium = load_media(tiny_omni.tone(0.6, seed), sampling_rate=16_000)
    question = [{"type": kind, kind: medium}, {"type": "text", "text": "What?"}]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": f"{seed % 3}"}]


def mixed() -> list[list[dict[str, Any]]]:
    kinds = ("image", "video", "audio")
    return [conversation(seed, kinds[seed % 3]) for seed in range(6)]


def training(**changes: Any) -> ScorerTraining:
    chosen = {
        "steps": 4,
        "modalities": ("image", "video", "audio"),
        "rates": (0.2, 0.7),
        "batch_size": 3,
        "draws": 4,
        "warmup_steps": 2,
        "save_every": 2,
    }
    return ScorerTraining(**{**chosen, **changes})


def weights(assistant: Assistant) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in assistant.model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {
        name.split(".")[0]
        for name, tensor in after.items()
        if name not in before or not torch.equal(before[name], tensor)
    }


@pytest.mark.parametrize("distillation", [0.0, 0.5])
def test_only_scorers_change_and_the_model_is_left_as_it_was(distillation: float) -> None:
    assistant = tiny_omni.assistant()
    model = assistant.model
    init_small_audio_tower(model.audio_tower)  # as it is, all tokens are about zero
    before = weights(assistant)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    settings = training(distillation=distillation)
    train_scorers(model, assistant.processor, mixed(), settings)
    assert changed(before, weights(assistant)) == {"token_scorers"}
    assert not model.training
    assert flags.items() <= {name: p.requires_grad for name, p in model.named_parameters()}.items()
    for scorer in model.token_scorers.values():
        assert bool(scorer.linear_2.weight.any())  # it began at zero


def test_resamplers_are_trained_with_any_number_of_queries_in_the_range(tmp_path: Path) -> None:
    assistant = tiny_omni.assistant()
    before = weights(assistant)
    settings = training(queries=(2, 5))
    assert {settings.spec_of(i) for i in range(40)} == {f"resampler({k})" for k in range(2, 6)}
    train_scorers(assistant.model, assistant.processor, mixed(), settings, out=tmp_path)
    assert changed(before, weights(assistant)) == {"resamplers"}
    loaded = load(tmp_path)
    assert loaded.model.config.resamplers["audio"] == [2, 5]
    picture = tiny_omni.picture(32, 48)
    for one in (assistant, loaded):
        reply = one.ask("What?", picture, reduction={"image": "resampler(3)"}, max_new_tokens=2)
        assert reply.ledger.media[0].stages[-2].count == 3
    with pytest.warns(ReductionWarning, match="trained with 2 to 5 queries"):
        loaded.plan("What?", picture, reduction={"image": "resampler(1)"})
    with pytest.raises(RequestError, match="asks for 6 queries; this checkpoint has 5"):
        loaded.plan("What?", picture, reduction={"image": "resampler(6)"})


def test_projectors_change_when_they_have_a_learning_rate() -> None:
    assistant = tiny_omni.assistant()
    before = weights(assistant)
    settings = training(projector_learning_rate=1e-3)
    train_scorers(assistant.model, assistant.processor, mixed(), settings)
    expected = {"token_scorers", "multi_modal_projector", "embed_audio"}
    assert changed(before, weights(assistant)) == expected


@pytest.mark.parametrize("stop_after", [1, 2, 3])
@pytest.mark.parametrize("distillation", [0.0, 0.5])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    tmp_path: Path, stop_after: int, distillation: float
) -> None:
    settings = training(distillation=distillation, projector_learning_rate=1e-3)
    whole = tiny_omni.assistant()
    train_scorers(whole.model, whole.processor, mixed(), settings)

    def stop(step: int, loss: float) -> None:
        if step == stop_after:
            raise KeyboardInterrupt

    cut = tiny_omni.assistant()
    with pytest.raises(KeyboardInterrupt):
        train_scorers(cut.model, cut.processor, mixed(), settings, out=tmp_path, report=stop)
    assert (tmp_path / STATE_FILE).exists() == (stop_after >= settings.save_every)
    again = tiny_omni.assistant()
    train_scorers(again.model, again.processor, mixed(), settings, out=tmp_path, resume=True)
    assert not changed(weights(whole), weights(again))


def test_the_random_state_of_the_program_is_left_alone() -> None:
    assistant = tiny_omni.assistant()
    assistant.model.add_token_scorer("image", (0.2, 0.7))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    only_images = [conversation(seed) for seed in range(3)]
    settings = training(steps=1, modalities=("image",))
    train_scorers(assistant.model, assistant.processor, only_images, settings)
    assert torch.equal(torch.rand(4), expected)


def test_the_saved_checkpoint_answers_and_warns_outside_the_trained_range(tmp_path: Path) -> None:
    assistant = tiny_omni.assistant()
    train_scorers(assistant.model, assistant.processor, mixed(), training(), out=tmp_path)
    loaded = load(tmp_path)
    picture = tiny_omni.picture(32, 48)
    for rate in ("0.2", "0.7"):
        answers = [
            one.ask("What?", picture, reduction={"image": f"learned({rate})"}, max_new_tokens=3)
            for one in (assistant, loaded)
        ]
        assert answers[0].text == answers[1].text
    with pytest.warns(ReductionWarning, match=r"trained at rates from 0.2 to 0.7"):
        loaded.plan("What?", picture, reduction={"image": "learned(0.75)"})


def test_a_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    assistant = tiny_omni.assistant()
    train_scorers(assistant.model, assistant.processor, mixed(), training(), out=tmp_path)
    other = training(rates=(0.1, 0.7))
    expected = r"rates=\[0.2, 0.7\], but now it is \[0.1, 0.7\]"
    again = tiny_omni.assistant()
    with pytest.raises(CheckpointError, match=expected):
        train_scorers(again.model, again.processor, mixed(), other, out=tmp_path, resume=True)


def test_a_state_of_other_data_or_another_model_is_refused_and_none_is_started_over(
    tmp_path: Path,
) -> None:
    assistant = tiny_omni.assistant()
    train_scorers(assistant.model, assistant.processor, mixed(), training(), out=tmp_path)
    kept = (tmp_path / STATE_FILE).read_bytes()
    again = tiny_omni.assistant()
    fewer = mixed()[:-1]
    for model, data, resume, expected in (
        (again, fewer, True, "rows="),
        (assistant, mixed(), True, "base="),  # it has the trained scorers now
        (again, mixed(), False, "holds the state of a run"),
    ):
        with pytest.raises(CheckpointError, match=expected):
            train_scorers(
                model.model, model.processor, data, training(), out=tmp_path, resume=resume
            )
    assert (tmp_path / STATE_FILE).read_bytes() == kept


def test_other_rows_of_the_same_number_are_other_data(tmp_path: Path) -> None:
    model, found = tiny_omni.assistant().model, set()
    for answer in ("yes", "no", "yes"):
        file = tmp_path / f"{len(found)}.jsonl"
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        file.write_text(json.dumps({"messages": turns}))
        found.add(scorer_module._identity(training(), open_dataset(file), model)["data"])
    assert len(found) == 2


def test_distillation_alone_needs_no_true_answer_to_be_learned() -> None:
    """With weight 1 the answers' words only say where to compare: their loss has no part."""
    losses: list[float] = []
    assistant = tiny_omni.assistant()
    settings = training(steps=1, batch_size=6, distillation=1.0, rates=(0.0, 0.0))
    train_scorers(
        assistant.model,
        assistant.processor,
        mixed(),
        settings,
        report=lambda step, loss: losses.append(loss),
    )
    assert losses == [pytest.approx(0.0, abs=1e-6)]  # nothing is removed, so nothing differs


@few
@given(st.integers(1, 30), st.integers(0, 3), st.integers(0, 99))
def test_every_pass_takes_every_conversation_once(count: int, epoch: int, seed: int) -> None:
    numbers = range(epoch * count, (epoch + 1) * count)
    found = list(scorer_module._indices(numbers, count, seed))
    assert sorted(found) == list(range(count))


@few
@given(st.floats(0, 0.99), st.floats(0, 0.99), st.integers(0, 10**6))
def test_drawn_rates_lie_in_the_range(one: float, other: float, number: int) -> None:
    low, high = sorted((one, other))
    assert low <= training(rates=(low, high)).rate_of(number) <= high


def test_rates_are_spread_over_the_range() -> None:
    settings = training(rates=(0.0, 0.8))
    found = np.histogram([settings.rate_of(i) for i in range(4000)], bins=4, range=(0.0, 0.8))[0]
    assert found.min() > 900


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, r"steps is 0; expected at least 1"),
        ({"modalities": ()}, r"modalities is \(\); expected at least one of"),
        ({"modalities": ("sound",)}, r"modalities is \('sound',\); expected at least one of"),
        ({"rates": (0.5, 1.0)}, r"rates is \(0.5, 1.0\); expected the lowest and the highest"),
        ({"queries": (5, 2)}, r"queries is \(5, 2\); expected the fewest and the most"),
        ({"batch_size": 0}, r"batch_size is 0"),
        ({"distillation": 1.5}, r"distillation is 1.5; expected a weight from 0 to 1"),
        ({"temperature": 0.0}, r"temperature is 0.0; expected a number above 0"),
        ({"draws": 1}, r"draws is 1; expected at least 2, to compare"),
        ({"noise": 0.0}, r"noise is 0.0; expected a number above 0"),
        ({"save_every": 0}, r"save_every is 0"),
    ],
)
def test_settings_outside_their_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        training(**changes)


@pytest.mark.parametrize(
    ("conversations", "message"),
    [
        ([], "at least one conversation to train on, found none"),
        ([conversation(0, "audio")], "has media of audio; expected at least one of image"),
        ([conversation(0)[:1], conversation(1)], "at least one assistant message"),
    ],
)
def test_conversations_that_teach_nothing_are_refused(
    conversations: Sequence[Any], message: str
) -> None:
    assistant = tiny_omni.assistant()
    settings = training(modalities=("image",))
    with pytest.raises(RequestError, match=message):
        train_scorers(assistant.model, assistant.processor, conversations, settings)


def test_a_modality_that_the_data_lack_is_refused_and_nothing_is_saved(tmp_path: Path) -> None:
    assistant = tiny_omni.assistant()
    settings = training(modalities=("image", "video"))
    with pytest.raises(RequestError, match="None of the conversations has media of video"):
        train_scorers(
            assistant.model,
            assistant.processor,
            [conversation(seed) for seed in range(3)],
            settings,
            out=tmp_path,
        )
    assert not list(tmp_path.iterdir())


def run(*arguments: object) -> None:
    app = typer.Typer()
    register(app)
    app(["finetune", "scorer", *map(str, arguments)], standalone_mode=False)


def test_the_command_trains_and_saves_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_omni.assistant()
    base.model.save_pretrained(tmp_path / "base")
    base.processor.save_pretrained(tmp_path / "base")
    lines = []
    for seed in range(3):
        Image.fromarray(tiny_omni.picture(32, 48, seed)).save(tmp_path / f"{seed}.png")
        [question, answer] = conversation(seed)
        question["content"][0] = {"type": "image", "image": f"{seed}.png"}
        lines.append(json.dumps({"messages": [question, answer]}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    run(
        *(tmp_path / "data.jsonl", "--modality", "image", "--rates", 0, 0.5, "--max-steps", 2),
        *("--batch-size", 2, "--base", tmp_path / "base", "--out", tmp_path / "new", "--json"),
    )
    assert len(json.loads(capsys.readouterr().out)["losses"]) == 2
    assert load(tmp_path / "new").model.config.token_scorers == {"image": [0.0, 0.5]}


def test_a_row_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"messages": 3}\n')
    assistant = tiny_omni.assistant()
    settings = training(modalities=("image",))
    with pytest.raises(RequestError, match=r"data\.jsonl.*Correct the row or leave it out"):
        train_scorers(
            assistant.model,
            assistant.processor,
            open_dataset(tmp_path / "data.jsonl"),
            settings,
        )
