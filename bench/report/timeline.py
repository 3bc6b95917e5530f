"""Memory over a training step, a panel a method, all to one scale."""

import itertools

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..records.rows import describe_place
from ..sizes import GIB
from .figures import (
    INK,
    MOST_METHODS,
    PART_COLOURS,
    PARTS,
    Picture,
    in_words,
    nothing_to_show,
    short_name,
    styled,
)
from .grid import significant

_PHASES = ("forward", "backward", "optimizer")
_COLUMNS = [f"{part}_bytes" for part in PARTS]


@styled()
def draw_timelines(rows: pd.DataFrame, name: str) -> Picture:
    """A panel a method, memory to one scale.

    Args:
        rows: of `timeline.csv` (`bench.records.rows.Instant`); of a method that has several repeats
            the first is drawn, because they are the same.
        name: of the run or the preset, for the caption.
    """
    title = "Memory over one training step"
    rows = rows.replace([np.inf, -np.inf], np.nan).dropna(subset=["position", *_COLUMNS])
    rows = rows[rows["position"].between(0, 1)].sort_values("position", kind="stable")
    rows = rows[rows["repeat"] == rows.groupby("method")["repeat"].transform("min")]
    rows = rows.assign(total=rows[_COLUMNS].sum(axis=1).astype(float) / GIB)
    methods = list(dict.fromkeys(rows.sort_index()["method"]))[:MOST_METHODS]
    if not methods:
        return nothing_to_show("timeline", title, "no step was followed")
    with matplotlib.rc_context({"axes.grid": False}):
        figure = Figure(figsize=(7.2, 0.95 + 1.55 * len(methods)))
        panels = figure.subplots(len(methods), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    peaks = {}
    for axes, method in zip(panels, methods, strict=True):
        of_method = rows[rows["method"] == method]
        peaks[method] = of_method["total"].max()
        _draw(axes, of_method)
    panels[0].set_xlim(0, 1)
    panels[0].set_ylim(0, max(peaks.values()) * 1.22 or 1)
    panels[-1].set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    panels[-1].set_xlabel("share of the step, each operator as long as on an ideal RTX A5000")
    figure.supylabel("live tensors (GiB)", fontsize=8)
    handles = [
        matplotlib.patches.Patch(color=PART_COLOURS[part], label=label)
        for part, label in PARTS.items()
    ]
    figure.legend(
        handles=handles, loc="outside upper left", ncols=5, handlelength=1.0, columnspacing=1.4
    )
    sources = ", ".join(dict.fromkeys(rows["source"]))
    return Picture(
        "timeline", title,
        f"{name}: live tensors over the one step that was followed. Source: {sources}.",
        "Peaks: " + in_words("GiB live", peaks.items()), figure,
    )  # fmt: skip


def _draw(axes: Axes, rows: pd.DataFrame) -> None:
    """The parts, stacked in the order of `PARTS`."""
    x = np.append(rows["position"], 1.0)
    floor = np.zeros(len(x))
    for part in PARTS:
        values = rows[f"{part}_bytes"].to_numpy(dtype=float) / GIB
        top = floor + np.append(values, values[-1])
        axes.fill_between(x, floor, top, step="post", color=PART_COLOURS[part], linewidth=0)
        floor = top
    axes.step(x, floor, where="post", color=INK, linewidth=0.5)
    _mark_phases(axes, rows)
    _mark_peak(axes, rows)


def _mark_phases(axes: Axes, rows: pd.DataFrame) -> None:
    starts = rows.groupby("phase")["position"].min()
    found = [(phase, starts[phase]) for phase in _PHASES if phase in starts]
    for (phase, start), (_, end) in itertools.pairwise([*found, ("", 1.0)]):
        if start > 0:
            axes.axvline(start, color=INK, linewidth=0.6, linestyle=(0, (4, 2)))
        if end - start > 0.07:
            axes.text(
                (start + end) / 2, 0.985, phase, transform=axes.get_xaxis_transform(),
                ha="center", va="top", fontsize=7,
            )  # fmt: skip


def _mark_peak(axes: Axes, rows: pd.DataFrame) -> None:
    peak = rows.iloc[int(rows["total"].argmax())]
    axes.plot(
        peak["position"], peak["total"], "o", color=INK, markersize=4.5, markeredgecolor="white",
        zorder=5,
    )  # fmt: skip
    axes.axhline(peak["total"], color=INK, linewidth=0.6, linestyle=":", zorder=4)
    layer, operator = (None if pd.isna(peak[key]) else str(peak[key]) for key in
                       ("layer", "operator"))  # fmt: skip
    where = describe_place(str(peak["phase"]), layer, operator)
    name = f"{short_name(peak['method'])}   {significant(peak['total'])} GiB"
    axes.set_title(name, loc="left", fontsize=9, fontweight="bold", pad=3)
    axes.set_title(f"peak: {short_name(where, 90)}", loc="right", fontsize=7, pad=3)
