"""The files of a run: their columns, and reading and writing them.

    results/<UTC time>-<preset>/
        runs.csv          a Record a trial
        samples.csv       a Sample each time the sampled probes were read
        steps.csv         a Step each training step of a window
        timeline.csv      an Instant for each moment of the step whose memory was followed
        environment.json  the machine, the versions, the configuration, the command line

Rows are appended as they come and flushed at once, so that a killed run keeps all it measured.
Units are in the names; bytes are bytes. An empty cell means "not available", never 0.
"""

import csv
import errno
import fcntl
import io
import json
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from bench.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

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
    """What could not be measured as it should, separated by "; "."""
    contention: str | None = None
    """What else used the machine, separated by "; "."""
    throttled: str | None = None
    """Why the card was slower than asked, and in how many readings."""
    clock_mean_mhz: float | None = None
    """Of the card's multiprocessors over the window."""
    other_load_percent: float | None = None
    """Share of all cores that something else took in the window."""
    idle_power_w: float | None = None
    """Of the device before the first trial, from the same source as the energy."""
    energy_above_idle_j: float | None = None
    """`energy_j` less what the device would have drawn idle."""
    sample_rate_hz: float | None = None
    """How often power, temperature and load were read."""
    sample_late_p95_s: float | None = None
    """95 % of those readings were at most this late."""


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


@dataclass(kw_only=True)
class Instant:
    """A moment of the one training step whose memory was followed, in `timeline.csv`.

    What was alive from here to the next one; the highest is the peak (`bench.probes.timeline`).
    """

    method: str
    repeat: int
    position: float
    """From 0 to 1, as if each operator took as long as on an ideal card."""
    phase: str
    """forward, backward or optimizer."""
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    other_bytes: int
    layer: str | None = None
    """Whose allocation or release it was."""
    operator: str | None = None
    """That had allocated it; empty for what was there before the step."""
    source: str
    """`tensor-storages` or `predicted`."""


def describe_place(phase: str, layer: str | None, operator: str | None) -> str:
    """A moment of a step in words: "backward pass, at body.level0 (convolution)"."""
    if not operator:
        return "stretch before the step begins"
    where = f"at {layer} " if layer else ""
    words = {"forward": "forward pass", "backward": "backward pass"}
    name = operator.removeprefix("aten.").removesuffix(".default")
    return f"{words.get(phase, 'optimizer step')}, {where}({name})"


MOST_CSV_BYTES = 2**29  # a week of samples at 10 Hz
MOST_JSON_BYTES = 2**24
TABLES: Mapping[str, type] = {
    "runs.csv": Record, "samples.csv": Sample, "steps.csv": Step, "timeline.csv": Instant
}  # fmt: skip


