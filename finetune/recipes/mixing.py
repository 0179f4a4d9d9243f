"""Make new receipts out of the rows of known ones, so that none can be learnt by heart.

A few hundred receipts of some dozens of shops are learnt by heart in a few hundred steps: a model
then names the shop that it was reminded of, instead of reading. A mixed receipt keeps the order of
a real one (what comes before the company, between company and address, and after), but its rows
come from others: the company of a second, an address of some more, now and then with a word of yet
another. What is true of it is known, since it is known what is written in each row.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from typing import Literal, NamedTuple, get_args

from numpy.random import Generator

from finetune.tiny.chains import letters
from omni.errors import RequestError

Part = Literal["company", "address", "other"]
PARTS: tuple[Part, ...] = get_args(Part)

SAME = 0.9  # of the letters of a field that its rows must have
LEAST_LETTERS = 2  # in a row that is told by them to belong to a field
WHOLE = 0.30  # share of companies and of addresses that are one receipt's
SWAPPED_PIECE = 0.30  # share of the pieces of the others that come from somewhere else
DROPPED_ROW = 0.35  # share of the other rows that are left out: shorter prompts, other places
SWAPPED_ROW = 0.5  # share of those that are of another receipt


class Piece(NamedTuple):
    """Some words of a row, as a picture."""

    name: str
    """Its file."""
    words: str
    """What is written in it; empty where that is not sure."""
    margin: float
    """Share of the width before the first letter, and after the last."""


class ReadRow(NamedTuple):
    """A row of print whose text is known."""

    pieces: tuple[Piece, ...]
    """From left to right."""
    text: str
    part: Part

    @property
    def is_sure(self) -> bool:
        """Whether it is known what is written in each piece."""
        return all(piece.words for piece in self.pieces)


class ReadReceipt(NamedTuple):
    """The top of a receipt."""

    rows: tuple[ReadRow, ...]
    company: str
    address: str

    def of(self, part: Part) -> tuple[ReadRow, ...]:
        """The rows of a part, from top to bottom."""
        return tuple(row for row in self.rows if row.part == part)

    def is_read(self, part: Part, value: str) -> bool:
        """Whether the rows of a field say what the field says."""
        read, true = (letters(s) for s in (" ".join(r.text for r in self.of(part)), value))
        return bool(read) and min(len(read), len(true)) >= SAME * max(len(read), len(true))


def part_of(text: str, company: str, address: str) -> Part:
    """Which field of a receipt a row belongs to: the one that holds its letters."""
    row = letters(text)
    if len(row) < LEAST_LETTERS:
        return "other"
    if row in letters(company):
        return "company"
    return "address" if row in letters(address) else "other"


class Mixer:
    """Draws receipts that never were.

    Args:
        receipts: Known ones; of each shop the same share is drawn, however many there are of it.

    Raises:
        RequestError: There is none whose rows say a company, or an address.
    """

    def __init__(self, receipts: Sequence[ReadReceipt]) -> None:
        self.frames = [r for r in receipts if r.of("company") and r.of("address")]
        self.companies = _by_shop([r for r in receipts if r.is_read("company", r.company)])
        self.addresses = _by_shop([r for r in receipts if r.is_read("address", r.address)])
        self.all = _by_shop(receipts)
        if not (self.frames and self.companies and self.addresses):
            raise RequestError(
                f"Found {len(receipts)} receipts, and in none the rows that say company and "
                "address; expected some to mix. Compare `lines` and `key` in the manifest."
            )

    def draw(self, rng: Generator) -> ReadReceipt:
        """Make one receipt."""
        frame = self.frames[rng.integers(len(self.frames))]
        company_rows, company = self._company(rng)
        address_rows, address = self._address(rng)
        rows: list[ReadRow] = []
        is_done = {"company": False, "address": False}
        for part, run in groupby(frame.rows, key=lambda row: row.part):
            if part == "other":
                rows += self._others(rng, list(run))
            elif not is_done[part]:
                is_done[part] = True
                rows += company_rows if part == "company" else address_rows
        return ReadReceipt(tuple(rows), company, address)

    def rows(self, rng: Generator, count: int) -> list[ReadRow]:
        """Some rows of any receipts, to be read one after the other."""
        found: list[ReadRow] = []
        while len(found) < count:
            rows = [row for row in _choose(rng, self.all).rows if row.text]
            if rows:
                found.append(rows[rng.integers(len(rows))])
        return found

    def _company(self, rng: Generator) -> tuple[list[ReadRow], str]:
        source = _choose(rng, self.companies)
        rows = list(source.of("company"))
        if rng.random() < WHOLE:
            return rows, source.company
        rows = [self._with_other_words(rng, row) for row in rows]
        return rows, " ".join(row.text for row in rows)

    def _address(self, rng: Generator) -> tuple[list[ReadRow], str]:
        first = _choose(rng, self.addresses)
        rows = list(first.of("address"))
        if rng.random() < WHOLE:
            return rows, first.address
        last = len(rows) - 1
        for place in range(1, len(rows)):  # each row of a receipt of its own, from a like place
            other = _choose(rng, self.addresses).of("address")
            rows[place] = other[-1 if place == last else min(place, len(other) - 1)]
        rows = [self._with_other_words(rng, row) for row in rows]
        return rows, " ".join(row.text for row in rows)

    def _with_other_words(self, rng: Generator, row: ReadRow) -> ReadRow:
        if not row.is_sure:
            return row
        pieces = list(row.pieces)
        for place in range(len(pieces)):
            if rng.random() < SWAPPED_PIECE:
                known = [r for r in _choose(rng, self.all).rows if r.is_sure]
                if known:
                    source = known[rng.integers(len(known))].pieces
                    pieces[place] = source[rng.integers(len(source))]
        return row._replace(pieces=tuple(pieces), text=" ".join(piece.words for piece in pieces))

    def _others(self, rng: Generator, run: list[ReadRow]) -> list[ReadRow]:
        kept = [row for row in run if rng.random() >= DROPPED_ROW]
        for place in range(len(kept)):
            others = _choose(rng, self.all).of("other")
            if others and rng.random() < SWAPPED_ROW:
                kept[place] = others[rng.integers(len(others))]
        return kept


def _by_shop(receipts: Sequence[ReadReceipt]) -> list[list[ReadReceipt]]:
    shops: dict[str, list[ReadReceipt]] = defaultdict(list)
    for receipt in receipts:
        shops[letters(receipt.company)].append(receipt)
    return list(shops.values())


def _choose(rng: Generator, shops: list[list[ReadReceipt]]) -> ReadReceipt:
    shop = shops[rng.integers(len(shops))]
    return shop[rng.integers(len(shop))]
