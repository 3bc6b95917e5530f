"""Peak memory against depth, volume and batch, each line with its slope."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..sizes import GIB, show_size
from .figures import Picture, line_style, styled
from .grid import as_rows

PANELS = {
    "couplings": ("couplings a level and branch", "coupling"),
    "volume": ("voxels of a step (millions)", "voxel"),
    "batch_size": ("samples in a batch", "sample"),
}


@styled()
def draw_scaling(points: pd.DataFrame, slopes: pd.DataFrame) -> Picture:
    """From the rows of `scale.csv` and `scale_slopes.csv`."""
    methods = list(dict.fromkeys(points["method"]))
    figure = Figure(figsize=(10.2, 3.7))
    for axes, axis in zip(figure.subplots(1, 3), PANELS, strict=True):
        _draw(axes, axis, points[points["axis"] == axis], slopes, methods)
    handles, labels = figure.axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), fontsize=8)
    return Picture("scale", "Peak memory against depth, volume and batch", "", "", figure)


def _draw(
    axes: Axes, axis: str, points: pd.DataFrame, slopes: pd.DataFrame, methods: list[str]
) -> None:
    label, unit = PANELS[axis]
    scale = 1e6 if axis == "volume" else 1
    ends = []
    for slope in as_rows(slopes[slopes["axis"] == axis]):
        style = line_style(methods.index(slope["method"]))
        line = points[points["method"] == slope["method"]].sort_values("amount")
        x, y = line["amount"] / scale, line["peak_memory_bytes"] / GIB
        axes.plot(x, y, marker="o", markersize=3.5, linewidth=1.4, label=slope["method"], **style)
        text = f"{show_size(slope['peak'])} a {unit}"
        if axis == "couplings":  # whether the step stores more, or only has more weights
            text += f",\n{show_size(slope['stored'])} of it stored"
        ends.append((y.iloc[-1], x.iloc[-1], text, style["color"], slope["method"]))
    axes.set_xlabel(label)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    if axis == "couplings":
        axes.set_ylabel("peak of a training step, live tensors (GiB)")
    _label_ends(axes, ends)


def _label_ends(axes: Axes, ends: list[tuple[float, float, str, str, str]]) -> None:
    """The slope of each line at its end, moved apart where lines end close together."""
    if not ends:
        return
    lines = 1 + max(text.count("\n") for _, _, text, *_ in ends)
    gap = (0.01 + 0.045 * lines) * axes.get_ylim()[1]
    furthest = max(x for _, x, *_ in ends)
    at = float("-inf")
    for y, x, text, colour, method in sorted(ends):
        if x < furthest:  # it ends between other lines: written where none is, with its name
            axes.text(
                0.03, 0.97, f"{method}: {text}", transform=axes.transAxes, fontsize=7, color=colour,
                va="top",
            )  # fmt: skip
            continue
        at = max(y, at + gap)
        axes.annotate(
            text, (x, y), xytext=(x + 0.04 * axes.get_xlim()[1], at), fontsize=7, color=colour,
            va="center", annotation_clip=False,
        )  # fmt: skip
    axes.set_xlim(right=axes.get_xlim()[1] * 1.42)
