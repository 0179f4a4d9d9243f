"""Pictures of every kind come out as upright, opaque RGB bytes."""

import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from omni.errors import CorruptMediaError, MediaLimitError, UnsupportedMediaError
from omni.media import Document, Image, MediaLimits, load_media
from tests.support.media import moving_square, write_image

PICTURE = moving_square(9)[-1]
GRADIENT = np.arange(256, dtype=np.uint8).reshape(16, 16)


def pixels_of(source: object) -> np.ndarray:
    media = load_media(source)
    assert isinstance(media, Image)
    assert media.pixels.dtype == torch.uint8
    assert media.pixels.shape == (media.height, media.width, 3)
    return media.pixels.numpy()


@pytest.mark.parametrize("extension", [".png", ".bmp", ".tiff", ".gif", ".webp", ".ppm"])
def test_lossless_formats_keep_every_pixel(extension: str, tmp_path: Path) -> None:
    path = write_image(
        tmp_path / f"x{extension}", PICTURE, **({"lossless": True} if extension == ".webp" else {})
    )
    assert np.array_equal(pixels_of(path), PICTURE)


@pytest.mark.parametrize("extension", [".jpg", ".webp", ".avif"])
def test_lossy_formats_come_close(extension: str, tmp_path: Path) -> None:
    smooth = np.repeat(np.kron(GRADIENT, np.ones((4, 4), dtype=np.uint8))[:, :, None], 3, axis=2)
    found = pixels_of(write_image(tmp_path / f"x{extension}", smooth, quality=95))
    assert np.abs(found.astype(int) - smooth).mean() < 4


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    for orientation, turned in (
        (3, np.rot90(PICTURE, 2)),
        (6, np.rot90(PICTURE, -1)),
        (8, np.rot90(PICTURE)),
    ):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        PIL.Image.fromarray(PICTURE).save(path, exif=exif)
        assert np.array_equal(pixels_of(path), turned)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    expected = np.repeat(GRADIENT[:, :, None], 3, axis=2)
    for name in ("deep.png", "deep.tiff"):
        PIL.Image.fromarray(deep).save(tmp_path / name)
        assert np.array_equal(pixels_of(tmp_path / name), expected)
    PIL.Image.fromarray(deep.astype(np.int32)).save(tmp_path / "wide.tiff")
    assert np.array_equal(pixels_of(tmp_path / "wide.tiff"), expected)


def test_floats_are_pictures_from_0_to_1_only(tmp_path: Path) -> None:
    PIL.Image.fromarray(GRADIENT.astype(np.float32) / 255).save(tmp_path / "unit.tiff")
    assert np.array_equal(pixels_of(tmp_path / "unit.tiff")[:, :, 0], GRADIENT)
    PIL.Image.fromarray(GRADIENT.astype(np.float32) * 100).save(tmp_path / "far.tiff")
    with pytest.raises(UnsupportedMediaError, match=r"from 0 to 2\.55e\+04, expected 0 to 1"):
        load_media(tmp_path / "far.tiff")
    nan = np.full((4, 4), np.nan, dtype=np.float32)
    PIL.Image.fromarray(nan).save(tmp_path / "nan.tiff")
    with pytest.raises(CorruptMediaError, match="not finite"):
        load_media(tmp_path / "nan.tiff")


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((2, 2, 4), dtype=np.uint8)
    rgba[0, 0] = (255, 0, 0, 255)
    rgba[0, 1] = (0, 0, 255, 128)
    found = pixels_of(write_image(tmp_path / "x.png", rgba))
    assert found[0, 0].tolist() == [255, 0, 0]
    assert found[0, 1].tolist() == [127, 127, 255]
    assert found[1, 1].tolist() == [255, 255, 255]
    gray_alpha = PIL.Image.fromarray(rgba).convert("LA")
    assert pixels_of(gray_alpha)[1, 1].tolist() == [255, 255, 255]


def test_palettes_with_and_without_a_transparent_colour(tmp_path: Path) -> None:
    palette = PIL.Image.fromarray(PICTURE).quantize(16)
    palette.save(tmp_path / "p.png")
    assert np.array_equal(pixels_of(tmp_path / "p.png"), np.array(palette.convert("RGB")))
    palette.save(tmp_path / "t.png", transparency=palette.getpixel((0, 0)))
    assert pixels_of(tmp_path / "t.png")[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "HSV", "P"])
def test_every_mode_is_converted(mode: str) -> None:
    picture = PIL.Image.fromarray(PICTURE).convert(mode)
    assert np.array_equal(pixels_of(picture), np.array(picture.convert("RGB")))


