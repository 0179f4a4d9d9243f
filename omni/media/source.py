"""Where encoded media comes from: a path, bytes, a file object, a data URI or a web address.

Everything becomes a `Source`, which can be opened again and again. Only regular files are
opened, so that a pipe or a device cannot make a request hang.
"""

import base64
import binascii
import contextlib
import io
import os
import stat
import tempfile
import urllib.parse
import urllib.request
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from omni.errors import CorruptMediaError, MediaAccessError, MediaNotFoundError
from omni.media.limits import MediaLimits, refuse_above

HEAD_BYTES = 4_096  # enough for every signature that `detect` looks at
MAX_BYTES_IN_MEMORY = 64 * 2**20  # a file object larger than this is copied to disk
COPY_BYTES = 2**20


@runtime_checkable
class BinaryFile(Protocol):
    """Anything with a `read` which gives bytes: an open file, a socket's file, an upload."""

    def read(self, size: int = -1, /) -> bytes:
        """Read up to `size` bytes; none at the end."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class Source:
    """Encoded media which can be opened any number of times.

    Exactly one of `path` and `data` is set.
    """

    name: str
    """How messages call it: the path as given, or "<bytes>"."""
    num_bytes: int
    path: Path | None = None
    data: bytes | None = None

    def open(self) -> io.BufferedIOBase:
        """Open a new, independent, seekable handle at the first byte.

        Raises:
            MediaNotFoundError: if the file vanished since it was first seen.
            MediaAccessError: if it may no longer be read.
        """
        if self.data is not None:
            return io.BytesIO(self.data)
        assert self.path is not None
        try:
            return open(self.path, "rb", opener=_open_regular)
        except OSError as error:
            raise _access_error(self.name, error) from error

    def head(self) -> bytes:
        """Return the first bytes, for signatures."""
        with self.open() as file:
            return file.read(HEAD_BYTES)


def open_source(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile,
    *,
    limits: MediaLimits,
    allowed_roots: Sequence[Path] | None = None,
    allow_network: bool = False,
) -> Source:
    """Turn whatever the user named into a `Source`, checking access and size.

    Args:
        source: a path, a `file:`, `data:` or `http(s):` address, bytes, or an open
            binary file, which is read from its present position and left open.
        limits: `max_bytes` applies.
        allowed_roots: directories below which paths must lie after links are followed; None allows
            every path.
        allow_network: whether web addresses may be fetched.

    Raises:
        MediaNotFoundError: if the path does not exist.
        MediaAccessError: for a directory, a pipe, a device, missing permission, a path outside the
            roots, or a web address while the network is off.
        MediaLimitError: if it is larger than `limits.max_bytes`.
        CorruptMediaError: if it is empty or a data URI is damaged.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        opened = _from_bytes("<bytes>", bytes(source))
    elif isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        scheme = text[:8].lower() if isinstance(source, str) else ""
        if scheme.startswith("data:"):
            opened = _from_data_uri(text, limits)
        elif scheme.startswith(("http://", "https://")):
            opened = _from_network(text, limits, allow_network)
        else:
            if scheme.startswith("file://"):
                text = urllib.request.url2pathname(urllib.parse.urlsplit(text).path)
            opened = _from_path(text, allowed_roots)
    elif isinstance(source, BinaryFile):
        opened = _from_file_object(source, limits)
    else:
        raise MediaAccessError(
            f"found a {type(source).__name__} as media, expected a path, bytes, a binary file, a "
            "PIL image, a numpy array or a torch tensor"
        )
    if opened.num_bytes == 0:
        raise CorruptMediaError(
            f"{opened.name}: found 0 bytes, expected media; the source is empty"
        )
    refuse_above(opened.name, "bytes", opened.num_bytes, limits.max_bytes, "max_bytes")
    return opened


def spool_source(name: str, chunks: Iterable[bytes], limits: MediaLimits) -> Source:
    """Collect a stream into a `Source`: in memory while small, in a temporary file above that.

    Args:
        name: how messages call it.
        chunks: pieces of bytes, in order.
        limits: `max_bytes` stops the reading early.

    Raises:
        MediaLimitError: as soon as more than `limits.max_bytes` have come.
    """
    with tempfile.SpooledTemporaryFile(max_size=MAX_BYTES_IN_MEMORY) as spool:
        total = 0
        for chunk in chunks:
            total += len(chunk)
            refuse_above(name, "bytes", total, limits.max_bytes, "max_bytes")
            spool.write(chunk)
        spool.seek(0)
        if total <= MAX_BYTES_IN_MEMORY:
            return Source(name=name, num_bytes=total, data=spool.read())
        handle, path = tempfile.mkstemp(prefix="omni-media-")
        with os.fdopen(handle, "wb") as file:
            while chunk := spool.read(COPY_BYTES):
                file.write(chunk)
    source = Source(name=name, num_bytes=total, path=Path(path))
    weakref.finalize(source, _remove, path)
    return source


