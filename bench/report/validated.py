"""What `validate` found, as tables, a picture and a page: from `validation.csv` alone."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ..sizes import show_size
from .figures import (
    COLOURS,
    COLUMN_INCHES,
    INK,
    Picture,
    draw_axes,
    nothing_to_show,
    short_name,
    styled,
)
from .grid import NOTHING, Cell, Grid, Row, as_rows, one_line, significant
from .page import write_validation_page

_MEASURES = {"live": "tensors", "allocated": "allocated", "reserved": "reserved"}


def memory_grid(table: pd.DataFrame) -> Grid:
    """Predicted and measured bytes of each method."""
    rows = as_rows(table)
    kinds = [kind for kind in _MEASURES if _any(rows, f"measured_{kind}_bytes")]
    header = ["", "same bytes, same order"]
    for kind in kinds:
        header += [f"{_MEASURES[kind]}: predicted", "measured", "off"]
    return Grid(
        "Prediction beside measurement",
        "Memory of a training step. " + f"{_where(rows)}.",
        tuple(header),
        tuple(
            (
                Cell(one_line(row["method"])),
                Cell(_agreement(row)),
                *(cell for kind in kinds for cell in _beside(row, kind)),
            )
            for row in rows
        ),
        tuple(_differences(rows)),
    )


def beside_grid(table: pd.DataFrame) -> Grid:
    """What a step needs beside its tensors, and what it does."""
    rows = as_rows(table)

    def cells(row: Row) -> tuple[Cell, ...]:
        flops, seconds = _number(row, "measured_flops_step"), _number(row, "step_time_s")
        predicted = _number(row, "predicted_flops_step")
        rate = flops / seconds / 1e12 if flops and seconds else None
        return (
            Cell(one_line(row["method"])),
            *(_size(row, f"{name}_bytes") for name in ("context", "rest", "scratch")),
            _size(row, "replayed_reserved_bytes"),
            _plain(_number(row, "replayed_differences")),
            _plain(_number(row, "waits")),
            Cell(_same_flops(flops, predicted)),
            Cell(NOTHING if seconds is None else f"{1000 * seconds:,.1f}", seconds),
            Cell(NOTHING if rate is None else f"{rate:.2f}", rate),
        )  # fmt: skip

    return Grid(
        "Beside the tensors",
        "Context: device memory outside of the allocator. Stays: given out between steps and no "
        "tensor (cuBLAS). Scratch: the most that one operator asks for beside its results. "
        "Replayed: what our model of the allocator makes of the card's own requests, and after how "
        "many of them it holds another amount.",
        ("", "context", "stays", "scratch", "replayed: reserved", "differs", "waits in a step",
         "FLOPs as predicted", "ms a step", "TFLOP/s"),
        tuple(cells(row) for row in rows),
        tuple(
            f"{one_line(row['method'])}: {label} {one_line(row[column])}"
            for row in rows
            for column, label in (("scratch", "scratch:"), ("waits_at", "waits at"),
                                  ("replayed_first", "replay,"))
            if not _is_empty(row[column])
        ),
    )  # fmt: skip


@styled()
def draw_validation(table: pd.DataFrame) -> Picture:
    """Predicted against measured, a line a method: how far the measurement is off, in per cent."""
    title, name = "Measured against predicted", "validation"
    rows = as_rows(table)
    points = [
        (short_name(row["method"]), kind, off)
        for row in rows
        for kind in _MEASURES
        if (off := _off(row, kind)) is not None
    ]
    if not points:
        return nothing_to_show(name, title, "no method was measured")
    methods = list(dict.fromkeys(method for method, _, _ in points))
    figure, axes = draw_axes(height=1.0 + 0.3 * len(methods))
    for index, (kind, label) in enumerate(_MEASURES.items()):
        of_kind = [(100 * off, methods.index(m)) for m, k, off in points if k == kind]
        if of_kind:
            x, y = zip(*of_kind, strict=True)
            axes.plot(x, y, "osD"[index], color=COLOURS[index], label=label, markersize=5)
    axes.axvline(0, color=INK, linewidth=0.7)
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    reach = max(1.0, *(abs(100 * off) for _, _, off in points)) * 1.15
    axes.set_xlim(-reach, reach)
    axes.set_xlabel("measured beyond predicted (% of the prediction)")
    figure.legend(loc="outside upper center", ncols=3)
    words = "; ".join(
        f"{method} {_MEASURES[kind]} {100 * off:+.2f} %" for method, kind, off in points
    )
    return Picture(
        name, title, "Peaks of a step: at 0 the prediction is exact, to the right it is too small.",
        "; ".join(words), figure,
    )  # fmt: skip


@styled()
def draw_cooling(readings: pd.DataFrame) -> Picture:
    """Temperature and power of a card that is heated and left alone."""
    title, name = "Heating and cooling", "cooling"
    rows = readings.dropna(subset=["elapsed_s", "temperature_c", "power_w"])
    if rows.empty:
        return nothing_to_show(name, title, "the card was not heated (--cooling)")
    figure = Figure(figsize=(COLUMN_INCHES, 3.0))
    panels = figure.subplots(2, 1, sharex=True)
    columns = {"temperature_c": "temperature (°C)", "power_w": "power (W)"}
    for axes, (column, label) in zip(panels, columns.items(), strict=True):
        axes.plot(rows["elapsed_s"], rows[column], color=COLOURS[0])
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0 if column == "power_w" else None)
    spans = rows.groupby("stage", sort=False)["elapsed_s"].agg(["min", "max"])
    least = 0.1 * (rows["elapsed_s"].max() - rows["elapsed_s"].min())
    for stage, (start, end) in spans.iterrows():
        for axes in panels:
            axes.axvline(start, color=INK, linewidth=0.6, linestyle=(0, (4, 2)))
        if end - start > least:  # there is room for its name
            panels[0].annotate(
                short_name(str(stage)), (start, 1), xycoords=("data", "axes fraction"),
                xytext=(2, 2), textcoords="offset points", fontsize=7,
            )  # fmt: skip
    panels[-1].set_xlabel("seconds")
    words = ", ".join(
        f"{stage} up to {group['temperature_c'].max():.0f} °C and {group['power_w'].max():.0f} W"
        for stage, group in rows.groupby("stage", sort=False)
    )
    caption = "The card under load, idle with a CUDA context, and without one."
    return Picture(name, title, caption, words, figure)


def write_validation(
    table: pd.DataFrame, readings: pd.DataFrame, environment: dict[str, Any], out: Path
) -> list[Path]:
    """`validation.html`, and its pictures as PNG and PDF."""
    pictures = [
        picture
        for picture in (draw_validation(table), draw_cooling(readings))
        if picture.figure is not None
    ]
    grids = [memory_grid(table), beside_grid(table)]
    page = write_validation_page(
        _where(as_rows(table)), verdict(table), pictures, grids, environment, out
    )
    return [page, *(path for picture in pictures for path in picture.save(out))]


def verdict(table: pd.DataFrame) -> str:
    """The page's first sentence."""
    rows = as_rows(table)
    exact = sum(_agreement(row) == "yes" for row in rows)
    text = f"{exact} of {len(rows)} methods: every allocation and release of a step as predicted."
    for kind in ("allocated", "reserved"):
        found = [abs(off) for row in rows if (off := _off(row, kind)) is not None]
        if found:
            text += f" {_MEASURES[kind].capitalize()}: off by at most {100 * max(found):.2f} %."
    return text


