"""What a report draws: overlays, bars, axes, and the pictures under them."""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from encoders import resize_and_patchify
from omni.charts import (
    CHART_WIDTH,
    MOST_TICKS,
    bars_of_spans,
    bars_of_steps,
    overlay,
    ticks,
    waveform,
)
from omni.errors import RequestError
from omni.evidence import make_evidence
from omni.inputs import LazyWindows, MediaItem, Window
from omni.media import load_media
from omni.thumbnails import SPECTROGRAM_COLUMNS, data_uri, frames, spectrogram
from omni.views import clock
from tests.support import tiny_omni
from token_reduction import Modality, TimeSpans, TokenLayout

few = settings(max_examples=40, deadline=None)
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def evidence_of(modality: Modality, kept: np.ndarray, spans: TimeSpans | None = None, **facts):
    """Evidence of a medium whose reduction kept the cells that are True."""
    before = TokenLayout.full(modality, kept.shape, spans)
    after = before.select(torch.from_numpy(np.flatnonzero(kept)))
    item = MediaItem(
        modality=modality,
        windows=[],
        grid=kept.shape,
        time_spans=spans,
        token_id=0,
        num_tokens=1,
        facts=facts,
    )
    return make_evidence([item], [before], [after])[0]


masks = arrays.arrays(bool, st.tuples(st.just(1), st.integers(1, 6), st.integers(1, 6))).filter(
    np.any
)


@few
@given(masks)
def test_outlines_run_where_kept_meets_the_rest(kept):
    _, rows, columns = kept.shape
    entry = evidence_of("image", kept, width=columns * 10, height=rows * 10)
    shown = overlay(entry["steps"][0], entry, (0, 0, columns * 10, rows * 10))
    padded = np.pad(kept[0], 1)
    borders = int((padded[1:] != padded[:-1]).sum() + (padded[:, 1:] != padded[:, :-1]).sum())
    drawn = sum(
        abs(float(to) - float(x if way == "H" else y))
        for x, y, way, to in re.findall(r"M([\d.]+) ([\d.]+)([HV])([\d.]+)", shown.outline)
    )
    assert drawn == borders * 10
    assert shown.box == (0, 0, columns * 10, rows * 10)


@few
@given(arrays.arrays(bool, st.integers(1, 60)).filter(np.any))
def test_bars_of_a_recording_cover_it_and_add_up(kept):
    spans = tuple((i * 0.08, (i + 1) * 0.08) for i in range(len(kept)))
    end = len(kept) * 0.08
    bars = bars_of_spans(evidence_of("audio", kept[:, None, None], spans), end)
    assert bars[0].x == 0
    assert bars[-1].x + bars[-1].width == CHART_WIDTH
    assert all(a.x + a.width == b.x for a, b in pairwise(bars))
    assert all(bar.kept + bar.merged + bar.dropped == pytest.approx(1, abs=0.02) for bar in bars)
    area = sum(bar.kept * bar.width for bar in bars) / CHART_WIDTH
    assert area == pytest.approx(kept.mean(), abs=0.01)


@few
@given(arrays.arrays(bool, st.tuples(st.integers(1, 8), st.just(2), st.just(3))).filter(np.any))
def test_bars_of_a_clip_are_its_steps(kept):
    spans = tuple((i / 2, i / 2 + 0.5) for i in range(len(kept)))
    bars = bars_of_steps(evidence_of("video", kept, spans)["steps"], len(kept) / 2)
    assert [bar.kept for bar in bars] == [pytest.approx(step.mean()) for step in kept]
    assert all(bar.kept + bar.dropped == pytest.approx(1) for bar in bars)
    assert sum(bar.width for bar in bars) == pytest.approx(CHART_WIDTH)


@few
@given(st.floats(0.01, 200_000))
def test_an_axis_has_few_even_ticks_before_its_end(end):
    found = ticks(end)
    assert found[0] == 0
    assert len(found) <= MOST_TICKS
    assert found[-1] < end
    gaps = [b - a for a, b in pairwise(found)]
    assert all(gap == pytest.approx(gaps[0], abs=0.02) for gap in gaps)