def test_cmyk_jpeg_is_not_inverted(tmp_path: Path) -> None:
    red = PIL.Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK")
    red.save(tmp_path / "c.jpg", quality=95)
    assert np.abs(pixels_of(tmp_path / "c.jpg")[8, 8].astype(int) - (250, 10, 10)).max() < 10


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [PIL.Image.fromarray(frame) for frame in moving_square(3)]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        with pytest.warns(UserWarning, match=f"{name}: found an animation, of which the first"):
            found = pixels_of(tmp_path / name).astype(int)
        assert np.abs(found - moving_square(1)[0]).max() <= 4  # GIF has 256 colours


def test_a_tiff_of_several_pages_is_a_document(tmp_path: Path) -> None:
    frames = [PIL.Image.fromarray(frame) for frame in moving_square(3)]
    frames[0].save(tmp_path / "a.tiff", save_all=True, append_images=frames[1:])
    assert isinstance(load_media(tmp_path / "a.tiff"), Document)
    with pytest.raises(
        UnsupportedMediaError, match="a TIFF document of 3 pages, expected an image"
    ):
        load_media(tmp_path / "a.tiff", kind="image")


def test_arrays_and_tensors_in_all_layouts_agree() -> None:
    tensor = torch.from_numpy(PICTURE)
    forms = [
        PICTURE,
        tensor,
        tensor.permute(2, 0, 1),
        tensor.float() / 255,
        tensor.double().numpy() / 255,
        PICTURE.astype(np.uint16) * 257,
        np.concatenate([PICTURE, np.full((*PICTURE.shape[:2], 1), 255, np.uint8)], axis=2),
        PIL.Image.fromarray(PICTURE),
    ]
    for form in forms:
        assert np.array_equal(pixels_of(form), PICTURE)
    assert np.array_equal(pixels_of(GRADIENT), np.repeat(GRADIENT[:, :, None], 3, axis=2))
    assert pixels_of(torch.ones(4, 5, dtype=torch.bool)).min() == 255
    assert pixels_of(torch.ones(3, 4, 5, dtype=torch.bfloat16)).shape == (4, 5, 3)


def test_the_caller_keeps_the_array() -> None:
    array = PICTURE.copy()
    media = load_media(array)
    assert isinstance(media, Image)
    array[:] = 0
    assert np.array_equal(media.pixels.numpy(), PICTURE)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 5, 7), np.uint8), r"shape \(5, 5, 7\), expected an image"),
        (np.zeros((4, 4), np.int64), "type int64, expected uint8"),
        (np.full((4, 4), 7.0), "from 7 to 7, expected 0 to 1"),
        (np.full((4, 4), -0.5), "from -0.5 to -0.5, expected 0 to 1"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(UnsupportedMediaError, match=message):
        load_media(array)


def test_empty_and_non_finite_arrays_are_corrupt() -> None:
    with pytest.raises(CorruptMediaError, match="4x0 pixels, which is empty"):
        load_media(np.zeros((0, 4, 3), np.uint8))
    with pytest.raises(CorruptMediaError, match="not finite"):
        load_media(np.full((4, 4, 3), np.inf))


def test_the_pixel_limit_is_checked_before_decoding(tmp_path: Path) -> None:
    path = write_image(tmp_path / "x.png", PICTURE)
    limits = MediaLimits(max_pixels=3_000)
    for source in (path, PICTURE, PIL.Image.fromarray(PICTURE)):
        with pytest.raises(
            MediaLimitError, match=r"found 3,072 pixels \(64x48\), the limit is 3,000; .*max_pixels"
        ):
            load_media(source, limits=limits)


def huge_png(side: int) -> bytes:
    """A decompression bomb: a header that announces side x side pixels, and hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def test_decompression_bombs_are_refused() -> None:
    with pytest.raises(MediaLimitError, match=r"\(10000x10000\), the limit is 80,000,000"):
        load_media(huge_png(10_000))
    with pytest.raises(MediaLimitError, match=r"decompression bomb .*max_pixels"):
        load_media(huge_png(50_000))
    with pytest.raises(MediaLimitError, match=r"decompression bomb .*MAX_IMAGE_PIXELS"):
        load_media(huge_png(50_000), limits=MediaLimits(max_pixels=10**12))


@pytest.mark.parametrize("extension", [".png", ".jpg", ".webp", ".gif", ".tiff", ".bmp", ".avif"])
def test_truncated_pictures_are_refused(extension: str, tmp_path: Path) -> None:
    data = write_image(tmp_path / f"x{extension}", PICTURE).read_bytes()
    with pytest.raises(CorruptMediaError, match="ends early"):
        load_media(data[: int(len(data) * 0.7)])
