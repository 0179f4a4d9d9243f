"""Small media files made on the spot: videos, recordings, documents, pictures with known "
"content."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import soundfile


def moving_square(
    num_frames: int, *, height: int = 48, width: int = 64, size: int = 12
) -> list[np.ndarray]:
    """Frames (H, W, 3) uint8 of a white square that moves right; the red of the ground counts "
    "frames."""
    frames = []
    for index in range(num_frames):
        frame = np.zeros((height, width, 3), dtype=np.uint8)
        frame[:, :, 0] = (index * 4) % 256
        frame[:, :, 2] = 64
        left = (index * 2) % (width - size)
        frame[height // 4 : height // 4 + size, left : left + size] = 255
        frames.append(frame)
    return frames


def sine(
    duration_s: float, *, sampling_rate: int = 16_000, hz: float = 440.0, channels: int = 1
) -> np.ndarray:
    """A tone of half of full scale: (samples,), or (samples, channels) if there are several."""
    times = np.arange(round(duration_s * sampling_rate)) / sampling_rate
    wave = (0.5 * np.sin(2 * np.pi * hz * times)).astype(np.float32)
    return wave if channels == 1 else np.repeat(wave[:, None], channels, axis=1)


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    fps: float = 24,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    audio: np.ndarray | None = None,
    audio_rate: int = 16_000,
    audio_codec: str = "aac",
    times_s: Sequence[float] | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    container_format: str | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode frames (H, W, 3) uint8; the container follows the extension unless it is named.

    Args:
        path: file to write.
        frames: of one size.
        fps: nominal rate in Hz.
        codec: FFmpeg encoder.
        pixel_format: FFmpeg name.
        audio: mono float32 waveform for a sound track.
        audio_rate: its rate in Hz.
        audio_codec: FFmpeg encoder of the track.
        times_s: time of each frame, for a variable rate; None places them evenly.
        rotation: display rotation, degrees counter-clockwise.
        options: of the encoder ("bf", "g", "crf", ...).
        container_format: FFmpeg muxer.
        container_options: of the muxer.
    """
    rate = Fraction(fps).limit_denominator(1001)
    ticks = Fraction(1, 90_000)
    with av.open(
        str(path), "w", format=container_format, options=container_options or {}
    ) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        if times_s is not None:
            stream.codec_context.time_base = ticks
        if rotation:
            stream.set_display_rotation(rotation)
        sound: Any = None
        if audio is not None:
            sound = container.add_stream(audio_codec, rate=audio_rate, layout="mono")
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times_s is None:
                frame.pts, frame.time_base = index, 1 / rate
            else:
                frame.pts, frame.time_base = round(times_s[index] / ticks), ticks
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None and audio is not None:
            for start in range(0, len(audio), 1024):
                block = np.ascontiguousarray(audio[None, start : start + 1024], dtype=np.float32)
                piece = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
                piece.sample_rate, piece.pts = audio_rate, start
                piece.time_base = Fraction(1, audio_rate)
                container.mux(sound.encode(piece))
            container.mux(sound.encode())
    return path


def write_audio_track(
    path: Path, audio: np.ndarray, sampling_rate: int = 16_000, *, codec: str = "aac"
) -> Path:
    """Encode a mono float32 waveform alone into a container (M4A, WebM, MKV, MP4, ...)."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=sampling_rate, layout="mono")
        for start in range(0, len(audio), 1024):
            block = np.ascontiguousarray(audio[None, start : start + 1024], dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = sampling_rate, start
            frame.time_base = Fraction(1, sampling_rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_wav(
    path: Path, waveform: np.ndarray, sampling_rate: int = 16_000, *, subtype: str = "PCM_16"
) -> Path:
    """Write (samples,) or (samples, channels); the format follows the extension (WAV, FLAC, "
    "OGG...)."""
    known = {
        ".flac": "FLAC",
        ".ogg": "OGG",
        ".mp3": "MP3",
        ".aiff": "AIFF",
        ".au": "AU",
        ".caf": "CAF",
    }
    soundfile.write(
        str(path), waveform, sampling_rate, subtype=subtype, format=known.get(path.suffix, "WAV")
    )
    return path


def write_image(path: Path, pixels: np.ndarray, **save_options: Any) -> Path:
    """Write (H, W), (H, W, 3) or (H, W, 4) pixels; the format follows the extension."""
    PIL.Image.fromarray(pixels).save(path, **save_options)
    return path


def write_pdf(
    path: Path,
    lines_per_page: Iterable[Sequence[str]],
    *,
    size_points: tuple[float, float] = (612, 792),
    font_size: float = 18,
) -> Path:
    """Write a PDF with lines of Helvetica on each page, by hand: objects, then their table."""
    pages = list(lines_per_page)
    width, height = size_points
    kids = " ".join(f"{4 + 2 * index} 0 R" for index in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for index, lines in enumerate(pages):
        shown = [
            line.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)") for line in lines
        ]
        text = " ".join(f"({line}) Tj T*" for line in shown)
        content = (
            f"BT /F1 {font_size} Tf {1.4 * font_size} TL 36 {height - 36 - font_size} Td {text} ET"
        )
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width} {height}] /Contents "
            f"{5 + 2 * index} 0 R /Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    body, offsets = b"%PDF-1.4\n", []
    for number, text in enumerate(objects, start=1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{text}\nendobj\n".encode("latin-1", "replace")
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    trailer = (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
        f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF\n"
    )
    path.write_bytes(body + trailer.encode("ascii"))
    return path
