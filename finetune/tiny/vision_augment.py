"""Random changes to real training pictures, at their own size, before the product's resize."""

import numpy as np
from jaxtyping import UInt8
from numpy.random import Generator
from PIL import Image, ImageFilter


def augment_photo(
    rng: Generator, picture: UInt8[np.ndarray, "32 32 3"]
) -> UInt8[np.ndarray, "32 32 3"]:
    """Shift by up to 4 pixels, mirror, and change brightness, contrast and saturation a little."""
    y, x = rng.integers(0, 9, 2)
    picture = np.pad(picture, ((4, 4), (4, 4), (0, 0)), mode="reflect")[y : y + 32, x : x + 32]
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    values = picture.astype(np.float32)
    grey = values.mean(-1, keepdims=True)
    values = grey + (values - grey) * rng.uniform(0.7, 1.3)
    values = (values - values.mean()) * rng.uniform(0.75, 1.25) + values.mean()
    return np.clip(values + rng.uniform(-25, 25), 0, 255).astype(np.uint8)


def augment_digit(
    rng: Generator, picture: UInt8[np.ndarray, "28 28"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Rotate, scale, shear, shift, thicken or thin, sometimes swap black and white."""
    size = 28 if rng.random() < 0.8 else int(rng.choice([32, 48, 64, 96]))
    image = Image.fromarray(picture)
    angle, shear = rng.normal(0, 0.14), rng.normal(0, 0.12)
    scale = 28 / size * rng.uniform(0.85, 1.15)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    a, b, d, e = cos, shear * cos - sin, sin, cos + shear * sin
    centre, target = 14 + rng.uniform(-2, 2, 2), size / 2
    image = image.transform(
        (size, size),
        Image.Transform.AFFINE,
        (
            a, b, centre[0] - (a + b) * target,
            d, e, centre[1] - (d + e) * target,
        ),
        resample=Image.Resampling.BICUBIC,
    )  # fmt: skip
    kind = rng.random()
    if kind < 0.15:
        image = image.filter(ImageFilter.MaxFilter(3))
    elif kind < 0.22:
        image = image.filter(ImageFilter.GaussianBlur(0.7))
    pixels = np.asarray(image).astype(np.float64)
    if rng.random() < 0.3:
        pixels = 255 - pixels
    if rng.random() < 0.2:
        pixels = pixels + rng.normal(0, 10, pixels.shape)
    return np.repeat(np.clip(pixels, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)
