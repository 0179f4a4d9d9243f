"""What the ledger counts is what runs."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.assistant import Assistant
from omni.backbone.cache import KeyValueState, MambaState
from omni.errors import ContextLengthError
from omni.generation import prefill
from omni.inputs import OmniInputs
from omni.ledger import Ledger, make_ledger, readable
from omni.ledger_table import ledger_table
from omni.media import load_media
from omni.options import MediaOptions
from tests.support import tiny_omni

ASSISTANT = tiny_omni.assistant()
MODEL, PROCESSOR = ASSISTANT.model, ASSISTANT.processor
NO_TIMES: dict[str, float] = {}

pictures = st.builds(tiny_omni.picture, st.integers(8, 90), st.integers(8, 90))
clips = st.builds(
    lambda frames, height, width: load_media(tiny_omni.clip(frames, height, width), fps=8.0),
    st.integers(1, 20),
    st.integers(16, 60),
    st.integers(16, 60),
)
sounds = st.builds(
    lambda seconds: load_media(tiny_omni.tone(seconds), sampling_rate=16_000), st.floats(0.1, 3)
)
some_media = st.lists(st.one_of(pictures, clips, sounds), max_size=3)
specs = st.fixed_dictionaries(
    {},
    optional={
        "video": st.sampled_from(
            ["evs(0.6)", "tome(0.3)|uniform(0.5)", "temporal_merge(0.5)", "keyframes(0.5)|evs(0.3)"]
        ),
        "image": st.sampled_from(["uniform(0.4)", "avg_pool(2)", "tome(0.5)"]),
        "audio": st.sampled_from(["uniform(0.2)", "adjacent_merge(0.5)"]),
    },
)


def question(media: list[Any]) -> list[dict[str, Any]]:
    parts = [{"type": "media", "media": medium} for medium in media]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]


def ledger_of(inputs: OmniInputs, answer_tokens: int = 0) -> Ledger:
    return make_ledger(MODEL.config, inputs, context_tokens=4096, answer_tokens=answer_tokens)


def check_counts(media: list[Any], reduction: Mapping[str, str], max_tokens: int | None) -> None:
    """Encode a request and compare lengths with what its ledger said beforehand."""
    options = MediaOptions(reduction=reduction, max_tokens=max_tokens)
    try:
        inputs = PROCESSOR(question(media), options=options)
    except ContextLengthError:
        return
    ledger = ledger_of(inputs)
    assert ledger.prompt_tokens == inputs.input_ids.shape[1] <= (max_tokens or 4096)
    encoded = MODEL.encode(inputs.media)
    for entry, item, (features, layout) in zip(ledger.media, inputs.media, encoded, strict=True):
        assert entry.stages[-1].count == item.block_length
        assert entry.stages[-2].count == len(features) == layout.shape.num_tokens
        assert entry.chosen["reduction"] == item.reduction
    _, ids, _ = MODEL.embed(inputs.input_ids, inputs.media)
    blocks = sum(entry.stages[-1].count for entry in ledger.media)
    assert ledger.text_tokens == ids.shape[1] - blocks


@pytest.mark.parametrize(
    "examples",
    [25, pytest.param(400, marks=(pytest.mark.slow, pytest.mark.timeout(900)))],
)
def test_counts_are_the_lengths_of_real_tensors(examples: int) -> None:
    budgets = st.one_of(st.none(), st.integers(150, 1500))
    settings(max_examples=examples)(given(some_media, specs, budgets)(check_counts))()


@settings(max_examples=10)
@given(some_media)
def test_cache_bytes_are_those_of_the_real_cache(media) -> None:
    inputs = PROCESSOR(question(media))
    ledger = ledger_of(inputs)
    keys = states = 0
    for layer in prefill(MODEL, inputs).cache.layers:
        if isinstance(layer, KeyValueState):
            keys += layer.keys.view().nbytes + layer.values.view().nbytes
        if isinstance(layer, MambaState):
            assert layer.conv_state is not None
            assert layer.ssm_state is not None
            states += layer.conv_state.nbytes + layer.ssm_state.nbytes
    assert ledger.kv_cache_bytes == keys
    assert ledger.mamba_state_bytes == states


@pytest.mark.parametrize("share", [None, 0.9, 0.6])
@pytest.mark.parametrize("unit", ["max_tokens", "max_memory"])
def test_a_plan_is_what_the_request_then_uses(unit: str, share: float | None) -> None:
    media = [load_media(tiny_omni.clip(16, 40, 60), fps=8.0), tiny_omni.picture(60, 60)]
    options: dict[str, Any] = {"max_new_tokens": 4}
    free = ASSISTANT.plan("What?", *media, **options)
    fixed = {"max_tokens": 0, "max_memory": free.overhead_bytes}[unit]
    needed = {"max_tokens": free.prompt_tokens + 4, "max_memory": free.memory_bytes}[unit]
    if share is not None:
        options[unit] = fixed + int(share * (needed - fixed))
    plan = ASSISTANT.plan("What?", *media, **options)
    ledger = ASSISTANT.ask("What?", *media, **options).ledger
    assert plan.seconds == NO_TIMES
    assert [entry.seconds for entry in plan.media] == [NO_TIMES] * 2
    assert plan.prompt_tokens == ledger.prompt_tokens
    assert plan.budget == ledger.budget
    for before, after in zip(plan.media, ledger.media, strict=True):
        assert (before.stages, before.chosen, before.asked) == (
            after.stages,
            after.chosen,
            after.asked,
        )
    assert any(entry.asked for entry in plan.media) == (share is not None)
    json.dumps(plan.to_dict())


def test_every_medium_that_a_budget_lowered_is_named() -> None:
    clip = load_media(tiny_omni.clip(16, 40, 60), fps=8.0)
    pictures = [load_media(tiny_omni.picture(60, 60, seed)) for seed in range(2)]
    floor = replace(pictures[0], name="a/floor tile 3.png")
    media = [clip, *pictures, floor]
    needed = ASSISTANT.plan("What?", *media).prompt_tokens
    plan = ASSISTANT.plan("What?", *media, max_tokens=needed // 2, max_new_tokens=4)
    names = [line.split(": ")[0] for line in plan.lowered]
    arrays = [f"<array> ({place} of 4)" for place in (1, 2, 3)]
    assert names == [*arrays, "floor tile 3.png"]
    assert [line.split(": ", 1)[1] for line in plan.lowered] == [
        ", ".join(
            f"{setting} {readable(asked)} → {readable(entry.chosen[setting])}"
            for setting, asked in entry.asked.items()
        )
        for entry in plan.media
    ]


def test_tiles_of_a_picture_are_lowered_as_one() -> None:
    tiled = {"dynamic_resolution": False, "force_image_size": 32, "max_num_tiles": 6}
    assistant = tiny_omni.assistant(**tiled)
    pictures = [load_media(tiny_omni.picture(60, 90, seed)) for seed in range(2)]
    needed = assistant.plan("What?", *pictures).prompt_tokens
    plan = assistant.plan("What?", *pictures, max_tokens=needed // 2, max_new_tokens=4)
    assert len(plan.media) > 2
    names = [line.split(":")[0] for line in plan.lowered]
    assert names == ["<array> (1 of 2)", "<array> (2 of 2)"]


def test_conversations_of_a_batch_share_a_memory_budget() -> None:
    def planned(assistant: Assistant, max_memory: int) -> list[int]:
        lengths = []
        original = assistant.processor.from_text

        def spy(*arguments: Any, **options: Any) -> OmniInputs:
            inputs = original(*arguments, **options)
            lengths.append(inputs.num_tokens)
            return inputs

        assistant.processor.from_text = spy
        try:
            clip = load_media(tiny_omni.clip(16, 40, 60), fps=8.0)
            assistant.chat_batch([question([clip])] * 2, max_memory=max_memory, max_new_tokens=2)
        finally:
            assistant.processor.from_text = original
        return lengths

    clip = load_media(tiny_omni.clip(16, 40, 60), fps=8.0)
    needed = ASSISTANT.plan("What?", clip, max_new_tokens=2)
    alone = needed.prompt_tokens
    assert planned(ASSISTANT, 2 * needed.memory_bytes) == [alone, alone]
    for length in planned(ASSISTANT, 2 * needed.memory_bytes - 2):
        assert length < alone


def test_the_table_shows_what_was_asked_and_what_was_chosen() -> None:
    clip = load_media(tiny_omni.clip(32, 40, 60), fps=8.0)
    needed = ASSISTANT.plan("What?", clip, max_new_tokens=4).prompt_tokens + 4
    plan = ASSISTANT.plan("What?", clip, max_new_tokens=4, max_tokens=needed // 2)
    table, *lines = ledger_table(plan).renderables
    shown = [cell for column in table.columns for cell in column.cells]
    frames = plan.media[0].chosen["num_frames"]
    assert any(f"num_frames {frames} (asked 16)" in cell for cell in shown)
    assert f"budget {needed // 2:,} tokens · as asked {needed:,} tokens" in lines[-1]
