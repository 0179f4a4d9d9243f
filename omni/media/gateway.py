"""The one door through which media enters: any source -> Image, Video, Audio or Document."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import PIL.Image

from omni.errors import CorruptMediaError, MediaError, RequestError, UnsupportedMediaError
from omni.media import animation
from omni.media.audio import Audio, audio_from_array, load_audio_file
from omni.media.audio_pyav import load_audio_track
from omni.media.container import demuxer_of, first_video_stream, open_container
from omni.media.detect import MediaKind, describe_unknown, detect_family
from omni.media.document import Document, PdfDocument, TiffDocument, count_tiff_pages
from omni.media.image import Image, image_from_array, image_from_pil, load_image
from omni.media.limits import MediaLimits
from omni.media.source import BinaryFile, Source, open_source
from omni.media.structure import check_complete
from omni.media.tensors import is_tensor
from omni.media.video import FrameReader, Video, video_from_array
from omni.media.video_decord import DecordReader
from omni.media.video_pyav import PyAVReader, probe

if TYPE_CHECKING:
    from torch import Tensor

Media = Image | Video | Audio | Document
MediaSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | PIL.Image.Image | "
    "np.ndarray | Tensor"
)
VideoBackend = Literal["auto", "pyav", "decord"]


def load_media(
    source: MediaSource,
    *,
    kind: MediaKind | None = None,
    limits: MediaLimits = MediaLimits(),  # noqa: B008 - frozen
    allowed_roots: Sequence[Path] | None = None,
    sampling_rate: int | None = None,
    fps: float | None = None,
    video_backend: VideoBackend = "auto",
    password: str | None = None,
    allow_network: bool = False,
) -> Media:
    """Load one piece of media; its kind is found from its content, never from its name.

    Args:
        source: a path, a `file:`, `data:` or `http(s):` address, bytes, a binary file object, a PIL
            image, or a numpy array or torch tensor: an image (H, W, 3) or (3, H, W), a video
            (F, H, W, 3) with `fps`, or a waveform (samples,) or (channels, samples) with
            `sampling_rate`.
        kind: what the caller expects; None accepts every kind. "audio" takes the audio track of a
            video, "video" reads an animated picture (GIF, WebP, PNG, AVIF) with all of its frames,
            "document" takes a TIFF of one page.
        limits: bounds on bytes, pixels, seconds, frames and pages.
        allowed_roots: directories below which paths must lie; None allows every path.
        sampling_rate: rate in Hz of a waveform array; only for arrays.
        fps: frames a second of a video array; only for arrays.
        video_backend: "auto" is PyAV. Of animated pictures only a GIF is read by it or decord.
        password: of an encrypted PDF.
        allow_network: whether web addresses are fetched.

    Raises:
        MediaNotFoundError: if the path does not exist.
        MediaAccessError: if it is a directory, a pipe or a device, may not be read, lies outside
            the roots, or is a web address while the network is off.
        UnsupportedMediaError: if the content is no media, or not of the expected kind.
        CorruptMediaError: if it is damaged, empty or encrypted.
        MediaLimitError: if it is over one of the limits.
        RequestError: if an option is missing or does not fit the source.
    """
    if video_backend not in ("auto", "pyav", "decord"):
        raise RequestError(
            f"found video_backend={video_backend!r}, expected 'auto', 'pyav' or 'decord'"
        )
    if kind not in (None, "image", "video", "audio", "document"):
        raise RequestError(
            f"found kind={kind!r}, expected 'image', 'video', 'audio', 'document' or None"
        )
    if isinstance(source, PIL.Image.Image):
        media: Media = image_from_pil(source, limits)
        found = "a PIL image"
    elif isinstance(source, np.ndarray) or is_tensor(source):
        media = _from_array(source, sampling_rate, fps, limits)
        found = f"an array of shape {tuple(source.shape)}"
    else:
        if sampling_rate is not None or fps is not None:
            raise RequestError(
                "found sampling_rate or fps beside an encoded source, expected them with arrays "
                "only; leave them out"
            )
        opened = open_source(
            source, limits=limits, allowed_roots=allowed_roots, allow_network=allow_network
        )
        return _from_encoded(opened, kind, limits, video_backend, password)
    if kind is not None and kind_of(media) != kind:
        raise _wrong_kind(media.name, found, kind)
    return media


def kind_of(media: Media) -> MediaKind:
    """Name the kind of a loaded piece of media."""
    kinds: tuple[tuple[type, MediaKind], ...] = (
        (Image, "image"),
        (Video, "video"),
        (Audio, "audio"),
        (Document, "document"),
    )
    return next(kind for class_, kind in kinds if isinstance(media, class_))


def _from_array(
    array: np.ndarray | Tensor, sampling_rate: int | None, fps: float | None, limits: MediaLimits
) -> Media:
    if array.ndim == 1 or sampling_rate is not None:
        return audio_from_array(array, sampling_rate, limits)
    if array.ndim == 4:
        return video_from_array(array, fps, limits)
    return image_from_array(array, limits)


def _from_encoded(
    source: Source,
    kind: MediaKind | None,
    limits: MediaLimits,
    video_backend: VideoBackend,
    password: str | None,
) -> Media:
    head = source.head()
    detected = detect_family(head)
    if detected is None:
        return _from_unknown(source, head, kind, limits, video_backend)
    family, format_name = detected
    check_complete(source)
    if family == "pdf":
        _expect(source, "a PDF document", "document", kind)
        return PdfDocument(source, limits, password)
    if family == "tiff":
        num_pages = count_tiff_pages(source, limits)
        if kind == "document" or num_pages > 1:
            _expect(source, f"a TIFF document of {num_pages} pages", "document", kind)
            return TiffDocument(source, limits)
    if family in ("image", "tiff"):
        if kind == "video" and format_name == "GIF":
            return _load_video(source, limits, video_backend)
        if kind == "video" and format_name in animation.FORMATS:
            found = animation.load_animation(source, limits)
            if found is not None:
                return found
        _expect(source, f"an image ({format_name})", "image", kind)
        return load_image(source, limits)
    if family == "audio":
        _expect(source, f"audio ({format_name})", "audio", kind)
        if format_name == "MP3":  # libsndfile's decoder prints its troubles to stderr
            return load_audio_track(source, limits)
        return load_audio_file(source, limits, fallback=lambda: load_audio_track(source, limits))
    return _from_container(source, format_name, kind, limits, video_backend)


def _from_container(
    source: Source,
    format_name: str,
    kind: MediaKind | None,
    limits: MediaLimits,
    video_backend: VideoBackend,
) -> Media:
    with open_container(source, limits) as container:
        has_video = first_video_stream(container) is not None
        has_audio = bool(container.streams.audio)
        if demuxer_of(container) == "flac":  # one with its header is detected as such
            raise CorruptMediaError(
                f"{source.name}: found FLAC audio without the start of its file; copy it again"
            )
    if has_video and kind != "audio":
        _expect(source, f"a video ({format_name})", "video", kind)
        return _load_video(source, limits, video_backend)
    if not has_audio:
        found = "a video without an audio track" if has_video else "neither video nor audio"
        raise UnsupportedMediaError(
            f"{source.name}: found {found} ({format_name}), expected {kind or 'video or audio'}"
        )
    _expect(source, f"audio ({format_name})", "audio", kind)
    if format_name == "Ogg" and not has_video:
        return load_audio_file(source, limits, fallback=lambda: load_audio_track(source, limits))
    return load_audio_track(source, limits)


def _from_unknown(
    source: Source,
    head: bytes,
    kind: MediaKind | None,
    limits: MediaLimits,
    video_backend: VideoBackend,
) -> Media:
    """Let FFmpeg look for a container that has no signature; anything it refuses is no media."""
    refusal = UnsupportedMediaError(
        f"{source.name}: found {describe_unknown(head)}; expected an image, a video, audio, a PDF "
        "or a TIFF document"
    )
    if "signature" not in describe_unknown(head):
        raise refusal
    try:
        return _from_container(source, "unknown container", kind, limits, video_backend)
    except MediaError as error:
        raise refusal from error


def _load_video(source: Source, limits: MediaLimits, video_backend: VideoBackend) -> Video:
    timeline = probe(source, limits)
    reader: FrameReader = (
        DecordReader(source, timeline)
        if video_backend == "decord"
        else PyAVReader(source, timeline, limits)
    )
    load_audio = (lambda: load_audio_track(source, limits)) if timeline.info.has_audio else None
    return Video(
        name=source.name, info=timeline.info, reader=reader, limits=limits, load_audio=load_audio
    )


def _expect(source: Source, found: str, found_kind: MediaKind, kind: MediaKind | None) -> None:
    if kind is not None and kind != found_kind:
        raise _wrong_kind(source.name, found, kind)


def _wrong_kind(name: str, found: str, kind: MediaKind) -> UnsupportedMediaError:
    article = "an" if kind[0] in "aeiou" else "a"
    return UnsupportedMediaError(
        f"{name}: found {found}, expected {article} {kind}; leave out kind=... to accept it, or "
        "give another file"
    )
