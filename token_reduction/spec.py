"""Reducers from text: `evs(0.7)`, `pixel_shuffle(0.5)|evs(rate=0.5)`.

spec  = call { "|" call }
call  = name [ "(" [ arg { "," arg } ] ")" ]
arg   = [ key "=" ] number
"""

import difflib
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from token_reduction.adjacent_merge import AdjacentMerge
from token_reduction.avg_pool import AvgPool
from token_reduction.base import Chain, Reducer
from token_reduction.baselines import Random, Uniform
from token_reduction.density_cluster import DensityCluster
from token_reduction.divprune import DivPrune
from token_reduction.evs import Evs
from token_reduction.identity import Identity
from token_reduction.keyframes import Keyframes
from token_reduction.learned import Learned
from token_reduction.merge import Merge
from token_reduction.pixel_shuffle import PixelShuffle
from token_reduction.prune_merge import ClsPruneMerge, PruneMerge
from token_reduction.resampler import Resampler
from token_reduction.silence import Silence
from token_reduction.stack import Stack
from token_reduction.temporal_merge import TemporalMerge
from token_reduction.tome import Tome
from token_reduction.tubelet import Tubelet

# A new reducer is known to spec strings once it stands here; its parameters are read from its
# constructor, so they must be annotated `int` or `float`.
REDUCERS: dict[str, type[Reducer]] = {
    "identity": Identity,
    "keyframes": Keyframes,
    "pixel_shuffle": PixelShuffle,
    "tubelet": Tubelet,
    "stack": Stack,
    "avg_pool": AvgPool,
    "merge": Merge,
    "prune_merge": PruneMerge,
    "cls_prune_merge": ClsPruneMerge,
    "divprune": DivPrune,
    "density_cluster": DensityCluster,
    "tome": Tome,
    "evs": Evs,
    "temporal_merge": TemporalMerge,
    "learned": Learned,
    "resampler": Resampler,
    "adjacent_merge": AdjacentMerge,
    "silence": Silence,
    "uniform": Uniform,
    "random": Random,
}

_CALL = re.compile(r"(?P<name>\w+)\s*(?:\((?P<args>[^()]*)\))?")
_ARG = re.compile(r"(?:(?P<key>[A-Za-z_]\w*)\s*=\s*)?(?P<value>\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReducerCall:
    """One reducer of a spec string, as written.

    Attributes:
        name: The reducer's name.
        args: Arguments without a key, in order.
        kwargs: (key, value) of the others, in order.
    """

    name: str
    args: tuple[int | float, ...] = ()
    kwargs: tuple[tuple[str, int | float], ...] = ()


def build(spec: str) -> Reducer:
    """Make the reducer that a spec string describes.

    Args:
        spec: One reducer, or a chain with `|`, data passing from left to right.

    Raises:
        ValueError: If the spec cannot be read, names something unknown, or has wrong arguments.
    """
    reducers = [_build_one(call, spec) for call in parse(spec)]
    return reducers[0] if len(reducers) == 1 else Chain(*reducers)


def parse(spec: str) -> list[ReducerCall]:
    """Read a spec string without building anything.

    Raises:
        ValueError: If the text does not follow the grammar at the top of this module.
    """
    return [_parse_call(text.strip(), spec) for text in spec.split("|")]


def _parse_call(text: str, spec: str) -> ReducerCall:
    match = _CALL.fullmatch(text)
    if match is None:
        raise ValueError(
            f"Found {text!r} in reducer spec {spec!r}; expected name(arguments), as in 'evs(0.7)', "
            "with '|' between reducers."
        )
    args: list[int | float] = []
    kwargs: dict[str, int | float] = {}
    texts = match["args"].split(",") if (match["args"] or "").strip() else []
    for arg_text in texts:
        arg = _ARG.fullmatch(arg_text.strip())
        value = None if arg is None else _number(arg["value"])
        if arg is None or value is None:
            raise ValueError(
                f"Found argument {arg_text.strip()!r} in reducer spec {spec!r}; "
                "expected a number or key=number."
            )
        if arg["key"] is None and kwargs:
            raise ValueError(
                f"Found {arg_text.strip()!r} after a key=number argument in reducer spec {spec!r}; "
                "expected arguments without a key first."
            )
        if arg["key"] is None:
            args.append(value)
        elif arg["key"] in kwargs:
            raise ValueError(
                f"Found argument {arg['key']!r} twice in reducer spec {spec!r}; expected it once."
            )
        else:
            kwargs[arg["key"]] = value
    return ReducerCall(name=match["name"], args=tuple(args), kwargs=tuple(kwargs.items()))


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return None if kind is int and abs(value) >= 2**63 else value  # more than a tensor holds
    return None


def _build_one(call: ReducerCall, spec: str) -> Reducer:
    if call.name not in REDUCERS:
        raise ValueError(
            f"Unknown reducer {call.name!r} in spec {spec!r}; "
            f"{_nearest(call.name, REDUCERS)}expected one of {', '.join(REDUCERS)}."
        )
    reducer_type = REDUCERS[call.name]
    parameters = _parameters_of(reducer_type)
    takes = ", ".join(parameters) or "no arguments"

    if len(call.args) > len(parameters):
        raise ValueError(
            f"Found {len(call.args)} arguments for {call.name} in spec {spec!r}; "
            f"expected at most {len(parameters)}: {takes}."
        )
    is_whole_zero = len(call.args) == 2 and call.args[0] == 0 and isinstance(call.args[0], int)
    if is_whole_zero and next(iter(parameters)) == "rate":
        raise ValueError(
            f"Found {call.name}({call.args[0]},{call.args[1]}) in spec {spec!r}, which removes "
            f"nothing; expected a point, as in {call.name}(0.{call.args[1]}), or, if 0 is meant, "
            f"{list(parameters)[1]}={call.args[1]}."
        )
    values = dict(zip(parameters, call.args, strict=False))
    for key, value in call.kwargs:
        if key not in parameters:
            raise ValueError(
                f"Unknown argument {key!r} of {call.name} in spec {spec!r}; "
                f"{_nearest(key, parameters)}expected {takes}."
            )
        if key in values:
            raise ValueError(
                f"Found argument {key!r} of {call.name} twice in spec {spec!r}; expected it once."
            )
        values[key] = value
    for key, parameter in parameters.items():
        if key not in values and parameter.default is parameter.empty:
            raise ValueError(
                f"Missing argument {key!r} of {call.name} in spec {spec!r}; "
                f"write {call.name}({key}=...)."
            )
        if parameter.annotation is int and isinstance(values.get(key), float):
            raise ValueError(
                f"Found {key}={values[key]} of {call.name} in spec {spec!r}; "
                "expected a whole number."
            )
    return reducer_type(**values)


@cache
def _parameters_of(reducer_type: type[Reducer]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(reducer_type).parameters


def _nearest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {matches[0]!r}? " if matches else ""
