"""Table 2 of the paper: what each method costs, and the paper's numbers beside it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..records.files import replace_file
from ..sizes import GIB, show_shape
from . import published
from .grid import NOTHING, Cell, Grid, as_rows, latex, markdown, significant
from .summary import Summary, summarise_each

_MOST_NOTES = 20
_BESIDE = ("paper", "here", "here ÷ paper")
Number = Summary | published.Published


@dataclass(frozen=True)
class Metric:
    """A row of Table 2: a column of `runs.csv`, and how people are shown it."""

    column: str
    label: str
    """With its unit."""
    show: Callable[[float], str]

    def cell(self, summary: Summary | None) -> Cell:
        """A value and its interval."""
        if summary is None:
            return Cell(NOTHING, source="no trial has this number")
        text = self.show(summary.value)
        if summary.low is not None and summary.high is not None:
            text += f" [{self.show(summary.low)}, {self.show(summary.high)}]"
        return Cell(text, summary.value, summary.in_words)


METRICS = (
    Metric("parameters", "Parameters (M)", lambda v: significant(v / 1e6)),
    Metric("flops_forward", "FLOPs, forward (G, fvcore)", lambda v: significant(v / 1e9)),
    Metric("flops_step", "FLOPs, whole step (G)", lambda v: significant(v / 1e9)),
    Metric("peak_memory_bytes", "Peak memory, live (GiB)", lambda v: significant(v / GIB)),
    Metric("peak_allocated_bytes", "Peak memory, allocated (GiB)", lambda v: significant(v / GIB)),
    Metric("step_time_median_s", "Step time, median (s)", significant),
    Metric("energy_per_volume_j", "Energy per volume (J)", significant),
    Metric("energy_per_parameter_j", "Energy per parameter (µJ)", lambda v: significant(v * 1e6)),
    Metric("temperature_peak_c", "Peak temperature (°C)", lambda v: f"{v:.0f}"),
)
COLUMNS = [
    "preset", "metric", "column", "method", "value", "low", "high", "ratio", "source", "trials",
    "published", "published_source", "to_published",
]  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """One number of one method."""

    here: Summary | None
    """Over the trials that were ok; None where none of them has the number."""
    first: Summary | None
    """The first method's."""
    paper: published.Published | None
    """The paper's, of this method."""

    def cell(self, metric: Metric) -> Cell:
        """With the ratio to the first method."""
        cell, ratio = metric.cell(self.here), divide(self.here, self.first)
        if self.here is None or self.first is None or ratio is None:
            return cell
        alike = self.here is not self.first and self.here.overlaps(self.first)
        return Cell(f"{cell.text} ({'≈ ' if alike else ''}{ratio:.2f}×)", cell.value, cell.source)


