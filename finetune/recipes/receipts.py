"""Rows of the recipe `receipts`: which company, and what address.

The question comes with the top of a receipt: its rows of print, in pictures of some words each.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from finetune.recipes.data_rows import Row, conversation, read_manifest
from finetune.recipes.mixing import (
    PARTS,
    Mixer,
    Part,
    Piece,
    ReadReceipt,
    ReadRow,
    part_of,
)
from finetune.tiny.chains import are_related
from finetune.tiny.receipts import Crop, is_held_out, text_between
from finetune.tiny.text_rows import SIDE_MARGIN, cut_text_rows, words_of_pieces

QUESTION = "Which company is it, and what is its address? Answer in JSON."
READING = "What is written here?"
# Company and address stand in the top third of a receipt (99 % of SROIE's). Some words of it at a
# time are a picture: a whole page would be shrunk beyond reading by a small tower.
TOP_SHARE = 0.36
CUTS = 3  # of a receipt for training, each a little different
NUM_TRAINING = 9_000  # rows
KINDS = {"real": 0.10, "mixed": 0.55, "reading": 0.35}  # shares of them
MOST_READ = 5  # rows of print to read one after the other
NEAR = 24  # characters of an answer, at most, between two pieces that it repeats
LEAST_FOUND = 3  # letters that are looked for further away, where pieces between were not found
MOST_MARGIN = 0.2  # of a picture's width, on either side of the print


def receipts(source: Path, out: Path) -> Iterator[tuple[bool, Row]]:
    """Company and address of scanned receipts as a JSON object, split by shop.

    Receipts of the chain or address of one that is held out are not trained on. Those of the same
    chain were in the training of `omni-tiny`, without names and addresses, for 15 of 31. Training
    asks of receipts, of mixed ones (`finetune.recipes.mixing`), and for what is written in rows.

    Args:
        source: Folder with SROIE's `manifest.jsonl` and images.
        out: Gets the rows' pictures.

    Yields:
        Whether a row is held out, and the row.
    """
    (out / "rows").mkdir(parents=True, exist_ok=True)
    rows = [r for r in read_manifest(source) if r["key"].get("company") and r["key"].get("address")]
    held_out = [row["key"] for row in rows if is_held_out(row["key"]["company"])]
    rng = np.random.default_rng(0)
    known: list[ReadReceipt] = []
    for row in rows:
        if is_held_out(row["key"]["company"]):
            yield True, question_about(next(_cuts(source, out, row, rng, 1)))
        elif not any(are_related(row["key"], other) for other in held_out):
            known += _cuts(source, out, row, rng, CUTS)
    mixer = Mixer(known)
    for _ in range(NUM_TRAINING):
        kind = rng.choice(list(KINDS), p=list(KINDS.values()))
        if kind == "reading":
            read = mixer.rows(rng, int(rng.integers(1, MOST_READ + 1)))
            yield False, _ask(READING, "\n".join(row.text for row in read), read, PARTS)
        else:
            is_real = kind == "real"
            receipt = known[rng.integers(len(known))] if is_real else mixer.draw(rng)
            yield False, question_about(receipt)


def question_about(receipt: ReadReceipt) -> Row:
    """The recipe's question about a receipt, and its answer."""
    answer = json.dumps({"company": receipt.company, "address": receipt.address})
    return _ask(QUESTION, answer, receipt.rows, ("company", "address"))


def _ask(question: str, answer: str, rows: Sequence[ReadRow], told: Collection[Part]) -> Row:
    """Ask about rows of print, each a line of pictures; the answer tells those of some parts."""
    names = [piece.name for row in rows for piece in row.pieces]
    asked = conversation(question, answer, images=names)
    lines = ["<image>" * len(row.pieces) for row in rows]
    asked["messages"][0]["content"] = "\n".join([*lines, question])
    return {**asked, "shown": list(_shown(rows, answer, told))}


def _shown(rows: Sequence[ReadRow], answer: str, told: Collection[Part]) -> Iterator[Row]:
    """Which pieces the answer repeats, one after the other.

    A piece stands within reach of the one before, or of what was not found in between: JSON's
    punctuation, the name of a field, words of a row that are not sure.
    """
    numbered = enumerate((row, piece) for row in rows for piece in row.pieces)
    place, reach = 0, NEAR
    for medium, (row, piece) in numbered:
        if row.part not in told:
            continue
        within = reach if len(piece.words) >= LEAST_FOUND else NEAR
        start = answer.find(piece.words, place, place + within + len(piece.words))
        if not piece.words or start < 0:
            reach += len(piece.words) or len(row.text) // len(row.pieces) + 2
            continue
        sides = {"from": round(piece.margin, 3), "to": round(1 - piece.margin, 3)}
        yield {"medium": medium, "text": piece.words, **sides}
        place, reach = start + len(piece.words), NEAR


def _cuts(source: Path, out: Path, row: Row, rng: Generator, count: int) -> Iterator[ReadReceipt]:
    """Cut the top of a receipt into rows, the first time as it is, then with other margins."""
    company, address = row["key"]["company"], row["key"]["address"]
    with Image.open(source / row["file"]) as scan:
        page = np.asarray(scan.convert("L"))
    lines = [Crop(page, tuple(line["box"]), line["text"]) for line in row["lines"]]
    page = page[: round(TOP_SHARE * len(page))]
    for cut in range(count):
        rows = []
        for number, found in enumerate(cut_text_rows(page, rng if cut else None)):
            stem = f"rows/{row['id']}-{cut}-{number}"
            text = " ".join(text_between(lines, found.top, found.bottom).split())
            words = words_of_pieces(text, [image.width for image in found.pieces])
            pieces = []
            for place, image in enumerate(found.pieces):
                margin = min(MOST_MARGIN, SIDE_MARGIN * image.height / image.width)
                name = f"{stem}-{place}.png"
                image.save(out / name)
                pieces.append(Piece(name, words[place] if words else "", margin))
            rows.append(ReadRow(tuple(pieces), text, part_of(text, company, address)))
        yield ReadReceipt(tuple(rows), company, address)
