"""Log-mel features and the lengths that follow from a sample count."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.audio.features import (
    LogMel,
    cut_clips,
    num_audio_tokens,
    split_clips,
    subsampled_length,
)


@pytest.mark.parametrize(
    ("samples", "tokens"),
    [
        (1, 2),  # padded to 0.1 s
        (1_600, 2),
        (8_000, 7),
        (16_000, 13),
        (20_480, 16),
        (160_000, 125),
        (480_000, 375),
        (480_001, 377),  # a second clip of 0.1 s
        (57_600_000, 45_000),  # one hour
    ],
)
def test_token_counts_are_those_of_training(samples, tokens):
    assert num_audio_tokens(samples) == tokens


@given(st.integers(0, 3_000_000))
def test_clips_cover_a_recording_without_gap_or_overlap(samples):
    clips = split_clips(samples)
    ends = [start + length for start, length in clips]
    assert [start for start, _ in clips] == [0, *ends[:-1]]
    assert samples <= ends[-1] < samples + 1_600 or ends[-1] == 1_600
    assert all(length == 480_000 for _, length in clips[:-1])
    assert 1_600 <= clips[-1][1] <= 480_000


@given(st.integers(0, 3_000_000))
def test_tokens_of_a_recording_are_the_sum_over_its_clips(samples):
    alone = [num_audio_tokens(length) for _, length in split_clips(samples)]
    assert num_audio_tokens(samples) == sum(alone) >= 1


@given(st.integers(1, 5000))
def test_three_halvings_are_one_division_by_eight(frames):
    expected = frames
    for _ in range(3):
        expected = (expected - 1) // 2 + 1
    assert subsampled_length(frames) == expected


def test_cut_clips_pad_only_the_last_one():
    waveform = torch.arange(1.0, 24.0)
    clips = cut_clips(waveform, clip_samples=10, min_clip_samples=5)
    assert [len(clip) for clip in clips] == [10, 10, 5]
    assert torch.cat(clips).tolist() == [*range(1, 24), 0, 0]
    assert clips[0].data_ptr() == waveform.data_ptr()


@given(st.integers(0, 300), st.integers(-30, 30), st.integers(-30, 30))
def test_clips_of_any_length_cover_a_recording_or_are_refused(samples, clip, shortest):
    def split() -> list[tuple[int, int]]:
        return split_clips(samples, clip_samples=clip, min_clip_samples=shortest)

    if clip < max(1, shortest):
        with pytest.raises(ValueError, match=rf"clips of {clip} samples.* has \({shortest}\)"):
            split()
        return
    ends = [start + length for start, length in split()]
    assert [start for start, _ in split()] == [0, *ends[:-1]]
    assert samples <= ends[-1] < samples + max(1, shortest) or ends == [shortest]


def test_a_negative_length_is_refused():
    with pytest.raises(ValueError, match="cannot have -1 samples"):
        split_clips(-1)


def test_frames_are_ten_milliseconds_and_the_last_is_zero():
    features = LogMel(32)(torch.randn(16_050))
    assert features.shape == (101, 32)
    assert torch.count_nonzero(features[100]) == 0
    assert torch.count_nonzero(features[99]) == 32


def test_each_bin_has_mean_0_and_deviation_1():
    features = LogMel(24)(torch.randn(32_000))[:-1]
    torch.testing.assert_close(features.mean(0), torch.zeros(24), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.std(0), torch.ones(24), atol=1e-4, rtol=0)


def test_all_features_together_have_mean_0_and_deviation_1_and_keep_their_shape():
    waveform = torch.randn(32_000)
    together = LogMel(24, normalize="all_features")(waveform)[:-1]
    torch.testing.assert_close(together.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(together.std(), torch.tensor(1.0), atol=1e-4, rtol=0)
    assert together.mean(0).std() > 0.1  # white noise fills the wide bins at the top more
    bins = (together - together.mean(0)) / together.std(0)
    torch.testing.assert_close(bins, LogMel(24)(waveform)[:-1], atol=1e-3, rtol=0)


@pytest.mark.parametrize("normalize", ["per_feature", "all_features"])
def test_clips_of_a_batch_are_as_if_alone_whatever_they_are_padded_with(normalize):
    log_mel = LogMel(32, normalize=normalize)
    lengths = torch.tensor([16_000, 9_999, 1_600, 400])
    waveforms = torch.randn(4, 16_000)
    features, num_frames = log_mel.batch(waveforms, lengths)
    assert num_frames.tolist() == [100, 62, 10, 2]
    for clip, waveform, length in zip(features, waveforms, lengths, strict=True):
        alone = log_mel(waveform[:length])
        torch.testing.assert_close(clip[: len(alone)], alone, rtol=0, atol=1e-5)
        assert torch.count_nonzero(clip[len(alone) :]) == 0


@pytest.mark.parametrize("normalize", ["per_feature", "all_features"])
@pytest.mark.parametrize("samples", [1, 100, 160, 200, 320])
def test_clips_too_short_to_normalise_are_finite(samples, normalize):
    features = LogMel(16, normalize=normalize)(torch.randn(samples))
    assert torch.isfinite(features).all()


def test_a_louder_recording_has_the_same_features():
    waveform = torch.randn(16_000) * 0.1
    torch.testing.assert_close(LogMel(32)(waveform), LogMel(32)(waveform * 4), rtol=0, atol=1e-2)


@pytest.mark.parametrize("normalize", ["per_feature", "all_features"])
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 20_000), st.integers(0, 9))
def test_autocast_changes_no_feature(normalize, samples, seed):
    waveform = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    expected = LogMel(32, normalize=normalize)(waveform)
    with torch.autocast("cpu", torch.bfloat16):
        features = LogMel(32, normalize=normalize)(waveform)
    assert torch.equal(features, expected)


def test_a_tone_is_loudest_in_its_bin():
    time = torch.arange(16_000) / 16_000
    mel = LogMel(64)
    low, high = (
        (torch.sin(2 * torch.pi * hertz * time) * (time > 0.5)).float() for hertz in (300, 3000)
    )
    rise = [mel(tone)[60:90].mean(0) - mel(tone)[10:40].mean(0) for tone in (low, high)]
    assert torch.stack(rise).argmax(1).diff() > 10


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (torch.zeros(0), "found 0 of torch.float32"),
        (torch.zeros(10, dtype=torch.int16), "divide 16-bit samples by 32768"),
    ],
)
def test_waveforms_that_are_no_float_samples_are_refused(waveform, message):
    with pytest.raises(ValueError, match=message):
        LogMel()(waveform)


@pytest.mark.parametrize("lengths", [[0, 5], [5, 11]])
def test_lengths_outside_the_batch_are_refused(lengths):
    with pytest.raises(ValueError, match=f"{lengths[0]} to {lengths[1]} samples.*1...10"):
        LogMel().batch(torch.zeros(2, 10), torch.tensor(lengths))
