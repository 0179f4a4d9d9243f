"""Pictures as the pages of a document: in memory for training, as a PDF file for evaluation."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image as Picture

from omni.media import Document, Image
from omni.media.document import POINTS_PER_INCH

DPI = 144  # at which the checkpoint has pages rendered: a pixel of the picture is one of the page


class PictureDocument(Document):
    """A document whose pages are open pictures.

    Args:
        pictures: Its pages, one at least.
    """

    def __init__(self, pictures: Sequence[Image]) -> None:
        self.name, self.num_pages, self.pictures = "document", len(pictures), pictures

    def page_size_points(self, index: int) -> tuple[float, float]:
        """Width and height at which a page renders as its picture."""
        picture = self.pictures[index]
        return picture.width * POINTS_PER_INCH / DPI, picture.height * POINTS_PER_INCH / DPI

    def render(self, index: int, dpi: float = DPI) -> Image:
        """Return a page's picture, whatever the resolution."""
        return self.pictures[index]


def as_pdf(pages: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> bytes:
    """Write pictures as the pages of a PDF file.

    Args:
        pages: Pictures; rendered at `DPI` they come back in their size.
    """
    buffer = io.BytesIO()
    first, *others = (Picture.fromarray(page) for page in pages)
    first.save(
        buffer, "PDF", save_all=True, append_images=others, resolution=float(DPI), quality=95
    )
    return buffer.getvalue()
