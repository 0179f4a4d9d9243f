"""Media pass tower and reduction window by window, each item on its own."""

import pytest
import torch

from omni import encoding
from omni.encoding import StageTimes, encode_media, source_layout
from omni.options import MediaOptions
from tests.support import tiny_omni
from tests.support.layouts import assert_same_layout
from token_reduction import Evs, build


@pytest.fixture(scope="module")
def model():
    return tiny_omni.omni_model()


@pytest.fixture(scope="module")
def processor(model):
    return tiny_omni.omni_processor(model.config, frames_per_window=2)


def items(processor, reduction: str):
    """Two clips of one frame size, whose windows share tower passes, and a picture."""
    media = [
        processor.load_media(tiny_omni.clip(11, 36, 64, seed=1), fps=4.0),
        processor.load_media(tiny_omni.picture(48, 40)),
        processor.load_media(tiny_omni.clip(14, 36, 64, seed=2), fps=4.0),
    ]
    options = MediaOptions(reduction={"video": reduction})
    return processor.from_text("<video><image><video>", media, options=options).media


@pytest.mark.parametrize("reduction", ["evs(0.6)", "evs(0.6, floor=1)|uniform(0.2)", "random(0.5)"])
def test_streamed_windows_give_what_the_whole_item_gives(model, processor, reduction):
    full = encode_media(model, items(processor, "identity"))
    reduced = encode_media(model, items(processor, reduction))
    for index in (0, 2):
        features, layout = build(reduction)(*full[index])
        assert torch.equal(reduced[index][0], features)
        assert torch.equal(reduced[index][1].cells, layout.cells)
        assert torch.equal(reduced[index][1].source_cells, layout.source_cells)
    assert torch.equal(reduced[1][0], full[1][0])


def test_recordings_of_like_lengths_share_a_pass_and_stay_apart(model, processor, monkeypatch):
    seconds = (0.5, 2.0, 1.1, 1.0, 1.2)
    sounds = [processor.load_media(tiny_omni.tone(s), sampling_rate=16_000) for s in seconds]
    media = processor.from_text("<so_embedding>" * len(sounds), sounds).media
    passes = []
    run = encoding.run_tower

    def watched(model, items, batch):
        passes.append(sorted(index for index, _ in batch))
        return run(model, items, batch)

    monkeypatch.setattr(encoding, "run_tower", watched)
    together = encode_media(model, media)
    assert passes == [[0], [2, 3, 4], [1]]
    for item, (features, layout) in zip(media, together, strict=True):
        [(alone, own)] = encode_media(model, [item])
        torch.testing.assert_close(features, alone, atol=1e-5, rtol=1e-4)
        assert_same_layout(layout, own)


def test_every_item_has_its_times(model, processor):
    media, times = items(processor, "evs(0.5)"), StageTimes()
    encode_media(model, media, times)
    for seconds in (times.decode_s, times.encode_s, times.reduce_s):
        assert len(seconds) == len(media)
        assert min(seconds) > 0


def test_no_more_of_a_long_clip_is_held_than_is_left_of_it(model, monkeypatch):
    processor = tiny_omni.omni_processor(model.config, frames_per_window=2, num_frames=96)
    clip = processor.load_media(tiny_omni.clip(96, 36, 64), fps=4.0)
    options = MediaOptions(reduction={"video": "evs(0.9)"})
    (item,) = processor.from_text("<video>", [clip], options=options).media
    held = []
    begin = Evs.stream

    def watched(reducer, layout):
        stream = begin(reducer, layout)
        push = stream.push
        stream.push = lambda rows: (push(rows), held.append(stream.num_held))
        return stream

    monkeypatch.setattr(Evs, "stream", watched)
    ((features, _),) = encode_media(model, [item])
    full = source_layout(model, item).shape
    per_step = full.num_tokens // full.grid[0]
    assert len(held) == full.grid[0]
    assert max(held) <= len(features) * 9 // 8 + 2 * per_step
    assert max(held) < full.num_tokens / 3


def test_the_layout_of_a_long_clip_does_not_depend_on_the_frames_at_a_time(
    model, processor, monkeypatch
):
    item = items(processor, "identity")[0]
    assert item.grid[0] % 2 == 1  # the last tubelet repeats its frame
    whole = source_layout(model, item)
    monkeypatch.setattr("omni.encoding.LAYOUT_TUBELETS", 2)
    assert_same_layout(source_layout(model, item), whole)
