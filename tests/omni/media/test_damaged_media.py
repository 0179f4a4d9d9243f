"""Whatever is done to a file, the result is a usable medium or an OmniError: nothing else."""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from omni.errors import OmniError
from omni.media import Audio, Document, Image, MediaLimits, Video, load_media
from tests.support.media import (
    moving_square,
    sine,
    write_audio_track,
    write_image,
    write_pdf,
    write_video,
    write_wav,
)

CASES_PER_FORMAT = 6
LIMITS = MediaLimits(max_pixels=2_000_000, max_seconds=600, max_bytes=10_000_000)


def make_sample(extension: str, folder: Path) -> bytes:
    """A small intact file of a format."""
    path = folder / f"sample{extension}"
    picture = moving_square(9)[-1]
    if extension in (".mp4", ".mov", ".mkv", ".ts", ".avi", ".flv"):
        write_video(path, moving_square(12), audio=sine(0.4))
    elif extension == ".webm":
        write_video(
            path,
            moving_square(12),
            codec="libvpx",
            audio=sine(0.4, sampling_rate=48_000),
            audio_rate=48_000,
            audio_codec="libopus",
        )
    elif extension == ".mpg":
        write_video(path, moving_square(12), codec="mpeg2video")
    elif extension == ".m4a":
        write_audio_track(path, sine(0.5))
    elif extension == ".pdf":
        write_pdf(path, [["one"], ["two"]])
    elif extension == ".tiff2":
        pages = [PIL.Image.fromarray(frame) for frame in moving_square(3)]
        pages[0].save(
            path, format="TIFF", save_all=True, append_images=pages[1:], compression="tiff_lzw"
        )
    elif extension in (".wav", ".flac", ".ogg", ".mp3", ".aiff"):
        subtypes = {".ogg": "VORBIS", ".mp3": "MPEG_LAYER_III"}
        write_wav(
            path, sine(0.5, sampling_rate=22_050), 22_050, subtype=subtypes.get(extension, "PCM_16")
        )
    elif extension == ".png16":
        PIL.Image.fromarray(picture[:, :, 0].astype(np.uint16) * 257).save(path, format="PNG")
    else:
        write_image(path, picture)
    return path.read_bytes()


FORMATS = [
    *(".mp4", ".mov", ".mkv", ".webm", ".ts", ".avi", ".flv", ".mpg"),
    *(".m4a", ".wav", ".flac", ".ogg", ".mp3", ".aiff"),
    *(".pdf", ".tiff2"),
    *(".tiff", ".png", ".png16", ".jpg", ".gif", ".webp", ".bmp", ".avif"),
]


def damage(data: bytes, seed: str) -> Iterator[bytes]:
    """Cut the file at random places, flip bytes anywhere, then only in the headers."""
    draw = random.Random(seed)
    for number in range(CASES_PER_FORMAT):
        damaged = bytearray(data)
        if number % 3 == 0:
            yield bytes(damaged[: draw.randrange(1, len(data))])
            continue
        reach = len(data) if number % 3 == 1 else min(len(data), 400)
        for _ in range(draw.choice([1, 3, 20])):
            damaged[draw.randrange(reach)] = draw.randrange(256)
        yield bytes(damaged)


def use(data: bytes) -> None:
    """Load and read everything there is."""
    media = load_media(data, limits=LIMITS)
    if isinstance(media, Image):
        assert media.pixels.dtype == torch.uint8
    elif isinstance(media, Video):
        plan = media.plan(num_frames=4)
        frames = list(media.frames(plan))
        assert len(frames) == len(plan.indices)
        assert all(tuple(frame.shape) == (media.height, media.width, 3) for frame in frames)
        media.audio()
    elif isinstance(media, Audio):
        waveform = media.waveform()
        assert len(waveform) == media.num_samples > 0
        assert torch.isfinite(waveform).all()
    else:
        assert isinstance(media, Document)
        assert all(page.pixels.numel() > 0 for page in media.pages(dpi=36))


@pytest.mark.filterwarnings("ignore:.*left out .* damaged audio packets:UserWarning")
@pytest.mark.parametrize("extension", FORMATS)
def test_damaged_files_are_used_or_refused_with_our_errors(extension: str, tmp_path: Path) -> None:
    data = make_sample(extension, tmp_path)
    use(data)
    for damaged in damage(data, extension):
        with contextlib.suppress(OmniError):
            use(damaged)
