"""Parts of media: together they are the whole, and each is what it says."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omni.batching.spans import Span, cut, find_spans, parse_seconds
from omni.errors import RequestError
from omni.media import load_media
from tests.support.media import moving_square, sine, write_pdf
from tests.support.tiny_omni import picture


def parts(media, chunk_s):
    spans = find_spans(media, per_page=False, chunk_s=chunk_s)
    return spans, [cut(media, span) for span in spans]


@given(st.integers(400, 100_000), st.floats(1, 7))
def test_chunks_of_a_recording_join_to_the_recording(samples, chunk_s):
    audio = load_media(sine(samples / 16_000), sampling_rate=16_000)
    spans, chunks = parts(audio, chunk_s)
    assert torch.equal(torch.cat([chunk.waveform() for chunk in chunks]), audio.waveform())
    assert all(a.end_s == b.start_s for a, b in pairwise(spans))


@given(st.integers(2, 60), st.sampled_from([4.0, 12.0, 30.0]), st.floats(1, 5))
def test_chunks_of_a_video_join_to_the_video(count, fps, chunk_s):
    frames = torch.from_numpy(np.stack(moving_square(count, height=16, width=32, size=4)))
    video = load_media(frames, fps=fps)
    spans, chunks = parts(video, chunk_s)
    assert all(a.end_s == b.start_s for a, b in pairwise(spans))
    found = [frame for chunk in chunks for frame in chunk.frames(chunk.plan())]
    assert torch.equal(torch.stack(found), frames)
    for chunk in chunks:
        assert chunk.info.frame_times_s[0] == 0
        assert chunk.info.frame_times_s[-1] < chunk.duration_s


def test_pages_of_a_document_are_documents_of_one_page(tmp_path):
    whole = load_media(write_pdf(tmp_path / "three.pdf", [["one"], ["two"], ["three"]]))
    spans = find_spans(whole, per_page=True, chunk_s=None)
    assert spans == [Span(page=1), Span(page=2), Span(page=3)]
    page = cut(whole, spans[1])
    assert (page.num_pages, page.name) == (1, f"{whole.name} page 2")
    assert torch.equal(page.render(0, dpi=36).pixels, whole.render(1, dpi=36).pixels)
    with pytest.raises(RequestError, match="found page index 1, expected 0 to 0"):
        page.render(1)


def test_what_has_no_such_parts_stays_whole():
    image = load_media(picture(8, 8))
    assert find_spans(image, per_page=True, chunk_s=1.0) == [None]
    assert cut(image, None) is image


def test_spans_survive_being_written():
    for span in (Span(page=3), Span(start_s=1.0, end_s=2.5), None):
        assert Span.from_dict(None if span is None else span.to_dict()) == span


def test_parts_without_content_are_refused():
    with pytest.raises(RequestError, match="found no sound from 2 to 3 s"):
        load_media(sine(1.0), sampling_rate=16_000).part(2, 3)
    video = load_media(np.stack(moving_square(2, height=16, width=32, size=4)), fps=0.5)
    with pytest.raises(RequestError, match="found no frame from 1 to 2 s"):
        video.part(1, 2)


@pytest.mark.parametrize(
    ("text", "seconds"), [("60", 60), ("60s", 60), ("1.5 min", 90), ("1h", 3600)]
)
def test_lengths_of_time_are_read(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "0.5s", "-3", "1 day", "nan", "inf"])
def test_lengths_of_time_that_are_none_are_refused(text):
    with pytest.raises(RequestError, match="expected 1 s or more"):
        parse_seconds(text)
