"""The child process that opens and decodes media, so that it can be killed; see `isolated`.

Requests come on stdin and replies leave on stdout, each as 8 bytes of length and a pickle. Media
cross as arrays: a whole picture, a rendered page, one frame or a block of sound at a time. Frames
are decoded ahead of their requests. Warnings go with the replies.
"""

import faulthandler
import os
import pickle
import signal
import sys
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np

from omni.allocator import give_freed_memory_back
from omni.errors import CorruptMediaError, MediaError, OmniError
from omni.media.audio import Audio
from omni.media.document import Document
from omni.media.gateway import Media, load_media
from omni.media.image import Image
from omni.media.limits import MediaLimits
from omni.media.read_ahead import ReadAhead
from omni.media.video import Video

BLOCK_SAMPLES = 2**20  # of sound in one reply: 4 MiB
MAX_OPEN = 8  # videos and documents whose facts are kept; they hold no pixels
LENGTH_BYTES = 8
FileState = tuple[int, ...]
ORPHAN_GRACE_S = 30.0  # after the limit, when whoever should have killed this process is gone


def send(stream: IO[bytes], value: Any) -> None:
    """Write one message."""
    data = pickle.dumps(value, protocol=5)
    stream.write(len(data).to_bytes(LENGTH_BYTES, "little"))
    stream.write(data)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Read one message.

    Raises:
        EOFError: The other side is gone.
    """
    head = stream.read(LENGTH_BYTES)
    size = int.from_bytes(head, "little")
    data = stream.read(size) if len(head) == LENGTH_BYTES else b""
    if len(head) < LENGTH_BYTES or len(data) < size:
        raise EOFError
    return pickle.loads(data)


class StreamLostError(OmniError):
    """The child which had the stream has ended, and this is the next one."""


class Server:
    """Answers requests about paths; forgetting what is open only costs time.

    Args:
        limits: Of the media gateway.
        allowed_roots: Folders that files may be read from; None allows any.
    """

    def __init__(self, limits: MediaLimits, allowed_roots: list[Path] | None) -> None:
        self.limits = limits
        self.allowed_roots = allowed_roots
        self.opened: OrderedDict[tuple[str, FileState], Media] = OrderedDict()
        self.streams: dict[int, Iterator[np.ndarray]] = {}
        self.numbers = count(time.time_ns())  # other ones than those of an earlier child

    def open(self, path: str) -> dict[str, Any]:
        """What a file is; pixels or sound come along, or as a stream."""
        media = self._media(path)
        if isinstance(media, Image):
            return {"kind": "image", "name": media.name, "pixels": media.values}
        if isinstance(media, Video):
            return {"kind": "video", "name": media.name, "info": media.info}
        if isinstance(media, Document):
            return {"kind": "document", "name": media.name, "num_pages": media.num_pages}
        return self._sound(media)

    def track(self, path: str) -> dict[str, Any]:
        """The sound track of a video that has one."""
        video = self._media(path)
        assert isinstance(video, Video)
        audio = video.audio()
        assert audio is not None
        return self._sound(audio)

    def frames(self, path: str, indices: tuple[int, ...]) -> int:
        """A stream of frames at ascending positions."""
        video = self._media(path)
        assert isinstance(video, Video)
        return self._stream(ReadAhead(video.decode(indices)))

    def page_size(self, path: str, index: int) -> tuple[float, float]:
        """Points of a page."""
        return self._document(path).page_size_points(index)

    def render(self, path: str, index: int, dpi: float) -> dict[str, Any]:
        """Pixels of a page."""
        image = self._document(path).render(index, dpi)
        return {"kind": "image", "name": image.name, "pixels": image.values}

    def next(self, stream: int) -> np.ndarray | None:
        """The next piece of a stream; None after the last.

        Raises:
            StreamLostError: There is no such stream.
        """
        if stream not in self.streams:
            raise StreamLostError
        piece = None
        try:
            piece = next(self.streams[stream], None)
        finally:
            if piece is None:  # at its end, or broken
                del self.streams[stream]
        return piece

    def forget(self, streams: list[int]) -> None:
        """End streams that nobody reads on."""
        for number in streams:
            stream = self.streams.pop(number, None)
            if isinstance(stream, ReadAhead):
                stream.close()

    def _stream(self, pieces: Iterator[np.ndarray]) -> int:
        number = next(self.numbers)
        self.streams[number] = pieces
        return number

    def _sound(self, audio: Audio) -> dict[str, Any]:
        return {
            "kind": "audio",
            "name": audio.name,
            "sampling_rate": audio.source_sampling_rate,
            "channels": audio.num_source_channels,
            "stream": self._stream(audio.blocks(BLOCK_SAMPLES)),
        }

    def _document(self, path: str) -> Document:
        document = self._media(path)
        assert isinstance(document, Document)
        return document

    def _media(self, path: str) -> Media:
        key = path, _state_of(path)
        if key in self.opened:
            self.opened.move_to_end(key)
            return self.opened[key]
        media = load_media(path, limits=self.limits, allowed_roots=self.allowed_roots)
        if isinstance(media, Video | Document):
            self.opened[key] = media
            if len(self.opened) > MAX_OPEN:
                self.opened.popitem(last=False)
        return media


def _state_of(path: str) -> FileState:
    """What changes when a file is replaced or written to; nothing if there is no file."""
    with suppress(OSError):
        found = os.stat(path)
        return found.st_ino, found.st_size, found.st_mtime_ns
    return ()


def main() -> None:
    """Serve until the parent closes stdin or kills us."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it closes stdin
    give_freed_memory_back()  # decoders have threads, which would each keep what they freed
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    setup = receive(requests)
    server = Server(setup["limits"], setup["allowed_roots"])
    send(replies, "ready")
    silence = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    for noisy in (1, 2):  # decoders print; stdout belongs to the replies
        os.dup2(silence.fileno(), noisy)
    while True:
        try:
            forgotten, command, *arguments = receive(requests)
        except EOFError:
            return
        # Fires in C, without the interpreter's lock, even where a decoder never comes back.
        limit_s = setup["timeout_s"] + ORPHAN_GRACE_S
        faulthandler.dump_traceback_later(limit_s, exit=True, file=silence)
        server.forget(forgotten)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                reply = ("value", getattr(server, command)(*arguments))
            except OmniError as error:
                reply = ("error", error)
            except (Exception, RecursionError) as error:  # a decoder's, on files nobody foresaw
                reply = ("error", _as_media_error(arguments, error))
        faulthandler.cancel_dump_traceback_later()
        said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
        try:
            send(replies, (*reply, said))
        except BrokenPipeError:
            return


def _as_media_error(arguments: list[Any], error: Exception) -> MediaError:
    name = arguments[0] if isinstance(arguments[0], str) else "media"
    first = (str(error).splitlines() or [""])[0]
    return CorruptMediaError(
        f"{name}: its decoder failed ({type(error).__name__}: {first}); export the file again"
    )


if __name__ == "__main__":
    main()
