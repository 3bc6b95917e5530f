"""One number out of the trials of a method: the median, its interval, where it came from."""

import statistics
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
    return next(iter(summarise_each(rows, column).values()), None)


def summarise_each(records: pd.DataFrame, column: str) -> dict[str, Summary]:
    """By method, of those with a trial that was ok and has the number; one pass over the rows."""
    ok = records[(records["status"] == "ok") & records[column].notna()]
    values: dict[str, list[float]] = {}
    sources: dict[str, dict[str, None]] = {}
    for method, value, source in zip(
        ok["method"], ok[column].astype(float), _sources(ok, column), strict=True
    ):
        values.setdefault(method, []).append(value)
        sources.setdefault(method, {}).update({} if pd.isna(source) else {source: None})
    return {
        method: Summary(
            statistics.median(numbers), *_interval(tuple(numbers)),
            ", ".join(sources[method]) or None, len(numbers),
        )
        for method, numbers in values.items()
    }  # fmt: skip


@lru_cache(maxsize=4096)  # the same numbers stand in the table, the claims and the page
def _interval(values: tuple[float, ...]) -> tuple[float | None, float | None]:
    if len(set(values)) < 2:
        return None, None
    return bootstrap_interval(values) or (None, None)


def _sources(rows: pd.DataFrame, column: str) -> pd.Series:
    if column in SOURCES:
        return rows[SOURCES[column]]
    source = FIXED_SOURCES.get(column)
    if source is None:
        return pd.Series(None, index=rows.index, dtype=object)
    predicted = rows["peak_memory_source"].eq("predicted")
    return predicted.map({True: f"{source}; predicted", False: source})


def million_voxels(records: pd.DataFrame) -> pd.Series:
    """What a step of each trial sees, in millions of voxels: the measure of work that is common to
    methods that train on volumes and on patches of them.
    """
    sides, batches = (records[name].astype(float) for name in ("patch", "batch_size"))
    sides = sides.fillna(records["volume"].astype(float))
    return (sides**3 * batches).fillna(1e6).clip(lower=1) / 1e6
