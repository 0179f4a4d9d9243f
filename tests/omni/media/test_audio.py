"""Recordings of every format and rate come out as mono float32 at 16 kHz, whole or not at all."""

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

import omni.media.audio
from omni.errors import (
    CorruptMediaError,
    MediaLimitError,
    RequestError,
    UnsupportedMediaError,
)
from omni.media import Audio, MediaLimits, load_media
from omni.media.audio import build_audio
from tests.support.media import moving_square, sine, write_audio_track, write_video, write_wav


def audio_of(source: object, **options: object) -> Audio:
    media = load_media(source, **options)
    assert isinstance(media, Audio)
    assert media.waveform().dtype == torch.float32
    assert len(media.waveform()) == media.num_samples
    return media


@pytest.mark.parametrize(
    ("subtype", "tolerance"),
    [
        ("PCM_U8", 1 / 127),
        ("PCM_16", 1 / 32_767),
        ("PCM_24", 1e-6),
        ("PCM_32", 1e-6),
        ("FLOAT", 0),
        ("DOUBLE", 0),
        ("ULAW", 0.02),
        ("ALAW", 0.02),
    ],
)
def test_every_sample_format_of_wav_is_read(subtype: str, tolerance: float, tmp_path: Path) -> None:
    wave = sine(0.5)
    found = audio_of(write_wav(tmp_path / "x.wav", wave, subtype=subtype)).waveform().numpy()
    assert np.abs(found[: len(wave)] - wave).max() <= tolerance


def test_int16_is_divided_by_32768(tmp_path: Path) -> None:
    values = np.array([-32_768, -1, 0, 1, 32_767], dtype=np.int16)
    soundfile.write(tmp_path / "x.wav", values, 16_000, subtype="PCM_16")
    expected = values.astype(np.float32) / 32_768
    assert np.array_equal(audio_of(tmp_path / "x.wav").waveform().numpy(), expected)
    assert np.array_equal(audio_of(values, sampling_rate=16_000).waveform().numpy(), expected)


@pytest.mark.parametrize(
    ("extension", "subtype"),
    [
        (".flac", "PCM_16"),
        (".ogg", "VORBIS"),
        (".mp3", "MPEG_LAYER_III"),
        (".aiff", "PCM_16"),
        (".au", "PCM_16"),
    ],
)
def test_audio_files_keep_the_tone(extension: str, subtype: str, tmp_path: Path) -> None:
    path = write_wav(
        tmp_path / f"x{extension}", sine(1.0, sampling_rate=22_050), 22_050, subtype=subtype
    )
    assert_tone(audio_of(path), 440, 1.0)


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("x.m4a", "aac", 44_100),
        ("x.mp4", "aac", 48_000),
        ("x.webm", "libopus", 48_000),
        ("x.mkv", "flac", 16_000),
        ("x.ogg", "libopus", 48_000),
        ("x.mka", "libmp3lame", 32_000),
    ],
)
def test_containers_with_nothing_but_audio_are_audio(
    name: str, codec: str, rate: int, tmp_path: Path
) -> None:
    wave = sine(1.0, sampling_rate=rate)
    if codec == "flac":
        write_wav(tmp_path / "x.flac", wave, rate)
        path = tmp_path / "x.flac"
    else:
        path = write_audio_track(tmp_path / name, wave, rate, codec=codec)
    assert_tone(audio_of(path), 440, 1.0)