def _where(rows: list[Row]) -> str:
    """The device, in words."""
    names = dict.fromkeys(
        one_line(row["device"] if _is_empty(row["device_name"]) else row["device_name"])
        for row in rows
    )
    return ", ".join(names) or "no device"


def _agreement(row: Row) -> str:
    if _number(row, "measured_changes") is None:
        return one_line(row["status"])
    if not _is_empty(row["first_difference"]):
        return "no"
    return "yes"


def _differences(rows: list[Row]) -> list[str]:
    found = []
    for row in rows:
        for column in ("first_difference", "error"):
            if not _is_empty(row[column]):
                found.append(f"{one_line(row['method'])}: {one_line(row[column])}")
    return found


def _beside(row: Row, kind: str) -> tuple[Cell, Cell, Cell]:
    predicted = _number(row, f"predicted_{kind}_bytes")
    measured = _number(row, f"measured_{kind}_bytes")
    off = _off(row, kind)
    return (
        Cell(NOTHING if predicted is None else show_size(predicted), predicted),
        Cell(NOTHING if measured is None else show_size(measured), measured),
        Cell(NOTHING if off is None else "0" if off == 0 else f"{100 * off:+.2f} %", off),
    )


def _off(row: Row, kind: str) -> float | None:
    predicted = _number(row, f"predicted_{kind}_bytes")
    measured = _number(row, f"measured_{kind}_bytes")
    return measured / predicted - 1 if predicted and measured is not None else None


def _same_flops(measured: float | None, predicted: float | None) -> str:
    if measured is None or predicted is None:
        return NOTHING
    if measured == predicted:
        return "yes"
    return f"{significant(measured / 1e9)} GFLOP, not {significant(predicted / 1e9)}"


def _size(row: Row, column: str) -> Cell:
    value = _number(row, column)
    return Cell(NOTHING) if value is None else Cell(show_size(value), value)


def _plain(value: float | None) -> Cell:
    return Cell(NOTHING) if value is None else Cell(f"{value:,.0f}", value)


def _number(row: Row, column: str) -> float | None:
    value = row.get(column)
    return None if value is None or _is_empty(value) else float(value)


def _any(rows: list[Row], column: str) -> bool:
    return any(_number(row, column) is not None for row in rows)


def _is_empty(value: Any) -> bool:
    return value is None or value is pd.NA or value != value