class CostTable:
    """Table 2 of trials that may be compared with each other: rows of `runs.csv`."""

    def __init__(self, records: pd.DataFrame) -> None:
        self.records = records
        self.methods: list[str] = list(dict.fromkeys(records["method"]))
        self.costs: dict[tuple[str, str], Cost] = {}
        """By column and method."""
        for metric in METRICS:
            found = summarise_each(records, metric.column)
            for name in self.methods:
                self.costs[metric.column, name] = Cost(
                    found.get(name), found.get(self.methods[0]),
                    published.costs().get((name, metric.column)),
                )  # fmt: skip

    def summary(self, column: str, method: str) -> Summary | None:
        cost = self.costs.get((column, method))
        return cost.here if cost else None

    @property
    def own_setting(self) -> bool:
        """Whether every trial ran the preset as it is, no flag changing it."""
        return bool((self.records["preset_changes"] == "none").all())

    def kind(self, method: str) -> str:
        """Exact, rounded or another task; "" where an older version did not record it."""
        return self._first("kind", method)

    def named(self, method: str) -> str:
        """With its kind, unless that is exact."""
        kind = self.kind(method)
        return f"{method} ({kind})" if kind not in ("", "exact") else method

    def network(self, method: str) -> str:
        """The same for methods that compute the same; itself where it learns another task."""
        return (self.kind(method) != "another task" and self._first("network", method)) or method

    def _kind(self, method: str) -> Cell:
        return Cell(
            self.kind(method) or NOTHING, source="of its techniques, the furthest from exact"
        )

    def _first(self, column: str, method: str) -> str:
        known = self.records.loc[self.records["method"] == method, column].dropna()
        return str(known.iloc[0]) if len(known) else ""

    def frame(self) -> pd.DataFrame:
        """A row a metric and method, with `COLUMNS`; values in the unit of the column.

        `value` is the median over the trials that were ok, `low` and `high` the ends of its 95 %
        interval where trials differ, `ratio` is to the first method, `to_published` to the paper's
        number for this method. A method without an ok trial has empty values.
        """
        rows, preset = [], self._all("preset")
        for metric in METRICS:
            for method in self.methods:
                cost = self.costs[metric.column, method]
                rows.append(
                    {
                        "preset": preset,
                        "metric": metric.label,
                        "column": metric.column,
                        "method": method,
                        **(asdict(cost.here) if cost.here else {"trials": 0}),
                        "ratio": divide(cost.here, cost.first),
                        "published": cost.paper and cost.paper.value,
                        "published_source": cost.paper and cost.paper.source,
                        "to_published": divide(cost.here, cost.paper),
                    }
                )
        return pd.DataFrame(rows, columns=COLUMNS)

    def grid(self) -> Grid:
        """A row a metric, a column a method."""
        rows: Iterable[tuple[Cell, ...]] = (
            (Cell(metric.label), *(self.costs[metric.column, m].cell(metric) for m in self.methods))
            for metric in self._shown
        )
        if any(map(self.kind, self.methods)):
            rows = ((Cell("Kind"), *map(self._kind, self.methods)), *rows)
        caption = self._caption()
        if self.methods:
            caption += f" In parentheses, the ratio to {self.methods[0]}."
        return Grid("Table 2", caption, ("", *self.methods), tuple(rows), tuple(self._notes()))

    def by_method(self) -> Grid:
        """A row a method, as a person sorts it."""
        shown, columns = self._shown, self.records[["method", "repeat", "status", "error"]]
        by_method = (trials for _, trials in columns.groupby("method", sort=False))
        rows = (
            (
                Cell(name),
                self._kind(name),
                _trials(trials),
                *(m.cell(self.summary(m.column, name)) for m in shown),
            )
            for name, trials in zip(self.methods, by_method, strict=True)
        )
        header = ("Method", "Kind", "Trials ok", *(metric.label for metric in shown))
        return Grid("Table 2", self._caption(), header, tuple(rows), tuple(self._notes()))

    def beside_paper(self) -> Grid | None:
        """The numbers of the paper's two methods in the paper and here, and their ratio."""
        methods = [name for name in published.NAMES if name in self.methods]
        known = [m for m in METRICS if any(self.costs[m.column, n].paper for n in methods)]
        if not any(self.summary(metric.column, name) for metric in known for name in methods):
            return None
        header = ["", *(f"{published.NAMES[name]}, {what}" for name in methods for what in _BESIDE)]
        if len(methods) == 2:
            header += ["IDM ÷ PatchDDM-3D, paper", "IDM ÷ PatchDDM-3D, here"]
        rows, sources = [], dict[str, None]()
        for metric in known:
            costs = [self.costs[metric.column, name] for name in methods]
            cells = [Cell(metric.label)]
            for cost in costs:
                cells += [_paper_cell(metric, cost.paper), metric.cell(cost.here),
                          _times(divide(cost.here, cost.paper))]  # fmt: skip
                sources.update({cost.paper.source: None} if cost.paper else {})
            if len(costs) == 2:
                patchddm, idm = costs
                cells += [_times(divide(idm.paper, patchddm.paper)),
                          _times(divide(idm.here, patchddm.here))]  # fmt: skip
            rows.append(tuple(cells))
        return Grid(
            "Table 2, beside the paper's",
            "The paper's numbers (RTX A5000), those of this run, and their ratio.",
            tuple(header), tuple(rows),
            (*self._setting_note(), *(f"Paper: {source}." for source in sources)),
        )  # fmt: skip

    def _setting_note(self) -> Iterator[str]:
        preset = self._all("preset")
        if preset != "paper":
            yield (
                f"This is the preset {preset}, not the paper's setting: only the last two columns "
                "may be compared."
            )
        elif self.records["preset_changes"].isna().any():
            yield "Not recorded: whether flags changed the preset, which is the paper's setting."
        elif not self.own_setting:
            yield "Flags changed the preset: this is not the paper's setting."

    @property
    def _shown(self) -> list[Metric]:
        """Those that a method has."""
        return [m for m in METRICS if any(self.summary(m.column, name) for name in self.methods)]

    def _caption(self) -> str:
        if self.records.empty:
            return "No trial was recorded."
        data = self._all("data")
        where = [
            f"preset {self._all('preset')}",
            self._widths(),
            data and f"{data} data",
            self._all("device_name"),
        ]
        return f"Cost of training at the {', '.join(filter(None, where))}."

    def _widths(self) -> str:
        matches = {"flops": "widths of equal FLOPs", "parameters": "widths of equal parameters"}
        return matches.get(self._all("match"), "")

    def _all(self, column: str) -> str:
        return " / ".join(dict.fromkeys(self.records[column].dropna()))

    def _notes(self) -> Iterator[str]:
        """Sources, definitions, and what went wrong."""
        if self._widths():
            yield (
                f"W{self._widths()[1:]}: unet, whose widths no paper prescribes, has IDM's "
                "parameters, or with --match flops its FLOPs of a step, within 5 %; networks whose "
                "authors published widths keep them."
            )
        if len(set(map(self.kind, self.methods))) > 1:
            yield (
                "Kind: exact, the gradients of the bare network; rounded, the same function in "
                "fewer bits; another task, the network learns something else. Memory saved by the "
                "last two has to be paid in quality."
            )
        yield (
            "Peak memory of one whole training step, live: of the tensors; allocated: with the "
            "kernels' scratch, as the allocator counts it. FLOPs: fvcore counts a multiply-add as "
            "one, the whole step as two."
        )
        if any(cost.here and cost.here.low is not None for cost in self.costs.values()):
            yield (
                "Median over the repeats; in brackets its 95 % bootstrap interval. ≈: the interval "
                "overlaps the first method's, so the trials cannot tell the two apart."
            )
        for metric in self._shown:
            found = (self.summary(metric.column, name) for name in self.methods)
            sources = list(dict.fromkeys(each.source for each in found if each and each.source))
            more = len(sources) - _MOST_NOTES
            if sources:
                yield f"{metric.label}: {'; '.join(sources[:_MOST_NOTES])}" + (
                    f" and {more} more." if more > 0 else "."
                )
        sides = self.records[["method", "patch", "volume"]].dropna().drop_duplicates("method")
        for row in as_rows(sides[sides["patch"] != sides["volume"]]):
            patch, volume = row["patch"], row["volume"]
            yield (
                f"{row['method']} trains on {show_shape(patch)} patches of {show_shape(volume)} "
                f"volumes: its step sees 1/{volume.voxels / patch.voxels:.4g} of a volume, and "
                "that counts as a volume here."
            )
        missing = [metric.label for metric in METRICS if metric not in self._shown]
        if missing:
            yield f"Not available on this machine: {', '.join(missing)}."
        bad = self.records[self.records["status"] != "ok"]
        for trial in bad.head(_MOST_NOTES).itertuples():
            yield f"{trial.method}, repeat {trial.repeat}: {_failure(trial)}."
        if len(bad) > _MOST_NOTES:
            yield f"And {len(bad) - _MOST_NOTES} more trials that were not ok."


