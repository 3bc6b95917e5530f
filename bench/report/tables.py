"""Table 2 of the paper: what each method costs, and the paper's numbers beside it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from bench.report import published
from bench.report.grid import (
    NOTHING,
    Cell,
    Grid,
    as_rows,
    for_terminal,
    latex,
    markdown,
    significant,
)
from bench.report.reading import Group
from bench.report.summary import Summary, summarise_each
from bench.sizes import GIB

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """A row of Table 2: a column of `runs.csv`, and how people are shown it."""

    column: str
    label: str
    """With its unit."""
    show: Callable[[float], str]


METRICS = (
    Metric("parameters", "Parameters (M)", lambda v: significant(v / 1e6)),
    Metric("flops_forward", "FLOPs, forward (G, fvcore)", lambda v: significant(v / 1e9)),
    Metric("flops_step", "FLOPs, whole step (G)", lambda v: significant(v / 1e9)),
    Metric("peak_memory_bytes", "Peak memory (GiB)", lambda v: significant(v / GIB)),
    Metric("peak_allocated_bytes", "Peak allocated (GiB)", lambda v: significant(v / GIB)),
    Metric("step_time_median_s", "Step time, median (s)", significant),
    Metric("energy_per_volume_j", "Energy per volume (J)", significant),
    Metric("energy_per_parameter_j", "Energy per parameter (µJ)", lambda v: significant(v * 1e6)),
    Metric("temperature_peak_c", "Peak temperature (°C)", lambda v: f"{v:.0f}"),
)
_BY_COLUMN = {metric.column: metric for metric in METRICS}
COLUMNS = [
    "preset", "metric", "column", "method", "value", "low", "high", "ratio", "source", "trials",
    "published", "published_source", "to_published",
]  # fmt: skip


def table2(records: pd.DataFrame) -> pd.DataFrame:
    """A row a metric and method, with `COLUMNS`; values in the unit of the column.

    `value` is the median over the trials that were ok, `low` and `high` the ends of its 95 %
    interval where trials differ, `ratio` is to the first method, `to_published` to the paper's
    number for this method. A method without an ok trial has empty values.
    """
    methods = list(dict.fromkeys(records["method"]))
    preset, rows = _all(records, "preset"), []
    for metric in METRICS:
        found = summarise_each(records, metric.column)
        first = found.get(methods[0]) if methods else None
        for name in methods:
            summary = found.get(name)
            paper = published.costs().get((name, metric.column))
            rows.append(
                {
                    "preset": preset,
                    "metric": metric.label,
                    "column": metric.column,
                    "method": name,
                    **_columns(summary),
                    "ratio": _divide(_value(summary), _value(first)),
                    "published": _value(paper),
                    "published_source": paper and paper.source,
                    "to_published": _divide(_value(summary), _value(paper)),
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def table2_grid(table: pd.DataFrame, records: pd.DataFrame) -> Grid:
    """A row a metric, a column a method; a metric that no method has is left out."""
    methods = list(dict.fromkeys(table["method"]))
    rows = []
    for metric in METRICS:
        of_metric = as_rows(table[table["column"] == metric.column])
        if any(pd.notna(row["value"]) for row in of_metric):
            cells = (_cell(metric, row, of_metric[0]) for row in of_metric)
            rows.append((Cell(metric.label), *cells))
    return Grid(
        "Table 2", caption(records), ("", *methods), tuple(rows), tuple(footnotes(table, records))
    )


def beside_paper_grid(table: pd.DataFrame, group: Group | None = None) -> Grid | None:
    """What the paper's Table 2 says of its two methods, what is measured here, and the ratio."""
    known = table.dropna(subset=["published"])
    if known["value"].isna().all():
        return None
    methods = [name for name in published.NAMES if name in set(known["method"])]
    both = len(methods) == 2
    header = ["", *(f"{published.NAMES[m]}, {what}" for m in methods for what in _BESIDE)]
    rows = []
    for column in dict.fromkeys(known["column"]):
        metric, cells = _BY_COLUMN[column], [Cell(_BY_COLUMN[column].label)]
        of_metric = {row["method"]: row for row in as_rows(known[known["column"] == column])}
        for name in methods:
            row = of_metric[name]
            cells += [
                Cell(metric.show(row["published"]), row["published"], row["published_source"]),
                plain_cell(metric, row),
                _times(row["to_published"]),
            ]
        if both:
            patchddm, idm = (of_metric[name] for name in methods)
            cells += [_times(_divide(idm[x], patchddm[x])) for x in ("published", "value")]
        rows.append(tuple(cells))
    if both:
        header += ["IDM ÷ PatchDDM-3D, paper", "IDM ÷ PatchDDM-3D, here"]
    return Grid(
        "Table 2, beside the paper's",
        "The paper's numbers (RTX A5000), those of this run, and their ratio.",
        tuple(header), tuple(rows), tuple(_beside_notes(known, group)),
    )  # fmt: skip


_BESIDE = ("paper", "here", "here ÷ paper")


def _beside_notes(known: pd.DataFrame, group: Group | None) -> Iterable[str]:
    preset = " / ".join(dict.fromkeys(known["preset"]))
    if preset != "paper":
        yield (
            f"This is the preset {preset}, not the paper's setting: only the last two columns may "
            "be compared."
        )
    elif group is not None and not group.own_setting:
        yield "Flags changed the preset: this is not the paper's setting."
    for source in dict.fromkeys(known["published_source"]):
        yield f"Paper: {source}."


