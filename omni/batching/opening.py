"""Opens the media of a batch: once for all parts of a file, not at all if it is known."""

from contextlib import suppress

from omni.errors import MediaError
from omni.feature_cache import FeatureCache
from omni.media import Audio, Image, Media
from omni.media.isolated import Decoder
from omni.media.known import describe, recall
from omni.media.limits import MediaLimits


class Opener:
    """Media by their paths.

    Args:
        decoder: Opens files.
        limits: Which it does within.
        cache: Keeps the facts about what was opened.
    """

    def __init__(self, decoder: Decoder, limits: MediaLimits, cache: FeatureCache | None) -> None:
        self.decoder, self.limits, self.cache = decoder, limits, cache
        self.last: tuple[tuple[str, str | None], Media] | None = None

    def __call__(self, path: str, content: str | None) -> Media:
        """Open a file, or recall it.

        Args:
            path: The file.
            content: Names its bytes; None if that is not known, which recalls nothing.

        Raises:
            MediaError: The gateway refuses it.
        """
        if self.last is None or self.last[0] != (path, content):
            self.last = (path, content), self._find(path, content)
        return self.last[1]

    def _find(self, path: str, content: str | None) -> Media:
        if self.cache is None or content is None:
            return self.decoder.open(path)
        name = f"{content} {self.limits}"
        if (facts := self.cache.facts(name)) is not None:
            return recall(self.decoder, path, facts)
        media = self.decoder.open(path)
        with suppress(MediaError):  # a damaged page is the trouble of who asks for it
            self.cache.keep_facts(name, describe(media))
        return media


def held_bytes(media: Media) -> int:
    """Bytes of what a medium holds once it is open."""
    if isinstance(media, Image):
        return 3 * media.height * media.width
    return 4 * media.num_samples if isinstance(media, Audio) else 0
