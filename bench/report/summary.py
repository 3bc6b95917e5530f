"""One number out of the trials of a method: the median, its interval, where it came from."""

from dataclasses import dataclass
from functools import lru_cache

import pandas as pd

from bench.report.statistics import bootstrap_interval

SOURCES = {
    "peak_memory_bytes": "peak_memory_source",
    "energy_j": "energy_source",
    "energy_per_volume_j": "energy_source",
    "energy_per_parameter_j": "energy_source",
    "temperature_peak_c": "temperature_source",
    "co2_kg": "co2_source",
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
"""Sources that do not measure: a guess from time and the kind of processor."""


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
        """For a person who asks where a number came from."""
        trials = "1 trial" if self.trials == 1 else f"median of {self.trials} trials"
        return f"{self.source or 'recorded'}; {trials}"

    def overlaps(self, other: "Summary") -> bool:
        """Whether the intervals meet, so that the trials do not tell the two apart.

        A number that does not vary is a point. Single trials are taken at their word.
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


def summarise(rows: pd.DataFrame, column: str) -> Summary | None:
    """Of the rows of one method; None where no trial that was ok has the number."""
    ok = rows[(rows["status"] == "ok") & rows[column].notna()]
    if ok.empty:
        return None
    values = ok[column].astype(float)
    low, high = _interval(tuple(values))
    return Summary(float(values.median()), low, high, _source(ok, column), len(ok))


@lru_cache(maxsize=4096)  # the same numbers stand in the table, the claims and the page
def _interval(values: tuple[float, ...]) -> tuple[float | None, float | None]:
    if len(set(values)) < 2:
        return None, None
    return bootstrap_interval(values) or (None, None)


def _source(rows: pd.DataFrame, column: str) -> str | None:
    if column not in SOURCES:
        source = FIXED_SOURCES.get(column)
        predicted = rows["peak_memory_source"].eq("predicted").all()
        return f"{source}; predicted" if source and predicted else source
    named = rows[SOURCES[column]].dropna()
    return ", ".join(dict.fromkeys(named)) or None
