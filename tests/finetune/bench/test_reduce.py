"""The benchmark of reducers: fair baselines, honest intervals, and both flags shown to work."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from finetune.bench.plot import draw_pareto, pareto_front
from finetune.bench.reduce import (
    NONE,
    BenchCase,
    BenchTask,
    Record,
    find_flags,
    run_task,
    summarise,
)
from finetune.bench.stats import mean_interval, paired_difference
from tests.support import tiny_omni
from token_reduction import REDUCERS, Uniform

few = settings(deadline=None, max_examples=30)
scores = st.lists(st.floats(0, 1), min_size=2, max_size=40)


@few
@given(scores)
def test_the_interval_holds_the_mean_and_repeats(values: list[float]) -> None:
    found = mean_interval(values)
    assert found.low - 1e-9 <= found.mean <= found.high + 1e-9
    assert found == mean_interval(values)


def test_intervals_cover_the_truth_about_as_often_as_they_claim() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        found = mean_interval((rng.random(60) < 0.7).astype(float).tolist(), seed)
        hits += found.low <= 0.7 <= found.high
    assert 0.90 <= hits / 200 <= 0.99


def test_pairing_shows_what_the_spread_of_cases_would_hide() -> None:
    hard = np.random.default_rng(0).random(50)
    found = paired_difference((hard + 0.01).tolist(), hard.tolist())
    assert found.low > 0
    alone = mean_interval((hard + 0.01).tolist()), mean_interval(hard.tolist())
    assert alone[0].low < alone[1].high


class Clock:
    """Moves on by a millisecond whenever it is read, so that what is measured is certain."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


class Sluggish(Uniform):
    """Fewer tokens, more time."""

    def reduce(self, features, layout):
        assert isinstance(time.perf_counter, Clock)
        time.perf_counter.now += 1.0
        return super().reduce(features, layout)


class Blind(Uniform):
    """Keeps the first tokens, whatever they are."""

    def choose(self, num_tokens: int, num_kept: int) -> torch.Tensor:
        return torch.arange(num_kept)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REDUCERS, "sluggish", Sluggish)
    monkeypatch.setitem(REDUCERS, "blind", Blind)
    monkeypatch.setattr(time, "perf_counter", Clock())


def task(count: int = 6) -> BenchTask:
    cases = []
    for seed in range(count):
        source = tiny_omni.picture(64, 64 + 40 * seed, seed)  # of different grids
        content = [{"type": "image", "image": source}, {"type": "text", "text": "What?"}]
        judge = lambda answer: float(len(answer) % 2)  # noqa: E731 - has nothing to do with tokens
        cases.append(BenchCase([{"role": "user", "content": content}], judge))
    return BenchTask(name="pictures", modality="image", cases=cases)


def test_planted_bad_reducers_get_their_flags(planted: None) -> None:
    assistant = tiny_omni.assistant()
    records = run_task(
        assistant, task(), ["sluggish(0.5)", "blind(0.5)"], options={"max_new_tokens": 3}
    )
    rows = {row.spec: row for row in summarise(records)}
    assert any("not faster" in flag for flag in rows["sluggish(0.5)"].flags)
    assert any("no better than random" in flag for flag in rows["blind(0.5)"].flags)
    assert rows[NONE].flags == []


def test_baselines_read_as_many_tokens_and_a_misfit_is_left_out() -> None:
    assistant = tiny_omni.assistant()
    records = run_task(
        assistant, task(2), ["avg_pool(2)", "silence(0.5)"], options={"max_new_tokens": 1}
    )
    by_spec = {record.spec: record for record in records}
    assert [r.baseline_of for r in records] == [None, None, "avg_pool(2)", "avg_pool(2)"]
    for record in records[2:]:
        assert record.tokens == by_spec["avg_pool(2)"].tokens
    assert all(len(record.quality) == 2 for record in records)


def record(spec: str, tokens: int, quality: list[float], baseline_of: str | None = None) -> Record:
    count = len(quality)
    made = Record(task="t", spec=spec, baseline_of=baseline_of)
    made.tokens, made.quality = [tokens] * count, quality
    for name in ("tower_s", "reduce_s", "prefill_s", "first_token_s", "decode_s", "total_s"):
        setattr(made, name, [tokens / 100] * count)
    made.memory_bytes = [tokens] * count
    return made


def test_a_good_reducer_gets_no_flag_and_a_picture_shows_it(tmp_path: Path) -> None:
    rows = summarise(
        [
            record(NONE, 100, [1.0] * 20),
            record("evs(0.5)", 50, [1.0] * 18 + [0.0] * 2),
            record("random(0.5)", 50, [1.0, 0.0] * 10, baseline_of="evs(0.5)"),
        ]
    )
    assert [row.flags for row in rows] == [[], [], []]
    assert [row.spec for row in pareto_front(rows)] == ["evs(0.5)", NONE]
    assert json.loads(json.dumps(rows[1].to_dict()))["against_random"]["low"] > 0
    draw_pareto(rows, tmp_path / "t.png")
    with Image.open(tmp_path / "t.png") as picture:
        assert picture.size == (900, 560)


def test_equal_time_with_fewer_tokens_is_flagged_and_with_as_many_is_not() -> None:
    none, fewer = record(NONE, 100, [1.0, 1.0]), record("evs(0.5)", 50, [1.0, 1.0])
    assert find_flags(fewer, none, None, 1.0)
    assert not find_flags(fewer, none, None, 0.99)
    assert not find_flags(none, none, None, 1.0)
