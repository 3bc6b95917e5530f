"""Figures 3 to 5 of the paper, and the frontier of memory over computation.

A figure is drawn once, as a `Picture`, and saved as PNG and PDF for print, or as SVG for the page.
All are as wide as a journal's column. Methods differ in colour and dash, parts in lightness: both
can be told apart in greyscale and by the colour-blind.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..records.files import replace_file
from ..sizes import GIB
from . import published
from .grid import as_rows, significant
from .reading import Group
from .summary import million_voxels

PARTS = {
    "parameter": "parameters",
    "optimizer": "optimizer",
    "gradient": "gradients",
    "activation": "activations",
    "other": "other",
}
"""In the order of the stack: first what stays throughout a step, then what comes and goes."""
# Okabe & Ito's colours can be told apart by the colour-blind. Neighbours in the stack step in
# lightness; activations, which the methods are about, are the one warm colour.
PART_COLOURS = dict(
    zip(PARTS, ("#24466F", "#56B4E9", "#0072B2", "#E69F00", "#D0D0D0"), strict=True)
)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
DASHES = ("-", (0, (5, 2)), (0, (6, 2, 1, 2)), (0, (1, 1.2)), (0, (5, 1)), (0, (3, 1, 1, 1)), "-")
MARKERS = "osD^vPX"
COLUMN_INCHES = 3.5
MOST_METHODS = 24
"""Shown in one figure; more would be unreadable, and a picture has a largest size."""

# The page replaces these three by its own colours, for its dark mode.
INK, LINE, PAPER = "#1f2328", "#dddddd", "#ffffff"

_STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters on every machine
    "font.size": 8,
    "text.color": INK,
    "text.parse_math": False,  # names are foreign text: a $ is a $
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "figure.dpi": 300,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
    "svg.hashsalt": "idm-bench",
    "svg.fonttype": "none",  # text stays text: small, and set in the page's own letters
}


@dataclass(frozen=True)
class Picture:
    """A drawn figure, and its words."""

    name: str
    """Of its files."""
    title: str
    caption: str
    """What is shown, and where it came from."""
    content: str
    """Its content in words, for those who cannot see it."""
    figure: Figure | None
    """None where there is nothing to draw; `content` says why."""
    empty: bool = False
    """Whether a figure, if there is one, only says why it shows nothing."""

    def __post_init__(self) -> None:
        if self.figure is not None:  # lay it out once, not for each of its files
            self.figure.draw_without_rendering()
            self.figure.set_layout_engine("none")

    def save(self, out: Path, suffix: str = "") -> list[Path]:
        """PNG and PDF. No dates in the files: the same rows make the same bytes."""
        if self.figure is None:
            return []
        dates = {"png": ["Software"], "pdf": ["CreationDate", "Producer", "Creator"]}
        written = []
        for kind, unwanted in dates.items():
            drawn = io.BytesIO()  # on a full disk, matplotlib would fail in its own ways
            with styled():
                self.figure.savefig(drawn, format=kind, metadata=dict.fromkeys(unwanted))
            written.append(out / f"{self.name}{suffix}.{kind}")
            replace_file(written[-1], drawn.getvalue())
        return written

    def svg(self, prefix: str) -> str:
        """To be set into a page, whose ids must not clash and which has a dark mode."""
        assert self.figure is not None
        text = io.StringIO()
        with styled():
            self.figure.savefig(
                text, format="svg", transparent=True,
                metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
            )  # fmt: skip
        return themed_svg(text.getvalue(), prefix)


def themed_svg(svg: str, prefix: str) -> str:
    """An SVG file of matplotlib as an element of an HTML page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", svg)
    for _ in ("width", "height"):  # the page decides its size
        svg = re.sub(r'(<svg [^>]*?)\s(?:width|height)="[^"]*pt"', r"\1", svg, count=1)
    for colour, variable in ((INK, "currentColor"), (LINE, "var(--line)"), (PAPER, "var(--page)")):
        svg = svg.replace(colour, variable)
    return svg


