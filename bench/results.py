"""The files of a run: their columns, and reading and writing them.

    results/<UTC time>-<preset>/
        runs.csv          a Record a trial
        samples.csv       a Sample each time the sampled probes were read
        steps.csv         a Step each training step of a window
        environment.json  the machine, the versions, the configuration, the command line

Rows are appended as they come and flushed at once, so that a killed run keeps all it measured.
Units are in the names; bytes are bytes. An empty cell means "not available", never 0.
"""

import csv
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from bench.errors import UserError

Status = Literal["ok", "oom", "failed", "timeout", "interrupted"]


@dataclass(kw_only=True)
class Record:
    """The row that a trial leaves in `runs.csv`. Sides are in voxels; None is an empty cell."""

    method: str
    repeat: int
    """Counted from 1."""
    status: Status | None = None
    error: str | None = None
    """Last line of what went wrong."""
    preset: str | None = None
    data: str | None = None
    """Name of the data source."""
    device: str | None = None
    device_name: str | None = None
    precision: str | None = None
    volume: int | None = None
    """Side of a whole volume."""
    batch_size: int | None = None
    parameters: int | None = None
    """Number of trained weights."""
    steps: int | None = None
    """Steps in the window."""
    window_s: float | None = None
    step_time_median_s: float | None = None
    step_time_p95_s: float | None = None
    volumes_per_s: float | None = None
    """Volumes (or patches) trained on per second of the window."""
    peak_memory_bytes: int | None = None
    """Highest sum of live tensor storages on the device in one whole step."""
    peak_memory_source: str | None = None
    parameter_bytes: int | None = None
    gradient_bytes: int | None = None
    optimizer_bytes: int | None = None
    activation_bytes: int | None = None
    other_bytes: int | None = None
    """These five add up to the peak: what was live at that moment."""
    peak_allocated_bytes: int | None = None
    """What the allocator gave out: the tensors and the scratch of the kernels."""
    peak_reserved_bytes: int | None = None
    """CUDA's pool."""
    peak_rss_bytes: int | None = None
    """Highest resident memory of the process in the window, interpreter and libraries included."""
    flops_forward: int | None = None
    """fvcore, one forward pass, a multiply-add as one."""
    flops_step: int | None = None
    """Dispatched in one whole step, a multiply-add as two."""
    energy_j: float | None = None
    """Of the device under test over the window."""
    energy_source: str | None = None
    energy_per_parameter_j: float | None = None
    energy_per_volume_j: float | None = None
    mean_power_w: float | None = None
    temperature_start_c: float | None = None
    temperature_peak_c: float | None = None
    temperature_mean_c: float | None = None
    temperature_source: str | None = None
    co2_kg: float | None = None
    """Of `energy_j` at the mean intensity of the grid that `co2_source` names."""
    loss_first: float | None = None
    loss_last: float | None = None
    """Eq. (8) at the window's first and last step."""
    seed: int | None = None
    started_at: str | None = None
    """UTC, ISO 8601."""
    patch: int | None = None
    """Side of what one step sees; the volume's, unless the method trains on patches."""
    channels: str | None = None
    """Width of each level, finest first."""
    co2_source: str | None = None
    warnings: str | None = None
    """What a reader of this row should know, separated by "; "."""


@dataclass(kw_only=True)
class Sample:
    """One reading of the sampled probes, in `samples.csv`."""

    method: str
    repeat: int
    elapsed_s: float
    """Since the start of the window."""
    power_w: float | None = None
    energy_j: float | None = None
    """Since the start of the window."""
    temperature_c: float | None = None
    memory_bytes: int | None = None
    """Resident memory of the process; on CUDA, what its allocator gave out."""
    utilization_percent: float | None = None


@dataclass(kw_only=True)
class Step:
    """One training step of a window, in `steps.csv`."""

    method: str
    repeat: int
    step: int
    """Counted from 1."""
    elapsed_s: float
    """From the start of the window to the end of the step."""
    step_time_s: float
    loss: float
    """Eq. (8)."""


TABLES: Mapping[str, type] = {"runs.csv": Record, "samples.csv": Sample, "steps.csv": Step}


class Run:
    """The folder of all the records of one benchmark."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, out: Path, preset: str) -> "Run":
        """A new folder `<UTC time>-<preset>` in `out`; UserError where that cannot be written."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        try:
            out.mkdir(parents=True, exist_ok=True)
            run = cls(_make_new_folder(out, f"{stamp}-{preset}"))
            for name, row_type in TABLES.items():
                with (run.folder / name).open("w", newline="") as file:
                    csv.writer(file).writerow(column_names(row_type))
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
        return run

    def append(self, row: Record | Sample | Step) -> None:
        """Add a row to its table and flush it to the file."""
        name = next(name for name, row_type in TABLES.items() if isinstance(row, row_type))
        with (self.folder / name).open("a", newline="") as file:
            csv.writer(file).writerow([_cell(getattr(row, f.name)) for f in fields(row)])

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        text = json.dumps(environment, indent=2, ensure_ascii=False)
        temporary = self.folder / "environment.json.part"
        temporary.write_text(text + "\n")
        os.replace(temporary, self.folder / "environment.json")

    def environment(self) -> dict[str, Any]:
        """What `environment.json` says; UserError where it is missing or damaged."""
        path = self.folder / "environment.json"
        try:
            value = json.loads(path.read_text())
        except FileNotFoundError:
            raise UserError(f"{path}: missing; is {self.folder} the folder of a run?") from None
        except (ValueError, OSError) as error:
            raise UserError(f"{path}: cannot be read as JSON ({error})") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}: not an object; restore the file that the run wrote")
        return value

    def records(self) -> pd.DataFrame:
        return read_table(self.folder / "runs.csv", Record)

    def samples(self) -> pd.DataFrame:
        return read_table(self.folder / "samples.csv", Sample)

    def steps(self) -> pd.DataFrame:
        return read_table(self.folder / "steps.csv", Step)


def column_names(row_type: type) -> list[str]:
    return [f.name for f in fields(row_type)]


def read_table(path: Path, row_type: type) -> pd.DataFrame:
    """A table with the columns of `row_type`, typed; UserError where the file is not one.

    Whole numbers are read as pandas' nullable integers, so that bytes stay exact beside empty
    cells.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise UserError(f"{path}: missing; is {path.parent} the folder of a run?") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read as CSV ({' '.join(str(error).split())})") from None
    missing = [name for name in column_names(row_type) if name not in table]
    if missing:
        raise UserError(f"{path}: lacks the column {missing[0]}; is it of this version?")
    for field_ in fields(row_type):
        kinds = get_args(field_.type) or (field_.type,)
        try:
            if int in kinds:
                table[field_.name] = table[field_.name].astype("Int64")
            elif float in kinds:
                table[field_.name] = pd.to_numeric(table[field_.name])
        except (ValueError, TypeError, OverflowError):
            raise UserError(f"{path}: column {field_.name} holds what is not a number") from None
    return table


def write_records(path: Path, records: Iterable[Record]) -> None:
    """A whole table at once, for what is predicted and not measured bit by bit."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(column_names(Record))
        writer.writerows([_cell(getattr(r, f.name)) for f in fields(r)] for r in records)


def _make_new_folder(out: Path, name: str) -> Path:
    for attempt in range(1, 1000):  # two runs may begin in the same second
        folder = out / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
    raise OSError(None, "too many runs of this second")


def _cell(value: Any) -> Any:
    """Whole digits for floats: what was measured is what is read back."""
    return repr(value) if isinstance(value, float) else value
