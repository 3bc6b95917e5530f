"""What differs between two quality runs: learning curves at equal steps and minutes, and scores."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from statistics import fmean

import numpy as np
import pandas as pd

from ..records.rows import Setting
from .grid import Cell, Grid, significant
from .learning import BUDGETS, Budget, with_value
from .reading import Evidence, changes_in_words
from .table1 import LABELS, digits, grouped, mean_and_range, score_cell, score_rows

SETTINGS = [
    f.name for f in fields(Setting) if f.name not in {"preset_changes", "seed", "started_at"}
]
SETTINGS += ["budget_bytes", "ema", "validations", "samples", "sampler", "sampler_steps",
             "subjects_train", "subjects_val", "split_seed"]  # fmt: skip
"""Columns of `trained.csv` that were asked for, not found."""
_SCORE = ["method", "modality", "protocol", "timestep", "column"]


def quality_grids(a: Evidence, b: Evidence) -> Iterator[Grid]:
    """Of the methods that both trained; none where there are none."""
    runs = f"A: {next(iter(a.folders))}; B: {next(iter(b.folders))}"
    notes: list[str] = []
    trained = [each.side_tables.get("trained.csv") for each in (a, b)]
    if trained[0] is not None and trained[1] is not None:
        notes = changes_in_words(trained[0], trained[1], SETTINGS)
    for file, compare in (("learning.csv", _curve_grid), ("quality.csv", _score_grid)):
        if file in a.side_tables and file in b.side_tables:
            grid = compare(a.side_tables[file], b.side_tables[file], runs)
            if grid is not None:
                yield replace(grid, notes=(*grid.notes, *notes))
                notes = []


def _curve_grid(a: pd.DataFrame, b: pd.DataFrame, runs: str) -> Grid | None:
    rows = []
    for method in dict.fromkeys(a["method"]):
        for budget in BUDGETS[:2]:
            curves = [_curves(table[table["method"] == method], budget) for table in (a, b)]
            if not all(curves):
                continue
            end = min(x[-1] for of_run in curves for x, _ in of_run)
            found = [[float(np.interp(end, *curve)) for curve in of_run] for of_run in curves]
            amount = f"{end:,.0f}" if budget.unit == 1 else significant(end)
            rows.append(
                (
                    Cell(method), Cell(f"{amount} {budget.name}"),
                    *(Cell(mean_and_range(values, significant)) for values in found),
                    Cell(f"{fmean(found[1]) / fmean(found[0]):.3f}×"),
                )
            )  # fmt: skip
    return Grid(
        "Learning curves", f"Validation MSE of ε, averaged weights. {runs}",
        ("Method", "after", "A", "B", "B ÷ A"), tuple(rows),
        ("After: the last step and minute of training that every seed of both runs reached; values "
         "between validations are interpolated. Of several seeds: their mean, in brackets the "
         "least and the most.",),
    ) if rows else None  # fmt: skip


def _curves(learning: pd.DataFrame, budget: Budget) -> list[tuple[np.ndarray, np.ndarray]]:
    """Budget spent and error, by seed."""
    return [
        (rows[budget.column].to_numpy(dtype=float) / budget.unit, rows["value"].to_numpy())
        for _, rows in with_value(learning).sort_values("step").groupby("seed", dropna=False)
    ]


def _score_grid(a: pd.DataFrame, b: pd.DataFrame, runs: str) -> Grid | None:
    ours, theirs = (grouped(score_rows(each.assign(origin="here")), _SCORE) for each in (a, b))
    rows: list[Sequence[Cell]] = []
    common = [key for key in ours if key in theirs]
    for key in common:
        method, modality, protocol, timestep, column = key
        one, other = (score_cell(scores[key], column) for scores in (ours, theirs))
        if one.value is None or other.value is None or one.value == other.value:
            continue
        difference = other.value - one.value
        place = f"{protocol or ''}{'' if timestep is None else f', t = {timestep}'}"
        rows.append(
            (
                Cell(f"{method}, {modality.upper()}"), Cell(LABELS.get(column, column)),
                Cell(place), one, other,
                Cell(f"{'+' if difference > 0 else ''}{digits(column, difference)}"),
            )
        )  # fmt: skip
    same = f"{len(common) - len(rows)} of {len(common)} scores are the same to the last digit."
    return Grid(
        "Scores", f"Scores of the trained networks. {runs}",
        ("", "score", "protocol", "A", "B", "B − A"), tuple(map(tuple, rows)), (same,),
    ) if common else None  # fmt: skip
