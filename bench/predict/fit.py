"""The command `fit`: the largest batch and the largest volume that train in so much memory."""

from dataclasses import dataclass, replace
from functools import cache, partial

from rich.console import Console

from ..commands import FitCommand
from ..ddpm.step import Training
from ..errors import UserError
from ..harness.console import say
from ..methods import METHODS, find_methods, preset_changes
from ..presets import Overrides, Workload
from ..records.files import write_rows
from ..records.rows import Fit, setting_columns
from ..report.grid import Cell, Grid, for_terminal
from ..sizes import Shape, parse_size, show_shape, show_size, show_volume
from .alloc_conf import AllocConf, alloc_conf_text, parse_alloc_conf
from .cluster import in_words, refuse_what_cannot_be, spread_columns
from .gpus import find_gpu
from .parallel import side_by_side
from .peaks import NOT_MODELLED, check_drawing, open_folder, refusals_in_a_line, say_assumed
from .prediction import Prediction, predict_method, seen_whole
from .search import largest_that_fits

EXPANDABLE = AllocConf(expandable_segments=True)
STAR = (
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
    margin: int = 0
    """Bytes of the card beside them, kept free."""
    alloc_conf: str = ""
    """PYTORCH_ALLOC_CONF; "": what fits by default, and what with expandable segments."""
    sampling: bool = False
    """Volumes are drawn, and nothing trains."""
    gpus: int = 1
    shard: bool = False
    """As in `bench.predict.cluster`; memory, batch and cube are those of one card."""
    guidance: float = 1.0

    def alone(self, shape: Shape) -> Workload:
        """One volume of this shape; UserError where the method cannot be."""
        patch = shape if self.sampling else self.overrides.patch
        overrides = replace(self.overrides, volume=shape, patch=patch, batch_size=1, pad=False)
        return METHODS[self.method].workload(self.preset, overrides)


def run_fit(command: FitCommand, console: Console) -> int:
    """Exit status 0, or 1 if no method fits; UserError before anything is predicted."""
    memory, usable = _memory(command)
    limit = usable - parse_size(command.margin, "--margin")
    margin = memory - limit
    if limit <= 0:
        raise UserError(f"--margin {command.margin}: leaves nothing of {show_size(memory)}")
    conf = alloc_conf_text(command.alloc_conf)
    parse_alloc_conf(conf)
    preset, given, sampling = command.preset, command.overrides, command.sampling
    questions = []
    refused: list[UserError] = []
    for method in find_methods(command.models):
        gpus, shard = command.gpus, command.shard
        refuse_what_cannot_be(gpus, shard, method.name, method.technique_names, sampling=sampling)
        try:  # what is wrong is said before the long part
            overrides = seen_whole(method, preset, given) if sampling else given
            check_drawing(command, method.workload(preset, overrides))
        except UserError as error:  # of this method; others may be able to
            refused.append(error)
            continue
        questions.append(
            Question(
                method.name, preset, overrides, limit, margin, conf, sampling, gpus, shard,
                command.guidance,
            )
        )  # fmt: skip
    if not questions:
        raise refused[0]
    for why in refused:
        say(console, f"Left out: {why}")
    open_folder(command.out)
    fits = side_by_side(answer, questions, console, "Searching, method by method")
    kept = f"{show_size(margin)} kept free" + in_words(command.gpus, command.shard)
    console.print(for_terminal(_grid(fits, memory, kept)))
    path = command.out / "fit.csv"
    write_rows(path, Fit, fits)
    for line in what_fits_instead(fits):
        say(console, line)
    say(
        console,
        f"A margin of {command.margin} is kept for what is not modelled: {NOT_MODELLED}. "
        "Change it with --margin. Counted beside it, where convolutions run in 16 bits: the copies "
        "that cuDNN is expected to make. Needs are what PyTorch's allocator gives out at the peak. "
        + (f"The allocator is set to {conf}." if conf else STAR),
    )
    say_assumed([METHODS[each.method] for each in fits], console)
    say(console, f"  {path}")
    return 0 if any(fit.batch_size for fit in fits) else 1


def answer(question: Question) -> Fit:
    """Search over predictions, each of which is exact.

    It fits if the allocator, played with so many bytes, gets through two steps.
    """
    method = METHODS[question.method]
    preset, overrides = question.preset, question.overrides
    work = method.workload(preset, overrides)
    conf = parse_alloc_conf(question.alloc_conf) if question.alloc_conf else EXPANDABLE

    @cache
    def predicted(work: Workload) -> Prediction:
        return predict_method(
            method, work, sampling=question.sampling, guidance=question.guidance,
            count_forward=False, gpus=question.gpus, shard=question.shard,
        )  # fmt: skip

    def needs(work: Workload) -> int:
        return predicted(work).cuda_pool.peak_allocated

    def pool_that_it_needs(work: Workload) -> int:
        """Roughly the least that the allocator gets by with; at most the limit if it fits in that.

        It grows with the batch as a line does, so the search meets the limit in few predictions.
        """
        low = needs(work)
        fits = partial(predicted(work).fits_cuda, conf=conf)
        if low <= question.limit and fits(question.limit):
            high = question.limit
        else:
            low = max(low, question.limit + 1)
            high = low
            while not fits(high):
                low, high = high + 1, high * 5 // 4
        while high - low > high // 64:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle + 1, high)
        return high

    def fits_by_default(work: Workload) -> bool:
        return predicted(work).fits_cuda(question.limit)

    def batch_of(size: int) -> Workload:
        return replace(work, batch_size=size)

    multiple = smallest_multiple(question)

    def one_of(count: int) -> Workload:
        return question.alone(work.volume.scaled(count, multiple))

    def one_needs(count: int) -> int:
        try:
            return pool_that_it_needs(one_of(count))
        except (ValueError, UserError):
            return 0  # too small, not too large: a norm over a single voxel, less than a patch

    with refusals_in_a_line(method):
        batch = largest_that_fits(
            lambda size: pool_that_it_needs(batch_of(size)), question.limit, start=work.batch_size
        )
    count = largest_that_fits(
        one_needs,
        question.limit,
        start=max(work.volume) // multiple,
        power=work.dims,
        most=2048 // multiple,
    )
    if not count or not one_needs(count):
        count = 0
    shown = count or next(n for n in range(1, 2048) if one_needs(n))
    batch_work, largest = batch_of(max(1, batch)), one_of(shown)
    changes = preset_changes(method, preset, overrides, work, Training())
    settings = {**setting_columns(work), "batch_size": batch}
    return Fit(
        **method.columns(),
        **settings,
        **spread_columns(question.gpus, question.shard),
        memory_bytes=question.limit + question.margin,
        margin_bytes=question.margin,
        method=question.method,
        preset=preset,
        preset_changes=changes,
        alloc_conf=question.alloc_conf or None,
        sampling=question.sampling or None,
        guidance=question.guidance if question.sampling else None,
        batch_needs=needs(batch_work),
        batch_fits_by_default=fits_by_default(batch_work),
        largest_volume=largest.volume if count else Shape(0),
        largest_patch=largest.patch if count else Shape(0),
        volume_needs=needs(largest),
        volume_fits_by_default=fits_by_default(largest),
    )


def smallest_multiple(question: Question) -> int:
    """The volumes that a method can train on, or draw, have sides of multiples of this."""
    multiple = 1
    while True:
        try:
            question.alone(Shape(multiple))
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
                f"{fit.method} does not fit at {show_shape(fit.volume)}: one volume needs "
                f"{show_size(fit.batch_needs or 0)}; {instead}."
            )
    return lines


