"""Documents: PDF and TIFF files of several pages, rendered one page at a time."""

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image

from omni.errors import CorruptMediaError, RequestError
from omni.media.image import Image, open_picture, picture_pixels
from omni.media.limits import MediaLimits, refuse_above
from omni.media.source import Source

if TYPE_CHECKING:
    import pypdfium2

POINTS_PER_INCH = 72.0
DEFAULT_DPI = 144.0
PDF_TAIL_BYTES = 65_536
_PDFIUM_LOCK = threading.RLock()  # PDFium is not safe to call from two threads, even on two files


class Document(ABC):
    """Pages of one document; nothing stays open between calls.

    Attributes:
        name: how messages call it.
        num_pages: number of pages, at least 1.
    """

    def __init__(self, source: Source, num_pages: int, limits: MediaLimits) -> None:
        self.name = source.name
        self.num_pages = num_pages
        self._source = source
        self._limits = limits
        if num_pages < 1:
            raise CorruptMediaError(
                f"{self.name}: found a document of 0 pages, expected at least one"
            )
        refuse_above(self.name, "pages", num_pages, limits.max_pages, "max_pages")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.num_pages} pages)"

    @abstractmethod
    def page_size_points(self, index: int) -> tuple[float, float]:
        """Width and height of page `index` (from 0) in points of 1/72 inch.

        Raises:
            RequestError: if there is no such page.
            CorruptMediaError: if the page is damaged.
        """

    @abstractmethod
    def render(self, index: int, dpi: float = DEFAULT_DPI) -> Image:
        """Render page `index` (from 0).

        Args:
            index: position of the page.
            dpi: resolution in dots an inch; scans are never enlarged.

        Raises:
            RequestError: if there is no such page or `dpi` is not above 0.
            MediaLimitError: if the picture would be over `max_pixels`; before rendering.
            CorruptMediaError: if the page is damaged.
        """

    def pages(self, dpi: float = DEFAULT_DPI) -> Iterator[Image]:
        """Render all pages in order, one at a time.

        Args:
            dpi: resolution in dots an inch.

        Raises:
            MediaLimitError: at the first page which would be over `max_pixels`.
            CorruptMediaError: at the first damaged page.
        """
        for index in range(self.num_pages):
            yield self.render(index, dpi)

    def check_rendered(self, index: int, width: int, height: int) -> None:  # noqa: B027 - for PDF
        """Refuse a page before it is rendered in a size; scans have only their own.

        Args:
            index: position of the page.
            width: pixels.
            height: likewise.

        Raises:
            MediaLimitError: if the picture would be over `max_pixels`.
        """

    def _check(self, index: int, dpi: float = DEFAULT_DPI) -> None:
        if not 0 <= index < self.num_pages:
            raise RequestError(
                f"{self.name}: found page index {index}, expected 0 to {self.num_pages - 1}"
            )
        if not (dpi > 0 and math.isfinite(dpi)):
            raise RequestError(f"{self.name}: found dpi={dpi}, expected a resolution above 0")

    def _check_pixels(self, index: int, width: int, height: int) -> None:
        what = f"pixels ({width}x{height}) on page {index + 1}"
        refuse_above(
            f"{self.name} (or lower dpi)",
            what,
            width * height,
            self._limits.max_pixels,
            "max_pixels",
        )


class PdfDocument(Document):
    """A PDF file through PDFium.

    Args:
        source: the file.
        limits: `max_pages` and `max_pixels` apply.
        password: for an encrypted file.
    """

    def __init__(self, source: Source, limits: MediaLimits, password: str | None = None) -> None:
        self._password = password
        with _open_pdf(source, password) as pdf:
            num_pages = len(pdf)
        super().__init__(source, num_pages, limits)

    def page_size_points(self, index: int) -> tuple[float, float]:
        """Width and height of a page in points."""
        self._check(index)
        with _open_pdf(self._source, self._password) as pdf, self._page(pdf, index) as page:
            return self._size(page, index)

    def check_rendered(self, index: int, width: int, height: int) -> None:
        """Refuse a page that would be over `max_pixels`."""
        self._check_pixels(index, width, height)

    def render(self, index: int, dpi: float = DEFAULT_DPI) -> Image:
        """Render one page over white."""
        self._check(index, dpi)
        with _open_pdf(self._source, self._password) as pdf, self._page(pdf, index) as page:
            width_pt, height_pt = self._size(page, index)
            scale = dpi / POINTS_PER_INCH
            self._check_pixels(index, math.ceil(width_pt * scale), math.ceil(height_pt * scale))
            bitmap = page.render(scale=scale, rev_byteorder=True, fill_color=(255, 255, 255, 255))
            try:
                rgb = np.array(bitmap.to_numpy()[:, :, :3])  # a copy: the bitmap owns its memory
            finally:
                bitmap.close()
        return Image(values=rgb, name=f"{self.name}, page {index + 1}")

    @contextmanager
    def _page(self, pdf: "pypdfium2.PdfDocument", index: int) -> Iterator["pypdfium2.PdfPage"]:
        from pypdfium2 import PdfiumError

        try:
            page = pdf[index]
        except PdfiumError as error:
            raise CorruptMediaError(
                f"{self.name}: page {index + 1} of {self.num_pages} is damaged ({error}); export "
                "the document again"
            ) from error
        try:
            yield page
        except PdfiumError as error:
            raise CorruptMediaError(
                f"{self.name}: page {index + 1} of {self.num_pages} cannot be rendered ({error}); "
                "export the document again"
            ) from error
        finally:
            page.close()

    def _size(self, page: "pypdfium2.PdfPage", index: int) -> tuple[float, float]:
        width, height = page.get_size()
        if not (width > 0 and height > 0 and math.isfinite(width * height)):
            raise CorruptMediaError(
                f"{self.name}: page {index + 1} is {width} x {height} points, expected a size "
                "above 0"
            )
        return width, height