def assert_tone(audio: Audio, hz: float, duration_s: float) -> None:
    assert audio.duration_s == pytest.approx(duration_s, abs=0.08)
    middle = audio.waveform().numpy()[2_000:-2_000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.argmax(spectrum) * 16_000 / len(middle) == pytest.approx(hz, abs=3)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), abs=0.02)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_resampling_as_a_stream_equals_resampling_at_once(rate: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wave = rng.uniform(-0.5, 0.5, size=3 * rate + 17).astype(np.float32)
    expected = soxr.resample(wave, rate, 16_000, quality="VHQ")
    audio = audio_of(write_wav(tmp_path / "x.wav", wave, rate, subtype="FLOAT"))
    assert audio.num_samples == len(expected)
    assert np.abs(audio.waveform().numpy() - expected).max() < 1e-5  # float32 rounding
    assert audio.source_sampling_rate == rate


@pytest.mark.parametrize("block", [1, 7, 4_096, 10**6])
def test_the_result_does_not_depend_on_the_block_size(block: int) -> None:
    wave = sine(0.1, sampling_rate=8_000)[:, None]
    blocks = [wave[start : start + block] for start in range(0, len(wave), block)]
    found = build_audio(blocks, 8_000, name="x", limits=MediaLimits()).waveform()
    whole = build_audio([wave], 8_000, name="x", limits=MediaLimits()).waveform()
    assert torch.allclose(found, whole, atol=1e-6)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = sine(0.2), sine(0.2, hz=880)
    path = write_wav(tmp_path / "x.wav", np.stack([left, right], axis=1), subtype="FLOAT")
    audio = audio_of(path)
    assert audio.num_source_channels == 2
    assert np.abs(audio.waveform().numpy() - (left + right) / 2).max() < 1e-6
    from_array = audio_of(np.stack([left, right]), sampling_rate=16_000)
    assert torch.equal(from_array.waveform(), audio.waveform())


def test_clips_laid_end_to_end_are_the_recording() -> None:
    audio = audio_of(sine(2.5), sampling_rate=16_000)
    clips = list(audio.clips(16_000))
    assert [len(clip) for clip in clips] == [16_000, 16_000, 8_000]
    assert torch.equal(torch.cat(clips), audio.waveform())
    assert [len(clip) for clip in audio.clips()] == [40_000]
    with pytest.raises(RequestError, match="found clips of 0 samples"):
        next(audio.clips(0))


def test_clips_may_be_read_by_two_readers_at_once() -> None:
    audio = audio_of(sine(1.0), sampling_rate=16_000)
    for first, second in zip(audio.clips(1_000), audio.clips(1_000), strict=True):
        assert torch.equal(first, second)


def test_long_recordings_go_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(omni.media.audio, "MAX_BYTES_IN_MEMORY", 1_000)
    wave = sine(1.0)
    audio = audio_of(wave, sampling_rate=16_000)
    assert audio._spool._rolled
    assert np.array_equal(audio.waveform().numpy(), wave)


def test_the_track_of_a_video_is_its_audio(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4", moving_square(24), audio=sine(1.0))
    assert_tone(audio_of(path, kind="audio"), 440, 1.0)
    silent = write_video(tmp_path / "silent.mp4", moving_square(4))
    with pytest.raises(UnsupportedMediaError, match="a video without an audio track"):
        load_media(silent, kind="audio")


def test_seconds_are_limited_before_and_while_decoding(tmp_path: Path) -> None:
    limits = MediaLimits(max_seconds=0.5)
    for path in (
        write_wav(tmp_path / "x.wav", sine(1.0)),
        write_audio_track(tmp_path / "x.m4a", sine(1.0)),
    ):
        with pytest.raises(
            MediaLimitError, match=r"seconds of audio, the limit is 0\.5; .*max_seconds"
        ):
            load_media(path, limits=limits)
    with pytest.raises(MediaLimitError, match="found 1 seconds of audio"):
        load_media(sine(1.0), sampling_rate=16_000, limits=limits)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused_with_their_time(
    bad: float, tmp_path: Path
) -> None:
    wave = sine(1.0)
    wave[8_000] = bad
    path = write_wav(tmp_path / "x.wav", wave, subtype="FLOAT")
    for source, options in ((path, {}), (wave, {"sampling_rate": 16_000})):
        with pytest.raises(CorruptMediaError, match=r"not finite at 0\.500 s"):
            load_media(source, **options)


def wav_bytes(rate: int, data: bytes, announced: int | None = None) -> bytes:
    size = len(data) if announced is None else announced
    header = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate * 2, 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", (36 + size) % 2**32)
        + b"WAVE"
        + header
        + b"data"
        + struct.pack("<I", size % 2**32)
        + data
    )


def test_impossible_rates_and_empty_recordings_are_refused() -> None:
    with pytest.raises(CorruptMediaError, match="found a sampling rate of 5 Hz"):
        load_media(wav_bytes(5, bytes(200)))
    with pytest.raises(CorruptMediaError):  # libsndfile and FFmpeg refuse it themselves
        load_media(wav_bytes(0, bytes(200)))
    with pytest.raises(CorruptMediaError, match="found a sampling rate of 0 Hz"):
        load_media(sine(0.1), sampling_rate=0)
    with pytest.raises(CorruptMediaError, match="found no audio samples"):
        load_media(wav_bytes(16_000, b""))
    with pytest.raises(CorruptMediaError, match="found no audio samples"):
        load_media(np.zeros(0, np.float32), sampling_rate=16_000)


def test_a_wav_file_that_ends_early_is_refused_but_not_a_streamed_one() -> None:
    data = (sine(0.1) * 32_767).astype("<i2").tobytes()
    with pytest.raises(
        CorruptMediaError, match="found 3,244 bytes, expected at least 6,444: the file ends early"
    ):
        load_media(wav_bytes(16_000, data, announced=2 * len(data)))
    assert audio_of(wav_bytes(16_000, data, announced=0xFFFF_FFFF)).num_samples == 1_600


@pytest.mark.parametrize(
    ("extension", "subtype"),
    [(".flac", "PCM_16"), (".ogg", "VORBIS"), (".mp3", "MPEG_LAYER_III"), (".aiff", "PCM_16")],
)
def test_truncated_audio_files_are_refused(extension: str, subtype: str, tmp_path: Path) -> None:
    data = write_wav(tmp_path / f"x{extension}", sine(1.0), subtype=subtype).read_bytes()
    with pytest.raises(CorruptMediaError):
        load_media(data[: int(len(data) * 0.7)])


def test_a_truncated_m4a_is_refused(tmp_path: Path) -> None:
    data = write_audio_track(tmp_path / "x.m4a", sine(1.0)).read_bytes()
    with pytest.raises(CorruptMediaError, match="the file ends early"):
        load_media(data[: int(len(data) * 0.7)])


def test_flac_without_its_header_is_refused(tmp_path: Path) -> None:
    data = write_wav(tmp_path / "x.flac", sine(2.0), 16_000).read_bytes()
    with pytest.raises(CorruptMediaError, match="FLAC audio without the start of its file"):
        load_media(data[data.index(b"\xff\xf8") :])


def test_arrays_need_their_rate_and_a_sound_shape() -> None:
    with pytest.raises(RequestError, match="pass sampling_rate"):
        load_media(sine(0.1))
    with pytest.raises(UnsupportedMediaError, match=r"shape \(1600, 2\).*transpose it"):
        load_media(sine(0.1, channels=2), sampling_rate=16_000)
    with pytest.raises(UnsupportedMediaError, match=r"samples of type int32"):
        load_media(np.zeros(100, np.int32), sampling_rate=16_000)
    with pytest.raises(RequestError, match="sampling_rate or fps beside an encoded source"):
        load_media(b"RIFF", sampling_rate=16_000)
