"""What changed between two runs: per method and column, and in the environment."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from bench.commands import CompareCommand
from bench.report.grid import NOTHING, Cell, Grid, as_rows, for_terminal, one_line
from bench.report.reading import WORKLOAD, Evidence, Group, read_evidence
from bench.report.statistics import FEWEST
from bench.report.summary import Summary, summarise
from bench.report.tables import METRICS, Metric

COLUMNS = ["preset", "method", "column", "a", "a_low", "a_high", "b", "b_low", "b_high",
           "difference", "ratio", "apart"]  # fmt: skip


def run_compare(command: CompareCommand, console: Console) -> int:
    """Show the differences of two runs; exit status 0, whatever they are."""
    before, after = read_evidence([command.a]), read_evidence([command.b])
    pairs = list(_pairs(before, after))
    for ours, theirs in pairs:
        table = differences(ours, theirs)
        grid = differences_grid(table, ours, theirs)
        if grid.rows:
            console.print(for_terminal(grid))
            continue
        for line in (grid.caption, *grid.notes):
            _say(console, line)
    if not pairs:
        _say(console, "The runs have no preset in common: nothing can be compared.")
    changes = list(environment_changes(_environment(before), _environment(after)))
    _say(console, "In the environment:" if changes else "The environments are the same.")
    for change in changes:
        _say(console, f"  {change}")
    for problem in (*before.problems, *after.problems):
        _say(console, f"warning: {problem}", "yellow")
    return 0


def differences(a: Group, b: Group) -> pd.DataFrame:
    """A row a method and column that either run has, in the column's unit.

    `difference` is b − a, `ratio` b ÷ a. `apart` says whether the 95 % intervals lie apart; it is
    empty where neither run has repeats enough and the numbers differ.
    """
    rows = []
    for method in dict.fromkeys([*a.methods, *b.methods]):
        for metric in METRICS:
            one, other = (
                summarise(g.records[g.records["method"] == method], metric.column) for g in (a, b)
            )
            if one is None and other is None:
                continue
            both = one is not None and other is not None
            rows.append(
                {
                    "preset": a.preset,
                    "method": method,
                    "column": metric.column,
                    **_columns("a", one),
                    **_columns("b", other),
                    "difference": other.value - one.value if both else None,  # type: ignore[union-attr]
                    "ratio": other.value / one.value if both and one.value else None,  # type: ignore[union-attr]
                    "apart": _apart(one, other) if both else None,  # type: ignore[arg-type]
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def differences_grid(table: pd.DataFrame, a: Group, b: Group) -> Grid:
    """A row a method and column; what is the same to the last digit is counted, not listed."""
    by_column = {metric.column: metric for metric in METRICS}
    same = table["difference"] == 0
    rows = []
    for row in as_rows(table[~same]):
        metric = by_column[row["column"]]
        rows.append(
            (
                Cell(row["method"]),
                Cell(metric.label),
                Cell(_shown(metric, row, "a")),
                Cell(_shown(metric, row, "b")),
                Cell(_ratio(row)),
            )
        )
    notes = [f"{same.sum()} of {len(table)} numbers are the same to the last digit."]
    notes += list(_workload_changes(a, b))
    if table["a_low"].notna().any() or table["b_low"].notna().any():
        notes.append("In brackets 95 % bootstrap intervals; ≈: they overlap.")
    return Grid(
        "Comparison", f"A: {a.runs[0]}; B: {b.runs[0]} ({a.name})",
        ("Method", "", "A", "B", "B ÷ A"), tuple(rows), tuple(notes),
    )  # fmt: skip


def environment_changes(a: dict[str, Any], b: dict[str, Any]) -> Iterator[str]:
    """`versions.torch: 2.12.0 → 2.13.0`, a line each; the plan of trials is not environment."""
    flat_a, flat_b = dict(_flat(a)), dict(_flat(b))
    for key in dict.fromkeys([*flat_a, *flat_b]):
        if flat_a.get(key) != flat_b.get(key):
            old, new = (one_line(flat.get(key, "not recorded")) for flat in (flat_a, flat_b))
            yield f"{one_line(key)}: {old} → {new}"


def _pairs(a: Evidence, b: Evidence) -> Iterator[tuple[Group, Group]]:
    for ours in a.groups:
        for theirs in b.groups:
            if ours.preset == theirs.preset and ours.data == theirs.data:
                yield ours, theirs
                break
        else:  # measured against predicted, or other data: the numbers are what one wants to see
            fallback = next((g for g in b.groups if g.preset == ours.preset), None)
            if fallback is not None:
                yield ours, fallback


def _workload_changes(a: Group, b: Group) -> Iterator[str]:
    for method in a.methods:
        pair = []
        for group in (a, b):
            rows = group.records[group.records["method"] == method][WORKLOAD]
            pair.append({} if rows.empty else rows.iloc[0].dropna().to_dict())
        changed = [
            f"{name} {pair[0][name]} → {pair[1][name]}"
            for name in WORKLOAD
            if name in pair[0] and name in pair[1] and pair[0][name] != pair[1][name]
        ]
        if changed:
            yield f"{method} does not train on the same: {', '.join(changed)}."
    if a.kind != b.kind:
        yield f"A is {a.kind}, B is {b.kind}."


def _environment(evidence: Evidence) -> dict[str, Any]:
    return next(iter(evidence.environments.values()))


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield key, value
        return
    for name, inner in value.items():
        if not key and name == "trials":
            continue
        yield from _flat(inner, f"{key}.{name}" if key else str(name))


def _columns(name: str, summary: Summary | None) -> dict[str, float | None]:
    if summary is None:
        return {}
    return {name: summary.value, f"{name}_low": summary.low, f"{name}_high": summary.high}


def _apart(one: Summary, other: Summary) -> bool | None:
    if one.value == other.value:
        return False
    if one.low is None and other.low is None and min(one.trials, other.trials) < FEWEST:
        return None
    return not one.overlaps(other)


def _shown(metric: Metric, row: dict[str, Any], name: str) -> str:
    if pd.isna(row[name]):
        return NOTHING
    text = metric.show(row[name])
    if pd.notna(row[f"{name}_low"]):
        text += f" [{metric.show(row[f'{name}_low'])}, {metric.show(row[f'{name}_high'])}]"
    return text


def _ratio(row: dict[str, Any]) -> str:
    if pd.isna(row["ratio"]):
        return "only in B" if pd.isna(row["a"]) else "only in A" if pd.isna(row["b"]) else NOTHING
    about = "≈ " if row["apart"] is False else ""
    return f"{about}{row['ratio']:.3f}×"


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style))