@contextmanager
def _open_pdf(source: Source, password: str | None) -> Iterator["pypdfium2.PdfDocument"]:
    import pypdfium2
    import pypdfium2.raw

    with _PDFIUM_LOCK, source.open() as file:
        try:
            pdf = pypdfium2.PdfDocument(file, password=password)
        except pypdfium2.PdfiumError as error:
            if getattr(error, "err_code", None) == pypdfium2.raw.FPDF_ERR_PASSWORD:
                found = "is encrypted" if password is None else "does not open with this password"
                raise CorruptMediaError(
                    f"{source.name}: the PDF {found}; remove its password, or pass password=..."
                ) from error
            raise CorruptMediaError(
                f"{source.name}: the PDF is damaged or ends early ({error}); export it again"
            ) from error
        try:
            yield pdf
        finally:
            pdf.close()


class TiffDocument(Document):
    """A TIFF file of several pages, such as a fax or a scan.

    Args:
        source: the file.
        limits: `max_pages` and `max_pixels` apply.
    """

    def __init__(self, source: Source, limits: MediaLimits) -> None:
        super().__init__(source, count_tiff_pages(source, limits), limits)

    def page_size_points(self, index: int) -> tuple[float, float]:
        """Width and height of a page in points, by its resolution tag (72 dpi without)."""
        self._check(index)
        with self._page(index) as picture:
            x_dpi, y_dpi = _resolution(picture) or (POINTS_PER_INCH, POINTS_PER_INCH)
            return (
                picture.width / x_dpi * POINTS_PER_INCH,
                picture.height / y_dpi * POINTS_PER_INCH,
            )

    def render(self, index: int, dpi: float = DEFAULT_DPI) -> Image:
        """Decode one page; scaled down to `dpi` where its resolution tag says it is finer."""
        self._check(index, dpi)
        with self._page(index) as picture:
            pixels = picture_pixels(picture, self.name)
            scale = _scan_scale(_resolution(picture), dpi)
        if scale != (1.0, 1.0):
            height, width = pixels.shape[:2]
            size = (max(round(width * scale[0]), 1), max(round(height * scale[1]), 1))
            resized = PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.LANCZOS)
            pixels = np.array(resized)
        return Image(values=pixels, name=f"{self.name}, page {index + 1}")

    @contextmanager
    def _page(self, index: int) -> Iterator[PIL.Image.Image]:
        with open_picture(self._source, self._limits) as picture:
            picture.seek(index)
            self._check_pixels(index, *picture.size)
            yield picture


def count_tiff_pages(source: Source, limits: MediaLimits) -> int:
    """Number of pages of a TIFF file.

    Raises:
        CorruptMediaError: if it is damaged.
        MediaLimitError: if its first page is over `max_pixels`.
    """
    with open_picture(source, limits) as picture:
        return int(getattr(picture, "n_frames", 1))


def _resolution(picture: PIL.Image.Image) -> tuple[float, float] | None:
    found = picture.info.get("dpi")
    if found is None:
        return None
    x_dpi, y_dpi = float(found[0]), float(found[1])
    return (x_dpi, y_dpi) if x_dpi >= 1 and y_dpi >= 1 else None


def _scan_scale(resolution: tuple[float, float] | None, dpi: float) -> tuple[float, float]:
    """Factors for width and height, at most 1; unequal for faxes, whose pixels are not square."""
    if resolution is None:
        return 1.0, 1.0
    x_scale, y_scale = dpi / resolution[0], dpi / resolution[1]
    excess = max(x_scale, y_scale, 1.0)
    return x_scale / excess, y_scale / excess