def draw_all(group: Group) -> list[Picture]:
    """Figures 3, 4, 5 and the frontier of one group."""
    drawn = [draw(group) for draw in (peak_memory, energy_per_parameter, temperature, frontier)]
    left_out = len(group.methods) - MOST_METHODS
    if left_out <= 0:
        return drawn
    also = f" {left_out} more methods are not drawn."
    return [replace(picture, caption=picture.caption + also) for picture in drawn]


@contextmanager
def styled() -> Iterator[None]:
    """The style of all figures of the report, for what is drawn inside.

    Without warnings about letters of foreign names that the font does not have.
    """
    with warnings.catch_warnings(), matplotlib.rc_context(_STYLE):
        warnings.filterwarnings("ignore", message="Glyph")
        yield


@styled()
def peak_memory(group: Group) -> Picture:
    """Figure 3: the peak of each method, split by what it consists of."""
    rows = _median_trials(group)
    title, name = "Figure 3. Peak memory of one training step", "peak_memory"
    if rows.empty:
        return nothing_to_show(name, title, "no trial measured its peak memory")
    figure, axes = draw_axes(height=0.95 + 0.26 * max(3, len(rows)))
    left = pd.Series(0.0, index=rows.index)
    shares = {label: rows[f"{part}_bytes"].astype(float) / GIB for part, label in PARTS.items()}
    total = rows["peak_memory_bytes"].astype(float) / GIB
    rest = total - sum(share.fillna(0) for share in shares.values())
    if (rest > 0.001 * total).any():
        shares["not split"] = rest.clip(lower=0)
    colours = [*PART_COLOURS.values(), PAPER]
    for (label, width), colour in zip(shares.items(), colours, strict=False):
        hatch = "////" if label == "not split" else None
        edge = INK if hatch else PAPER
        axes.barh(
            rows["method"], width.fillna(0), left=left, label=label, color=colour, edgecolor=edge,
            linewidth=0.4, height=0.72, hatch=hatch,
        )  # fmt: skip
        left = left + width.fillna(0)
    marks = _mark_published(axes, list(rows["method"])) if group.preset == "paper" else {}
    for method, value in zip(rows["method"], total, strict=True):
        end, gap = max(value, marks.get(method, 0)), 6 if method in marks else 3
        axes.annotate(
            significant(value), (end, method), (gap, 0), textcoords="offset points", va="center"
        )
    most = max(total.max(), *marks.values(), 0)
    axes.set_yticks(range(len(rows)), [_named(group, method) for method in rows["method"]])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlim(0, most * 1.16 if most > 0 else 1)
    axes.set_xlabel("peak memory of one training step (GiB)")
    handles, labels = axes.get_legend_handles_labels()  # lines come before bars: the mark first
    figure.legend(
        handles[bool(marks):] + handles[:bool(marks)], labels[bool(marks):] + labels[:bool(marks)],
        loc="outside upper left", ncols=3, handlelength=1, columnspacing=1.2,
    )  # fmt: skip
    sources = ", ".join(dict.fromkeys(rows["peak_memory_source"].dropna()))
    return Picture(
        name, title, f"{group.name}. Live tensors at the peak. Source: {sources}.",
        in_words("GiB live", zip(rows["method"], total, strict=True)), figure,
    )  # fmt: skip


def energy_per_parameter(group: Group) -> Picture:
    """Figure 4: energy used so far in the window, per parameter of the network."""
    parameters = group.ok.set_index("trial")["parameters"].astype(float)
    return _over_window(
        group, "energy_per_parameter", "Figure 4. Energy per parameter", "energy_source",
        "energy per parameter (µJ)",
        lambda rows: rows["energy_j"] / rows["trial"].map(parameters) * 1e6,
    )  # fmt: skip


