"""How an answer is judged against the true one: each score is in [0, 1] and more is better.

    exact   1 if both are equal after normalising
    anls    1 - d / max length if the normalised edit distance d / max length is below 0.5, else 0
            (average normalised Levenshtein similarity, arXiv 1907.00490)
    cer     1 - edits / true characters, at least 0
    wer     1 - edits / true words, at least 0
    f1      harmonic mean of precision and recall over words, as in SQuAD (arXiv 1606.05250)
    json_anls  mean ANLS over the fields of a true JSON object; 0 for a field that is missing or
               where the answer does not parse

Normalising lowers case, trims, and makes one space of white space.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

ANLS_THRESHOLD = 0.5


def normalise(text: str) -> str:
    """Lower case, with single spaces and without a final full stop."""
    return " ".join(text.lower().split()).removesuffix(".")


def edits(found: Sequence[object], true: Sequence[object]) -> int:
    """Least insertions, deletions and replacements between two sequences."""
    row = list(range(len(true) + 1))
    for i, a in enumerate(found, start=1):
        above, row[0] = row[0], i
        for j, b in enumerate(true, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]


def exact(found: str, true: str) -> float:
    """Whether both are equal after normalising."""
    return float(normalise(found) == normalise(true))


def anls(found: str, true: str) -> float:
    """Similarity of two texts; far ones count nothing."""
    found, true = normalise(found), normalise(true)
    longest = max(len(found), len(true))
    distance = edits(found, true) / longest if longest else 0.0
    return 1 - distance if distance < ANLS_THRESHOLD else 0.0


def cer(found: str, true: str) -> float:
    """Share of characters that are right."""
    found, true = normalise(found), normalise(true)
    return max(0.0, 1 - edits(found, true) / max(len(true), 1))


def wer(found: str, true: str) -> float:
    """Share of words that are right."""
    words = normalise(true).split()
    return max(0.0, 1 - edits(normalise(found).split(), words) / max(len(words), 1))


def f1(found: str, true: str) -> float:
    """Overlap of the words of both."""
    a, b = Counter(normalise(found).split()), Counter(normalise(true).split())
    if not a or not b:
        return float(a == b)
    common = sum((a & b).values())
    return 2 * common / (sum(a.values()) + sum(b.values()))


def json_anls(found: str, true: str) -> float:
    """Mean ANLS over the fields of the true object.

    Raises:
        ValueError: The true answer is none.
    """
    fields = json.loads(true)
    if not isinstance(fields, dict):
        raise ValueError(f"found {true!r:.80}, expected a JSON object")
    answered = _object_in(found)
    scores = [
        anls(str(answered[name]), str(value)) if name in answered else 0.0
        for name, value in fields.items()
    ]
    return float(np.mean(scores)) if scores else float(not answered)


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact": exact,
    "anls": anls,
    "cer": cer,
    "wer": wer,
    "f1": f1,
    "json_anls": json_anls,
}


def _object_in(text: str) -> dict[str, object]:
    """The JSON object that an answer holds, or nothing."""
    start, end = text.find("{"), text.rfind("}")
    try:
        found = json.loads(text[start : end + 1])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
