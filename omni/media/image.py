"""Still pictures: files, arrays and tensors -> RGB bytes, upright, over white."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, cast

import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import UInt8

from omni.errors import CorruptMediaError, MediaError, MediaLimitError, UnsupportedMediaError
from omni.media.limits import MediaLimits, refuse_above
from omni.media.source import Source
from omni.media.tensors import to_numpy, to_tensor

if TYPE_CHECKING:
    from torch import Tensor

# No EPS (runs Ghostscript), no formats which only a museum needs.
PIL_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000", "PPM")
# What Pillow's parsers raise on damaged files, found by fuzzing; SyntaxError is its "broken PNG".
PIL_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    AttributeError,
    ZeroDivisionError,
    OverflowError,
    RuntimeError,
    struct.error,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One picture, upright and opaque."""

    values: UInt8[np.ndarray, "height width 3"]
    """RGB, 0-255."""
    name: str

    @property
    def pixels(self) -> UInt8[Tensor, "height width 3"]:
        """The values as a tensor on the same memory."""
        return to_tensor(self.values)

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.values.shape[1]

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.values.shape[0]


def load_image(source: Source, limits: MediaLimits) -> Image:
    """Decode a still picture; of an animation its first frame, with a warning.

    Raises:
        MediaLimitError: if it has more than `limits.max_pixels`, before any pixel is decoded.
        CorruptMediaError: if it is damaged or ends early.
        UnsupportedMediaError: if its pixel format has no defined picture.
    """
    with open_picture(source, limits) as picture:
        is_animated = getattr(picture, "is_animated", False)
        image = Image(values=picture_pixels(picture, source.name), name=source.name)
    if is_animated:  # what happens in the block above is not shown
        warnings.warn(
            f"{source.name}: found an animation, of which the first frame is used. It is read as a "
            "video by omni.load_media(path, kind='video').",
            stacklevel=2,
        )
    return image


def image_from_pil(
    picture: PIL.Image.Image, limits: MediaLimits, name: str = "<PIL image>"
) -> Image:
    """Take over a Pillow image, with the same conversions as for files.

    Raises:
        MediaLimitError: if it has more than `limits.max_pixels`.
        CorruptMediaError: if its file turns out to be damaged, or it has no pixels.
        UnsupportedMediaError: if its pixel format has no defined picture.
    """
    _check_size(picture, limits, name)
    with pillow_errors(name):
        return Image(values=picture_pixels(picture, name), name=name)


def image_from_array(
    array: np.ndarray | Tensor, limits: MediaLimits, name: str = "<array>"
) -> Image:
    """Take over a picture held in an array.

    Args:
        array: (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4; uint8, bool, uint16 (0-65535) or
            floats in 0-1. A shape that fits both layouts is read as (H, W, C).
        limits: `max_pixels` applies.
        name: how messages call it.

    Raises:
        UnsupportedMediaError: if shape, type or range is another.
        CorruptMediaError: if it is empty or has values that are not finite.
        MediaLimitError: if it has more than `limits.max_pixels`.
    """
    values = to_numpy(array)
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim == 3 and values.shape[2] not in (1, 3, 4) and values.shape[0] in (1, 3, 4):
        values = values.transpose(1, 2, 0)
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4):
        raise UnsupportedMediaError(
            f"{name}: found an array of shape {tuple(array.shape)}, expected an image (H, W), "
            "(H, W, 3) or (3, H, W); for a video give (frames, H, W, 3) and fps, for audio give "
            "sampling_rate"
        )
    height, width, channels = values.shape
    if height * width == 0:
        raise CorruptMediaError(
            f"{name}: found an image of {width}x{height} pixels, which is empty"
        )
    refuse_above(
        name, f"pixels ({width}x{height})", width * height, limits.max_pixels, "max_pixels"
    )
    scaled = bytes_from_values(values, name)
    if channels == 4:
        return Image(values=_over_white(PIL.Image.fromarray(scaled)), name=name)
    rgb = np.repeat(scaled, 3, axis=2) if channels == 1 else scaled
    return Image(values=np.array(rgb), name=name)


