"""The rows of the table of `omni eval tiny`: what is asked, and what score is the goal."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """One row of the table.

    Attributes:
        name: What is asked, in words.
        floor: What the checkpoint has to reach; None where nothing is promised.
        below: In place of a floor: a plain row, and how far below it the score may be.
        is_error: The score is an error rate; lower is better and the floor is a ceiling.
    """

    name: str
    floor: float | None = None
    below: tuple[str, float] | None = None
    is_error: bool = False


ABILITIES = {
    "digit": Ability(name="spoken digit, unseen speakers", floor=0.95),
    "digit_commands": Ability(name="the same, from Speech Commands only"),
    "word": Ability(name="35 spoken words, unseen speakers", floor=0.82),
    "digits": Ability(name="2 to 4 spoken digits, all right"),
    "object": Ability(name="main object of a photo, ten classes", floor=0.75),
    "handwritten": Ability(name="handwritten digit", floor=0.97),
    "line": Ability(name="printed line, unseen fonts (character error)", floor=0.04, is_error=True),
    "line_signs": Ability(
        name="the same, in hollow letters or letters cut out of boxes (character error)",
        is_error=True,
    ),
    "receipt_line": Ability(
        name="line of a real receipt, unseen shops (character error)", floor=0.12, is_error=True
    ),
    "band": Ability(
        name="strip of a page: one to three long lines (character error)", is_error=True
    ),
    "direction": Ability(name="clip: direction of the moving shape", floor=0.90),
    "colour": Ability(name="clip: colour of the moving shape", floor=0.90),
    "shape": Ability(name="clip: kind of shape"),
    "dialogue": Ability(
        name="clip: a second question, after the first was answered",
        below=("dialogue_alone", 0.02),
    ),
    "dialogue_alone": Ability(name="clip: the same second question, asked alone"),
    "direction_evs": Ability(name="clip: direction, at evs(0.5)", below=("direction", 0.03)),
    "colour_evs": Ability(name="clip: colour, at evs(0.5)", below=("colour", 0.03)),
    "still": Ability(name="drawn picture: colour and shape", floor=0.90),
    "dialogue_still": Ability(
        name="drawn picture: shape after colour, or colour after shape",
        below=("dialogue_still_alone", 0.02),
    ),
    "dialogue_still_alone": Ability(name="drawn picture: the same second question, asked alone"),
    "object_quarter": Ability(
        name="object of a photo, at a quarter of the image tokens", below=("object", 0.03)
    ),
    "still_quarter": Ability(
        name="drawn picture, at a quarter of the image tokens", below=("still", 0.03)
    ),
    "receipt_line_quarter": Ability(
        name="line of a receipt, at a quarter of the image tokens (character error)",
        below=("receipt_line", 0.03),
        is_error=True,
    ),
    "count": Ability(name="drawn scene: how many", floor=0.90),
    "position": Ability(name="drawn scene: what is at a side, where something is", floor=0.90),
    "attribute": Ability(name="drawn scene: colour or shape of one of several", floor=0.90),
    "order": Ability(name="clip: what comes first or last", floor=0.90),
    "times": Ability(name="clip: how many times", floor=0.90),
    "when": Ability(name="clip: when it appears, within 0.5 s", floor=0.90),
    "sounded": Ability(name="clip with sound: which word goes with which shape", floor=0.80),
    "which": Ability(name="which of two recordings says a word, unseen speakers", floor=0.85),
    "page_title": Ability(name="drawn page, unseen fonts and words: its title", floor=0.85),
    "page_field": Ability(name="drawn page: the value of a named field", floor=0.85),
    "page_cell": Ability(name="drawn page: a cell of a table", floor=0.85),
    "page_large": Ability(
        name="drawn page of up to 13 rows: the value of a named field, or a cell", floor=0.85
    ),
    "page_second": Ability(
        name="drawn page: a second question, after the first was answered",
        below=("page_second_alone", 0.02),
    ),
    "page_second_alone": Ability(name="drawn page: the same second question, asked alone"),
    "page_count": Ability(name="PDF: how many pages, one to five", floor=0.85),
    "document": Ability(name="PDF: what stands on one of two to five pages", floor=0.85),
    "receipt_total": Ability(name="whole real receipt, unseen shops: total", floor=0.40),
    "receipt_date": Ability(name="whole real receipt, unseen shops: date", floor=0.40),
    "name": Ability(name="its own name and abilities", floor=0.90),
    "out_of_scope": Ability(name="out of scope: says what it is and can do", floor=0.90),
    "refused": Ability(
        name="questions of the rows above that are refused", floor=0.02, is_error=True
    ),
}