def table2_grid(records: pd.DataFrame) -> Grid:
    return CostTable(records).grid()


def write_table2(tables: Iterable[CostTable], out: Path) -> list[Path]:
    """`table2.csv`, `.md`, `.tex`: for each group, and beside it the paper's numbers."""
    frames, grids = [], []
    for table in tables:
        frames.append(table.frame())
        grids += [table.grid(), table.beside_paper()]
    whole = pd.concat(frames) if frames else pd.DataFrame(columns=COLUMNS)
    return write(out, "table2", whole, [grid for grid in grids if grid is not None])


def write(out: Path, name: str, table: pd.DataFrame, grids: Sequence[Grid]) -> list[Path]:
    """A table as numbers (CSV), and as Markdown and LaTeX to paste."""
    texts = {
        "csv": table.to_csv(index=False),
        "md": "\n".join(map(markdown, grids)),
        "tex": "\n".join(map(latex, grids)),
    }
    for kind, text in texts.items():
        replace_file(out / f"{name}.{kind}", text)
    return [out / f"{name}.{kind}" for kind in texts]


def divide(one: Number | None, other: Number | None) -> float | None:
    return one.value / other.value if one and other and other.value else None


def _paper_cell(metric: Metric, paper: published.Published | None) -> Cell:
    return Cell(metric.show(paper.value), paper.value, paper.source) if paper else Cell(NOTHING)


def _times(ratio: float | None) -> Cell:
    if ratio is None:
        return Cell(NOTHING)
    # The paper's FLOPs are thousands of times too few: "5,700×", not "5700.00×".
    return Cell(f"{ratio:.2f}×" if ratio < 100 else f"{ratio:,.0f}×", ratio)


def _trials(rows: pd.DataFrame) -> Cell:
    """How many of a method's were ok, and why the others were not."""
    bad = rows[rows["status"] != "ok"]
    reasons = [f"repeat {row.repeat}: {_failure(row)}" for row in bad.head(3).itertuples()]
    ok = len(rows) - len(bad)
    return Cell(f"{ok} of {len(rows)}", ok, "; ".join(reasons) or "runs.csv: every trial was ok")


def _failure(row: Any) -> str:
    status = row.status if isinstance(row.status, str) else "no status recorded"
    return status + (f" ({row.error})" if isinstance(row.error, str) else "")
