"""The command `predict`: what methods will need, as a table, as `runs.csv` and as a picture."""

import gc
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from ..commands import FitCommand, PredictCommand
from ..ddpm.step import Training
from ..errors import UserError, last_line
from ..harness.console import say
from ..harness.environment import describe_prediction
from ..harness.process import without_collector
from ..methods import METHODS, Method, find_methods, preset_changes
from ..presets import Overrides, Workload, check_guidance
from ..probes.instants import instants
from ..records.files import read_table, write_json, write_rows
from ..records.rows import Instant, Record, setting_columns
from ..report.grid import Cell, Grid, for_terminal
from ..sizes import GIB, show_volume
from .alloc_conf import alloc_conf_text, parse_alloc_conf
from .cluster import in_words, refuse_what_cannot_be, spread_columns
from .prediction import Prediction, predict_method, seen_whole

Row = tuple[Method, Workload, Prediction]

NOT_MODELLED = (
    "the CUDA context (a few hundred MiB, by card and driver), and the workspaces of cuBLAS (8 to "
    "32 MiB) and cuDNN, which chooses on the card"
)
MUCH_ATTENTION = 0.5
"""Share of a step's FLOPs from which on it is worth a line."""
NOT_IN_THE_NUMBER = (
    "CUDA pool: what PyTorch's caching allocator would hold after two steps, in blocks rounded as "
    "it rounds them. Not in the number: " + NOT_MODELLED + "."
)
NOT_ON_CPU = (
    "Not in the number: the scratch of the kernels, and the process itself (interpreter, "
    "libraries). A measurement with `run` has both."
)


def run_predict(command: PredictCommand, console: Console) -> int:
    """Exit status 0; UserError before anything is predicted."""
    gpus, shard = command.gpus, command.shard
    chosen = [
        (method, method.workload(command.preset, _overrides(method, command)))
        for method in find_methods(command.models)
    ]
    for method, work in chosen:
        check_drawing(command, work)
        refuse_what_cannot_be(
            gpus, shard, method.name, method.technique_names, sampling=command.sampling
        )
    conf = alloc_conf_text(command.alloc_conf)
    parse_alloc_conf(conf)
    open_folder(command.out)
    rows = []
    with without_collector():  # which would look through all that was imported on the way
        for method, work in chosen:
            with console.status(f"Predicting {method.name}"):
                with refusals_in_a_line(method):
                    prediction = predict_method(
                        method, work, device=command.device, sampling=command.sampling,
                        guidance=command.guidance, gpus=gpus, shard=shard,
                    )  # fmt: skip
                rows.append((method, work, prediction))
        gc.freeze()
    path = command.out / "runs.csv"
    records = [record(row, command) for row in rows]
    write_rows(path, Record, records)
    written = [path]
    if command.timeline:
        from ..report.timeline import draw_timelines

        written.append(command.out / "timeline.csv")
        write_rows(written[-1], Instant, timeline(rows))
        picture = draw_timelines(read_table(written[-1], Instant), command.preset)
        written += picture.save(command.out)

    cuda = command.device == "cuda"
    reserved = [row.peak_reserved_bytes or 0 for row in records] if cuda else []
    step = "step of drawing volumes" if command.sampling else "training step"
    step += in_words(gpus, shard)
    console.print(for_terminal(_grid(rows, reserved, step)))
    for method, _, prediction in rows:
        say(console, f"{method.name}: peak in the {prediction.peak}.")
        if prediction.attention_share > MUCH_ATTENTION:
            say(
                console,
                f"{method.name}: {prediction.attention_share:.0%} of its FLOPs are attention's, "
                "which grow with the square of the voxels that it looks over. With one level more "
                "(--channels), it looks over an eighth of them.",
            )
    if not cuda:
        for line in dict.fromkeys(t.on_cpu for m, _, _ in rows for t in m.techniques if t.on_cpu):
            say(console, line)
    for line in dict.fromkeys(line for _, _, found in rows for line in found.assumptions):
        say(console, f"Assumed: {line}.")
    say(console, NOT_IN_THE_NUMBER if cuda else NOT_ON_CPU)
    if cuda and conf:
        say(console, f"The allocator of the pool is set to {conf}.")
    for path in written:
        say(console, f"  {path}")
    return 0