def _from_bytes(name: str, data: bytes) -> Source:
    return Source(name=name, num_bytes=len(data), data=data)


def _from_data_uri(text: str, limits: MediaLimits) -> Source:
    name = "<data URI>"
    header, comma, payload = text.partition(",")
    if not comma:
        raise CorruptMediaError(
            f"{name}: found no comma, expected 'data:<type>;base64,<content>'; check the address"
        )
    refuse_above(name, "characters", len(payload), 3 * limits.max_bytes, "max_bytes")
    if not header.lower().endswith(";base64"):
        return _from_bytes(name, urllib.parse.unquote_to_bytes(payload))
    try:
        return _from_bytes(name, base64.b64decode(urllib.parse.unquote(payload), validate=True))
    except (binascii.Error, ValueError) as error:
        raise CorruptMediaError(
            f"{name}: found content that is not base64 ({error}); encode it again"
        ) from error


def _from_network(address: str, limits: MediaLimits, allow_network: bool) -> Source:
    if not allow_network:
        raise MediaAccessError(
            f"{address}: found a web address, but the network is off; download the file and give "
            "its path, or pass allow_network=True to omni.load (or omni.load_media)"
        )
    from omni.media.network import fetch

    return fetch(address, limits)


def _from_file_object(file: BinaryFile, limits: MediaLimits) -> Source:
    given = getattr(file, "name", None)
    name = given if isinstance(given, str) else "<file object>"

    def chunks() -> Iterable[bytes]:
        while chunk := file.read(COPY_BYTES):
            if not isinstance(chunk, bytes):
                raise MediaAccessError(
                    f"{name}: found a text file object, expected a binary one; open it with mode "
                    "'rb'"
                )
            yield chunk

    try:
        return spool_source(name, chunks(), limits)
    except (OSError, ValueError) as error:  # ValueError: closed file, text that is not UTF-8
        raise MediaAccessError(f"{name}: the file object cannot be read: {error}") from error


def _from_path(text: str, allowed_roots: Sequence[Path] | None) -> Source:
    try:
        path = Path(text).resolve(strict=True)
        status = path.stat()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links
        # `cat x | omni ask ... /dev/stdin`: the pipe is there, but has no path to resolve to.
        if isinstance(error, FileNotFoundError) and os.path.exists(text):
            _check_regular(text, os.stat(text).st_mode)
        raise _access_error(text, error) from error
    if allowed_roots is not None:
        roots = [Path(root).resolve() for root in allowed_roots]
        if not any(path.is_relative_to(root) for root in roots):
            listed = ", ".join(str(root) for root in roots) or "none"
            raise MediaAccessError(
                f"{text}: found a path outside the allowed directories (allowed: {listed}); move "
                "the file there or add its directory to allowed_roots"
            )
    _check_regular(text, status.st_mode)
    opened = Source(name=text, num_bytes=status.st_size, path=path)
    opened.open().close()  # permission is an error of now, not of the first decoder
    return opened


def _open_regular(path: str, flags: int) -> int:
    """Open without waiting: a pipe which took the file's place must not hang the request."""
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        _check_regular(path, os.fstat(handle).st_mode)
    except MediaAccessError:
        os.close(handle)
        raise
    return handle


def _check_regular(name: str, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    found = kinds.get(stat.S_IFMT(mode), "a device")
    raise MediaAccessError(
        f"{name}: found {found}, expected a file; give the path of one media file"
    )


def _access_error(name: str, error: Exception) -> MediaAccessError | MediaNotFoundError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return MediaNotFoundError(f"{name}: no such file; check the path")
    if isinstance(error, PermissionError):
        return MediaAccessError(f"{name}: permission denied; make the file readable for this user")
    shown = name if len(name) <= 120 else f"{name[:117]}..."
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return MediaAccessError(f"{shown!r}: cannot be opened as a file ({reason}); check the path")


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
