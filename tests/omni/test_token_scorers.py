"""The learned reducer inside the model: planned, trained, saved, refused where it cannot be."""

from pathlib import Path

import pytest
import torch

from omni import load
from omni.assistant import Assistant
from omni.errors import ConfigError, RequestError
from omni.inputs import Modality
from omni.reduction import ReductionWarning
from tests.support import tiny_omni

MODALITIES: tuple[Modality, ...] = ("image", "video", "audio")
LEARNED = {"video": "learned(0.5)", "image": "learned(0.5)", "audio": "learned(0.5)"}


def assistant_with_scorers() -> Assistant:
    assistant = tiny_omni.assistant()
    for modality in MODALITIES:
        scorer = assistant.model.add_token_scorer(modality, (0.0, 0.8))
        torch.nn.init.normal_(scorer.linear_2.weight)
    assistant.model.eval()
    return assistant


def request(assistant: Assistant) -> list[dict[str, object]]:
    opened = assistant.processor.load_media
    media = [
        opened(tiny_omni.picture(64, 96)),
        opened(tiny_omni.clip(8, 64, 64), fps=8.0),
        opened(tiny_omni.tone(1.0), sampling_rate=16_000),
    ]
    kinds = ("image", "video", "audio")
    parts = [{"type": kind, kind: item} for kind, item in zip(kinds, media, strict=True)]
    return [
        {"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A thing."},
    ]


def test_planned_is_used_and_the_answer_does_not_depend_on_the_batch() -> None:
    assistant = assistant_with_scorers()
    messages = request(assistant)[:1]
    alone = assistant.chat(messages, reduction=LEARNED, max_new_tokens=4)
    for entry, evidence in zip(alone.ledger.media, alone.evidence, strict=True):
        planned = entry.stages[-2].count
        assert planned == evidence["kept"]
    both = assistant.chat_batch([messages, messages], reduction=LEARNED, max_new_tokens=4)
    assert both == [alone.text, alone.text]


def test_scorers_and_their_range_are_saved(tmp_path: Path) -> None:
    assistant = assistant_with_scorers()
    assistant.model.save_pretrained(tmp_path)
    assistant.processor.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.model.config.token_scorers == {
        "image": [0.0, 0.8],
        "video": [0.0, 0.8],
        "audio": [0.0, 0.8],
    }
    for name, tensor in assistant.model.token_scorers.state_dict().items():
        assert torch.equal(tensor, loaded.model.token_scorers.state_dict()[name])


def test_a_rate_outside_the_trained_range_warns_and_inside_does_not(
    recwarn: pytest.WarningsRecorder,
) -> None:
    assistant = assistant_with_scorers()
    assistant.plan("What?", tiny_omni.picture(64, 96), reduction={"image": "learned(0.8)"})
    assert not [w for w in recwarn if w.category is ReductionWarning]
    with pytest.warns(ReductionWarning, match=r"trained at rates from 0 to 0\.8"):
        assistant.plan("What?", tiny_omni.picture(64, 96), reduction={"image": "learned(0.9)"})


def test_without_a_scorer_the_request_is_refused_before_anything_runs() -> None:
    with pytest.raises(RequestError, match=r"needs a trained scorer; this checkpoint has .*none"):
        tiny_omni.assistant().plan(
            "What?", tiny_omni.picture(64, 96), reduction={"image": "evs(0.1)|learned(0.5)"}
        )


def test_a_range_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"token_scorers\['audio'\] is \[0.9, 0.1\]"):
        tiny_omni.omni_config(token_scorers={"audio": [0.9, 0.1]})


def test_a_resampler_is_refused_without_weights_and_with_other_ones() -> None:
    assistant = tiny_omni.assistant()
    with pytest.raises(RequestError, match=r"needs trained queries; this checkpoint .*for: none"):
        assistant.plan("What?", tiny_omni.picture(64, 96), reduction={"image": "resampler(4)"})
    first = assistant.model.add_resampler("image", (2, 8))
    assert assistant.model.add_resampler("image", (4, 8)) is first
    with pytest.raises(RequestError, match="has 8 queries for image, but 16 are asked for"):
        assistant.model.add_resampler("image", (2, 16))


def test_resamplers_answer_alike_alone_and_in_a_batch_of_all_media() -> None:
    assistant = tiny_omni.assistant()
    for modality in MODALITIES:
        assistant.model.add_resampler(modality, (1, 8))
    reduction = {"video": "resampler(3)", "image": "resampler(5)", "audio": "resampler(4)"}
    messages = request(assistant)[:1]
    alone = assistant.chat(messages, reduction=reduction, max_new_tokens=4)
    assert [entry.stages[-2].count for entry in alone.ledger.media] == [5, 6, 4]
    both = assistant.chat_batch([messages, messages], reduction=reduction, max_new_tokens=4)
    assert both == [alone.text, alone.text]


def test_a_number_of_queries_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"resamplers\['audio'\] is \[0, 4\]"):
        tiny_omni.omni_config(resamplers={"audio": [0, 4]})
