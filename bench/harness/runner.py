"""Runs plans one after another, each in its own process, and keeps every row."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from ..records.folder import Run
from ..records.rows import Measurement, Record, Trained, UnknownColumn, Validated
from .worker import Interrupt, Worker

Row = TypeVar("Row", Record, Trained, Validated)


class Planned(Protocol):
    """What is run in a process of its own (`bench.harness.plan`)."""

    @property
    def method(self) -> str: ...
    @property
    def number(self) -> int: ...
    def columns(self) -> dict[str, Any]: ...


AnyPlan = TypeVar("AnyPlan", bound=Planned)


class Display(Protocol):
    """Who is told what happens (`bench.harness.console`)."""

    def begin(self, title: str, what: str) -> None: ...
    def stage(self, name: str) -> None: ...
    def advance(self, fraction: float, figures: str) -> None: ...
    def end(self, text: str, ok: bool, notes: Sequence[str] = ()) -> None: ...
    def note(self, text: str) -> None: ...


class Conditions(Protocol):
    """What makes the trials of a run comparable (`bench.run.fairness`)."""

    def before(self, tell: Callable[[str], None], stop: Callable[[], bool]) -> Measurement: ...
    def planned(self, plan: Any) -> Any: ...
    def judge(self, record: Any) -> None: ...


class Recorder(ABC, Generic[AnyPlan, Row]):
    """Turns what one process tells into rows of a run; `run` and `quality` have one each."""

    module: ClassVar[str]
    """That the process runs, as seen from the package (`run.trial`)."""
    interrupted: ClassVar[str]
    """Message after Ctrl-C."""

    def __init__(self, run: Run, plan: AnyPlan, row: Row, display: Display) -> None:
        self.run, self.plan, self.display = run, plan, display
        self.row: Row = row
        self.ended = False
        row.take(plan.columns())

    @property
    @abstractmethod
    def title(self) -> str: ...

    @property
    @abstractmethod
    def description(self) -> str: ...

    @property
    def log(self) -> Path:
        return self.run.folder / "logs" / f"{self.plan.method}-{self.plan.number}.log"

    def handle(self, event: dict[str, Any]) -> None:
        """Raises UnknownColumn for a measured number that has no place in the row."""
        match event.pop("event"):
            case "stage":
                self.display.stage(event["name"])
            case "columns":
                self.row.take(event["columns"])
            case "end":
                self.ended = True
                self.row.status, self.row.error = event["status"], event["error"]
            case kind:
                self.progress(kind, event)

    @abstractmethod
    def progress(self, kind: str, event: dict[str, Any]) -> None:
        """A step, a reading, or whatever else this kind of process tells."""

    def finish(self) -> None:
        """Add what follows from the rest: nothing, unless a kind of process has more."""

    @abstractmethod
    def summary(self) -> str:
        """What has ended, in a line."""


def run_all(
    recorders: Sequence[Recorder[Any, Any]],
    display: Display,
    timeout: float | None = None,
    conditions: Conditions | None = None,
) -> None:
    """Carry out the plans in order, until Ctrl-C; their rows are in the run's files then.

    Args:
        timeout: seconds without a finished step or stage after which a process is given up.
        conditions: makes the trials comparable; None: nothing does.
    """

    def notice(count: int) -> None:
        display.note(recorders[0].interrupted if count == 1 else "Stopping now.")

    with Interrupt(notice) as interrupt:
        for number, recorder in enumerate(recorders, 1):
            if conditions is not None:
                before = conditions.before(display.note, lambda: interrupt.count > 0)
                recorder.row.take(before.columns())
                recorder.plan = conditions.planned(recorder.plan)
            if interrupt.count:
                break
            display.begin(f"[{number}/{len(recorders)}] {recorder.title}", recorder.description)
            run_one(recorder, interrupt, timeout)
            row = recorder.row
            if conditions is not None:
                conditions.judge(row)
            recorder.run.append(row)
            display.end(recorder.summary(), row.status == "ok", (*row.contention, *row.warnings))
            if interrupt.count:
                break


def run_one(
    recorder: Recorder[Any, Any], interrupt: Interrupt, timeout: float | None = None
) -> None:
    """One plan in a process of its own; what it finds is appended as it comes."""
    row = recorder.row
    row.started_at = datetime.now(UTC).isoformat(timespec="seconds")
    with Worker.loaded(recorder.module) as worker:
        worker.give(recorder.plan, recorder.log)
        try:
            outcome = worker.follow(recorder.handle, interrupt, timeout)
        except UnknownColumn as error:
            row.status, row.error = "failed", str(error)
        else:
            if not recorder.ended:
                row.status, row.error = outcome.reason(timeout)
                row.ended_by = outcome.ended_by
                if outcome.memory is not None:
                    row.rss_at_end_bytes = outcome.memory.own
                    row.free_at_end_bytes = outcome.memory.free
    recorder.finish()