def temperature(group: Group) -> Picture:
    """Figure 5: temperature of the device over the window."""
    return _over_window(
        group, "temperature", "Figure 5. Temperature", "temperature_source",
        "temperature (°C)", lambda rows: rows["temperature_c"],
    )  # fmt: skip


@styled()
def frontier(group: Group) -> Picture:
    """Memory over computation; a line connects the methods that no other beats."""
    name, title = "frontier", "Memory over computation"
    points = frontier_points(group)
    if points.empty:
        return nothing_to_show(name, title, "no trial has both its peak and its FLOPs")
    figure, axes = draw_axes(height=2.7)
    best = points[points["best"]].sort_values("gflop")
    axes.plot(
        best["gflop"], best["gib"], drawstyle="steps-post", color=INK, linewidth=0.8, zorder=1,
    )  # fmt: skip
    for row in as_rows(points):
        style = group.methods.index(row["method"])
        colour = COLOURS[style % len(COLOURS)]
        axes.plot(
            row["gflop"], row["gib"], MARKERS[style % len(MARKERS)], markersize=6, color=colour,
            markerfacecolor=colour if row["best"] else "none", label=_named(group, row["method"]),
        )  # fmt: skip
    for axis, column in (("x", "gflop"), ("y", "gib")):
        low, high = points[column].min(), points[column].max()
        if low > 0 and high > 4 * low:
            getattr(axes, f"set_{axis}scale")("log")
            getattr(axes, f"set_{axis}lim")(low / 1.6, high * 1.6)
            plain_log_ticks(getattr(axes, f"{axis}axis"))
        else:
            getattr(axes, f"set_{axis}lim")(0, high * 1.25 or 1)
    axes.set_xlabel("FLOPs of a step, per million voxels (G)")
    axes.set_ylabel("peak memory (GiB)")
    figure.legend(loc="outside upper left", ncols=3, handlelength=1, columnspacing=1.2)
    return Picture(
        name, title,
        f"{group.name}. Memory of the live tensors. On the line: methods that no other beats in "
        "both. Hollow: another method needs less of one and no more of the other.",
        "On the frontier: " + in_words("GiB live", zip(best["method"], best["gib"], strict=True)),
        figure,
    )  # fmt: skip


def frontier_points(group: Group) -> pd.DataFrame:
    """`method, gflop` (of a step, per million voxels), `gib`, `best` (no other method beats it)."""
    rows = _median_trials(group).dropna(subset=["flops_step"])
    points = pd.DataFrame(
        {
            "method": rows["method"],
            "gflop": rows["flops_step"].astype(float) / million_voxels(rows) / 1e9,
            "gib": rows["peak_memory_bytes"].astype(float) / GIB,
        }
    )  # fmt: skip
    points["best"] = [
        not ((points["gflop"] <= x) & (points["gib"] <= y)
             & ((points["gflop"] < x) | (points["gib"] < y))).any()
        for x, y in zip(points["gflop"], points["gib"], strict=True)
    ]  # fmt: skip
    return points


