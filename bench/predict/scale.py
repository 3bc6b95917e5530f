"""The command `scale`: how the peak grows with depth, volume and batch, and by how much."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console

from ..commands import ScaleCommand
from ..errors import UserError
from ..harness.console import say
from ..methods import METHODS, find_methods
from ..presets import Overrides, Workload
from ..records.files import read_table, write_rows
from ..records.rows import Point, Slope, setting_columns
from ..report.grid import Cell, Grid, for_terminal
from ..sizes import show_size
from .cluster import in_words, refuse_what_cannot_be, spread_columns
from .parallel import side_by_side
from .peaks import open_folder, refusals_in_a_line, say_assumed
from .prediction import predict_method

AXES = {
    "couplings": ((1, 2, 4, 8), "coupling", "couplings a level and branch"),
    "volume": ((32, 64, 96, 128), "voxel", "voxels of a step"),
    "batch_size": ((1, 2, 4, 8), "sample", "samples in a batch"),
}
"""What is varied -> its values, what the slope is per, what it is called."""


def run_scale(command: ScaleCommand, console: Console) -> int:
    methods, spread = find_methods(command.models), (command.gpus, command.shard)
    for method in methods:
        refuse_what_cannot_be(*spread, method.name, method.technique_names)
    open_folder(command.out)
    jobs = [
        (method.name, command.preset, axis, value, work, *spread)
        for method in methods
        for axis in AXES
        for value, work in sweep(method.name, axis, command)
    ]
    points = side_by_side(predict_point, jobs, console, "Predicting")
    slopes = fit_slopes(points)
    paths = [command.out / "scale.csv", command.out / "scale_slopes.csv"]
    write_rows(paths[0], Point, points)
    write_rows(paths[1], Slope, slopes)

    from ..report.scaling import draw_scaling

    points_table, slopes_table = read_table(paths[0], Point), read_table(paths[1], Slope)
    paths += draw_scaling(points_table, slopes_table).save(command.out)
    console.print(for_terminal(_grid(slopes, in_words(*spread))))
    say_assumed(methods, console)
    for path in paths:
        say(console, f"  {path}")
    return 0


def sweep(name: str, axis: str, command: ScaleCommand) -> list[tuple[int, Workload]]:
    """The workloads of one line; those that the method cannot train on are left out.

    Of a volume, what is varied is the longest side; the proportions are those of --volume.
    """
    method, found = METHODS[name], []
    proportions = method.workload(command.preset, command.overrides).volume
    for value in AXES[axis][0]:
        changed: dict[str, Any] = {axis: proportions.scaled(value) if axis == "volume" else value}
        overrides: Overrides = replace(command.overrides, **changed)
        try:
            found.append((value, method.workload(command.preset, overrides)))
        except UserError:
            if axis != "volume":  # a side may be no multiple of what the network halves
                raise
    return found


def predict_point(job: tuple[str, str, str, int, Workload, int, bool]) -> Point:
    name, preset, axis, value, work, gpus, shard = job
    with refusals_in_a_line(METHODS[name]):
        prediction = predict_method(
            METHODS[name], work, count_forward=False, gpus=gpus, shard=shard
        )
    parts: dict[str, Any] = {f"{part}_bytes": n for part, n in prediction.parts.items()}
    return Point(
        **METHODS[name].columns(),
        **setting_columns(work),
        **spread_columns(gpus, shard),
        method=name,
        preset=preset,
        axis=axis,
        value=value,
        amount=work.patch.voxels if axis == "volume" else value,
        parameters=prediction.parameters,
        peak_memory_bytes=prediction.peak_memory_bytes,
        **parts,
        stored_bytes=prediction.stored_bytes,
    )


def fit_slopes(points: Sequence[Point]) -> list[Slope]:
    """One for each line of at least two points; none for a depth that a method does not have."""
    slopes = []
    for method, axis in dict.fromkeys((point.method, point.axis) for point in points):
        line = [point for point in points if (point.method, point.axis) == (method, axis)]
        same = len({point.parameters for point in line}) == 1
        if len(line) < 2 or (axis == "couplings" and same):
            continue
        amount = np.array([point.amount for point in line], dtype=float)
        peak = np.array([point.peak_memory_bytes for point in line], dtype=float)
        stored = np.array([point.stored_bytes for point in line], dtype=float)
        slope, start = np.polyfit(amount, peak, 1)
        deviation = float(np.abs(peak - (start + slope * amount)).max())
        per_unit = float(np.polyfit(amount, stored, 1)[0])
        slopes.append(
            Slope(
                method=method,
                kind=line[0].kind,
                axis=axis,
                peak=float(slope),
                stored=per_unit,
                deviation=deviation,
            )
        )
    return slopes


def _grid(slopes: Sequence[Slope], where: str) -> Grid:
    rows = [
        (
            Cell(slope.method),
            Cell(slope.kind or ""),
            Cell(AXES[slope.axis][1]),
            *(Cell(show_size(each)) for each in (slope.peak, slope.stored, slope.deviation)),
        )
        for slope in slopes
    ]
    return Grid(
        "Slopes", f"Bytes per unit, by least squares: peak, and what is stored for backward{where}",
        ("method", "kind", "per", "peak", "stored", "furthest from the line"), tuple(rows),
    )  # fmt: skip
