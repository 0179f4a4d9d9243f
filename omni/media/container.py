"""FFmpeg through PyAV: opening containers so that they can do no harm."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from omni.errors import CorruptMediaError, MediaError
from omni.media.limits import MediaLimits
from omni.media.source import Source

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Containers and streams which hold their own data. Playlists (HLS, DASH, concat) are left out:
# they name other files and addresses.
DEMUXERS = (
    "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,gif,h264,hevc,mpegvideo,m4v,mjpeg,ivf,obu,mxf,"
    "wav,w64,mp3,aac,flac,ac3,eac3,amr,aiff,au,caf,ape,wv,tta"
)
INDEXED_DEMUXERS = frozenset({"mov", "matroska"})  # seeking lands on the keyframe asked for
BUFFER_BYTES = 2**18


@contextmanager
def open_container(source: Source, limits: MediaLimits) -> Iterator["InputContainer"]:
    """Open a container with FFmpeg, which sees the bytes and nothing else of the machine.

    Raises:
        CorruptMediaError: if FFmpeg fails on it, here or inside the block.
    """
    import av

    with source.open() as file, _ffmpeg_errors(source.name):
        container = av.open(
            file,
            mode="r",
            buffer_size=BUFFER_BYTES,
            metadata_errors="replace",
            options={"max_pixels": str(limits.max_pixels)},
            container_options={"format_whitelist": DEMUXERS, "protocol_whitelist": ""},
        )
        with container:
            yield container


def demuxer_of(container: "InputContainer") -> str:
    """FFmpeg's first name of the container format, such as "mov" for MP4."""
    return str(container.format.name).split(",")[0]


def first_video_stream(container: "InputContainer") -> "VideoStream | None":
    """The first video stream which is not a cover picture; None if there is none."""
    from av.stream import Disposition

    cover = Disposition.attached_pic | Disposition.still_image
    for stream in container.streams.video:
        if not stream.disposition & cover and stream.codec_context is not None:
            return stream
    return None


@contextmanager
def _ffmpeg_errors(name: str) -> Iterator[None]:
    from av import FFmpegError

    try:
        yield
    except MediaError:
        raise
    except (FFmpegError, OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CorruptMediaError(
            f"{name}: the container or a stream in it is damaged ({reason}); export it again"
        ) from error
