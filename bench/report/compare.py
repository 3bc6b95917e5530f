"""What differs between two runs: per method and number, in the settings and the environment."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from .compare_quality import quality_grids
from .grid import NOTHING, Cell, Grid, for_terminal, one_line
from .reading import (
    QUALITY_TABLES,
    SETTINGS,
    Evidence,
    Group,
    changes_in_words,
    flat_environment,
    read_evidence,
)
from .summary import Summary
from .tables import METRICS, divide

if TYPE_CHECKING:
    from ..commands import CompareCommand


def run_compare(command: "CompareCommand", console: Console) -> int:
    """Show the differences of two runs; exit status 0, whatever they are."""
    before, after = read_evidence([command.a]), read_evidence([command.b])
    grids = [*_cost_grids(before, after), *quality_grids(before, after)]
    for grid in grids:
        if grid.rows:
            console.print(for_terminal(grid))
            continue
        for line in (grid.caption, *grid.notes):
            console.print(Text(line))
    if not grids:
        text = f"A is {_describe(before)}; B is {_describe(after)}. They have nothing to compare."
        console.print(Text(text))
    environments = (next(iter(each.environments.values()), {}) for each in (before, after))
    changes = list(environment_changes(*environments))
    console.print(Text("In the environment:" if changes else "The environments are the same."))
    for change in changes:
        console.print(Text(f"  {change}"))
    for problem in (*before.problems, *after.problems):
        console.print(Text(f"warning: {problem}", style="yellow"))
    return 0


def environment_changes(a: dict[str, Any], b: dict[str, Any]) -> Iterator[str]:
    """`versions.torch: 2.12.0 → 2.13.0`, a line each; the plan of trials is not environment."""
    flat = (dict(flat_environment(a)), dict(flat_environment(b)))
    for key in dict.fromkeys([*flat[0], *flat[1]]):
        if flat[0].get(key) != flat[1].get(key):
            old, new = (one_line(each.get(key, "not recorded")) for each in flat)
            yield f"{one_line(key)}: {old} → {new}"


def _cost_grids(a: Evidence, b: Evidence) -> Iterator[Grid]:
    for ours in a.groups:
        # Of the same data and source, if there is one: else those numbers are compared, too.
        alike = [
            theirs
            for theirs in b.groups
            if theirs.preset == ours.preset and set(ours.methods) & set(theirs.methods)
        ]
        alike.sort(key=lambda theirs: theirs.shared["data"] != ours.shared["data"])
        if alike:
            yield _cost_grid(ours, alike[0])


def _cost_grid(a: Group, b: Group) -> Grid:
    """A row a method and number; what is the same to the last digit is counted, not listed."""
    rows, same, repeated = [], 0, False
    for method in dict.fromkeys([*a.methods, *b.methods]):
        for metric in METRICS:
            one, other = (group.costs.summary(metric.column, method) for group in (a, b))
            repeated |= any(each is not None and each.low is not None for each in (one, other))
            if one and other and one.value == other.value:
                same += 1
            elif one or other:
                cells = (metric.cell(one), metric.cell(other), Cell(_ratio(one, other)))
                rows.append((Cell(method), Cell(metric.label), *cells))
    notes = [f"{same} of {same + len(rows)} numbers are the same to the last digit."]
    notes += changes_in_words(a.records, b.records, SETTINGS)
    if a.kind != b.kind:
        notes.append(f"A is {a.kind}, B is {b.kind}.")
    if repeated:
        notes.append("In brackets 95 % bootstrap intervals; ≈: they overlap.")
    return Grid(
        "Comparison", f"A: {a.runs[0]}; B: {b.runs[0]} ({a.name})",
        ("Method", "", "A", "B", "B ÷ A"), tuple(rows), tuple(notes),
    )  # fmt: skip


def _ratio(one: Summary | None, other: Summary | None) -> str:
    ratio = divide(other, one)
    if one is None or other is None or ratio is None:
        return "only in B" if one is None else "only in A" if other is None else NOTHING
    return f"{'≈ ' if one.overlaps(other) else ''}{ratio:.3f}×"


def _describe(evidence: Evidence) -> str:
    """`the benchmark run NAME (paper: unet, idm)`."""
    (name,) = evidence.folders
    if evidence.groups:
        found = [f"{group.preset}: {', '.join(group.methods)}" for group in evidence.groups]
        return f"the benchmark run {name} ({'; '.join(found)})"
    quality = [table for file, table in evidence.side_tables.items() if file in QUALITY_TABLES]
    if quality:
        return f"the quality run {name} ({', '.join(dict.fromkeys(quality[0]['method']))})"
    return f"{name}, which is neither a benchmark nor a quality run"
