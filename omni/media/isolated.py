"""Media that are decoded in a process of their own: what hangs or crashes there ends there.

`Decoder.open` gives the same objects as the media gateway, with the same pixels and errors; their
frames, pages and sound come from a child process. If it gives nothing for the time limit it is
killed, if it dies that is noticed, and either is an error of that one medium. The next request
starts a new child.

What it costs: a second to start the child, once and after every kill; its memory (one picture, and
the frames that it decodes ahead); and copying pixels through a pipe. Nothing is decoded twice,
except where the child is killed while a video is being read: that goes on in the next one.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from omni.errors import CorruptMediaError, MediaError, MediaTimeoutError
from omni.media.audio import MAX_BYTES_IN_MEMORY, Audio
from omni.media.document import DEFAULT_DPI, Document
from omni.media.gateway import Media
from omni.media.image import Image
from omni.media.isolated_process import StreamLostError, receive, send
from omni.media.limits import MediaLimits
from omni.media.video import Video, VideoInfo


class Decoder:
    """Opens media in a child process, which is started when it is needed; threads may share it.

    Args:
        limits: Of the media gateway.
        allowed_roots: Folders that files may be read from; None allows any.
        timeout_s: Longest silence of the decoder in seconds: to open one file, to decode one frame
            or page.
    """

    def __init__(
        self,
        *,
        limits: MediaLimits | None = None,
        allowed_roots: Sequence[Path] | None = None,
        timeout_s: float = 120.0,
    ) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.is_ready = False
        self.lock = threading.Lock()  # held from a question to its answer
        self.forgotten: list[int] = []  # streams that the child may end
        self.setup: dict[str, Any] = {}
        self.set_up(limits=limits, allowed_roots=allowed_roots, timeout_s=timeout_s)

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def open(self, path: str) -> Media:
        """Open one file.

        Args:
            path: As `omni.media.load_media` takes it.

        Returns:
            A picture with its pixels or a recording with its sound; a video or a document whose
            frames and pages are decoded when they are asked for.

        Raises:
            MediaTimeoutError: The decoder gave nothing for `timeout_s`.
            MediaError: It died, or the gateway refuses the file.
        """
        found = self.call(path, "open", path)
        if found["kind"] == "image":
            return _image(found)
        if found["kind"] == "audio":
            return self._audio(path, "open", found)
        if found["kind"] == "document":
            return RemoteDocument(self, path, found["name"], found["num_pages"])
        return self.video(path, found["name"], found["info"])

    def video(self, path: str, name: str, info: VideoInfo) -> Video:
        """A video that has been probed; its frames and its sound are decoded when asked for.

        Args:
            path: The file.
            name: How messages call it.
            info: What probing found.
        """
        return Video(
            name=name,
            info=info,
            reader=RemoteFrames(self, path),
            limits=self.limits,
            load_audio=cache(lambda: self._audio(path, "track", self.call(path, "track", path)))
            if info.has_audio
            else None,
        )

    def stream(self, path: str, number: int) -> Iterator[np.ndarray]:
        """Yield the pieces of a stream of the child.

        Raises:
            StreamLostError: It was another child's, which a medium's trouble has ended.
        """
        try:
            while (piece := self.call(path, "next", number)) is not None:
                yield piece
        except GeneratorExit:
            # Told with the next question: this may be the collector's, in the middle of one.
            self.forgotten.append(number)
            raise

    def call(self, path: str, command: str, *arguments: Any) -> Any:
        """Ask the child, and kill it if it does not answer in time.

        Args:
            path: The medium that is asked about.
            command: A method of `isolated_process.Server`.
            *arguments: Its arguments.

        Raises:
            MediaTimeoutError: It gave nothing for `timeout_s`.
            MediaError: It died, or the gateway refuses the file.
        """
        with self.lock:
            return self._ask(path, command, *arguments)

    def _ask(self, path: str, command: str, *arguments: Any) -> Any:
        child = self._child()
        forgotten, self.forgotten = self.forgotten, []
        assert child.stdin is not None
        assert child.stdout is not None
        late = threading.Event()

        def kill() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(self.timeout_s, kill)
        timer.start()
        try:
            send(child.stdin, (forgotten, command, *arguments))
            outcome, value, said = receive(child.stdout)
        except (EOFError, OSError) as error:
            self.close()
            if late.is_set():
                raise MediaTimeoutError(
                    f"{path}: its decoder gave nothing for {self.timeout_s:g} s, which is the "
                    "limit; the file is damaged or very slow to decode. Leave it out, or raise the "
                    "limit with timeout_s=... (--timeout)"
                ) from error
            raise CorruptMediaError(
                f"{path}: its decoder crashed ({_how(child.returncode)}); export the file again"
            ) from error
        except BaseException:  # such as Ctrl-C: the next reply would be that of another question
            self.close()
            raise
        finally:
            timer.cancel()
        for text in said:
            warnings.warn(text, stacklevel=2)
        if outcome == "error":
            raise value
        return value

    def set_up(
        self,
        *,
        limits: MediaLimits | None = None,
        allowed_roots: Sequence[Path] | None = None,
        timeout_s: float = 120.0,
    ) -> None:
        """Change what was given when this was made; a child that works by something else ends."""
        self.limits = limits or MediaLimits()
        setup = {
            "limits": self.limits,
            "allowed_roots": None if allowed_roots is None else list(allowed_roots),
            "timeout_s": timeout_s,
        }
        if self.is_ready and setup != self.setup:
            self.close()
        self.setup, self.timeout_s = setup, timeout_s

    def start(self) -> None:
        """Start the child without waiting for it, so that it is there when it is needed."""
        if self.process is not None:
            return
        child = subprocess.Popen(
            # The search path of this process: wherever omni was found, the child finds it.
            [sys.executable, "-P", "-c", "from omni.media.isolated_process import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
        )
        self.process, self.is_ready = child, False

    def _child(self) -> subprocess.Popen[bytes]:
        self.start()
        child = self.process
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        if self.is_ready:
            return child
        try:
            send(child.stdin, self.setup)
            receive(child.stdout)
        except (EOFError, OSError) as error:
            self.close()
            raise MediaError(
                "The process that decodes media could not start; the lines above say why."
            ) from error
        self.is_ready = True
        return child

    def _audio(self, path: str, command: str, found: dict[str, Any]) -> Audio:
        # It lives as long as the recording, which closes it.
        spool = tempfile.SpooledTemporaryFile(max_size=MAX_BYTES_IN_MEMORY)  # noqa: SIM115
        num_samples = 0
        try:
            for block in self.stream(path, found["stream"]):
                spool.write(block.tobytes())
                num_samples += len(block)
        except StreamLostError:
            spool.close()
            return self._audio(path, command, self.call(path, command, path))
        return Audio(
            name=found["name"],
            spool=spool,
            num_samples=num_samples,
            source_sampling_rate=found["sampling_rate"],
            num_source_channels=found["channels"],
        )


class RemoteFrames:
    """Frames of a video in the child.

    Args:
        decoder: Whose child.
        path: The video.
    """

    def __init__(self, decoder: Decoder, path: str) -> None:
        self.decoder = decoder
        self.path = path

    def read(self, indices: Sequence[int]) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        """Yield the frames at ascending positions, one by one."""
        given = 0
        while True:
            number = self.decoder.call(self.path, "frames", self.path, tuple(indices[given:]))
            try:
                for frame in self.decoder.stream(self.path, number):
                    given += 1
                    yield frame
            except StreamLostError:
                continue
            return


class RemoteDocument(Document):
    """Pages of a document in the child.

    Args:
        decoder: Whose child.
        path: The document.
        name: How messages call it.
        num_pages: Its pages.
    """

    def __init__(self, decoder: Decoder, path: str, name: str, num_pages: int) -> None:
        self.decoder = decoder
        self.path = path
        self.name = name
        self.num_pages = num_pages

    def page_size_points(self, index: int) -> tuple[float, float]:
        """Width and height of a page in points."""
        width, height = self.decoder.call(self.path, "page_size", self.path, index)
        return width, height

    def render(self, index: int, dpi: float = DEFAULT_DPI) -> Image:
        """Render one page."""
        return _image(self.decoder.call(self.path, "render", self.path, index, dpi))


def _image(found: dict[str, Any]) -> Image:
    return Image(values=found["pixels"], name=found["name"])


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"
