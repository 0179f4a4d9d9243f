"""Repeated frames are left out before the tower, and the prompt's times stay true."""

import numpy as np
import pytest
import torch

from omni.errors import RequestError
from omni.frames import choose_frames, mean_colours
from omni.options import MediaOptions
from omni.reduction import split_frames
from tests.support import tiny_omni
from token_reduction import build


@pytest.fixture(scope="module")
def assistant():
    return tiny_omni.assistant()


def slides(assistant, shown=(0, 0, 0, 1, 1, 2, 2, 2)):
    """Still pictures, one of them shown at each of eight frames; four frames a second."""
    pictures = np.stack([tiny_omni.picture(36, 64, seed) for seed in range(3)])
    return assistant.processor.load_media(pictures[list(shown)], fps=4.0)


def planned(assistant, video, reduction):
    options = MediaOptions(fps=4.0, reduction={"video": reduction})
    inputs = assistant.processor.from_text("<video>", [video], options=options)
    return inputs, inputs.media[0]


def test_slides_are_kept_once_with_their_own_times(assistant):
    video = slides(assistant)
    inputs, item = planned(assistant, video, "keyframes(0.625)")
    assert item.grid[0] == 3
    assert item.time_spans == ((0.0, 0.75), (0.75, 1.25), (1.25, 2.0))
    assert (item.facts["sampled_frames"], item.facts["kept_frames"]) == (8, 3)
    text = assistant.processor.tokenizer.decode(inputs.input_ids[0])
    assert "Frame 1 sampled at 0.00 seconds and frame 2 sampled at 0.75 seconds: " in text
    assert "Frame 3 sampled at 1.25 seconds: " in text


def test_kept_frames_are_encoded_as_if_only_they_had_been_sampled(assistant):
    model = assistant.model
    _, chosen = planned(assistant, slides(assistant), "keyframes(0.625)|evs(0.3)")
    few = slides(assistant, shown=(0, 1, 2))
    _, alone = planned(assistant, few, "evs(0.3)")
    (features, layout), (expected, expected_layout) = model.encode([chosen, alone])
    assert torch.equal(features, expected)
    assert torch.equal(layout.cells, expected_layout.cells)
    assert len(features) == chosen.num_tokens == alone.num_tokens


def test_an_answer_with_keyframes_counts_what_was_planned(assistant):
    options = {"video": "keyframes(0.5)|evs(0.5)"}
    planned = assistant.plan("What is it?", slides(assistant), reduction=options)
    stages = {stage.name: stage.count for stage in planned.media[0].stages}
    assert (stages["frames"], stages["keyframes(0.5)"]) == (8, 4)
    reply = assistant.ask("What is it?", slides(assistant), reduction=options, max_new_tokens=2)
    assert reply.ledger.prompt_tokens == planned.prompt_tokens
    assert reply.evidence[0]["source_grid"][0] == 4
    assert reply.evidence[0]["reduction"] == "keyframes(0.5)|evs(0.5)"


def test_nothing_is_decoded_for_a_plan_that_keeps_every_frame(assistant, monkeypatch):
    video = slides(assistant)
    plan = video.plan()
    monkeypatch.setattr(type(video), "frames", lambda *_: pytest.fail("decoded"))
    assert choose_frames(video, plan, build("identity")) == plan
    assert choose_frames(video, plan, build("keyframes(0)")) == plan


def test_mean_colours_are_the_means_of_cells():
    frame = torch.from_numpy(tiny_omni.picture(32, 48))
    cells = mean_colours(frame)
    assert cells.shape == (256, 3)
    torch.testing.assert_close(cells[17], frame[2:4, 3:6].float().mean(dim=(0, 1)))


@pytest.mark.parametrize(
    ("spec", "frames", "later"),
    [
        ("keyframes(0.5)", ["keyframes(0.5)"], []),
        ("keyframes(0.5)|tome(0.3)| evs(0.7)", ["keyframes(0.5)"], ["tome(0.3)", "evs(0.7)"]),
        ("evs(0.7)|identity", [], ["evs(0.7)"]),
        ("identity", [], []),
    ],
)
def test_reducers_of_frames_and_later_ones_are_told_apart(spec, frames, later):
    assert split_frames(spec) == (frames, later)


@pytest.mark.parametrize(
    ("spec", "modality", "message"),
    [
        ("tubelet(2)|evs(0.5)", "video", "has tubelet, which belongs to the weights"),
        ("pixel_shuffle(0.5)", "image", "has pixel_shuffle, which belongs to the weights"),
        ("stack(2)", "audio", "has stack, which belongs to the weights"),
        ("keyframes(0.5)", "image", "Found image; keyframes takes only video"),
        ("keyframes(0.5)", "audio", "Found audio; keyframes takes only video"),
        ("evs(0.5)|keyframes(0.5)", "video", r"Evs \(after_projector\) before Keyframes"),
    ],
)
def test_reducers_at_a_place_that_a_request_cannot_choose_are_refused(
    assistant, spec, modality, message
):
    media = {
        "video": lambda: slides(assistant),
        "image": lambda: tiny_omni.picture(36, 64),
        "audio": lambda: assistant.processor.load_media(tiny_omni.tone(1.0), sampling_rate=16_000),
    }
    with pytest.raises(RequestError, match=message):
        assistant.plan("What?", media[modality](), reduction={modality: spec})
