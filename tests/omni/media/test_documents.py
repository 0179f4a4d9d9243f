"""Documents are rendered page by page, never larger than allowed."""

from pathlib import Path

import numpy as np
import PIL.Image
import pypdfium2
import pytest

from omni.errors import CorruptMediaError, MediaLimitError, RequestError
from omni.media import Document, MediaLimits, load_media
from tests.support.media import moving_square, write_pdf


def document_of(source: object, **options: object) -> Document:
    media = load_media(source, **options)
    assert isinstance(media, Document)
    return media


@pytest.fixture
def pdf(tmp_path: Path) -> Path:
    return write_pdf(tmp_path / "x.pdf", [["Hello page one"], ["Page two", "line two"], []])


def test_pages_are_counted_sized_and_rendered(pdf: Path) -> None:
    for source in (pdf, pdf.read_bytes()):
        document = document_of(source)
        assert document.num_pages == 3
        assert document.page_size_points(0) == (612, 792)
        pages = list(document.pages())
        assert [page.pixels.shape for page in pages] == [(1584, 1224, 3)] * 3
        assert pages[0].name.endswith("page 1")
        ink = [(page.pixels < 128).sum().item() for page in pages]
        assert ink[1] > ink[0] > 0
        assert ink[2] == 0  # white, not black
        assert pages[2].pixels.min() == 255


def test_resolution_scales_the_picture(pdf: Path) -> None:
    assert document_of(pdf).render(0, dpi=72).pixels.shape == (792, 612, 3)
    assert document_of(pdf).render(0, dpi=36).pixels.shape == (396, 306, 3)


def test_text_stands_where_the_page_puts_it(pdf: Path) -> None:
    dark = (document_of(pdf).render(0, dpi=72).pixels.numpy() < 128).all(axis=2)
    rows, columns = np.nonzero(dark)
    assert rows.min() >= 36
    assert rows.max() <= 36 + 1.4 * 18
    assert 34 <= columns.min() <= 42


def test_wrong_pages_and_resolutions_are_refused(pdf: Path) -> None:
    document = document_of(pdf)
    for index in (-1, 3):
        with pytest.raises(RequestError, match=f"found page index {index}, expected 0 to 2"):
            document.render(index)
    for dpi in (0.0, -10.0, float("nan"), float("inf")):
        with pytest.raises(RequestError, match=f"found dpi={dpi}"):
            document.render(0, dpi=dpi)


def test_pages_and_pixels_are_limited_before_rendering(pdf: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaLimitError, match=r"found 3 pages, the limit is 2; .*max_pages"):
        load_media(pdf, limits=MediaLimits(max_pages=2))
    with pytest.raises(
        MediaLimitError, match=r"\(15300x19800\) on page 1, the limit is 80,000,000"
    ):
        document_of(pdf).render(0, dpi=1_800)
    huge = write_pdf(tmp_path / "huge.pdf", [["x"]], size_points=(14_000, 14_000))
    with pytest.raises(MediaLimitError, match="lower dpi"):
        document_of(huge).render(0)


def encrypted_pdf(tmp_path: Path) -> bytes:
    """A PDF with an encryption dictionary; no password of ours opens it."""
    data = write_pdf(tmp_path / "e.pdf", [["secret"]]).read_bytes()
    encrypt = (
        b"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <"
        + b"11" * 32
        + b"> /U <"
        + b"22" * 32
        + b"> >> "
        b"/ID [<00> <00>] "
    )
    return data.replace(b"/Root 1 0 R", encrypt + b"/Root 1 0 R")


def test_encrypted_documents_say_so(tmp_path: Path) -> None:
    data = encrypted_pdf(tmp_path)
    with pytest.raises(
        CorruptMediaError,
        match=r"the PDF is encrypted; remove its password, or pass password=\.\.\.",
    ):
        load_media(data)
    with pytest.raises(CorruptMediaError, match="does not open with this password"):
        load_media(data, password="guess")


def test_damaged_documents_are_refused(pdf: Path) -> None:
    data = pdf.read_bytes()
    with pytest.raises(CorruptMediaError, match="the file ends early"):
        load_media(data[: len(data) // 2])
    with pytest.raises(CorruptMediaError, match="damaged or ends early"):
        load_media(b"%PDF-1.4\n" + bytes(100) + b"\n%%EOF")


def test_a_document_without_pages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptMediaError, match=r"0 pages|damaged"):
        load_media(write_pdf(tmp_path / "none.pdf", []))


def test_nothing_stays_open_between_calls(pdf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, closed = [], []
    original_init, original_close = pypdfium2.PdfDocument.__init__, pypdfium2.PdfDocument.close

    def init(self, *args, **kwargs):
        opened.append(1)
        original_init(self, *args, **kwargs)

    def close(self, *args, **kwargs):
        closed.append(1)
        return original_close(self, *args, **kwargs)

    monkeypatch.setattr(pypdfium2.PdfDocument, "__init__", init)
    monkeypatch.setattr(pypdfium2.PdfDocument, "close", close)
    for _ in document_of(pdf).pages(dpi=20):
        assert len(closed) >= len(opened)
    assert len(opened) == 4  # once to count, once a page


def write_tiff(path: Path, **options: object) -> Path:
    frames = [PIL.Image.fromarray(frame) for frame in moving_square(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    return path


def test_pages_of_a_tiff_are_read_one_by_one(tmp_path: Path) -> None:
    document = document_of(write_tiff(tmp_path / "x.tiff"))
    assert document.num_pages == 3
    for page, frame in zip(document.pages(), moving_square(3), strict=True):
        assert np.array_equal(page.pixels.numpy(), frame)


def test_scans_are_reduced_to_the_resolution_but_never_enlarged(tmp_path: Path) -> None:
    document = document_of(write_tiff(tmp_path / "x.tiff", dpi=(288, 288)))
    assert document.page_size_points(0) == (16, 12)
    assert document.render(0, dpi=144).pixels.shape == (24, 32, 3)
    assert document.render(0, dpi=1_000).pixels.shape == (48, 64, 3)
    fax = document_of(write_tiff(tmp_path / "fax.tiff", dpi=(200, 100)))
    assert fax.render(0, dpi=100).pixels.shape == (48, 32, 3)  # square pixels again


def test_one_page_may_be_asked_for_as_a_document(tmp_path: Path) -> None:
    PIL.Image.fromarray(moving_square(1)[0]).save(tmp_path / "x.tiff")
    assert document_of(tmp_path / "x.tiff", kind="document").num_pages == 1
    with pytest.raises(MediaLimitError, match="max_pages"):
        load_media(write_tiff(tmp_path / "y.tiff"), limits=MediaLimits(max_pages=2))
