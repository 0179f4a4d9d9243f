"""What may be opened, and how each refusal reads."""

import base64
import io
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

import omni.media.network
from omni.errors import (
    CorruptMediaError,
    MediaAccessError,
    MediaLimitError,
    MediaNotFoundError,
    UnsupportedMediaError,
)
from omni.media import Image, MediaLimits, load_media
from omni.media.source import open_source, spool_source
from tests.support.media import moving_square, write_image

PICTURE = moving_square(9)[-1]


@pytest.fixture
def png(tmp_path: Path) -> Path:
    return write_image(tmp_path / "picture.png", PICTURE)


def test_every_form_of_source_gives_the_same_picture(png: Path) -> None:
    data = png.read_bytes()
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    with png.open("rb") as file:
        forms = [str(png), png, png.as_uri(), data, bytearray(data), io.BytesIO(data), file, uri]
        for form in forms:
            media = load_media(form)
            assert isinstance(media, Image)
            assert np.array_equal(media.pixels.numpy(), PICTURE)


def test_a_file_object_is_read_from_its_position_and_left_open(png: Path) -> None:
    file = io.BytesIO(b"skipped" + png.read_bytes())
    file.seek(7)
    load_media(file)
    assert not file.closed


def test_an_extension_that_lies_does_not_matter(png: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "picture.mp4"
    wrong.write_bytes(png.read_bytes())
    assert isinstance(load_media(wrong), Image)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MediaNotFoundError, match=r"nothing\.png: no such file; check the path"):
        load_media(tmp_path / "nothing.png")


@pytest.mark.parametrize("name", ["", "a" * 5_000, "zero\0byte.png"])
def test_impossible_paths_are_refused(name: str) -> None:
    with pytest.raises((MediaAccessError, MediaNotFoundError)):
        load_media(name)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaAccessError, match="found a directory, expected a file"):
        load_media(tmp_path)


def test_pipes_sockets_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MediaAccessError, match="found a pipe, expected a file"):
        load_media(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(MediaAccessError, match="found a socket, expected a file"):
            load_media(tmp_path / "socket")
    with pytest.raises(MediaAccessError, match="/dev/zero: found a device, expected a file"):
        load_media("/dev/zero")
    assert time.monotonic() - start < 5


def test_a_pipe_without_a_name_is_refused_as_one() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(MediaAccessError, match="found a pipe, expected a file"):
            load_media(f"/dev/fd/{reading}")
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(png: Path) -> None:
    png.chmod(0)
    with pytest.raises(MediaAccessError, match="permission denied; make the file readable"):
        load_media(png)


def test_permission_is_reported_in_our_words(png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MediaAccessError, match="permission denied; make the file readable"):
        load_media(png)


def test_paths_stay_below_the_allowed_roots_even_through_links(png: Path, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.png").symlink_to(png)
    (inside / "own.png").write_bytes(png.read_bytes())
    assert load_media(inside / "own.png", allowed_roots=[inside])
    for path in (png, inside / "link.png", inside / ".." / "picture.png"):
        with pytest.raises(MediaAccessError, match="outside the allowed directories"):
            load_media(path, allowed_roots=[inside])
    with pytest.raises(MediaAccessError, match="allowed: none"):
        load_media(png, allowed_roots=[])


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(MediaAccessError, match="cannot be opened as a file"):
        load_media(tmp_path / "a")


def test_the_byte_limit_holds_for_paths_bytes_and_streams(png: Path) -> None:
    size = png.stat().st_size
    small = MediaLimits(max_bytes=size - 1)
    for source in (png, png.read_bytes(), io.BytesIO(png.read_bytes())):
        with pytest.raises(
            MediaLimitError, match=rf"found {size} bytes, the limit is {size - 1}; .*max_bytes"
        ):
            load_media(source, limits=small)
    assert load_media(png, limits=MediaLimits(max_bytes=size))


def test_an_endless_stream_is_stopped_at_the_limit() -> None:
    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            return b"x" * max(size, 1)

    with pytest.raises(MediaLimitError, match="the limit is 5,000,000"):
        load_media(Endless(), limits=MediaLimits(max_bytes=5_000_000))


def test_a_large_stream_goes_to_a_temporary_file_which_is_removed() -> None:
    chunks = (bytes([index]) * 2**20 for index in range(65))
    source = spool_source("stream", chunks, MediaLimits())
    assert source.path is not None
    path = source.path
    with source.open() as file:
        file.seek(64 * 2**20)
        assert file.read(3) == b"\x40\x40\x40"
    del source
    assert not path.exists()


def test_empty_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    for source in (b"", io.BytesIO(), tmp_path / "empty.mp4", "data:image/png;base64,"):
        with pytest.raises(CorruptMediaError, match="found 0 bytes, expected media"):
            load_media(source)


def test_text_mode_and_closed_files_are_refused(png: Path) -> None:
    with pytest.raises(MediaAccessError, match="open it with mode 'rb'"):
        load_media(io.StringIO("text"))
    closed = io.BytesIO(b"data")
    closed.close()
    with pytest.raises(MediaAccessError, match=r"cannot be read: .*closed"):
        load_media(closed)


def test_damaged_data_uris_are_refused() -> None:
    with pytest.raises(CorruptMediaError, match="found no comma"):
        load_media("data:image/png;base64")
    with pytest.raises(CorruptMediaError, match="not base64"):
        load_media("data:image/png;base64,***")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"just a note\n", "text; put it into the question"),
        (b"PK\x03\x04" + bytes(40), "a ZIP archive or an Office document"),
        (b"<!DOCTYPE html><html></html>", "an HTML page, perhaps an error page"),
        (b"<svg xmlns='x'></svg>", "an SVG drawing; export it"),
        (b"\x1f\x8b\x08" + bytes(40), "a gzip archive; unpack it"),
        (b"\x7fELF" + bytes(100), "a program"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(40), "a HEIF picture; save it as JPEG"),
        (bytes(1_000), "bytes without a known signature"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "text; put it into the question"),
        (b"%!PS-Adobe", "a PostScript file; convert it to PDF"),
    ],
)
def test_files_that_are_no_media_are_described(content: bytes, found: str) -> None:
    with pytest.raises(UnsupportedMediaError, match=f"found {found}.*expected an image"):
        load_media(content)


