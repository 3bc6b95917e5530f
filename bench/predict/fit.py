"""The command `fit`: the largest batch and the largest volume that train in so much memory."""

from dataclasses import asdict, dataclass, replace
from functools import cache

import pandas as pd
from rich.console import Console
from rich.table import Table

from bench.commands import FitCommand
from bench.errors import UserError
from bench.methods import METHODS, find_methods
from bench.parallel import in_processes
from bench.predict.command import NOT_MODELLED, open_folder, show_cube
from bench.predict.gpus import find_gpu
from bench.predict.prediction import Prediction, predict_method
from bench.predict.search import largest_that_fits
from bench.presets import Overrides, Workload
from bench.sizes import parse_size, show_size

EXPANDABLE = (
    "* With PYTORCH_ALLOC_CONF=expandable_segments:True; in its default setting the allocator "
    "would run out of memory on the fragments."
)


@dataclass(frozen=True)
class Question:
    method: str
    preset: str
    overrides: Overrides
    limit: int
    """Bytes that the caching allocator may hold."""


@dataclass(frozen=True)
class Fit:
    """What of a method fits. Needs are the most that is given out at a time, in bytes."""

    method: str
    volume: int
    """Side at which `batch_size` is the largest, in voxels."""
    patch: int
    """Side of what a step sees of it: the volume's, unless the method trains on patches."""
    batch_size: int
    """0: not even one volume."""
    batch_needs: int
    """At `batch_size`, or at 1 if even that does not fit."""
    batch_fits_by_default: bool
    """Whether the allocator gets by in its default setting, in which memory fragments."""
    largest_volume: int
    """Side of the largest cube at batch 1; 0: not even the smallest."""
    largest_patch: int
    """Side of what a step sees of that one."""
    volume_needs: int
    """At `largest_volume`, or at the smallest cube that the method can train on."""
    volume_fits_by_default: bool


def run_fit(command: FitCommand, console: Console) -> int:
    """Exit status 0, or 1 if no method fits; UserError before anything is predicted."""
    memory, margin = _memory(command), parse_size(command.margin, "--margin")
    limit = memory - margin
    if limit <= 0:
        raise UserError(f"--margin {command.margin}: leaves nothing of {show_size(memory)}")
    questions = [
        Question(method.name, command.preset, command.overrides, limit)
        for method in find_methods(command.models)
    ]
    for question in questions:  # whatever is wrong with it is said before the long part
        METHODS[question.method].workload(command.preset, command.overrides)
    open_folder(command.out)
    with console.status("Predicting"):
        fits = list(in_processes(answer, questions))
    console.print(_table(fits, memory, margin))
    path = command.out / "fit.csv"
    pd.DataFrame([{"memory_bytes": memory, **asdict(fit)} for fit in fits]).to_csv(
        path, index=False
    )
    for line in what_fits_instead(fits):
        console.print(line, highlight=False, markup=False)
    console.print(
        f"A margin of {command.margin} is kept for what is not modelled: {NOT_MODELLED}. "
        "Change it with --margin. Needs are what PyTorch's allocator gives out at the peak. "
        f"{EXPANDABLE}",
        highlight=False,
        markup=False,
    )
    console.print(f"  {path}", highlight=False, markup=False)
    return 0 if any(fit.batch_size for fit in fits) else 1


def answer(question: Question) -> Fit:
    """Search over predictions, each of which is exact.

    It fits if what the allocator gives out, rounded as it rounds, is within the limit.
    """
    method = METHODS[question.method]
    preset, overrides = question.preset, question.overrides
    work = method.workload(preset, overrides)

    @cache
    def predicted(work: Workload) -> Prediction:
        return predict_method(method, work, count_forward=False)

    def needs(work: Workload) -> int:
        return predicted(work).cuda_pool.peak_allocated

    def batch_of(size: int) -> Workload:
        return replace(work, batch_size=size)

    multiple = smallest_multiple(question)

    def cube_of(count: int) -> Workload:
        side = replace(overrides, volume=count * multiple, batch_size=1)
        return method.workload(preset, side)

    def cube_needs(count: int) -> int:
        try:
            return needs(cube_of(count))
        except ValueError:  # a norm over a single voxel, say: the cube is too small, not too large
            return 0

    batch = largest_that_fits(
        lambda size: needs(batch_of(size)), question.limit, start=work.batch_size
    )
    count = largest_that_fits(
        cube_needs,
        question.limit,
        start=work.volume // multiple,
        power=3,
        most=2048 // multiple,
    )
    if not count or not cube_needs(count):
        count = 0
    shown = count or next(n for n in range(1, 2048) if cube_needs(n))
    batch_work, cube_work = batch_of(max(1, batch)), cube_of(shown)
    return Fit(
        question.method,
        work.volume,
        work.patch,
        batch,
        needs(batch_work),
        predicted(batch_work).fits_cuda(question.limit),
        count * multiple,
        cube_work.patch if count else 0,
        needs(cube_work),
        predicted(cube_work).fits_cuda(question.limit),
    )


def smallest_multiple(question: Question) -> int:
    """The volumes that a method can train on have sides of multiples of this."""
    method = METHODS[question.method]
    multiple = 1
    while True:
        try:
            side = replace(question.overrides, volume=multiple, batch_size=1)
            method.workload(question.preset, side)
            return multiple
        except UserError:
            if multiple > 2048:
                raise
            multiple *= 2


def what_fits_instead(fits: list[Fit]) -> list[str]:
    """For each method of which nothing fits: what it would need, and what would fit."""
    fitting = [f"{fit.method} (batch {fit.batch_size})" for fit in fits if fit.batch_size]
    lines = []
    for fit in fits:
        if fit.batch_size == 0:
            instead = f"{', '.join(fitting)} would" if fitting else "none of these methods would"
            lines.append(
                f"{fit.method} does not fit at {fit.volume}³: one volume needs "
                f"{show_size(fit.batch_needs)}; {instead}."
            )
    return lines


def _memory(command: FitCommand) -> int:
    if (command.memory is None) == (command.gpu is None):
        raise UserError("--memory 24GiB or --gpu a5000: give one of the two")
    if command.gpu is not None:
        return find_gpu(command.gpu).memory_bytes
    assert command.memory is not None
    return parse_size(command.memory, "--memory")


def _table(fits: list[Fit], memory: int, margin: int) -> Table:
    table = Table(title=f"What trains in {show_size(memory)}, {show_size(margin)} kept free")
    for name in ("method", "volume", "largest batch", "needs", "largest cube, batch 1", "needs"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for fit in fits:
        table.add_row(
            fit.method,
            show_cube(fit.volume, fit.patch),
            str(fit.batch_size) if fit.batch_size else "none",
            show_size(fit.batch_needs) + _star(fit.batch_size, fit.batch_fits_by_default),
            show_cube(fit.largest_volume, fit.largest_patch) if fit.largest_volume else "none",
            show_size(fit.volume_needs) + _star(fit.largest_volume, fit.volume_fits_by_default),
        )
    return table


def _star(fits: int, by_default: bool) -> str:
    return " *" if fits and not by_default else ""
