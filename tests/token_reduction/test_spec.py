"""Spec strings build what they say, and say what is wrong."""

import pytest

from token_reduction import (
    Chain,
    Evs,
    Identity,
    PixelShuffle,
    Random,
    ReducerCall,
    Tubelet,
    Uniform,
    build,
    parse,
)


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("identity", Identity),
        ("identity()", Identity),
        ("pixel_shuffle(0.5)", PixelShuffle),
        ("tubelet(2)", Tubelet),
        (" evs( 0.7 ) ", Evs),
        ("evs(rate=0.7)", Evs),
        ("evs(0.7, floor=8)", Evs),
        ("uniform(7e-1)", Uniform),
        ("random(0.5, seed=3)", Random),
        ("evs(0)", Evs),
        ("pixel_shuffle(0.5)|evs(0.5)", Chain),
    ],
)
def test_a_spec_builds_its_reducer(spec: str, kind: type) -> None:
    assert type(build(spec)) is kind


def test_arguments_arrive() -> None:
    random = build("random(0.5, seed=3)")
    assert isinstance(random, Random)
    assert (random.rate, random.seed) == (0.5, 3)
    chain = build("tubelet(4) | pixel_shuffle(0.25) | evs(rate=0.7)")
    assert isinstance(chain, Chain)
    tubelet, shuffle, evs = chain.members
    assert isinstance(tubelet, Tubelet)
    assert isinstance(shuffle, PixelShuffle)
    assert isinstance(evs, Evs)
    assert (tubelet.num_frames, shuffle.side, evs.rate) == (4, 4, 0.7)


def test_parse_reads_without_building() -> None:
    assert parse("unknown(1, x=-2.5)|evs") == [
        ReducerCall(name="unknown", args=(1,), kwargs=(("x", -2.5),)),
        ReducerCall(name="evs"),
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "evz(0.7)",
            "Unknown reducer 'evz' in spec 'evz\\(0.7\\)'; did you mean 'evs'\\? expected",
        ),
        ("qqqqq", "Unknown reducer 'qqqqq' in spec 'qqqqq'; expected one of identity"),
        ("evs(rat=0.7)", "Unknown argument 'rat' of evs.*did you mean 'rate'\\? expected rate"),
        ("evs", "Missing argument 'rate' of evs in spec 'evs'; write evs\\(rate=...\\)"),
        ("evs(0.1, 2, 3)", "Found 3 arguments for evs.*expected at most 2: rate, floor"),
        ("identity(1)", "Found 1 arguments for identity.*at most 0: no arguments"),
        ("evs(0.1, rate=0.2)", "Found argument 'rate' of evs twice"),
        ("random(rate=0.1, rate=0.2)", "Found argument 'rate' twice"),
        ("random(rate=0.1, 2)", "Found '2' after a key=number argument"),
        ("evs(0.1, 0.2)", "Found floor=0.2 of evs.*expected a whole number"),
        ("tubelet(1.5)", "Found num_frames=1.5 of tubelet.*expected a whole number"),
        ("evs(high)", "Found argument 'high' in reducer spec 'evs\\(high\\)'; expected a number"),
        ("evs(0.5,)", "Found argument '' in reducer spec"),
        ("evs(0.5", "Found 'evs\\(0.5' in reducer spec 'evs\\(0.5'; expected name\\(arguments\\)"),
        ("evs(0.5)|", "Found '' in reducer spec 'evs\\(0.5\\)\\|'"),
        ("", "Found '' in reducer spec ''"),
        ("evs(0,7)", "removes nothing; expected a point, as in evs\\(0.7\\), or.* floor=7"),
        ("avg_pool(99999999999999999999)", "Found argument '9+'.*expected a number"),
        ("evs((0.5))", "Found 'evs\\(\\(0.5\\)\\)' in reducer spec"),
    ],
)
def test_a_wrong_spec_says_what_was_found_and_expected(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(spec)


def test_a_rate_of_nothing_may_be_written_with_a_point_or_with_names():
    for spec in ("evs(0.0, 7)", "evs(0, floor=7)", "evs(rate=0, floor=7)"):
        reducer = build(spec)
        assert isinstance(reducer, Evs)
        assert (reducer.rate, reducer.floor) == (0, 7)
