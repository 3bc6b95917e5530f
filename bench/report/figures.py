"""Figures 3 to 5 of the paper, from the files of a run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

GIB = 2**30
Trial = tuple[str, int]  # method, repeat
PARTS = {
    "parameter": "parameters",
    "gradient": "gradients",
    "optimizer": "optimizer",
    "activation": "activations",
    "other": "other",
}
# Okabe & Ito's colours can be told apart by the colour-blind; the order below also steps in
# lightness, and lines differ in dash, for print in greyscale.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
PART_COLOURS = dict(
    zip(PARTS, ("#0072B2", "#56B4E9", "#CC79A7", "#E69F00", "#999999"), strict=True)
)
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))

_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.dpi": 200,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
    "svg.hashsalt": "idm-bench",
}


def write_peak_memory(records: pd.DataFrame, out: Path) -> list[Path]:
    """Figure 3: the peak of each method, split by what it consists of."""
    rows = _ok(records).dropna(subset=["peak_memory_bytes"]).drop_duplicates("method")
    with _figure(out, "peak_memory", height=0.9 + 0.42 * max(2, len(rows))) as axes:
        if rows.empty:
            return _say_empty(axes, out, "peak_memory", "no trial measured its peak memory")
        left = pd.Series(0.0, index=rows.index)
        for part, label in PARTS.items():
            width = rows[f"{part}_bytes"].astype(float) / GIB
            axes.barh(rows["method"], width, left=left, label=label, color=PART_COLOURS[part])
            left = left + width
        for name, total in zip(rows["method"], left, strict=True):
            axes.annotate(
                f"{total:.3g} GiB", (total, name), (4, 0), textcoords="offset points", va="center"
            )
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, left.max() * 1.18)
        axes.set_xlabel("peak memory of one training step (GiB)")
        _legend_above(axes)
    return _paths(out, "peak_memory")


def write_energy_per_parameter(
    records: pd.DataFrame, samples: pd.DataFrame, out: Path
) -> list[Path]:
    """Figure 4: energy used so far in the window, per parameter of the network."""
    name = "energy_per_parameter"
    with _figure(out, name) as axes:
        parameters = records.set_index(["method", "repeat"])["parameters"].astype(float)
        sources = list(dict.fromkeys(records["energy_source"].dropna()))
        drawn = _draw_over_window(
            axes, records, samples, lambda trial, rows: rows["energy_j"] / parameters[trial] * 1e6
        )
        if not drawn:
            return _say_empty(axes, out, name, "energy is not available on this machine")
        axes.set_ylabel("energy per parameter (µJ)")
        axes.set_title(f"source: {', '.join(sources)}", fontsize=8, loc="left", color="#555555")
    return _paths(out, name)


def write_temperature(records: pd.DataFrame, samples: pd.DataFrame, out: Path) -> list[Path]:
    """Figure 5: temperature of the device over the window."""
    name = "temperature"
    with _figure(out, name) as axes:
        sources = list(dict.fromkeys(records["temperature_source"].dropna()))
        drawn = _draw_over_window(axes, records, samples, lambda _, rows: rows["temperature_c"])
        if not drawn:
            return _say_empty(axes, out, name, "temperature is not available on this machine")
        axes.set_ylabel("temperature (°C)")
        axes.set_title(f"source: {', '.join(sources)}", fontsize=8, loc="left", color="#555555")
    return _paths(out, name)


def _draw_over_window(
    axes: Axes,
    records: pd.DataFrame,
    samples: pd.DataFrame,
    value: Callable[[Trial, pd.DataFrame], pd.Series],
) -> bool:
    """A line a trial, a colour a method; False if there was nothing to draw."""
    methods = list(dict.fromkeys(records["method"]))
    drawn: set[str] = set()
    for (method, repeat), rows in samples.groupby(["method", "repeat"], sort=False):
        if method not in methods:
            continue
        series = value((method, repeat), rows)
        if series.notna().sum() < 2:
            continue
        style = methods.index(method)
        axes.plot(
            rows["elapsed_s"], series,
            label=None if method in drawn else method,
            color=COLOURS[style % len(COLOURS)], linestyle=DASHES[style % len(DASHES)],
            linewidth=1.5,
        )  # fmt: skip
        drawn.add(str(method))
    if drawn:
        axes.set_xlabel("time in the window (s)")
        axes.set_xlim(left=0)
        axes.legend()
    return bool(drawn)


@contextmanager
def _figure(out: Path, name: str, height: float = 3.0) -> Iterator[Axes]:
    """Axes at the width of a journal column and a half, saved as PNG and PDF at the end."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, height))
        yield figure.subplots()
        png, pdf = _paths(out, name)
        # No dates in the files: the same rows make the same bytes.
        figure.savefig(png, metadata={"Software": None})
        figure.savefig(pdf, metadata={"CreationDate": None, "Producer": None, "Creator": None})


def _paths(out: Path, name: str) -> list[Path]:
    return [out / f"{name}.png", out / f"{name}.pdf"]


def _say_empty(axes: Axes, out: Path, name: str, text: str) -> list[Path]:
    """A figure that says in words why it shows nothing."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="#555555")
    return _paths(out, name)


def _legend_above(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, fontsize=8, handlelength=1.2,
                columnspacing=1.2, borderaxespad=0.3)  # fmt: skip


def _ok(records: pd.DataFrame) -> pd.DataFrame:
    return records[records["status"] == "ok"]
