"""What one piece of media may cost: the limits, and the one sentence that refuses."""

from dataclasses import dataclass

from omni.errors import MediaLimitError

MAX_AUDIO_SECONDS = 5 * 3600.0  # 5 h at 16 kHz float32 is 1.15 GB of disk, not of memory
MAX_VIDEO_SECONDS = 4 * 3600.0  # a long film; only sampled frames are ever converted
MAX_PACKETS_PER_SECOND = 1_000  # frames a second of source video; more is not a video but an attack


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaLimits:
    """Upper bounds on one source; going over any of them raises `MediaLimitError`.

    The defaults fit an ordinary laptop: memory stays bounded by a few decoded pictures,
    since frames, pages and audio clips are read one by one.
    """

    max_bytes: int = 4 * 2**30
    """Encoded size of one source in bytes."""
    max_pixels: int = 80_000_000
    """Width times height of one image, page or frame."""
    max_seconds: float | None = None
    """Duration in seconds; None means 5 hours for audio and 4 hours for video."""
    max_frames: int = 2_048
    """Frames sampled from one video."""
    max_pages: int = 1_000
    """Pages of one document."""

    @property
    def max_audio_seconds(self) -> float:
        """Longest recording, in seconds."""
        return MAX_AUDIO_SECONDS if self.max_seconds is None else self.max_seconds

    @property
    def max_video_seconds(self) -> float:
        """Longest video, in seconds."""
        return MAX_VIDEO_SECONDS if self.max_seconds is None else self.max_seconds


def refuse_above(name: str, what: str, found: float, limit: float, setting: str) -> None:
    """Raise if `found` is above `limit`.

    Args:
        name: the source, as the user knows it.
        what: the counted thing with its unit, such as "pixels" or "seconds of audio".
        found: the measured amount.
        limit: the allowed amount.
        setting: field of `MediaLimits` that holds the limit.

    Raises:
        MediaLimitError: if it is above; names both numbers and the setting.
    """
    if found > limit:
        raise MediaLimitError(
            f"{name}: found {found:,.10g} {what}, the limit is {limit:,.10g}; use smaller media or "
            f"raise it in Python with omni.load(limits=omni.MediaLimits({setting}=...))"
        )
