"""Ask the questions of `omni eval tiny` and judge the answers, with intervals.

Every question goes through the front door: a file in memory, `Assistant.chat_batch`, greedy.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from finetune.tiny.abilities import ABILITIES
from finetune.tiny.cases import Case
from finetune.tiny.score import score_answer
from finetune.tiny.turns import chat
from omni.assistant import Assistant

BATCH = 24
MAX_ANSWER_TOKENS = 160  # a strip of three long lines, letter by letter
Z = 1.96  # of a 95 % interval


Failure = tuple[str, str, str, int]


class OtherScore(NamedTuple):
    """What somebody else scores on the same questions, with a 95 % interval."""

    name: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What was measured for one ability.

    Attributes:
        ability: Key of `ABILITIES`.
        count: Questions asked.
        mean: Share that is right, or the character error.
        low: Lower end of the 95 % interval.
        high: Upper end.
        floor: What it has to reach; that of a row below another follows from the other's mean.
        failures: Some wrong answers: question, true answer, answer, and the case's number.
        others: Baselines; see `finetune.tiny.baselines`.
    """

    ability: str
    count: int
    mean: float
    low: float
    high: float
    floor: float | None = None
    failures: list[Failure] = field(default_factory=list)
    others: list[OtherScore] = field(default_factory=list)

    @property
    def holds(self) -> bool | None:
        """Whether the floor is reached; None if there is none."""
        if self.floor is None:
            return None
        reached = self.floor - self.mean if self.is_error else self.mean - self.floor
        return reached >= -1e-9  # a plain row's mean less the tolerance is not exact

    @property
    def is_error(self) -> bool:
        """Whether lower is better."""
        return ABILITIES[self.ability].is_error

    @property
    def goal(self) -> str:
        """The floor as it is printed; with the tolerance where it is that to a plain row."""
        if self.floor is None:
            return ""
        below, sign = ABILITIES[self.ability].below, "<=" if self.is_error else ">="
        if below is None:
            return f"{sign} {100 * self.floor:.0f} %"
        points = f"{'+' if self.is_error else '-'} {100 * below[1]:.0f}"
        return f"{sign} {100 * self.floor:.1f} % (plain row {points})"


def evaluate(
    assistant: Assistant,
    cases: dict[str, list[Case]],
    report: Callable[[str, int], None] = lambda ability, done: None,
) -> list[Score]:
    """Ask every question and judge the answers.

    Args:
        assistant: The model.
        cases: From `make_cases`.
        report: Called after each batch with the ability and how many of its questions are done.
    """
    scores = []
    for ability, asked in cases.items():
        values: list[float] = []
        failures: list[Failure] = []
        for start in range(0, len(asked), BATCH):
            batch = asked[start : start + BATCH]
            answers = assistant.chat_batch(
                [chat(case.sources, case.turns, answered=False) for case in batch],
                max_new_tokens=MAX_ANSWER_TOKENS,
                **batch[0].options,
            )
            for case, answer in zip(batch, answers, strict=True):
                turn = case.turns[-1]
                values.append(score_answer(turn, answer))
                if len(failures) < 5 and (values[-1] > 0) == ABILITIES[ability].is_error:
                    place = len(values) - 1
                    failures.append((turn.question, turn.answer, answer, place))
            report(ability, len(values))
        scores.append(summarise(ability, values, asked, failures))
    return with_relative_floors(scores)


def with_relative_floors(scores: Sequence[Score]) -> list[Score]:
    """Set the floors of rows that are measured by a plain row.

    None where that was not asked, or scores so little that anything would do.
    """
    means = {score.ability: score.mean for score in scores}
    found = []
    for score in scores:
        below = ABILITIES[score.ability].below
        if below is not None and below[0] in means:
            plain, tolerance = means[below[0]], below[1]
            floor = plain + tolerance if score.is_error else plain - tolerance
            score = replace(score, floor=floor if floor > 0 else None)
        found.append(score)
    return found


def summarise(
    ability: str,
    values: Sequence[float],
    cases: Sequence[Case],
    failures: list[Failure],
) -> Score:
    """Turn the judgements of one ability into a score with its interval.

    Args:
        ability: Key of `ABILITIES`.
        values: One judgement a question.
        cases: The questions.
        failures: Examples to keep.
    """
    if cases[0].turns[-1].task == "line":
        lengths = np.asarray([len(case.turns[-1].answer) for case in cases], dtype=float)
        mean, low, high = bootstrap_error(np.asarray(values) * lengths, lengths)
    else:
        mean = float(np.mean(values))
        low, high = wilson_interval(mean, len(values))
    return Score(
        ability=ability,
        count=len(values),
        mean=mean,
        low=low,
        high=high,
        floor=ABILITIES[ability].floor,
        failures=failures,
    )


def wilson_interval(mean: float, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share.

    Args:
        mean: Share of successes.
        count: Trials, at least 1.
    """
    centre = (mean + Z**2 / (2 * count)) / (1 + Z**2 / count)
    spread = mean * (1 - mean) / count + Z**2 / (4 * count**2)
    half = Z * math.sqrt(spread) / (1 + Z**2 / count)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def bootstrap_error(
    edits: np.ndarray, lengths: np.ndarray, draws: int = 2000
) -> tuple[float, float, float]:
    """Return edits over characters, and the ends of its 95 % interval over resampled lines.

    Args:
        edits: Edits of each line.
        lengths: Characters of each line.
        draws: Resamples.
    """
    rng = np.random.default_rng(0)
    chosen = rng.integers(len(edits), size=(draws, len(edits)))
    errors = edits[chosen].sum(1) / lengths[chosen].sum(1)
    low, high = np.quantile(errors, [0.025, 0.975])
    return float(edits.sum() / lengths.sum()), float(low), float(high)


def as_json(
    scores: Sequence[Score], *, model: str, seconds: float, limit: int | None = None
) -> dict[str, Any]:
    """Return an evaluation as JSON types.

    Args:
        scores: From `evaluate`.
        model: Name of the model.
        seconds: What the evaluation took.
        limit: Most questions an ability, as asked for.
    """
    rows = [
        {**asdict(s), "name": ABILITIES[s.ability].name, "goal": s.goal,
         "is_error": s.is_error, "holds": s.holds,
         "others": [other._asdict() for other in s.others]}
        for s in scores
    ]  # fmt: skip
    return {"model": model, "seconds": round(seconds, 1), "limit": limit, "abilities": rows}
