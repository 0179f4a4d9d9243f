"""How a request is made to fit a budget: one ladder from what was asked down to a floor.

A rung says how much of each setting is left. Every medium of the request stands on the same rung,
so each gives in proportion to its size. From the least harm to the most:

1. as asked: the options of the request, else the checkpoint's defaults;
2. reduction: tokens are removed after the projector, 5 % more a rung, up to 90 % of what the
   checkpoint's own reduction leaves (`DEFAULT_REDUCERS`);
3. frames: videos are sampled more sparsely, down to `MIN_FRAMES` each;
4. resolution: pictures and pages get fewer patches (or tiles), down to the smallest grid that
   the checkpoint knows. Video frames keep the one size that the weights were trained with.

The first rung that fits is taken. What a request sets itself (``fps``, ``num_frames``, ``dpi``, a
``reduction``) is the same on every rung. A rung with more tokens than one above it is skipped, so
that more budget never gives fewer tokens.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from omni.errors import ContextLengthError, RequestError
from token_reduction import parse

# What removes tokens when a budget asks for it; each takes a rate as its only needed argument.
DEFAULT_REDUCERS = {"image": "uniform", "video": "evs", "audio": "uniform"}
MAX_RATE = 0.9  # of what the checkpoint's own reduction leaves
MIN_FRAMES = 4  # of a video; a shorter one keeps what it has

_RATES = tuple(i / 20 for i in range(1, 19))  # 0.05 ... MAX_RATE
_SHARES = tuple(2 ** (-i / 2) for i in range(1, 19))  # 0.71, 0.5 ... 0.002: below every floor
_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS |= {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_BYTES = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>([KMGT]I?)?)B?", re.IGNORECASE)

Plan = TypeVar("Plan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """What is left of each setting.

    Attributes:
        rate: Fraction of the tokens removed beyond the checkpoint's own reduction.
        frames: Share of the frames of each video.
        patches: Share of the patches of each picture.
    """

    rate: float = 0.0
    frames: float = 1.0
    patches: float = 1.0


AS_ASKED = Rung()
LADDER = (
    AS_ASKED,
    *(Rung(rate=rate) for rate in _RATES),
    *(Rung(rate=MAX_RATE, frames=share) for share in _SHARES),
    *(Rung(rate=MAX_RATE, frames=_SHARES[-1], patches=share) for share in _SHARES),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a request needs, its answer included."""

    tokens: int
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What it may need: tokens always, since the context ends somewhere; memory if asked for."""

    tokens: int
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetReport:
    """How a request was made to fit.

    Attributes:
        max_tokens: The budget in tokens, at most the context.
        max_memory_bytes: The budget in bytes; None if there was none.
        asked_tokens: What the request would need as asked, answer included.
        asked_memory_bytes: Likewise in bytes.
    """

    max_tokens: int
    max_memory_bytes: int | None
    asked_tokens: int
    asked_memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit(Generic[Plan]):
    """The chosen plan beside the one that was asked for."""

    chosen: Plan
    asked: Plan
    report: BudgetReport


class DoesNotFit(Exception):  # noqa: N818 (a message is made of it; users never see it)
    """No rung fits; the cost as asked and on the lowest rung."""

    def __init__(self, asked: Cost, floor: Cost) -> None:
        super().__init__(asked, floor)
        self.asked = asked
        self.floor = floor


def fit(
    plan: Callable[[Rung], Plan],
    count_tokens: Callable[[Plan], int],
    count_bytes: Callable[[Plan], int],
    limit: Limit,
) -> Fit[Plan]:
    """Climb down the ladder until a plan fits.

    Args:
        plan: Plans the request for a rung, by shape alone; the same object for the same plan.
        count_tokens: Tokens that a plan needs, the answer included.
        count_bytes: Working memory that it needs.
        limit: What it may need.

    Returns:
        The plan of the first rung that fits.

    Raises:
        DoesNotFit: Not even the lowest rung fits.
    """
    asked = lowest = plan(AS_ASKED)
    asked_tokens = least = count_tokens(asked)
    for rung in LADDER:
        candidate = plan(rung)
        if candidate is lowest and rung is not AS_ASKED:
            continue
        tokens = count_tokens(candidate)
        if tokens > least:
            continue
        lowest, least = candidate, tokens
        if tokens > limit.tokens:
            continue
        if limit.memory_bytes is None or count_bytes(candidate) <= limit.memory_bytes:
            report = BudgetReport(
                max_tokens=limit.tokens,
                max_memory_bytes=limit.memory_bytes,
                asked_tokens=asked_tokens,
                asked_memory_bytes=count_bytes(asked),
            )
            return Fit(chosen=candidate, asked=asked, report=report)
    raise DoesNotFit(
        Cost(tokens=asked_tokens, memory_bytes=count_bytes(asked)),
        Cost(tokens=least, memory_bytes=count_bytes(lowest)),
    )


def refusal(
    error: DoesNotFit, limit: Limit, *, answer_tokens: int, fixed: Sequence[str], freed: Cost | None
) -> ContextLengthError:
    """The sentence that refuses a request, with the numbers.

    Args:
        error: What `fit` found.
        limit: The budget.
        answer_tokens: Room for the answer, part of all costs.
        fixed: What the request set itself, as it is written, for the media that it has.
        freed: The cost of the lowest rung if nothing were fixed; None where nothing is.
    """
    floor, asked = error.floor, error.asked
    found, budget = [], []
    if floor.tokens > limit.tokens:
        found.append(
            f"{floor.tokens:,} tokens ({floor.tokens - answer_tokens:,} of the prompt and room "
            f"for {answer_tokens:,} of an answer; as asked {asked.tokens:,})"
        )
        budget.append(f"{limit.tokens:,} tokens")
    if limit.memory_bytes is not None and floor.memory_bytes > limit.memory_bytes:
        as_asked = readable_bytes(asked.memory_bytes)
        found.append(f"{readable_bytes(floor.memory_bytes)} of memory (as asked {as_asked})")
        budget.append(readable_bytes(limit.memory_bytes))
    text = f"The request needs at least {' and '.join(found)}, but the budget is "
    text += f"{' and '.join(budget)}. "
    if fixed:
        text += f"It sets {', '.join(fixed)}, which a budget does not change"
        if freed is not None:
            text += (
                f"; with that left open it needs {freed.tokens:,} tokens and "
                f"{readable_bytes(freed.memory_bytes)}"
            )
        text += ". "
    return ContextLengthError(
        text + "Send fewer or shorter media, lower max_new_tokens, or raise the budget."
    )


def raise_rate(base: str, modality: str, rate: float) -> str:
    """A spec that removes a further fraction of the tokens that ``base`` leaves.

    Args:
        base: The checkpoint's spec for this modality.
        modality: ``image``, ``video`` or ``audio``.
        rate: Fraction of what ``base`` leaves that is removed, in [0, 1).

    Returns:
        ``base`` itself for rate 0; one reducer with a higher rate where ``base`` is the default
        reducer or nothing; else ``base`` and the default reducer after it.
    """
    if not rate:
        return base
    name = DEFAULT_REDUCERS[modality]
    calls = parse(base)
    if [call.name for call in calls] == ["identity"]:
        return f"{name}({rate:g})"
    if len(calls) == 1 and calls[0].name == name:
        given = [*calls[0].args, *(value for _, value in calls[0].kwargs)]
        if len(given) == 1:
            return f"{name}({round(1 - (1 - given[0]) * (1 - rate), 4):g})"
    return f"{base}|{name}({rate:g})"


def readable_bytes(num_bytes: int) -> str:
    """Bytes in the largest unit that leaves a whole part, such as ``8.00 GB`` for 8e9."""
    for unit in ("T", "G", "M", "K"):
        if num_bytes >= _UNITS[unit]:
            return f"{num_bytes / _UNITS[unit]:.2f} {unit.replace('K', 'k')}B"
    return f"{num_bytes} B"


def parse_bytes(amount: int | str) -> int:
    """Bytes of a number, or of a text such as ``8GB``, ``1.5 GiB`` or ``500 MB``.

    Raises:
        RequestError: It is no amount, or not above zero.
    """
    match = _BYTES.fullmatch(str(amount).strip())
    size = 0 if match is None else int(float(match["number"]) * _UNITS[match["unit"].upper()])
    if size < 1:
        raise RequestError(
            f"The size is {amount!r}; expected bytes as a whole number, or a text such as '8GB' "
            "(10**9 each) or '8GiB' (2**30 each)."
        )
    return size