def say_assumed(methods: Sequence[Method], console: Console) -> None:
    """What predictions take for granted of the techniques of these."""
    for line in dict.fromkeys(t.assumed for m in methods for t in m.techniques if t.assumed):
        say(console, f"Assumed: {line}.")


def _overrides(method: Method, command: PredictCommand) -> Overrides:
    given = command.overrides
    return seen_whole(method, command.preset, given) if command.sampling else given


def check_drawing(command: PredictCommand | FitCommand, work: Workload) -> None:
    """UserError for a guidance of what is not drawn, or not conditional."""
    if command.guidance != 1 and not command.sampling:
        raise UserError(
            f"--guidance {command.guidance:g}: of drawing volumes; give --sampling, too"
        )
    check_guidance(command.guidance, work, trained=False)


def record(row: Row, command: PredictCommand) -> Record:
    """A prediction as a row of `runs.csv`."""
    method, work, prediction = row
    training = Training()
    found = Record(
        method=method.name,
        repeat=1,
        status="ok",
        preset=command.preset,
        preset_changes=preset_changes(method, command.preset, command.overrides, work, training),
        device=command.device,
        sampling=command.sampling or None,
        guidance=command.guidance if command.sampling else None,
        **method.columns(),
        **setting_columns(work, training),
        **spread_columns(command.gpus, command.shard),
    )
    found.take(prediction.columns())
    if command.device == "cuda":
        conf = alloc_conf_text(command.alloc_conf)
        pool = prediction.cuda_pool_with(parse_alloc_conf(conf))
        found.peak_allocated_bytes, found.peak_reserved_bytes = pool.peak_allocated, pool.reserved
        found.alloc_conf = conf or None
    return found


def timeline(rows: Sequence[Row]) -> Iterator[Instant]:
    """Predictions as rows of `timeline.csv`."""
    for method, _, prediction in rows:
        for instant in instants(prediction.operators, prediction.changes, prediction.phases):
            yield Instant(method=method.name, repeat=1, source="predicted", **instant)


@contextmanager
def refusals_in_a_line(method: Method) -> Iterator[None]:
    """UserError for what a network says of shapes that it cannot have, and that nobody foresaw.

    Other people's may be no network of x_t and t at all.
    """
    kinds = (ValueError,) if method.name in METHODS.names else (ValueError, TypeError)
    try:
        yield
    except kinds as error:
        raise UserError(f"--models {method.name}: it fails on this ({last_line(error)})") from error


def open_folder(path: Path) -> None:
    """Make the folder for predictions and say in it what they are made with."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "environment.json", describe_prediction(sys.argv))
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror})") from None


def _grid(rows: Sequence[Row], reserved: Sequence[int], step: str) -> Grid:
    works = [work for _, work, _ in rows]
    predictions = [prediction for _, _, prediction in rows]

    largest = max([*reserved, *(p.peak_memory_bytes for p in predictions)])
    # No column of zeros for a small network.
    unit, size_of_unit = ("GiB", GIB) if largest >= GIB else ("MiB", GIB / 1024)

    def shown(sizes: Iterable[int]) -> list[str]:
        return [f"{size / size_of_unit:.3f}" for size in sizes]

    lines: dict[str, Sequence[str]] = {
        "Kind": [method.kind for method, _, _ in rows],
        "Trains on": [f"{show_volume(w.volume, w.patch)} × {w.batch_size}" for w in works],
        "Precision": [work.precision for work in works],
        "Parameters (M)": [f"{p.parameters / 1e6:.1f}" for p in predictions],
        "Peak memory": shown(p.peak_memory_bytes for p in predictions),
        **{f"– {part}": shown(p.parts[part] for p in predictions) for part in predictions[0].parts},
        **({"CUDA pool": shown(reserved)} if reserved else {}),
        "GFLOP, forward (fvcore)": [f"{(p.flops_forward or 0) / 1e9:,.1f}" for p in predictions],
        "GFLOP, whole step": [f"{p.flops_step / 1e9:,.1f}" for p in predictions],
    }
    return Grid(
        "Predicted",
        f"Predicted for one {step}, memory in {unit}",
        ("", *(method.name for method, _, _ in rows)),
        tuple((Cell(label), *map(Cell, values)) for label, values in lines.items()),
    )
