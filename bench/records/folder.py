"""The folder of a run: rows are appended as they come, and flushed at once.

    results/<UTC time>-<preset>/
        runs.csv          a Record a trial
        samples.csv       a Sample each time the sampled probes were read
        steps.csv         a Step each training step of a window
        timeline.csv      an Instant for each moment of the step whose memory was followed
        environment.json  the machine, the versions, the configuration, the command line

A killed run keeps all that it measured; `mend` makes it whole again. A quality run has other
tables (`QualityRun`).
"""

import csv
import errno
import io
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ..errors import UserError, typed
from .files import (
    cell,
    column_names,
    finished_lines,
    parse_table,
    read_json,
    replace_file,
    write_json,
    write_rows,
)
from .rows import Instant, Learning, Record, Sample, Score, Step, Trained

if TYPE_CHECKING:
    import pandas as pd

TABLES: Mapping[str, type] = {
    "runs.csv": Record, "samples.csv": Sample, "steps.csv": Step, "timeline.csv": Instant
}  # fmt: skip


class Run:
    """The folder of all the records of one benchmark."""

    tables: ClassVar[Mapping[str, type]] = TABLES
    """Its files, and what a row of each is."""
    durable: ClassVar[tuple[str, ...]] = ("runs.csv",)
    """Of these every row is forced to the disk."""
    command: ClassVar[str] = "run"
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
                with (run.folder / name).open("w", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerow(column_names(row_type))
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other benchmarks out of this folder; the lock ends with the process, however."""
        import fcntl  # POSIX only; reading a run does without

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
        csv.writer(line).writerow([cell(getattr(row, f.name)) for f in fields(row)])
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
        with self._writing(name):
            write_json(self.folder / name, value)

    def mend(self) -> None:
        """Make a run that was killed whole: no half-written line, no piece of a trial.

        What a trial without a record, or ended from outside, left in the other tables goes, because
        that trial will run again. A table that an older version did not have is begun.
        """
        finished: set[tuple[str, str]] = set()

        def is_finished(row: dict[str, str]) -> bool:
            if row.get("ended_by"):  # from outside: that says nothing of the method
                return False
            finished.add((row["method"], row["repeat"]))
            return True

        self.keep("runs.csv", is_finished)
        if not (self.folder / "timeline.csv").exists():
            write_rows(self.folder / "timeline.csv", Instant, [])
        for name in ("samples.csv", "steps.csv", "timeline.csv"):
            self.keep(name, lambda row: (row["method"], row["repeat"]) in finished)

    def keep(self, name: str, wanted: Callable[[dict[str, str]], bool]) -> None:
        """Of a table, leave the header and the rows that are wanted, by their cells' text."""
        self._read(name, self.tables[name])  # refuses what is not a table
        text = io.StringIO(finished_lines(self.folder / name), newline="")
        header, *lines = (row for row in csv.reader(text) if row)
        rows = (dict(zip(header, line, strict=False)) for line in lines)
        names = column_names(self.tables[name])  # an older version may have had fewer
        mended = io.StringIO(newline="")
        csv.writer(mended).writerows(
            [names, *([row.get(each, "") for each in names] for row in rows if wanted(row))]
        )
        with self._writing(name):
            replace_file(self.folder / name, mended.getvalue())

    def environment(self) -> dict[str, Any]:
        """What `environment.json` says; UserError where it is missing or damaged."""
        return self.read_json("environment.json")

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in a file of this run; UserError where it is missing or damaged."""
        return read_json(self.folder / name)

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
        return parse_table(path, finished_lines(path), row_type)

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.folder / name}: cannot be written ({error.strerror}). What was measured "
                f"before is kept; make room, then: {typed(self.command, '--resume', self.folder)}"
            ) from None


def _make_new_folder(out: Path, name: str) -> Path:
    for attempt in range(1, 1000):  # two runs may begin in the same second
        folder = out / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
    raise OSError(None, "too many runs of this second")


class QualityRun(Run):
    """The folder of one quality run."""

    tables: ClassVar[Mapping[str, type]] = {
        "trained.csv": Trained,
        "learning.csv": Learning,
        "quality.csv": Score,
    }
    durable: ClassVar[tuple[str, ...]] = ("trained.csv", "learning.csv")
    command: ClassVar[str] = "quality"

    def trained(self) -> "pd.DataFrame":
        return self._read("trained.csv", Trained)

    def learning(self) -> "pd.DataFrame":
        return self._read("learning.csv", Learning)

    def scores(self) -> "pd.DataFrame":
        return self._read("quality.csv", Score)

    def samples_of(self, method: str, seed: int) -> Path:
        """As `bench.data.nifti.write_nifti` takes it, which numbers the files."""
        return self.folder / "samples" / f"{method}-{seed}.nii.gz"

    def checkpoint(self, method: str, seed: int, part: str = "") -> Path:
        """Of the network, or of another part of the training: `autoencoder`."""
        name = "-".join([method, str(seed), *([part] if part else [])])
        return self.folder / "checkpoints" / f"{name}.safetensors"

    def keep_trainings(self, done: Collection[tuple[str, int]]) -> None:
        """Remove the records of trainings that are not done from `trained.csv`."""
        names = {(method, str(seed)) for method, seed in done}
        self.keep("trained.csv", lambda row: (row["method"], row["seed"]) in names)

    def forget_learning(self, method: str, seed: int, after: int) -> None:
        """Remove the rows of steps beyond `after`: the training will repeat those steps."""
        name = method, str(seed)
        self.keep(
            "learning.csv",
            lambda row: (row["method"], row["seed"]) != name or float(row["step"]) <= after,
        )

    def forget_scores(self, method: str, seed: int) -> None:
        """Remove the scores of a training, which is about to be scored again."""
        name = method, str(seed)
        self.keep("quality.csv", lambda row: (row["method"], row["seed"]) != name)
