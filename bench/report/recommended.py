"""Memory over computation of every way that `recommend` predicted, and what of it fits."""

import pandas as pd
from matplotlib.lines import Line2D

from ..sizes import GIB
from .figures import (
    COLOURS,
    INK,
    PAPER,
    Picture,
    draw_axes,
    in_words,
    nothing_to_show,
    plain_log_ticks,
    short_name,
    styled,
)
from .grid import as_rows, significant

KIND_MARKERS = {"exact": "o", "rounded": "s", "another task": "D"}
SAVES = 0.02
"""Of the memory: by so much a slower way must be smaller to be worth its time."""


def frontier(rows: pd.DataFrame) -> pd.DataFrame:
    """The ways that are smaller than all quicker ones that compute the same; quickest first.

    The same: of one network, of one kind, and, where it is another task, of one task.

    Args:
        rows: of `recommend.csv`. What comes back has their `gib` beside.
    """
    rows = rows.assign(gib=rows["peak_allocated_bytes"].astype(float) / GIB)
    rows = rows.sort_values(["step_time_bound_s", "gib"], kind="stable")
    alike = rows.groupby(["network", "kind", "task"], dropna=False)["gib"]
    quicker = alike.transform(lambda gib: gib.cummin().shift())
    return rows[~(rows["gib"] > (1 - SAVES) * quicker)]  # no quicker one: NaN


@styled()
def draw_recommended(table: pd.DataFrame) -> Picture:
    """`recommended`: a point a way, a shape a kind, a colour a network, and the card's memory.

    Args:
        table: rows of `recommend.csv` (`bench.records.rows.Recommended`).
    """
    name, title = "recommended", "Memory over time: what fits"
    rows = table.dropna(subset=["peak_allocated_bytes", "step_time_bound_s"])
    if rows.empty:
        return nothing_to_show(name, title, "nothing could be predicted")
    limit = float(rows["limit_bytes"].iloc[0]) / GIB
    rows = rows.assign(gib=rows["peak_allocated_bytes"].astype(float) / GIB)
    best = frontier(rows[rows["kind"] == "exact"])
    figure, axes = draw_axes(height=4.4 + 0.07 * len(best))
    networks = list(dict.fromkeys(rows["network"]))
    colours = {network: COLOURS[i % len(COLOURS)] for i, network in enumerate(networks)}
    for row in as_rows(rows.drop(best.index)):
        colour = colours[row["network"]]
        axes.plot(
            row["step_time_bound_s"], row["gib"], KIND_MARKERS[row["kind"]], color=colour,
            markersize=3.5, markerfacecolor=colour if row["fits"] else "none", markeredgewidth=0.8,
        )  # fmt: skip
    axes.axhline(limit, color=INK, linewidth=0.8, linestyle=(0, (4, 2)))
    for axis in ("x", "y"):
        getattr(axes, f"set_{axis}scale")("log")
        plain_log_ticks(getattr(axes, f"{axis}axis"))
    axes.margins(x=0.12, y=0.1)
    axes.annotate(
        f"{significant(limit)} GiB to use", (1, limit), (-2, 2), ha="right",
        xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=6.5,
    )  # fmt: skip
    for network, line in best.groupby("network"):
        axes.plot(
            line["step_time_bound_s"], line["gib"], drawstyle="steps-post", linewidth=0.9,
            color=colours[str(network)], zorder=2.1,
        )  # fmt: skip
    labels = []
    for number, row in enumerate(as_rows(best), 1):
        colour, place = colours[row["network"]], (row["step_time_bound_s"], row["gib"])
        inside, digits = (colour, PAPER) if row["fits"] else (PAPER, colour)
        axes.plot(*place, "o", color=colour, markersize=7, markerfacecolor=inside, zorder=3)
        axes.annotate(
            str(number), place, ha="center", va="center_baseline", fontsize=5, zorder=4,
            color=digits,
        )  # fmt: skip
        labels.append(
            Line2D([], [], linestyle="", label=f"{number} {short_name(row['method'], 36)}")
        )
    keys = [
        Line2D([], [], marker=marker, color=INK, linestyle="", markersize=4, label=kind)
        for kind, marker in KIND_MARKERS.items()
        if (rows["kind"] == kind).any()
    ]
    keys += [Line2D([], [], color=colours[each], label=short_name(each)) for each in networks]
    axes.set_xlabel("lower bound of a step's time on an ideal card (s)")
    axes.set_ylabel("memory at the peak (GiB)")
    figure.legend(
        handles=keys, loc="outside upper left", ncols=3, handlelength=1, columnspacing=1.2
    )
    figure.legend(
        handles=labels, loc="outside lower left", ncols=2, handlelength=0, handletextpad=0,
        columnspacing=1.2, fontsize=6,
    )  # fmt: skip
    return Picture(
        name, title,
        f"{rows['gpu'].iloc[0]}. Filled: it fits. On the lines: exact ways that are smaller than "
        "all quicker ones of the same network. Networks differ in what they learn.",
        "On the lines: " + in_words("GiB", zip(best["method"], best["gib"], strict=True)),
        figure,
    )  # fmt: skip