def test_a_video_whose_end_rounds_to_nothing_has_a_bar():
    step = {"seconds": [0.0, 0.0], "kept": 1, "merged": 0, "dropped": 1}
    [bar] = bars_of_steps([step], 0.0)
    assert (bar.x, bar.width) == (0, 0)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(59.994, "59.99 s"), (59.996, "1:00.00"), (119.997, "2:00.00"), (3599.999, "60:00.00")],
)
def test_a_clock_never_shows_sixty_seconds(seconds, shown):
    assert clock(seconds) == shown


def test_frames_are_what_the_tower_was_given():
    clip = tiny_omni.clip(5, 24, 32)
    rows = resize_and_patchify(torch.from_numpy(clip), (3, 4), patch_size=8, mean=MEAN, std=STD)
    windows = [Window(part, len(part), len(part)) for part in rows.split(24)]  # two frames each
    item = MediaItem(
        modality="video",
        windows=LazyWindows(lambda: iter(windows)),
        grid=(5, 3, 4),
        token_id=0,
        num_tokens=1,
    )
    found = dict(frames(item, {0, 3, 4}, MEAN, STD))
    assert sorted(found) == [0, 3, 4]
    for number, picture in found.items():
        assert np.array_equal(np.asarray(picture), clip[number])


@pytest.mark.parametrize("seconds", [0.02, 0.57, 31.0])
def test_a_spectrogram_shows_the_sound_from_left_to_right_and_low_to_high(seconds):
    processor = tiny_omni.omni_processor(
        tiny_omni.omni_config(audio_config={**tiny_omni.AUDIO, "num_mel_bins": 64})
    )
    time = np.arange(round(seconds * 16_000)) / 16_000
    low_then_high = np.sin(2 * np.pi * np.where(time < seconds / 2, 400, 4000) * time)
    sound = processor.load_media(low_then_high.astype(np.float32), sampling_rate=16_000)
    [item] = processor.from_text("<so_embedding>", [sound]).media
    picture = spectrogram(item, seconds)
    assert picture.width == min(int(seconds * 100), SPECTROGRAM_COLUMNS)
    if seconds > 0.1:
        loud = np.asarray(picture).astype(int)
        half_width, half_height = loud.shape[1] // 2, loud.shape[0] // 2
        low, high = loud[half_height:], loud[:half_height]
        assert low[:, :half_width].mean() > low[:, half_width:].mean()
        assert high[:, :half_width].mean() < high[:, half_width:].mean()
    assert data_uri(picture, 2000).startswith("data:image/png;base64,")


@few
@given(st.integers(1, 4000), st.integers(1, 1200))
def test_an_envelope_holds_the_extremes_of_every_stretch(num_samples, columns):
    samples = np.sin(np.arange(num_samples) * 0.37).astype(np.float32)
    audio = load_media(samples, sampling_rate=16_000)
    envelope = audio.envelope(columns).numpy()
    place = np.arange(num_samples) * len(envelope) // num_samples
    assert len(envelope) == min(columns, num_samples)
    for column in {0, len(envelope) // 2, len(envelope) - 1}:
        part = samples[place == column]
        assert envelope[column].tolist() == [part.min(), part.max()]


def test_an_envelope_without_columns_is_refused():
    with pytest.raises(RequestError, match="0 columns"):
        load_media(np.zeros(16, dtype=np.float32), sampling_rate=16_000).envelope(0)


@given(st.lists(st.tuples(st.floats(-1, 0), st.floats(0, 1)), min_size=1, max_size=50))
def test_a_waveform_fills_its_height_and_stays_inside(pairs):
    path = waveform(torch.tensor(pairs))
    tops = [float(top) for top in re.findall(r"M\S+ (\S+?)h", path)]
    bottoms = [float(bottom) for bottom in re.findall(r"V(\S+?)h", path)]
    assert len(tops) == len(bottoms) == len(pairs)
    assert all(-1 <= top < bottom <= 1 for top, bottom in zip(tops, bottoms, strict=True))
    if max(max(-low, high) for low, high in pairs) > 1e-3:
        assert min(*tops, -1 if 1.0 in bottoms else 0) == -1
