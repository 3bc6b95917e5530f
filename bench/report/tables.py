"""Table 2 of the paper: what each method costs, with ratios to the first method of the run."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.table import Table

GIB = 2**30
NOT_AVAILABLE = "not available"


@dataclass(frozen=True)
class Metric:
    """A row of Table 2: a column of `runs.csv`, and how people are shown it."""

    column: str
    label: str
    """With its unit."""
    show: Callable[[float], str]
    source: str | None = None
    """The column that says where the number came from."""


def significant(value: float) -> str:
    """Three significant digits, never in powers of ten, thousands apart."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


METRICS = (
    Metric("parameters", "Parameters (M)", lambda v: significant(v / 1e6)),
    Metric("flops_forward", "FLOPs, forward (G, fvcore)", lambda v: significant(v / 1e9)),
    Metric("flops_step", "FLOPs, whole step (G)", lambda v: significant(v / 1e9)),
    Metric(
        "peak_memory_bytes", "Peak memory (GiB)", lambda v: significant(v / GIB),
        "peak_memory_source",
    ),
    Metric("peak_allocated_bytes", "Peak allocated (GiB)", lambda v: significant(v / GIB)),
    Metric("step_time_median_s", "Step time, median (s)", significant),
    Metric("energy_per_volume_j", "Energy per volume (J)", significant, "energy_source"),
    Metric(
        "energy_per_parameter_j", "Energy per parameter (µJ)", lambda v: significant(v * 1e6),
        "energy_source",
    ),
    Metric(
        "temperature_peak_c", "Peak temperature (°C)", lambda v: f"{v:.0f}", "temperature_source"
    ),
)  # fmt: skip


def table2(records: pd.DataFrame) -> pd.DataFrame:
    """A row a metric and method: `metric, column, method, value, ratio, source, trials`.

    The value is the median over the method's trials that were ok, in the column's own unit; the
    ratio is to the first method of the run. A method without an ok trial has empty values.
    """
    methods = list(dict.fromkeys(records["method"]))
    rows = []
    for metric in METRICS:
        values = {name: _value(records, name, metric) for name in methods}
        first = values[methods[0]][0] if methods else None
        for name, (value, source, trials) in values.items():
            ratio = value / first if value is not None and first else None
            rows.append((metric.label, metric.column, name, value, ratio, source, trials))
    return pd.DataFrame(
        rows, columns=["metric", "column", "method", "value", "ratio", "source", "trials"]
    )


def write_table2(records: pd.DataFrame, out: Path) -> list[Path]:
    """`table2.csv`, `.md`, `.tex`."""
    table = table2(records)
    paths = [out / f"table2.{suffix}" for suffix in ("csv", "md", "tex")]
    table.to_csv(paths[0], index=False)
    paths[1].write_text(markdown(table, records))
    paths[2].write_text(latex(table, records))
    return paths


def markdown(table: pd.DataFrame, records: pd.DataFrame) -> str:
    header, *rows = _grid(table)
    lines = [
        f"**Table 2.** {caption(records)}",
        "",
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        *(f"{line}  " for line in footnotes(table, records)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def latex(table: pd.DataFrame, records: pd.DataFrame) -> str:
    """With booktabs."""
    header, *rows = [[_latex_escape(cell) for cell in row] for row in _grid(table)]
    notes = " ".join(_latex_escape(line) for line in footnotes(table, records))
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{_latex_escape(caption(records))} {notes}}}",
        rf"  \begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"    \toprule",
        f"    {' & '.join(header)} " + r"\\",
        r"    \midrule",
        *(f"    {' & '.join(row)} " + r"\\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def console_table(records: pd.DataFrame) -> Table:
    """Table 2 for a terminal."""
    table = table2(records)
    header, *rows = _grid(table)
    shown = Table(title=caption(records), caption="\n".join(footnotes(table, records)))
    shown.add_column(header[0])
    for name in header[1:]:
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(*row)
    return shown


def caption(records: pd.DataFrame) -> str:
    """What was measured, on what."""
    if records.empty:
        return "No trial was recorded."
    return (
        f"Cost of training at the preset {_all(records, 'preset')}, {_all(records, 'data')} data, "
        f"{_all(records, 'device_name')}. In brackets, the ratio to {records['method'].iloc[0]}."
    )


def footnotes(table: pd.DataFrame, records: pd.DataFrame) -> list[str]:
    """Sources, what the words mean, and what went wrong."""
    notes = [
        "Peak memory: live tensor storages in one whole training step; allocated: with the "
        "kernels' scratch. FLOPs: fvcore counts a multiply-add as one, the whole step as two."
    ]
    sources = table.dropna(subset=["source"])
    for label, group in sources.groupby("metric", sort=False):
        notes.append(f"{label}: {', '.join(dict.fromkeys(group['source']))}.")
    missing = [m.label for m in METRICS if table[table["column"] == m.column]["value"].isna().all()]
    if missing:
        notes.append(f"Not available on this machine: {', '.join(missing)}.")
    for row in records[records["status"] != "ok"].itertuples():
        notes.append(f"{row.method}, repeat {row.repeat}: {row.status} ({row.error}).")
    return notes


def _grid(table: pd.DataFrame) -> Iterator[list[str]]:
    """A header and a row a metric, a column a method; what no method has is left out."""
    methods = list(dict.fromkeys(table["method"]))
    yield ["", *methods]
    for metric in METRICS:
        rows = table[table["column"] == metric.column]
        if rows["value"].notna().any():
            yield [metric.label, *(_shown(metric, *pair) for pair in _pairs(rows, methods))]


def _pairs(rows: pd.DataFrame, methods: list[str]) -> Iterator[tuple[float, float]]:
    values = dict(zip(rows["method"], zip(rows["value"], rows["ratio"], strict=True), strict=True))
    for name in methods:
        yield values[name]


def _shown(metric: Metric, value: float, ratio: float) -> str:
    if pd.isna(value):
        return "–"
    return metric.show(value) + (f" ({ratio:.2f}×)" if not pd.isna(ratio) else "")


def _value(
    records: pd.DataFrame, method: str, metric: Metric
) -> tuple[float | None, str | None, int]:
    ok = records[(records["method"] == method) & (records["status"] == "ok")]
    values = ok[metric.column].dropna()
    if values.empty:
        return None, None, 0
    source = ok.loc[values.index[0], metric.source] if metric.source else None
    return float(values.median()), source, len(values)


def _all(records: pd.DataFrame, column: str) -> str:
    return " / ".join(dict.fromkeys(records[column].dropna()))


def _latex_escape(text: str) -> str:
    for character in "\\&%_#$":
        text = text.replace(
            character, rf"\{character}" if character != "\\" else r"\textbackslash "
        )
    return text.replace("µ", r"\textmu{}").replace("×", r"$\times$").replace("°", r"\textdegree{}")