def _memory(command: FitCommand) -> tuple[int, int]:
    """Bytes of the card, and how many of them CUDA gives to programs."""
    if (command.memory is None) == (command.gpu is None):
        raise UserError("--memory 24GiB or --gpu a5000: give one of the two")
    if command.gpu is not None:
        gpu = find_gpu(command.gpu)
        return gpu.memory_bytes, gpu.usable_bytes
    assert command.memory is not None
    memory = parse_size(command.memory, "--memory")
    return memory, memory


def _grid(fits: list[Fit], memory: int, kept: str) -> Grid:
    verb = "can be drawn" if any(fit.sampling for fit in fits) else "trains"
    rows = []
    for fit in fits:
        fits_one = fit.largest_volume >= 1
        largest = show_volume(fit.largest_volume, fit.largest_patch or fit.largest_volume)
        rows.append(
            (
                Cell(fit.method),
                Cell(fit.kind or ""),
                Cell(show_volume(fit.volume, fit.patch or fit.volume)),
                Cell(str(fit.batch_size) if fit.batch_size else "none"),
                Cell(_needs(fit.batch_needs, fit.batch_size, fit.batch_fits_by_default)),
                Cell(largest if fits_one else "none"),
                Cell(_needs(fit.volume_needs, fits_one, fit.volume_fits_by_default)),
            )
        )
    return Grid(
        "Fit", f"What {verb} in {show_size(memory)}, {kept}",
        ("method", "kind", "volume", "largest batch", "needs", "largest volume, batch 1", "needs"),
        tuple(rows),
    )  # fmt: skip


def _needs(nbytes: int | None, fits: int, by_default: bool | None) -> str:
    return show_size(nbytes or 0) + (" *" if fits and not by_default else "")
