"""Memory over a training step, method by method on the same axes: why inversion saves memory."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.predict import describe
from bench.predict.timeline import Timeline
from bench.probes.memory import Part
from bench.probes.step import Phase
from bench.report.figures import _STYLE, GIB, PART_COLOURS, PARTS

# What stays throughout lies at the bottom, what comes and goes on top.
STACK = (Part.PARAMETER, Part.OPTIMIZER, Part.GRADIENT, Part.ACTIVATION, Part.OTHER)
_INK = "#333333"


def write_timeline(timelines: Sequence[Timeline], out: Path, title: str = "") -> list[Path]:
    """`timeline.png` and `.pdf`: a panel a method, memory to one scale."""
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        rows = len(timelines)
        figure = Figure(figsize=(7.2, 0.95 + 1.55 * rows))
        panels = figure.subplots(rows, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        highest = max(timeline.total.max() for timeline in timelines) / GIB
        for panel, timeline in zip(panels, timelines, strict=True):
            panel.set_ylim(0, highest * 1.22)
            _draw(panel, timeline, highest)
        panels[0].set_xlim(0, 1)
        panels[-1].set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
        panels[-1].set_xlabel("share of the step, each operator as long as on an ideal RTX A5000")
        figure.supylabel("live tensors (GiB)", fontsize=9)
        handles = [
            matplotlib.patches.Patch(color=PART_COLOURS[part], label=PARTS[part]) for part in STACK
        ]
        figure.legend(
            handles=handles, loc="outside upper left", ncols=5, fontsize=8, handlelength=1.0,
            columnspacing=1.4, title=title or None, alignment="left", title_fontsize=9,
        )  # fmt: skip
        png, pdf = out / "timeline.png", out / "timeline.pdf"
        # No dates in the files: the same step makes the same bytes.
        figure.savefig(png, metadata={"Software": None})
        figure.savefig(pdf, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return [png, pdf]


def _draw(axes: Axes, timeline: Timeline, highest: float) -> None:
    kept = timeline.thinned()
    x = np.append(timeline.position[kept], 1.0)
    floor = np.zeros(len(x))
    for part in STACK:
        values = timeline.parts[part][kept] / GIB
        top = floor + np.append(values, values[-1])
        axes.fill_between(x, floor, top, step="post", color=PART_COLOURS[part], linewidth=0)
        floor = top
    axes.step(x, floor, where="post", color=_INK, linewidth=0.5)
    _mark_phases(axes, timeline)
    _mark_peak(axes, timeline, highest)


def _mark_phases(axes: Axes, timeline: Timeline) -> None:
    start = 0.0
    for phase in Phase:
        end = timeline.ends[phase]
        if phase is not Phase.OPTIMIZER:
            axes.axvline(end, color=_INK, linewidth=0.6, linestyle=(0, (4, 2)))
        if end - start > 0.07:
            axes.text(
                (start + end) / 2, 0.985, phase, transform=axes.get_xaxis_transform(),
                ha="center", va="top", fontsize=7, color="#777777",
            )  # fmt: skip
        start = end


def _mark_peak(axes: Axes, timeline: Timeline, highest: float) -> None:
    x, y = timeline.position[timeline.peak_at], timeline.total[timeline.peak_at] / GIB
    axes.plot(x, y, "o", color=_INK, markersize=4.5, markeredgecolor="white", zorder=5)
    axes.axhline(y, color=_INK, linewidth=0.6, linestyle=":", zorder=4)
    axes.set_title(
        f"{timeline.name}   {y:.2f} GiB",
        loc="left",
        fontsize=9,
        fontweight="bold",
        color=_INK,
        pad=3,
    )
    axes.set_title(f"peak: {describe(timeline.peak)}", loc="right", fontsize=7, color=_INK, pad=3)
