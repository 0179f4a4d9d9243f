"""Intervals of means and of paired differences, by the bootstrap (Efron, 1979)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 2000


class Interval(NamedTuple):
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Return the mean of independent values.

    Args:
        values: At least one.
        seed: Seed of the resampling; the same values give the same interval.
    """
    sample = np.asarray(values, dtype=float)
    chosen = np.random.default_rng(seed).integers(len(sample), size=(DRAWS, len(sample)))
    low, high = np.quantile(sample[chosen].mean(axis=1), [0.025, 0.975])
    return Interval(float(sample.mean()), float(low), float(high))


def paired_difference(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Interval:
    """Return the mean of `ours - theirs` over cases that both have answered.

    Pairing takes out how hard a case is, so that much smaller differences show.

    Args:
        ours: One value a case.
        theirs: Of the same cases, in the same order.
        seed: Seed of the resampling.

    Raises:
        ValueError: If the two have different lengths.
    """
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    return mean_interval(differences, seed)
