"""The trials of a method as one number: their median, its interval, its source."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

FEWEST = 3
"""Trials that an interval needs: that of fewer would only repeat them."""
RESAMPLES = 10_000
SOURCES = {
    "peak_memory_bytes": "peak_memory_source",
    "energy_per_volume_j": "energy_source",
    "energy_per_parameter_j": "energy_source",
    "temperature_peak_c": "temperature_source",
}
"""Column of `runs.csv` -> the column that says where it came from."""
FIXED_SOURCES = {
    "parameters": "counted in the network",
    "flops_forward": "fvcore, a multiply-add as one",
    "flops_step": "dispatched operators, a multiply-add as two",
    "peak_allocated_bytes": "allocator",
    "step_time_median_s": "clock around the step",
}
ESTIMATES = {"tdp-estimate"}
"""Sources that estimate, from time and the kind of processor."""


@dataclass(frozen=True)
class Summary:
    """The median over a method's trials that were ok."""

    value: float
    low: float | None
    """Ends of the 95 % bootstrap interval; None where trials are few or nothing varies."""
    high: float | None
    source: str | None
    trials: int

    @property
    def in_words(self) -> str:
        """Where the number came from."""
        trials = "1 trial" if self.trials == 1 else f"median of {self.trials} trials"
        return f"{self.source or 'recorded'}; {trials}"

    def overlaps(self, other: "Summary") -> bool:
        """Whether the intervals overlap, so that the trials cannot tell the two apart.

        A number that does not vary is a point; two points never overlap.
        """
        if self.low is None and other.low is None:
            return False
        low, high = self.interval
        other_low, other_high = other.interval
        return low <= other_high and other_low <= high

    @property
    def interval(self) -> tuple[float, float]:
        if self.low is None or self.high is None:
            return self.value, self.value
        return self.low, self.high

    @property
    def is_estimate(self) -> bool:
        return bool(ESTIMATES & set((self.source or "").split(", ")))


def summarise_each(records: pd.DataFrame, column: str) -> dict[str, Summary]:
    """By method, of those with a trial that was ok and has the number."""
    ok = records[(records["status"] == "ok") & records[column].notna()]
    numbers = pd.DataFrame({"value": ok[column].astype(float), "source": _sources(ok, column)})
    found = numbers.groupby(ok["method"], sort=False).agg(list)
    return {
        method: Summary(
            statistics.median(values), *median_interval(values),
            ", ".join(dict.fromkeys(s for s in sources if isinstance(s, str))) or None, len(values),
        )
        for method, values, sources in found.itertuples()
    }  # fmt: skip


def median_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """95 % percentile bootstrap interval of the median, the same each time.

    It never reaches beyond the values: with 3 to 5 trials it is nearly their whole range, and its
    true coverage is lower (with 5 trials at most 1 − 2⁻⁴ = 94 %).
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < FEWEST or len(set(finite)) == 1:
        return None, None
    from scipy.stats import bootstrap  # takes a second to load; most runs have no repeats

    found = bootstrap((finite,), np.median, n_resamples=RESAMPLES, method="percentile", rng=0)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _sources(rows: pd.DataFrame, column: str) -> pd.Series:
    if column in SOURCES:
        return rows[SOURCES[column]]
    source = FIXED_SOURCES.get(column)
    if source is None:
        return pd.Series(None, index=rows.index, dtype=object)
    predicted = rows["peak_memory_source"].eq("predicted")
    return predicted.map({True: f"{source}; predicted", False: source})


def million_voxels(records: pd.DataFrame) -> pd.Series:
    """Voxels that a step of each trial sees, in millions: a measure of work that methods on volumes
    and methods on patches of them share.
    """
    shapes = records["patch"].fillna(records["volume"])
    voxels = shapes.map(lambda shape: shape.voxels, na_action="ignore").astype(float)
    return (voxels * records["batch_size"].astype(float)).fillna(1e6).clip(lower=1) / 1e6
