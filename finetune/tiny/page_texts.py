"""What stands on small pages: receipts, invoices, forms and tables, without their look.

Words are made up or come from the lists below; a checksum says which side of the split a word
belongs to, so that validation has titles, people and goods that were never trained on.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from numpy.random import Generator

from finetune.tiny.fonts import Split

MAX_ROW = 20  # letters of a row, with its name and its value
VALIDATION_SHARE = 0.25  # of the words
MADE_UP_SHARE = 0.4  # of the words
KINDS = ("receipt", "invoice", "form", "table")

_GOODS = (
    "Milk", "Bread", "Coffee", "Tea", "Soup", "Rice", "Cake", "Apple", "Pears", "Sugar", "Salt",
    "Eggs", "Juice", "Water", "Pizza", "Salad", "Cheese", "Butter", "Honey", "Lemon", "Fish",
    "Noodles", "Pasta", "Cola", "Beer", "Wine", "Soap", "Pen", "Paper", "Lamp", "Chair", "Bolt",
    "Nails", "Paint", "Brush", "Tape", "Glue", "Socks", "Shirt", "Cable", "Mouse", "Disk",
)  # fmt: skip
_PEOPLE = (
    "Ann", "Bob", "Carl", "Dora", "Emma", "Finn", "Gina", "Hugo", "Ines", "Jack", "Kim", "Lena",
    "Maria", "Nora", "Omar", "Paul", "Rosa", "Sara", "Tom", "Uma", "Vera", "Will", "Yara", "Zoe",
    "Adam", "Bella", "Clara", "David", "Elena", "Frank", "Grace", "Henry", "Ivan", "Julia",
    "Kevin", "Laura", "Mike", "Nina", "Oscar", "Peter", "Ruth", "Simon", "Tina", "Victor",
)  # fmt: skip
_TOWNS = (
    "Oslo", "Bergen", "Paris", "Lyon", "Rome", "Milan", "Lima", "Cairo", "Delhi", "Tokyo", "Osaka",
    "Seoul", "Berlin", "Bonn", "Graz", "Porto", "Leeds", "York", "Dover", "Austin", "Denver",
    "Boston", "Quito", "Perth", "Turin", "Basel", "Ghent", "Malmo", "Krakow", "Riga", "Johor",
)  # fmt: skip
_TRADES = {
    "receipt": ("Market", "Cafe", "Store", "Shop", "Books", "Bakery", "Deli", "Mart", "Bar"),
    "invoice": ("Ltd", "Inc", "GmbH", "& Co", "& Sons", "Group", "Works", "Print", "Invoice"),
    "form": ("Form", "Card", "Permit", "Request", "Ticket", "Pass", "Sheet", "Report", "Notice"),
    "table": ("List", "Prices", "Table", "Menu", "Scores", "Stock", "Plan", "Results", "Times"),
}  # fmt: skip
_STARTS, _ENDS = (*"bcdfghklmnprstvwz", "br", "st", "tr"), tuple("nrlstx")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class FieldText(NamedTuple):
    """A name and its value."""

    name: str
    value: str
    sort: str
    """`date`, `day`, `total`, `price`, `name`, `person` or `other`: how it may be asked for."""


class PageText(NamedTuple):
    """What stands on a page.

    Attributes:
        kind: One of `KINDS`.
        title: Its first row.
        fields: Rows below it; no two have the same name.
        table: Rows of cells, the first a header; labels in the first column differ. Or nothing.
    """

    kind: str
    title: str
    fields: tuple[FieldText, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()


def random_page_text(
    rng: Generator, split: Split, kind: str | None = None, *, large: bool = False
) -> PageText:
    """Draw what stands on a page.

    Args:
        rng: Source of randomness.
        split: Whose words are used.
        kind: One of `KINDS`; by default any.
        large: With 5 to 12 fields instead of 3 to 6, or with up to three columns and eight rows of
            cells instead of two and four.
    """
    kind = kind or str(rng.choice(KINDS))
    title = _cased(rng, f"{_word(rng, split, ())} {rng.choice(_TRADES[kind])}")
    if kind == "table":
        return PageText(kind, title, table=_random_table(rng, split, large=large))
    fields: list[FieldText] = []
    if kind == "receipt":
        for _ in range(int(rng.integers(0, 6 if large else 3))):
            fields.append(FieldText(_word(rng, split, _GOODS), _money(rng, split), "price"))
    least, most = (5, 12) if large else (3, 6)
    wanted = int(rng.integers(max(least, len(fields) + 1), most + 1)) - len(fields)
    chosen = [str(key) for key in rng.permutation(list(_FIELDS_OF[kind]))[:wanted]]
    if "total" not in chosen and kind != "form":
        chosen[0] = "total"
    fields += [_field(rng, split, key) for key in chosen]
    names = {field.name.lower(): field for field in _shuffled(rng, fields)}
    if len(names) < 3:  # two goods of one name
        return random_page_text(rng, split, kind, large=large)
    if rng.random() < 0.25:
        names = {name: field._replace(name=field.name.upper()) for name, field in names.items()}
    return PageText(kind, title, tuple(names.values()))


def is_held_out(word: str) -> bool:
    """Whether a word, in any case, is kept for validation."""
    return zlib.crc32(f"page/{word.lower()}".encode()) % 1000 < 1000 * VALIDATION_SHARE


def _word(rng: Generator, split: Split, known: Sequence[str]) -> str:
    """Draw a word of the split: one of a list, or a made-up one."""
    while True:
        if known and rng.random() > MADE_UP_SHARE:
            word = str(rng.choice(known))
        else:
            word = _syllable(rng) + _syllable(rng) * int(rng.random() < 0.6)
            word = word.capitalize() + str(rng.choice(_ENDS)) * int(rng.random() < 0.5)
        if is_held_out(word) == (split == "validation"):
            return word


def _syllable(rng: Generator) -> str:
    return f"{rng.choice(_STARTS)}{rng.choice(list('aeiou'))}"


def _cased(rng: Generator, text: str) -> str:
    return text.upper() if rng.random() < 0.4 else text


def _money(rng: Generator, split: Split) -> str:
    amount = f"{int(10 ** rng.uniform(0, 3.3)):{',' if rng.random() < 0.3 else ''}}"
    sign = str(rng.choice(["", "", "", "$", "RM ", "EUR "]))
    return f"{sign}{amount}.{rng.integers(100):02d}"


def _date(rng: Generator, split: Split) -> str:
    day, month, year = rng.integers(1, 29), rng.integers(1, 13), rng.integers(1995, 2030)
    name = _MONTHS[month - 1]
    forms = [
        f"{year}-{month:02d}-{day:02d}",
        f"{day:02d}/{month:02d}/{year}",
        f"{day:02d}-{month:02d}-{year % 100:02d}",
        f"{day:02d}.{month:02d}.{year}",
        f"{day} {name} {year}",
        f"{name} {day}, {year}",
    ]
    return str(rng.choice(forms))


def _time(rng: Generator, split: Split) -> str:
    return f"{rng.integers(24):02d}:{rng.integers(60):02d}"


def _number(rng: Generator, split: Split) -> str:
    return str(int(10 ** rng.uniform(0, 2.5)))


def _code(rng: Generator, split: Split) -> str:
    letters = "".join(rng.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), size=int(rng.integers(0, 3))))
    digits = "".join(rng.choice(list("0123456789"), size=int(rng.integers(2, 7))))
    return f"{letters}{rng.choice(['-', '', '/']) if letters else ''}{digits}"


def _person(rng: Generator, split: Split) -> str:
    name = _word(rng, split, _PEOPLE)
    return f"{chr(int(rng.integers(65, 91)))}. {name}" if rng.random() < 0.3 else name


def _town(rng: Generator, split: Split) -> str:
    return _word(rng, split, _TOWNS)


def _thing(rng: Generator, split: Split) -> str:
    return _word(rng, split, _GOODS)


_Maker = Callable[[Generator, Split], str]
# What a field is: how its value is made, how it may be asked for, and the names it is printed by.
_FIELDS: dict[str, tuple[_Maker, str, tuple[str, ...]]] = {
    "date": (_date, "date", ("Date", "Date", "Issued", "Day")),
    "due": (_date, "day", ("Due", "Due date", "Pay by")),
    "born": (_date, "day", ("Born", "Birthday")),
    "time": (_time, "other", ("Time", "Hour", "At")),
    "total": (_money, "total", ("Total", "Total", "Grand total", "Total due", "Amount due")),
    "tax": (_money, "other", ("Tax", "VAT", "GST")),
    "cash": (_money, "other", ("Cash", "Paid", "Card")),
    "change": (_money, "other", ("Change", "Rounding", "Tip", "Fee")),
    "discount": (_money, "other", ("Discount", "Subtotal", "Shipping", "Deposit")),
    "number": (_code, "other", ("No", "No.", "Nr", "Number", "Ref", "ID")),
    "order": (_code, "other", ("Order", "Bill", "Code", "Account", "Phone", "Tel")),
    "table": (_number, "other", ("Table", "Room", "Seat", "Gate", "Floor", "Desk")),
    "count": (_number, "other", ("Items", "Qty", "Guests", "Pages", "Points", "Weight", "Age")),
    "name": (_person, "name", ("Name", "Name", "Full name")),
    "person": (_person, "person", ("Patient", "Client", "Guest", "Customer", "Student")),
    "clerk": (_person, "person", ("Cashier", "Server", "Clerk", "Seller", "Signed", "Teacher")),
    "town": (_town, "other", ("City", "Town", "From", "To", "Place")),
    "thing": (_thing, "other", ("Item", "Product", "Model", "Type", "Team")),
    "extra": (_code, "other", ()),
}  # fmt: skip
_FIELDS_OF = {
    "receipt": ("date", "time", "total", "tax", "cash", "change", "number", "table", "clerk",
                "extra"),
    "invoice": ("date", "due", "total", "tax", "discount", "number", "order", "name", "person",
                "count", "extra"),
    "form": ("date", "born", "number", "order", "table", "name", "person", "clerk", "town",
             "thing", "count", "extra"),
}  # fmt: skip
# What the first column of a table names, and the other columns.
_LABELS: tuple[tuple[tuple[str, ...], Sequence[str], tuple[str, ...]], ...] = (
    (("Item", "Product", "Article"), _GOODS, ("Price", "Cost", "Qty", "Stock", "Code")),
    (("Name", "Guest", "Player"), _PEOPLE, ("Room", "Age", "Score", "Points", "Team", "Time")),
    (("City", "Town", "Station"), _TOWNS, ("Km", "Time", "Fare", "Gate", "Bus")),
)
_MONEY_COLUMNS, _CODE_COLUMNS, _NAME_COLUMNS = ("Price", "Cost", "Fare"), ("Code", "Bus"), ("Team",)


def _field(rng: Generator, split: Split, key: str) -> FieldText:
    make, sort, names = _FIELDS[key]
    while True:
        name = str(rng.choice(names)) if names else _word(rng, split, ())
        value = make(rng, split)
        if len(name) + len(value) + 2 <= MAX_ROW:
            return FieldText(name, value, sort)


def _random_table(rng: Generator, split: Split, *, large: bool) -> tuple[tuple[str, ...], ...]:
    most_columns, most_rows = (3, 8) if large else (2, 4)
    firsts, labels, others = _LABELS[int(rng.integers(len(_LABELS)))]
    columns = [str(c) for c in rng.permutation(others)[: int(rng.integers(1, most_columns + 1))]]
    rows = [(str(rng.choice(firsts)), *columns)]
    named = {_word(rng, split, labels): None for _ in range(int(rng.integers(2, most_rows + 1)))}
    while len(named) < 2:
        named[_word(rng, split, labels)] = None
    rows += [(label, *(_cell(rng, split, column) for column in columns)) for label in named]
    upper = rng.random() < 0.25
    return tuple(tuple(cell.upper() if upper else cell for cell in row) for row in rows)


def _cell(rng: Generator, split: Split, column: str) -> str:
    if column in _MONEY_COLUMNS:
        return f"{int(10 ** rng.uniform(0, 2))}.{rng.integers(100):02d}"
    if column in _CODE_COLUMNS:
        return _code(rng, split)[:5]
    if column in _NAME_COLUMNS:
        return _word(rng, split, ())
    return _time(rng, split) if column == "Time" else _number(rng, split)


def _shuffled(rng: Generator, fields: Sequence[FieldText]) -> list[FieldText]:
    return [fields[int(i)] for i in rng.permutation(len(fields))]
