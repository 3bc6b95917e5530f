"""The command `scale`: how the peak grows with depth, volume and batch, and by how much."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from bench.commands import ScaleCommand
from bench.errors import UserError
from bench.methods import METHODS, find_methods
from bench.parallel import in_processes
from bench.predict.command import open_folder
from bench.predict.prediction import predict_method
from bench.presets import Overrides, Workload
from bench.sizes import show_size

AXES = {
    "couplings": ((1, 2, 4, 8), "coupling", "couplings a level and branch"),
    "volume": ((32, 64, 96, 128), "voxel", "voxels of a step"),
    "batch_size": ((1, 2, 4, 8), "sample", "samples in a batch"),
}
"""What is varied -> its values, what the slope is per, what it is called."""


@dataclass(frozen=True)
class Point:
    """One prediction of a sweep. Bytes at the peak, but for `stored_bytes`."""

    method: str
    axis: str
    value: int
    """Of the flag: couplings, side of the volume, batch size."""
    amount: int
    """What the slope is per: couplings, voxels that a step sees, samples."""
    parameters: int
    peak_memory_bytes: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    other_bytes: int
    stored_bytes: int
    """Activations alive when the backward pass begins: what the method stores."""


@dataclass(frozen=True)
class Slope:
    """A straight line through a sweep, by least squares, in bytes per unit of the axis."""

    method: str
    axis: str
    peak: float
    stored: float
    """Of `stored_bytes`."""
    deviation: float
    """Largest distance of a point of the peak from its line, in bytes."""


def run_scale(command: ScaleCommand, console: Console) -> int:
    open_folder(command.out)
    jobs = [
        (method.name, axis, value, work)
        for method in find_methods(command.models)
        for axis in AXES
        for value, work in sweep(method.name, axis, command)
    ]
    with console.status(f"{len(jobs)} predictions"):
        points = list(in_processes(predict_point, jobs))
    table = pd.DataFrame([asdict(point) for point in points])
    slopes = fit_slopes(points)
    lines = pd.DataFrame(slopes, columns=[field.name for field in fields(Slope)])
    paths = [command.out / "scale.csv", command.out / "scale_slopes.csv"]
    table.to_csv(paths[0], index=False)
    lines.to_csv(paths[1], index=False)

    from bench.report.scaling import write_scaling

    paths += write_scaling(table, lines, command.out)
    console.print(_table(slopes))
    for path in paths:
        console.print(f"  {path}", highlight=False, markup=False)
    return 0


def sweep(name: str, axis: str, command: ScaleCommand) -> list[tuple[int, Workload]]:
    """The workloads of one line; those that the method cannot train on are left out."""
    method, found = METHODS[name], []
    for value in AXES[axis][0]:
        changed: dict[str, Any] = {axis: value}
        overrides: Overrides = replace(command.overrides, **changed)
        try:
            found.append((value, method.workload(command.preset, overrides)))
        except UserError:
            if axis != "volume":  # a side may be no multiple of what the network halves
                raise
    return found


def predict_point(job: tuple[str, str, int, Workload]) -> Point:
    name, axis, value, work = job
    prediction = predict_method(METHODS[name], work, count_forward=False)
    return Point(
        name,
        axis,
        value,
        amount=work.patch**3 if axis == "volume" else value,
        parameters=prediction.parameters,
        peak_memory_bytes=prediction.peak_memory_bytes,
        **{f"{part}_bytes": nbytes for part, nbytes in prediction.parts.items()},
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
        slopes.append(Slope(method, axis, float(slope), per_unit, deviation))
    return slopes


def _table(slopes: Sequence[Slope]) -> Table:
    table = Table(title="Bytes per unit, by least squares: peak, and what is stored for backward")
    table.add_column("method")
    for name in ("per", "peak", "stored", "furthest from the line"):
        table.add_column(name, justify="right")
    for slope in slopes:
        table.add_row(
            slope.method,
            AXES[slope.axis][1],
            show_size(slope.peak),
            show_size(slope.stored),
            show_size(slope.deviation),
        )
    return table
