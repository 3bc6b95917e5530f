"""The command `predict`: what methods will need, as a table, as `runs.csv` and as a picture."""

import gc
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.commands import PredictCommand
from bench.environment import describe_prediction
from bench.errors import UserError
from bench.methods import Method, find_methods
from bench.predict.prediction import Prediction, predict_method
from bench.presets import Workload
from bench.probes import Columns
from bench.probes.timeline import instants
from bench.process import without_collector
from bench.results import Instant, Record, read_table, write_rows
from bench.sizes import GIB

Row = tuple[Method, Workload, Prediction]

NOT_MODELLED = (
    "the CUDA context (a few hundred MiB, by card and driver), and the workspaces of cuDNN, which "
    "it chooses on the card, and of cuBLAS (8 to 32 MiB)"
)
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
    chosen = [
        (method, method.workload(command.preset, command.overrides))
        for method in find_methods(command.models)
    ]
    open_folder(command.out)
    rows = []
    with without_collector():  # which would look through all that was imported on the way
        for method, work in chosen:
            with console.status(f"Predicting {method.name}"):
                rows.append((method, work, predict_method(method, work)))
        gc.freeze()
    path = command.out / "runs.csv"
    write_rows(path, Record, [record(row, command.preset, command.device) for row in rows])
    written = [path]
    if command.timeline:
        from bench.report.timeline import draw_timelines

        written.append(command.out / "timeline.csv")
        write_rows(written[-1], Instant, timeline(rows))
        picture = draw_timelines(read_table(written[-1], Instant), command.preset)
        written += picture.save(command.out)

    cuda = command.device == "cuda"
    console.print(_table(rows, cuda))
    for method, _, prediction in rows:
        _say(console, f"{method.name}: peak in the {prediction.peak}.")
    _say(console, NOT_IN_THE_NUMBER if cuda else NOT_ON_CPU)
    for path in written:
        _say(console, f"  {path}")
    return 0


def record(row: Row, preset: str, device: str) -> Record:
    """A prediction as a row of `runs.csv`."""
    method, work, prediction = row
    on_cuda: Columns = {
        "peak_allocated_bytes": prediction.cuda_pool.peak_allocated,
        "peak_reserved_bytes": prediction.cuda_pool.reserved,
    }
    return Record(
        method=method.name,
        repeat=1,
        status="ok",
        preset=preset,
        device=device,
        **work.columns(),
        **prediction.columns(),
        **(on_cuda if device == "cuda" else {}),
    )


def timeline(rows: Sequence[Row]) -> Iterator[Instant]:
    """Predictions as rows of `timeline.csv`."""
    for method, _, prediction in rows:
        for instant in instants(prediction.operators, prediction.changes, prediction.phases):
            yield Instant(method=method.name, repeat=1, source="predicted", **instant)


def shape(work: Workload) -> str:
    """What one step sees: "64³ × 4", "128³ of 256³ × 1"."""
    return f"{show_cube(work.volume, work.patch)} × {work.batch_size}"


def show_cube(volume: int, patch: int) -> str:
    """What a step sees of a volume, by their sides: "64³", "128³ of 256³"."""
    return f"{patch}³" if patch == volume else f"{patch}³ of {volume}³"


def open_folder(path: Path) -> None:
    """Make the folder for predictions and say in it what they are made with."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        made_with = json.dumps(describe_prediction(sys.argv), indent=2)
        (path / "environment.json").write_text(made_with + "\n")
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror})") from None


def _table(rows: Sequence[Row], cuda: bool) -> Table:
    table = Table(title="Predicted for one training step, memory in GiB")
    table.add_column("")
    for method, _, _ in rows:
        table.add_column(method.name, justify="right")

    def add(label: str, values: Sequence[str], **style: bool) -> None:
        table.add_row(label, *values, **style)  # type: ignore[arg-type]

    predictions = [prediction for _, _, prediction in rows]
    add("Trains on", [shape(work) for _, work, _ in rows])
    add("Precision", [work.precision for _, work, _ in rows])
    add("Parameters (M)", [f"{p.parameters / 1e6:.1f}" for p in predictions], end_section=True)
    add("Peak memory", [f"{p.peak_memory_bytes / GIB:.3f}" for p in predictions])
    for part in predictions[0].parts:
        add(f"  {part}", [f"{p.parts[part] / GIB:.3f}" for p in predictions])
    if cuda:
        add("CUDA pool", [f"{p.cuda_pool.reserved / GIB:.3f}" for p in predictions])
    table.add_section()
    add("GFLOP, forward (fvcore)", [f"{(p.flops_forward or 0) / 1e9:,.1f}" for p in predictions])
    add("GFLOP, whole step", [f"{p.flops_step / 1e9:,.1f}" for p in predictions])
    return table


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)
