"""What a handful of repeats can say: a median, how sure it is, and whether two methods differ."""

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
FEWEST = 3
"""Trials without which an interval would only repeat them."""


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the median; None for fewer than `FEWEST` values.

    The median of each of 10,000 resamples (drawn with replacement, from a seed, so that a report
    is the same each time); the interval leaves out the same share of them at both ends. It never
    reaches beyond the values: with 3 to 5 repeats it is nearly their whole range, and its true
    coverage is below `level` (with 5 values at most 1 − 2⁻⁴ = 94 %).
    """
    finite = np.array([value for value in values if math.isfinite(value)], dtype=float)
    if len(finite) < FEWEST:
        return None
    drawn = np.random.default_rng(seed).choice(finite, size=(RESAMPLES, len(finite)))
    tail = (1 - level) / 2
    low, high = np.quantile(np.median(drawn, axis=1), [tail, 1 - tail])
    return float(low), float(high)


def differ(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> bool | None:
    """Whether the intervals of the medians of `a` and `b` lie apart; None where one has none.

    Apart is a cautious word for different: intervals may overlap a little where a test of the
    difference would call it significant, never the other way round.
    """
    first, second = bootstrap_interval(a, level), bootstrap_interval(b, level)
    if first is None or second is None:
        return None
    return first[1] < second[0] or second[1] < first[0]
