"""The learning curves: how the validation error falls with steps, minutes and energy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .figures import (
    COLUMN_INCHES,
    INK,
    MOST_METHODS,
    Picture,
    in_words,
    line_style,
    nothing_to_show,
    plain_log_ticks,
    short_name,
    spread,
    styled,
)

PREDICT_ZERO = 1.0
"""Mean squared error of a network that always predicts 0: the variance of ε."""


@dataclass(frozen=True)
class Budget:
    """What a learning curve is drawn against."""

    name: str
    column: str
    """Of `learning.csv`."""
    unit: float
    """What the column is divided by."""
    label: str


BUDGETS = (
    Budget("steps", "step", 1, "training steps"),
    Budget("minutes", "elapsed_s", 60, "training time (minutes)"),
    Budget("energy", "energy_j", 1000, "energy of training in kJ"),
)


@styled()
def learning_curves(learning: pd.DataFrame) -> Picture:
    """Validation MSE of ε against steps, minutes and energy: a line a method.

    Args:
        learning: rows of `learning.csv` (`bench.records.rows.Learning`), and maybe `run`. Of
            several seeds each is a thin line, and their median a thick one.
    """
    name, title = "learning_curve", "Learning curves"
    rows = name_latents(name_runs(with_value(learning)))
    if rows.empty:
        return nothing_to_show(name, title, "nothing was evaluated")
    figure = Figure(figsize=(COLUMN_INCHES, 5.6))
    panels: Sequence[Axes] = figure.subplots(len(BUDGETS), 1, sharey=True)
    for axes, budget in zip(panels, BUDGETS, strict=True):
        _draw_budget(axes, rows, budget)
    plain_log_ticks(panels[0].yaxis)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=3, handlelength=2.2, columnspacing=1.2
    )
    return Picture(name, title, _caption(rows), _content(rows), figure)


def with_value(learning: pd.DataFrame) -> pd.DataFrame:
    """With `value`, the error that is drawn: of the averaged weights, which are the ones that are
    scored and sampled from; where a method has none, of the weights as they are.
    """
    value = learning["val_mse_ema"].astype(float).fillna(learning["val_mse"].astype(float))
    return learning.assign(value=value).dropna(subset=["value"])


def name_runs(rows: pd.DataFrame) -> pd.DataFrame:
    """A method that several runs trained is named with its run: its network may differ."""
    if "run" not in rows:
        return rows
    several = rows.groupby("method")["run"].transform("nunique") > 1
    named = rows["method"] + " (" + rows["run"] + ")"
    return rows.assign(method=rows["method"].mask(several, named))


def name_latents(rows: pd.DataFrame) -> pd.DataFrame:
    """A method whose error is of latents is named so: it compares with no other."""
    of_latents = rows["val_of"] == "latents"
    return rows.assign(method=rows["method"].mask(of_latents, rows["method"] + " (latents)"))


def _draw_budget(axes: Axes, rows: pd.DataFrame, budget: Budget) -> None:
    """One panel: a line a method, and the error of a network that always predicts 0."""
    axes.set_yscale("log")
    axes.axhline(PREDICT_ZERO, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    axes.annotate(
        "always predicting 0", (1, PREDICT_ZERO), (0, 2), xycoords=("axes fraction", "data"),
        textcoords="offset points", ha="right", va="bottom", fontsize=6.5,
    )  # fmt: skip
    axes.set_ylabel("validation MSE of ε")
    axes.set_xlabel(budget.label)
    low, high = rows["value"].min(), max(rows["value"].max(), PREDICT_ZERO)
    axes.set_ylim(max(low, 1e-4) / 1.25, high * 1.5)
    drawn = rows.assign(elapsed_s=rows[budget.column].astype(float) / budget.unit)
    drawn = drawn.dropna(subset=["elapsed_s"])
    for index, method in enumerate(_methods(rows)):
        of_method = drawn[drawn["method"] == method]
        seeds = [one for _, one in of_method.groupby("seed", dropna=False, sort=False)]
        style = line_style(index)
        if not seeds:
            continue
        if len(seeds) == 1:
            x, middle = seeds[0]["elapsed_s"].to_numpy(), seeds[0]["value"].to_numpy()
        else:
            for one in seeds:
                axes.plot(
                    one["elapsed_s"], one["value"], linewidth=0.5, alpha=0.6,
                    color=style["color"], label="_seed",
                )  # fmt: skip
            # Between evaluations the lines of the seeds are straight on this axis, so in the log.
            x, _, middle, _ = spread([one.assign(value=np.log(one["value"])) for one in seeds])
            middle = np.exp(middle)
        axes.plot(x, middle, linewidth=1.4, label=short_name(method), **style)
    if drawn.empty:
        axes.set_xticks([])
        axes.set_xlabel(f"{budget.label}: not available on this machine")
    elif budget.column == "energy_j":
        sources = list(dict.fromkeys(drawn["energy_source"].dropna())) or ["source not recorded"]
        guess = ", an estimate" if "tdp-estimate" in sources else ""
        axes.set_xlabel(f"{budget.label} ({', '.join(sources)}{guess})")
    axes.set_xlim(left=0)


def _methods(rows: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(rows["method"]))[:MOST_METHODS]


def _caption(rows: pd.DataFrame) -> str:
    averaged = rows["val_mse_ema"].notna()
    which = (
        "of the averaged weights" if averaged.all()
        else "of the weights as they are" if not averaged.any()
        else "of the averaged weights where there are any"
    )  # fmt: skip
    latents = (
        " Of latents, the error compares with no other."
        if (rows["val_of"] == "latents").any() else ""
    )  # fmt: skip
    several = rows.groupby("method")["seed"].nunique().max() > 1
    seeds = " Thin: each seed; thick: their median." if several else ""
    return (
        f"Mean squared error of ε on the validation volumes, {which}; a network that always "
        f"predicts 0 has an error of 1.{latents}{seeds}"
    )


def _content(rows: pd.DataFrame) -> str:
    return "At the end of training: " + in_words("", last_errors(rows).items())


def last_errors(rows: pd.DataFrame) -> dict[str, float]:
    """By method, `value` at the end of training, in the median of the seeds."""
    last = rows.sort_values("step", kind="stable").groupby(["method", "seed"], dropna=False).tail(1)
    return {m: last[last["method"] == m]["value"].median() for m in _methods(rows)}