def write_table2(groups: Iterable[Group], out: Path) -> list[Path]:
    """`table2.csv`, `.md`, `.tex`: for each group, and beside it the paper's numbers."""
    tables, grids = [], []
    for group in groups:
        table = table2(group.records)
        tables.append(table)
        grids += [table2_grid(table, group.records), beside_paper_grid(table, group)]
    whole = pd.concat(tables) if tables else pd.DataFrame(columns=COLUMNS)
    return write(out, "table2", whole, [grid for grid in grids if grid is not None])


def write(out: Path, name: str, table: pd.DataFrame, grids: list[Grid]) -> list[Path]:
    """A table as numbers, and as the two texts that people paste."""
    paths = [out / f"{name}.{suffix}" for suffix in ("csv", "md", "tex")]
    table.to_csv(paths[0], index=False)
    paths[1].write_text("\n".join(map(markdown, grids)))
    paths[2].write_text("\n".join(map(latex, grids)))
    return paths


def console_table(records: pd.DataFrame) -> Table:
    """Table 2 for a terminal."""
    return for_terminal(table2_grid(table2(records), records))


def caption(records: pd.DataFrame, ratios: bool = True) -> str:
    """What was measured, on what."""
    if records.empty:
        return "No trial was recorded."
    where = ", ".join(
        filter(None, (_all(records, "data") and f"{_all(records, 'data')} data",
                      _all(records, "device_name")))
    )  # fmt: skip
    text = f"Cost of training at the preset {_all(records, 'preset')}{where and f', {where}'}."
    return text + (f" In parentheses, the ratio to {records['method'].iloc[0]}." if ratios else "")


def footnotes(table: pd.DataFrame, records: pd.DataFrame) -> list[str]:
    """Sources, what the words mean, and what went wrong."""
    notes = [
        "Peak memory: live tensor storages in one whole training step; allocated: with the "
        "kernels' scratch. FLOPs: fvcore counts a multiply-add as one, the whole step as two."
    ]
    if table["low"].notna().any():
        notes.append(
            "Median over the repeats; in brackets its 95 % bootstrap interval. ≈: the interval "
            "overlaps the first method's, so the trials do not tell the two apart."
        )
    for label, group in table.dropna(subset=["source"]).groupby("metric", sort=False):
        sources = list(dict.fromkeys(group["source"]))
        more = f" and {len(sources) - _MOST_NOTES} more" if len(sources) > _MOST_NOTES else ""
        notes.append(f"{label}: {'; '.join(sources[:_MOST_NOTES])}{more}.")
    notes += patch_notes(records)
    missing = [m.label for m in METRICS if table[table["column"] == m.column]["value"].isna().all()]
    if missing:
        notes.append(f"Not available on this machine: {', '.join(missing)}.")
    bad = records[records["status"] != "ok"]
    for row in bad.head(_MOST_NOTES).itertuples():
        status = row.status if isinstance(row.status, str) else "no status recorded"
        reason = f" ({row.error})" if isinstance(row.error, str) else ""
        notes.append(f"{row.method}, repeat {row.repeat}: {status}{reason}.")
    if len(bad) > _MOST_NOTES:
        notes.append(f"And {len(bad) - _MOST_NOTES} more trials that were not ok.")
    return notes


def patch_notes(records: pd.DataFrame) -> Iterator[str]:
    """For each method whose step sees less than a volume, how much less."""
    sides = records[["method", "patch", "volume"]].dropna().drop_duplicates("method")
    for row in as_rows(sides[sides["patch"] < sides["volume"]]):
        share = (row["volume"] / row["patch"]) ** 3
        yield (
            f"{row['method']} trains on {row['patch']:.0f}³ patches of {row['volume']:.0f}³ "
            f"volumes: its step, and what is called a volume here, is 1/{share:g} of one."
        )


_MOST_NOTES = 20


def plain_cell(metric: Metric, row: Row) -> Cell:
    """A value of Table 2 and its interval, without its ratio."""
    summary = _summary(row)
    if summary is None:
        return Cell(NOTHING, source="no trial has this number")
    text = metric.show(summary.value)
    if summary.low is not None and summary.high is not None:
        text += f" [{metric.show(summary.low)}, {metric.show(summary.high)}]"
    return Cell(text, summary.value, summary.in_words)


def _cell(metric: Metric, row: Row, first: Row) -> Cell:
    cell = plain_cell(metric, row)
    if pd.isna(row["ratio"]):
        return cell
    ours, theirs = _summary(row), _summary(first)
    same = row is not first and ours is not None and theirs is not None and ours.overlaps(theirs)
    return Cell(f"{cell.text} ({'≈ ' if same else ''}{row['ratio']:.2f}×)", cell.value, cell.source)


def _summary(row: Row) -> Summary | None:
    if pd.isna(row["value"]):
        return None
    low, high = (float(row[n]) if pd.notna(row[n]) else None for n in ("low", "high"))
    source = row["source"] if pd.notna(row["source"]) else None
    return Summary(float(row["value"]), low, high, source, int(row["trials"]))


def _columns(summary: Summary | None) -> dict[str, object]:
    if summary is None:
        return {"trials": 0}
    return {name: getattr(summary, name) for name in ("value", "low", "high", "source", "trials")}


def _value(number: Summary | published.Published | None) -> float | None:
    return None if number is None else number.value


def _times(ratio: float | None) -> Cell:
    if ratio is None or pd.isna(ratio):
        return Cell(NOTHING)
    # The paper's FLOPs are thousands of times too few: "5,700×", not "5700.00×".
    return Cell(f"{ratio:.2f}×" if ratio < 100 else f"{ratio:,.0f}×", float(ratio))


def _divide(value: float | None, by: float | None) -> float | None:
    if value is None or by is None or pd.isna(value) or pd.isna(by) or by == 0:
        return None
    return value / by


def _all(records: pd.DataFrame, column: str) -> str:
    return " / ".join(dict.fromkeys(records[column].dropna()))