def bytes_from_values(values: np.ndarray, name: str) -> np.ndarray:
    """Scale pixel values of any supported type to 0-255.

    Raises:
        UnsupportedMediaError: for another type, or floats outside 0-1.
        CorruptMediaError: for values that are not finite.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # rounds 65535 -> 255
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all():
            raise CorruptMediaError(
                f"{name}: found pixel values that are not finite; repair the array"
            )
        low, high = float(values.min()), float(values.max())
        if low < 0 or high > 1:
            raise UnsupportedMediaError(
                f"{name}: found float pixels from {low:.4g} to {high:.4g}, expected 0 to 1; "
                "divide by the largest value or convert to uint8"
            )
        return np.round(values * 255).astype(np.uint8)
    raise UnsupportedMediaError(
        f"{name}: found pixels of type {values.dtype}, expected uint8, uint16, bool or floats in "
        "0-1"
    )


@contextmanager
def open_picture(source: Source, limits: MediaLimits) -> Iterator[PIL.Image.Image]:
    """Open a picture file with Pillow, checked for size but not yet decoded.

    Raises:
        MediaLimitError: if the header announces more than `limits.max_pixels`.
        CorruptMediaError: if Pillow fails on it, here or inside the block.
    """
    with (
        source.open() as file,
        pillow_errors(source.name),
        PIL.Image.open(cast(IO[bytes], file), formats=PIL_FORMATS) as picture,
    ):
        _check_size(picture, limits, source.name)
        yield picture


def picture_pixels(picture: PIL.Image.Image, name: str) -> UInt8[np.ndarray, "height width 3"]:
    """Convert the current frame of a Pillow image: upright, scaled to 8 bits, over white.

    Raises:
        UnsupportedMediaError: if its pixel format has no defined picture.
        CorruptMediaError: if its pixels are not finite.
    """
    picture.load()
    picture = _upright(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        gray = bytes_from_values(_wide_values(picture, name), name)
        return np.repeat(gray[:, :, None], 3, axis=2)
    has_alpha = "A" in picture.getbands() or "a" in picture.getbands()
    if has_alpha or "transparency" in picture.info:
        return _over_white(picture)
    return np.array(picture.convert("RGB"))


def _wide_values(picture: PIL.Image.Image, name: str) -> np.ndarray:
    """Pixels of more than 8 bits, as uint16 or as floats in 0-1."""
    values = np.array(picture)
    if picture.mode != "I":
        return values.astype(np.uint16) if picture.mode.startswith("I;16") else values
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65_535:
        raise UnsupportedMediaError(
            f"{name}: found 32-bit pixels from {low} to {high}, expected 0 to 65535; convert the "
            "image to 8 or 16 bits"
        )
    return values.astype(np.uint16)


def _over_white(picture: PIL.Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    colour = picture.convert("RGBA")
    white = PIL.Image.new("RGBA", colour.size, (255, 255, 255, 255))
    return np.array(PIL.Image.alpha_composite(white, colour).convert("RGB"))


def _upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    try:
        return PIL.ImageOps.exif_transpose(picture)
    except PIL_ERRORS:  # a damaged EXIF block says nothing about the pixels
        return picture


def _check_size(picture: PIL.Image.Image, limits: MediaLimits, name: str) -> None:
    width, height = picture.size
    if width * height == 0:
        raise CorruptMediaError(
            f"{name}: found an image of {width}x{height} pixels, which is empty"
        )
    refuse_above(
        name, f"pixels ({width}x{height})", width * height, limits.max_pixels, "max_pixels"
    )


@contextmanager
def pillow_errors(name: str) -> Iterator[None]:
    """Turn what Pillow raises about a damaged picture into an error of ours.

    Raises:
        CorruptMediaError: It failed.
        MediaLimitError: It refused the size.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters becomes an error of ours
            yield
    except MediaError:
        raise
    except PIL.Image.DecompressionBombError as error:
        raise MediaLimitError(
            f"{name}: found an image so large that Pillow takes it for a decompression bomb "
            f"({error}); use a smaller image, or raise both MediaLimits(max_pixels=...) and "
            "PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except PIL_ERRORS as error:
        raise CorruptMediaError(
            f"{name}: the image is damaged or ends early ({error}); save it again from its source"
        ) from error
