"""Tubelets of 1, 2 and 4 frames, from the file's frames to the answer."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.assistant import Assistant
from omni.media import load_media
from omni.options import MediaOptions
from tests.support import tiny_omni

few = settings(max_examples=20, deadline=None)
ASSISTANTS: dict[int, Assistant] = {}


def assistant(frames: int) -> Assistant:
    if frames not in ASSISTANTS:
        # One frame is a frame alone: such checkpoints have no video embedder and say nothing.
        vision = {**tiny_omni.VISION, "video_temporal_patch_size": frames if frames > 1 else None}
        ASSISTANTS[frames] = tiny_omni.assistant(
            vision_config=vision, video_temporal_patch_size=frames
        )
    return ASSISTANTS[frames]


def question(num_frames: int) -> list[dict[str, Any]]:
    opened = load_media(tiny_omni.clip(num_frames, 32, 48), fps=4.0)
    clip = {"type": "video", "video": opened}
    text = {"type": "text", "text": "What moves?"}
    answer = {"role": "assistant", "content": "It."}
    return [{"role": "user", "content": [clip, text]}, answer]


@few
@given(
    st.sampled_from([1, 2, 4]),
    st.integers(1, 13),
    st.sampled_from(["identity", "evs(0.5)", "keyframes(0.5)|tome(0.3)|evs(0.5, floor=2)"]),
)
def test_planned_is_used_and_steps_are_tubelets(
    frames: int, num_frames: int, reduction: str
) -> None:
    one = assistant(frames)
    messages = question(num_frames)[:1]
    reply = one.chat(messages, reduction={"video": reduction}, max_new_tokens=2)
    [entry], [evidence] = reply.ledger.media, reply.evidence
    assert entry.stages[-2].count == evidence["kept"]
    inputs = one.processor(messages, options=MediaOptions(reduction={"video": reduction}))
    [item], [(features, layout)] = inputs.media, one.model.encode(inputs.media)
    assert len(features) == layout.shape.num_tokens == item.num_tokens == evidence["kept"]
    if "keyframes" not in reduction:
        assert layout.shape.grid[0] == -(-num_frames // frames)


@pytest.mark.parametrize("frames", [1, 2, 4])
def test_gradients_reach_the_embedder_through_pruning(frames: int) -> None:
    one = assistant(frames)
    options = MediaOptions(reduction={"video": "evs(0.5)"})
    inputs = one.processor(question(9), options=options, with_labels=True)
    one.model.zero_grad()
    one.model(**inputs).loss.backward()
    trained = [
        name
        for name, weight in one.model.vision_model.named_parameters()
        if weight.grad is not None and bool(weight.grad.any())
    ]
    assert any("video_patch" in name for name in trained) == (frames > 1)


@pytest.mark.parametrize("frames", [2, 4])
def test_answers_do_not_depend_on_the_batch(frames: int) -> None:
    one = assistant(frames)
    requests = [question(n)[:1] for n in (3, 8, 9)]
    with torch.inference_mode():
        alone = [one.chat(r, max_new_tokens=4).text for r in requests]
    assert one.chat_batch(requests, max_new_tokens=4) == alone