class Run:
    """The folder of all the records of one benchmark."""

    tables: ClassVar[Mapping[str, type]] = TABLES
    """Its files, and what a row of each is."""
    durable: ClassVar[tuple[str, ...]] = ("runs.csv",)
    """Of these every row is forced to the disk."""
    program: ClassVar[str] = "run_bench.py"
    """What goes on with it, for messages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, out: Path, preset: str) -> Self:
        """A new folder `<UTC time>-<preset>` in `out`; UserError where that cannot be written."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        try:
            out.mkdir(parents=True, exist_ok=True)
            run = cls(_make_new_folder(out, f"{stamp}-{preset}"))
            for name, row_type in cls.tables.items():
                with (run.folder / name).open("w", newline="") as file:
                    csv.writer(file).writerow(column_names(row_type))
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other benchmarks out of this folder; the lock ends with the process, however."""
        try:
            folder = os.open(self.folder, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be opened ({error.strerror})") from None
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.folder}: another benchmark is writing there") from None
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            os.close(folder)

    def append(self, row: Any) -> None:
        """Add a row to its table; UserError where the disk refuses, with the rows before intact.

        A row is one line, handed to the kernel before this returns. A trial's record, which ends
        minutes of work, is also forced to the disk.
        """
        name = next(name for name, kind in self.tables.items() if isinstance(row, kind))
        line = io.StringIO(newline="")
        csv.writer(line).writerow([_cell(getattr(row, f.name)) for f in fields(row)])
        with self._writing(name), (self.folder / name).open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            content = line.getvalue().encode()
            try:
                if file.write(content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if name in self.durable:
                    os.fsync(file.fileno())
            except OSError:
                file.truncate(end)  # half a row is none
                raise

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        self.write_json("environment.json", environment)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """UserError where the disk refuses; what was there before stays."""
        text = json.dumps(value, indent=2, ensure_ascii=False)
        with self._writing(name):
            _replace(self.folder / name, text + "\n")

    def mend(self) -> None:
        """Make a run that was killed whole: no half-written line, no piece of a trial.

        What a trial without a record left in the other tables goes, because that trial will run
        again. A table that an older version did not have is begun.
        """
        finished: set[tuple[str, str]] = set()

        def is_record(row: dict[str, str]) -> bool:
            finished.add((row["method"], row["repeat"]))
            return True

        self.keep("runs.csv", is_record)
        if not (self.folder / "timeline.csv").exists():
            write_rows(self.folder / "timeline.csv", Instant, [])
        for name in ("samples.csv", "steps.csv", "timeline.csv"):
            self.keep(name, lambda row: (row["method"], row["repeat"]) in finished)

    def keep(self, name: str, wanted: Callable[[dict[str, str]], bool]) -> None:
        """Of a table, leave the header and the rows that are wanted, by their cells' text."""
        self._read(name, self.tables[name])  # refuses what is not a table
        text = io.StringIO(_finished_lines(self.folder / name), newline="")
        header, *rows = (row for row in csv.reader(text) if row)
        kept = (row for row in rows if wanted(dict(zip(header, row, strict=False))))
        mended = io.StringIO(newline="")
        csv.writer(mended).writerows([header, *kept])
        with self._writing(name):
            _replace(self.folder / name, mended.getvalue())

    def environment(self) -> dict[str, Any]:
        """What `environment.json` says; UserError where it is missing or damaged."""
        return self.read_json("environment.json")

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in a file of this run; UserError where it is missing or damaged."""
        path = self.folder / name
        try:
            value = json.loads(_read_text(path, MOST_JSON_BYTES))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: cannot be read as JSON ({_one_line(error)})") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}: not an object; restore the file that the run wrote")
        return value

    def records(self) -> "pd.DataFrame":
        return self._read("runs.csv", Record)

    def samples(self) -> "pd.DataFrame":
        return self._read("samples.csv", Sample)

    def steps(self) -> "pd.DataFrame":
        return self._read("steps.csv", Step)

    def timeline(self) -> "pd.DataFrame":
        return self._read("timeline.csv", Instant)

    def _read(self, name: str, row_type: type) -> "pd.DataFrame":
        """A table of ours, which may have been killed while it wrote its last line."""
        path = self.folder / name
        return _parse(path, _finished_lines(path), row_type)

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.folder / name}: cannot be written ({error.strerror}). What was measured "
                f"before is kept; make room, then: python {self.program} --resume {self.folder}"
            ) from None


def column_names(row_type: type) -> list[str]:
    return [f.name for f in fields(row_type)]


def read_table(path: Path, row_type: type) -> "pd.DataFrame":
    """A table with the columns of `row_type`, typed; UserError where the file is not one.

    Whole numbers are read as pandas' nullable integers, so that bytes stay exact beside empty
    cells.
    """
    return _parse(path, _read_text(path, MOST_CSV_BYTES), row_type)


def _parse(path: Path, text: str, row_type: type) -> "pd.DataFrame":
    import pandas as pd  # who only writes does without

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a row longer than the header
            table = pd.read_csv(
                io.StringIO(text), dtype=str, keep_default_na=False, na_values=[""], index_col=False
            )
    except (ValueError, pd.errors.ParserWarning) as error:
        raise UserError(f"{path}: cannot be read as CSV ({_one_line(error)})") from None
    for field_ in fields(row_type):
        name, kinds = field_.name, get_args(field_.type) or (field_.type,)
        if name not in table:
            raise UserError(f"{path}: lacks the column {name}; is it of this version?")
        try:
            if int in kinds:
                table[name] = table[name].astype("Int64")
            elif float in kinds:
                table[name] = table[name].astype(float)  # a loss may be nan or inf
        except (ValueError, TypeError, OverflowError):
            raise UserError(f"{path}: column {name} holds what is not a number") from None
        if field_.default is MISSING and table[name].isna().any() and name != "loss":
            raise UserError(f"{path}: column {name} has an empty cell")
    if "status" in table and not table["status"].dropna().isin(get_args(Status)).all():
        raise UserError(
            f"{path}: column status holds what is none of {', '.join(get_args(Status))}"
        )
    return table


def _finished_lines(path: Path) -> str:
    """The text of a table up to its last end of line: what follows was cut off."""
    text = _read_text(path, MOST_CSV_BYTES)
    return text[: text.rfind("\n") + 1]


def _read_text(path: Path, most_bytes: int) -> str:
    """The text of an ordinary file; UserError for anything else, before it is opened."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would keep us waiting, /dev/zero for ever
            raise UserError(f"{path}: not a file")
        if status.st_size > most_bytes:
            raise UserError(f"{path}: {status.st_size} bytes are more than any run writes")
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise UserError(f"{path}: missing; is {path.parent} the folder of a run?") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: cannot be read as text (it is not UTF-8)") from None


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def write_rows(path: Path, row_type: type, rows: Iterable[Any]) -> None:
    """A whole table at once, for what is computed and not measured bit by bit."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(column_names(row_type))
        writer.writerows([_cell(getattr(row, f.name)) for f in fields(row)] for row in rows)


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
    """Whole digits for floats, so that what was measured is read back; text without line ends."""
    if isinstance(value, str):
        return " ".join(value.replace("\0", " ").split())
    return repr(value) if isinstance(value, float) else value
