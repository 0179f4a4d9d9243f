"""Files of pages to be asked about in evaluation: PDFs of drawn pages, and whole real receipts."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from numpy.random import Generator
from PIL import Image as Picture

from finetune.tiny.page_questions import ask_page_count, ask_receipt
from finetune.tiny.paging import as_pdf
from finetune.tiny.receipts import receipt_pages
from finetune.tiny.subjects import Subject, Subjects
from finetune.tiny.turns import Turn, document_turns, turn_of
from omni.media import Image

MOST_PAGES = 5
RECEIPT_TASKS = {"total": "amount", "date": "day"}  # how answers are judged, by what is asked


def count_cases(rng: Generator, subjects: Subjects, count: int) -> Iterator[tuple[bytes, Turn]]:
    """Make PDF files of one page or some, each with the question how many there are.

    Args:
        rng: Source of randomness.
        subjects: Where the pages come from.
        count: Cases.
    """
    for number in range(count):
        pages = [subjects.page(rng) for _ in range(1 + number % MOST_PAGES)]
        yield _pdf(pages), turn_of(ask_page_count(rng, len(pages)))


def document_cases(rng: Generator, subjects: Subjects, count: int) -> Iterator[tuple[bytes, Turn]]:
    """Make PDF files of several pages, each with a question about what stands on one of them.

    Args:
        rng: Source of randomness.
        subjects: Where the pages come from.
        count: Cases.
    """
    for number in range(count):
        pages = [subjects.page(rng) for _ in range(2 + number % (MOST_PAGES - 1))]
        turns = document_turns(rng, pages, count=2)
        yield _pdf(pages), next(turn for turn in turns if turn.spelled)


def receipt_cases(
    rng: Generator, data: Path, sort: str, limit: int | None
) -> Iterator[tuple[bytes, Turn]]:
    """Ask whole receipts of the shops that are held out for their `total` or their `date`.

    Args:
        rng: Source of randomness.
        data: Folder of the training data.
        sort: A key of `RECEIPT_TASKS`.
        limit: Most receipts; None takes all that are known to have it.
    """
    pages = [page for page in receipt_pages(data, "validation") if getattr(page, sort)]
    for index in rng.permutation(len(pages))[:limit]:
        page, buffer = pages[index], io.BytesIO()
        Picture.fromarray(page.image).save(buffer, "PNG")
        question = ask_receipt(rng, sort)
        yield buffer.getvalue(), Turn(RECEIPT_TASKS[sort], question, getattr(page, sort))


def _pdf(pages: Sequence[Subject]) -> bytes:
    pictures = [page.medium for page in pages]
    return as_pdf([picture.pixels.numpy() for picture in pictures if isinstance(picture, Image)])