@styled()
def _over_window(
    group: Group, name: str, title: str, source: str, label: str,
    value: Callable[[pd.DataFrame], pd.Series],
) -> Picture:  # fmt: skip
    """A line a method: the median of its trials over the window, shaded from least to most."""
    samples = group.samples[group.samples["trial"].isin(set(group.ok["trial"]))]
    samples = samples.assign(value=value(samples).astype(float)).dropna(subset=["value"])
    figure, axes = draw_axes(height=2.5)
    last = {}
    repeated = False
    for index, method in enumerate(group.methods[:MOST_METHODS]):
        trials = [rows for _, rows in samples[samples["method"] == method].groupby("trial")]
        trials = [rows for rows in trials if len(rows) > 1]
        if not trials:
            continue
        times, low, middle, high = spread(trials)
        style = line_style(index)
        axes.plot(times, middle, label=_named(group, method), linewidth=1.4, **style)
        if len(trials) > 1:
            repeated = True
            axes.fill_between(times, low, high, color=style["color"], alpha=0.18, linewidth=0)
        last[method] = middle[-1]
    if not last:
        if group.kind == "predicted":
            return nothing_to_show(name, title, "predicted, not run")
        # A run leaves all of the paper's figures; what no sensor could tell, one says in words.
        axes.set_axis_off()
        reason = "not available on this machine"
        axes.text(0.5, 0.5, f"{label}: {reason}", ha="center", va="center", wrap=True)
        return nothing_to_show(name, title, reason, figure)
    axes.set_xlabel("time in the window (s)")
    axes.set_ylabel(label)
    axes.set_xlim(left=0)
    figure.legend(loc="outside upper left", ncols=3, handlelength=2.2, columnspacing=1.2)
    sources = ", ".join(dict.fromkeys(group.ok[source].dropna())) or "not recorded"
    shade = " Line: median of the repeats; shade: from least to most." if repeated else ""
    unit = re.search(r"\((.+)\)", label)
    assert unit is not None
    return Picture(
        name, title, f"{group.name}.{shade} Source: {sources}.",
        "At the end of the window: " + in_words(unit[1], last.items()), figure,
    )  # fmt: skip


def spread(trials: Sequence[pd.DataFrame]) -> tuple[np.ndarray, ...]:
    """Times up to the shortest trial's end, and least, median, most of the trials there."""
    end = min(rows["elapsed_s"].iloc[-1] for rows in trials)
    start = max(rows["elapsed_s"].iloc[0] for rows in trials)
    times = np.linspace(min(start, end), end, 200)
    values = np.stack([np.interp(times, rows["elapsed_s"], rows["value"]) for rows in trials])
    return times, values.min(0), np.median(values, 0), values.max(0)


def _median_trials(group: Group) -> pd.DataFrame:
    """For each method the one trial whose peak is the (lower) median: its parts add up."""
    rows = group.ok.dropna(subset=["peak_memory_bytes"])
    rows = rows[rows["method"].isin(rows["method"].drop_duplicates().head(MOST_METHODS))]
    chosen = [
        of_method.sort_values("peak_memory_bytes", kind="stable").iloc[[(len(of_method) - 1) // 2]]
        for _, of_method in rows.groupby("method", sort=False)
    ]
    return pd.concat(chosen) if chosen else rows


def _mark_published(axes: Axes, methods: list[str]) -> dict[str, float]:
    """A diamond where the paper says the peak is; returns where, in GiB."""
    marks = {
        name: published.costs()[name, "peak_memory_bytes"].value / GIB
        for name in methods
        if (name, "peak_memory_bytes") in published.costs()
    }
    if marks:
        axes.plot(
            list(marks.values()), list(marks), "D", markersize=5, markerfacecolor=PAPER,
            markeredgecolor=INK, label="paper, Table 2", linestyle="none", zorder=5,
        )  # fmt: skip
    return marks


def plain_log_ticks(axis: Any) -> None:
    """1, 2, 5, 10 in ordinary digits: few people read 6×10⁻²."""
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5), numticks=8))
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(matplotlib.ticker.NullLocator())


def draw_axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(COLUMN_INCHES, height))
    return figure, figure.subplots()


def nothing_to_show(name: str, title: str, reason: str, figure: Figure | None = None) -> Picture:
    return Picture(name, title, "", reason, figure, empty=True)


def line_style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)]}


def short_name(name: str, most: int = 24) -> str:
    """A foreign name may be longer than the figure."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _named(group: Group, method: str) -> str:
    """With its kind in a second line, unless that is exact."""
    return short_name(method) + group.costs.named(method).removeprefix(method).replace(" ", "\n", 1)


def in_words(unit: str, values: Any) -> str:
    return ", ".join(f"{name} {significant(value)} {unit}" for name, value in values)
