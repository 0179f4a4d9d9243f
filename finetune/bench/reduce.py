"""Runs the same questions under several reducers and compares tokens, time and quality.

1. Every reducer meets two baselines that remove as many tokens blindly: `uniform`, `random`.
2. Case by case all of them answer, in an order that rotates, so that none is always the first.
3. Times are medians, quality has bootstrap intervals, differences are paired.
4. Two flags: fewer tokens without less time, and no better than `random`.
"""

import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psutil

from finetune.bench.stats import Interval, mean_interval, paired_difference
from omni.assistant import Assistant
from omni.errors import RequestError
from omni.options import MediaOptions

NONE = "identity"
MEDIA_WISHES = frozenset(MediaOptions.__slots__) - {"reduction"}
SAMPLE_SECONDS = 0.005  # between two looks at the memory


class BenchCase(NamedTuple):
    """One request whose answer can be judged.

    Attributes:
        messages: As `Assistant.chat` takes them.
        judge: Quality of an answer; higher is better, at most 1.
    """

    messages: list[dict[str, Any]]
    judge: Callable[[str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchTask:
    """Cases of one kind.

    Attributes:
        name: What is asked.
        modality: Whose tokens are reduced.
        cases: The requests.
    """

    name: str
    modality: str
    cases: Sequence[BenchCase]


@dataclass(slots=True, kw_only=True)
class Record:
    """What one reducer did on the cases of one task, one value a case.

    Attributes:
        task: Name of the task.
        spec: The reducer.
        baseline_of: For `uniform` and `random`: the reducer whose number of tokens they match, in
            every case; the rate in `spec` is that of the first case.
        tokens: Media tokens that the decoder read.
        quality: Judgement of the answer.
        tower_s: Seconds in the tower.
        reduce_s: Seconds in the reducer.
        prefill_s: Seconds of the decoder on the prompt.
        first_token_s: Seconds until the first token, from files on.
        decode_s: Seconds for the answer.
        total_s: Seconds of the whole request.
        memory_bytes: Growth of the process at its highest during the request.
    """

    task: str
    spec: str
    baseline_of: str | None = None
    tokens: list[int] = field(default_factory=list)
    quality: list[float] = field(default_factory=list)
    tower_s: list[float] = field(default_factory=list)
    reduce_s: list[float] = field(default_factory=list)
    prefill_s: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the result: medians, intervals and flags.

    Attributes:
        task: Name of the task.
        spec: The reducer.
        baseline_of: As in `Record`.
        cases: How many.
        tokens: Median of media tokens.
        medians: Median seconds and bytes by name of the `Record`'s field.
        quality: Mean quality.
        against_none: Paired difference in quality to no reduction.
        against_random: The same to `random` with as many tokens; None for baselines.
        time_ratio: Median of this request's seconds until the first token over those without
            reduction.
        flags: What is wrong, in words; empty if nothing.
    """

    task: str
    spec: str
    baseline_of: str | None
    cases: int
    tokens: float
    medians: dict[str, float]
    quality: Interval
    against_none: Interval
    against_random: Interval | None
    time_ratio: float
    flags: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {
            name: value._asdict() if isinstance(value, Interval) else value
            for name, value in values.items()
        }


def run_task(
    assistant: Assistant,
    task: BenchTask,
    specs: Sequence[str],
    *,
    options: Mapping[str, Any] | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> list[Record]:
    """Answer every case of a task under every reducer and its baselines.

    Args:
        assistant: The model.
        task: What to ask.
        specs: Reducers; those that cannot take the task's modality are left out of the result.
        options: More options of `Assistant.chat`.
        report: Called with the number of cases done.

    Returns:
        No reduction first, then each reducer followed by its baselines.
    """
    records = [Record(task=task.name, spec=NONE)]
    first = task.cases[0]
    full = _num_tokens(assistant, task, first, NONE, options)
    for spec in specs:
        try:
            kept = _num_tokens(assistant, task, first, spec, options)
        except RequestError:
            continue
        rate = max(0.0, 1 - kept / full)
        records.append(Record(task=task.name, spec=spec))
        for baseline in ("uniform", "random"):
            matched = f"{baseline}({rate:.4f})"
            records.append(Record(task=task.name, spec=matched, baseline_of=spec))
    _ask(assistant, task, first, NONE, options)  # the first request warms up
    for number, case in enumerate(task.cases):
        start = number % len(records)
        for record in (*records[start:], *records[:start]):
            _measure(assistant, task, case, record, options)
        report(number + 1)
    return records


def summarise(records: Sequence[Record]) -> list[Row]:
    """Turn the records of one task into rows.

    Args:
        records: From `run_task`.
    """
    none = records[0]
    rivals = {r.baseline_of: r for r in records if r.spec.startswith("random(") and r.baseline_of}
    rows = []
    for record in records:
        rival = rivals.get(record.spec) if record.baseline_of is None else None
        against_random = paired_difference(record.quality, rival.quality) if rival else None
        ratio = statistics.median(
            ours / theirs
            for ours, theirs in zip(record.first_token_s, none.first_token_s, strict=True)
        )
        names = ("tower_s", "reduce_s", "prefill_s", "first_token_s", "decode_s", "total_s")
        medians = {name: statistics.median(getattr(record, name)) for name in names}
        medians["memory_bytes"] = statistics.median(record.memory_bytes)
        row = Row(
            task=record.task,
            spec=record.spec,
            baseline_of=record.baseline_of,
            cases=len(record.quality),
            tokens=statistics.median(record.tokens),
            medians=medians,
            quality=mean_interval(record.quality),
            against_none=paired_difference(record.quality, none.quality),
            against_random=against_random,
            time_ratio=ratio,
            flags=find_flags(record, none, against_random, ratio),
        )
        rows.append(row)
    return rows


def find_flags(
    record: Record, none: Record, against_random: Interval | None, time_ratio: float
) -> list[str]:
    """Say what speaks against a reducer.

    Args:
        record: Its measurements.
        none: Those without reduction.
        against_random: Paired difference in quality to `random` with as many tokens.
        time_ratio: Time until the first token over that without reduction.
    """
    flags = []
    if statistics.median(record.tokens) < statistics.median(none.tokens) and time_ratio >= 1:
        flags.append(f"fewer tokens but not faster: {time_ratio:.2f} of the time without reduction")
    if against_random is not None and against_random.low <= 0:
        flags.append(
            f"no better than random: {100 * against_random.mean:+.1f} points "
            f"({100 * against_random.low:+.1f} to {100 * against_random.high:+.1f})"
        )
    return flags


def _num_tokens(
    assistant: Assistant,
    task: BenchTask,
    case: BenchCase,
    spec: str,
    options: Mapping[str, Any] | None,
) -> int:
    """Media tokens of a case under a reducer, from its plan."""
    wishes = {name: value for name, value in (options or {}).items() if name in MEDIA_WISHES}
    reduction = MediaOptions(**wishes, reduction={task.modality: spec})
    inputs = assistant.processor(case.messages, options=reduction)
    return sum(item.num_tokens for item in inputs.media)


def _ask(
    assistant: Assistant,
    task: BenchTask,
    case: BenchCase,
    spec: str,
    options: Mapping[str, Any] | None,
) -> Any:
    chosen = {**(options or {}), "reduction": {task.modality: spec}}
    return assistant.chat(case.messages, **chosen)


def _spec_for(
    assistant: Assistant,
    task: BenchTask,
    case: BenchCase,
    record: Record,
    options: Mapping[str, Any] | None,
) -> str:
    """The record's reducer; a baseline at the rate that leaves as many tokens of this very case."""
    if record.baseline_of is None:
        return record.spec
    full = _num_tokens(assistant, task, case, NONE, options)
    kept = _num_tokens(assistant, task, case, record.baseline_of, options)
    return f"{record.spec.split('(')[0]}({max(0.0, 1 - kept / full)!r})"


def _measure(
    assistant: Assistant,
    task: BenchTask,
    case: BenchCase,
    record: Record,
    options: Mapping[str, Any] | None,
) -> None:
    spec = _spec_for(assistant, task, case, record, options)
    with peak_memory() as peak:
        reply = _ask(assistant, task, case, spec, options)
    seconds, media = reply.ledger.seconds, reply.ledger.media
    of_media = {name: sum(entry.seconds[name] for entry in media) for name in media[0].seconds}
    record.tokens.append(sum(entry.stages[-2].count for entry in media))
    record.quality.append(case.judge(reply.text))
    record.tower_s.append(of_media["encode"])
    record.reduce_s.append(of_media["reduce"])
    record.prefill_s.append(max(seconds["prefill"] - sum(of_media.values()), 0.0))
    record.first_token_s.append(seconds["prepare"] + seconds["prefill"])
    record.decode_s.append(seconds["decode"])
    record.total_s.append(seconds["total"])
    record.memory_bytes.append(peak[0])


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Watch the resident memory of the process; the list holds its highest growth in bytes."""
    process, peak = psutil.Process(), [0]
    before = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
