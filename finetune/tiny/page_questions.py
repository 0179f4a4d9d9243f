"""Questions about pages, whose answers are printed there.

A question is asked only where one answer is right: "which date" wants a page with one date.
"""

from collections import Counter
from collections.abc import Sequence, Set
from typing import NamedTuple

from numpy.random import Generator

from finetune.guide import Span
from finetune.tiny import page_wordings as wordings
from finetune.tiny.answers import QA, Part, by_counting
from finetune.tiny.documents import Cell, Field, Page, Printed
from finetune.tiny.questions import vary
from finetune.tiny.wordings import ENDINGS

OWN_SHARE = 0.5  # of the fields that may be asked for in a way of their own, as dates and totals
LEAD_SHARE = 0.25  # of the questions that say which page is meant, before all else
ORDINALS = ("first", "second", "third", "fourth", "fifth")
VALUE_ENDINGS = (
    *("Exactly as printed.", "Only the text.", "Just the value.", "The value only."),
    *(ending for ending in ENDINGS if "word" not in ending.lower()),
)
_RIVALS = {"date": "day", "name": "person"}  # sorts that make "which date" or "whose name" unclear
_PRICES = ("price", "cost", "fare")  # heads of columns


class Asked(NamedTuple):
    """A question, and the print that answers it."""

    task: str
    """`title`, `field` or `cell`."""
    question: str
    value: Printed
    keys: tuple[Printed, ...] = ()
    """What it goes with: the name of a field; the head of a column and the label of a row."""


def ask_page(rng: Generator, page: Page, number: int | None = None) -> list[Asked]:
    """Ask all that a page answers, in random order and wording.

    Args:
        rng: Source of randomness.
        page: A page.
        number: Which of several it is, from 0; None if it is the only one.
    """
    patterns: Sequence[str] = wordings.TITLE
    if rng.random() < OWN_SHARE:
        patterns = wordings.TITLE_OF[page.kind]
    asked = [Asked("title", _word(rng, patterns, number, kind=page.kind), page.title)]
    sorts = Counter(field.sort for field in page.fields)
    for field in page.fields:
        patterns = _patterns(rng, field, sorts)
        question = _word(rng, patterns, number, kind=page.kind, name=_said(rng, field.name.text))
        asked.append(Asked("field", question, field.value, (field.name,)))
    columns = {cell.column.text for cell in page.cells}
    for cell in page.cells:
        patterns = _patterns_of_cell(rng, cell, columns)
        named = {"row": _said(rng, cell.row.text), "column": _said(rng, cell.column.text)}
        question = _word(rng, patterns, number, kind=page.kind, **named)
        asked.append(Asked("cell", question, cell.value, (cell.column, cell.row)))
    return [asked[i] for i in rng.permutation(len(asked))]


def ask_page_count(rng: Generator, count: int) -> QA:
    """Ask how many pages there are.

    Args:
        rng: Source of randomness.
        count: Pages, one to nine.
    """
    counted = by_counting([Part("", Span(), number) for number in range(count)])
    return QA("count", vary(rng, wordings.PAGES), counted)


def ask_receipt(rng: Generator, sort: str) -> str:
    """Ask a receipt for its `total` or its `date`.

    Args:
        rng: Source of randomness.
        sort: One of the two.
    """
    return _word(rng, wordings.FIELD_OF[sort], None, kind="receipt", name=sort)


def _patterns(rng: Generator, field: Field, sorts: Counter[str]) -> Sequence[str]:
    own = wordings.FIELD_OF.get(field.sort)
    is_clear = sorts[field.sort] == 1 and not sorts[_RIVALS.get(field.sort, "")]
    is_named = field.sort in ("price", "person")
    if own and (is_named or is_clear) and rng.random() < OWN_SHARE:
        return own
    return wordings.FIELD


def _patterns_of_cell(rng: Generator, cell: Cell, columns: Set[str]) -> Sequence[str]:
    """Ways to ask for a cell, `columns` being the heads of its table."""
    fitting: list[Sequence[str]] = [wordings.CELL]
    if len(columns) == 1:
        fitting.append(wordings.CELL_OF_TWO)
    prices = [head for head in columns if head.lower() in _PRICES]
    if prices == [cell.column.text]:
        fitting.append(wordings.PRICE_OF)
    return fitting[int(rng.integers(len(fitting)))]


def _said(rng: Generator, name: str) -> str:
    """Say a name as it is printed, or nearly."""
    name = name.rstrip(".")
    forms = (name, name, name.lower(), name.lower(), name.upper(), f"'{name}'", f'"{name}"')
    return forms[int(rng.integers(len(forms)))]


def _word(rng: Generator, patterns: Sequence[str], number: int | None, **filled: str) -> str:
    if number is None:
        return vary(rng, patterns, endings=VALUE_ENDINGS).format(**filled)
    filled |= {"page": str(number + 1), "ordinal": ORDINALS[number]}
    lead, place = str(rng.choice(wordings.LEADS_PAGE)), ""
    if rng.random() > LEAD_SHARE:
        lead, place = "", str(rng.choice(wordings.ON_PAGE))
    meant = [f"{pattern[:-1]}{place}{pattern[-1]}" for pattern in patterns]
    return f"{lead} {vary(rng, meant, endings=VALUE_ENDINGS)}".strip().format(**filled)
