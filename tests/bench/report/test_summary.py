"""The median of repeats, its interval, and whether two methods are told apart."""

import statistics

import numpy as np
import pandas as pd

from bench.report.summary import Summary, median_interval, summarise_each


def interval(*values: float) -> tuple[float | None, float | None]:
    return median_interval(values)


def of(*values: float) -> Summary:
    rows = {"method": "idm", "status": "ok", "peak_memory_source": "x", "volumes_per_s": values}
    return summarise_each(pd.DataFrame(rows), "volumes_per_s")["idm"]


def test_the_interval_of_the_median():
    values = [1.0, 1.2, 0.9, 1.1, 1.05, 0.95, 1.3, 1.0, 1.15, 0.98]
    low, high = interval(*values)
    assert low is not None
    assert high is not None
    assert min(values) <= low < statistics.median(values) < high <= max(values)
    assert interval(*values) == (low, high)  # the same each time


def test_few_or_equal_values_have_no_interval():
    assert interval(1.0, 2.0) == (None, None)
    assert interval(1.0, 2.0, float("nan")) == (None, None)
    assert interval(3.0, 3.0, 3.0, 3.0) == (None, None)


def test_two_methods_are_told_apart_where_their_intervals_do_not_overlap():
    a = of(1.00, 1.02, 0.98, 1.01, 0.99)
    assert a.value == 1.0
    assert not a.overlaps(of(1.20, 1.22, 1.18, 1.21, 1.19))
    assert a.overlaps(of(1.20, 0.97, 1.01, 1.00, 0.90))
    assert a.overlaps(a)
    assert a.overlaps(of(1.01, 1.01, 1.01))  # a point within the interval
    assert not of(1.0).overlaps(of(1.0, 1.0))  # two points


def test_the_interval_covers_the_true_median():
    """Of 200 samples of 15 normal values, as many as it says, give or take three sigma."""
    covered = 0
    for draw in np.random.default_rng(1).normal(size=(200, 15)):
        low, high = interval(*draw)
        assert low is not None
        assert high is not None
        covered += low <= 0 <= high
    assert 180 <= covered <= 199