def test_the_expected_kind_is_checked(png: Path) -> None:
    with pytest.raises(UnsupportedMediaError, match=r"found an image \(PNG\), expected a video"):
        load_media(png, kind="video")
    with pytest.raises(
        UnsupportedMediaError, match=r"found an array of shape .*, expected an audio"
    ):
        load_media(torch.zeros(4, 4, 3, dtype=torch.uint8), kind="audio")


def test_web_addresses_are_refused_while_the_network_is_off() -> None:
    with pytest.raises(MediaAccessError, match=r"the network is off.*allow_network=True"):
        load_media("https://example.com/picture.png")


class TestNetwork:
    """A server on this machine stands for the web."""

    @pytest.fixture
    def address(self, png: Path):
        data = png.read_bytes()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/moved":
                    self.send_response(302)
                    self.send_header("Location", "/picture.png")
                    self.end_headers()
                elif self.path == "/loop":
                    self.send_response(302)
                    self.send_header("Location", "/loop")
                    self.end_headers()
                elif self.path == "/picture.png":
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(data)
                else:
                    self.send_error(404)

            def log_message(self, *_args: object) -> None:
                pass

        with HTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join()

    def test_addresses_that_are_not_public_are_refused(self, address: str) -> None:
        for url in (f"{address}/picture.png", "http://169.254.169.254/latest", "http://[::1]/x"):
            with pytest.raises(MediaAccessError, match="which is not public"):
                load_media(url, allow_network=True)

    def test_pictures_are_fetched_through_redirects(
        self, address: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(omni.media.network, "is_public", lambda ip: True)
        media = load_media(f"{address}/moved", allow_network=True)
        assert isinstance(media, Image)
        assert media.name == f"{address}/moved"

    def test_failures_are_told(self, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(omni.media.network, "is_public", lambda ip: True)
        with pytest.raises(MediaAccessError, match=r"cannot be fetched .*404"):
            load_media(f"{address}/nothing", allow_network=True)
        with pytest.raises(MediaAccessError, match="more than 5 redirects"):
            load_media(f"{address}/loop", allow_network=True)
        with pytest.raises(MediaLimitError, match="the limit is 10;"):
            load_media(
                f"{address}/picture.png", allow_network=True, limits=MediaLimits(max_bytes=10)
            )


def test_sources_can_be_opened_twice_at_once(png: Path) -> None:
    for given in (png, png.read_bytes()):
        source = open_source(given, limits=MediaLimits())
        with source.open() as first, source.open() as second:
            first.read(10)
            assert second.read(4) == b"\x89PNG"
