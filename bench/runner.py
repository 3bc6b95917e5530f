"""Runs the trials of a benchmark, each in its own process, and keeps every row."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from bench.errors import UserError
from bench.fairness import Referee
from bench.probes import add_columns
from bench.results import Record, Run, Sample, Status, Step, column_names
from bench.training import StepTime
from bench.trial import Plan, planned_columns, window_columns

_POLL_S = 0.25  # how soon an interrupt or a time-out is noticed
_START_S = 180.0  # how long an interpreter may take to load PyTorch from a cold disk


class Display(Protocol):
    """Who is told what happens."""

    def trial_begins(self, plan: Plan, number: int, total: int) -> None: ...
    def stage(self, name: str) -> None: ...
    def step(self, step: Step, fraction: float) -> None: ...
    def sample(self, sample: Sample) -> None: ...
    def trial_ends(self, record: Record) -> None: ...
    def note(self, text: str) -> None: ...


class Interrupt:
    """Counts Ctrl-C while it is entered: once, finish the step and keep it; twice, stop now."""

    def __init__(self, notice: Callable[[int], None]) -> None:
        self.count = 0
        self._notice = notice

    def __enter__(self) -> "Interrupt":
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _handle(self, *_: object) -> None:
        self.count += 1
        self._notice(self.count)


def run_trials(
    run: Run,
    plans: Sequence[Plan],
    display: Display,
    timeout: float | None = None,
    referee: Referee | None = None,
) -> list[Record]:
    """Carry out `plans` in order; returns their records, which are in `runs.csv` already.

    Args:
        timeout: seconds without a finished step or stage after which a trial is given up.
        referee: sees to it that the trials are measured alike; None: nobody does.
    """
    records = []

    def notice(count: int) -> None:
        display.note(
            "Interrupted: the trial ends after this step and is kept. Again to stop at once."
            if count == 1
            else "Stopping now."
        )

    with Interrupt(notice) as interrupt:
        for number, plan in enumerate(plans, 1):
            warnings, contention = [], []
            if referee is not None:
                warnings = referee.wait_until_cool(display.note, lambda: interrupt.count > 0)
                contention = referee.look_around()
            if interrupt.count:
                break
            display.trial_begins(plan, number, len(plans))
            record = run_trial(run, plan, display, interrupt, timeout, warnings, contention)
            if referee is not None:
                referee.judge(record)
            run.append(record)
            display.trial_ends(record)
            records.append(record)
            if interrupt.count:
                break
    return records


def run_trial(
    run: Run,
    plan: Plan,
    display: Display,
    interrupt: Interrupt,
    timeout: float | None = None,
    warnings: Sequence[str] = (),
    contention: Sequence[str] = (),
) -> Record:
    """One trial in a process of its own; its steps and samples are appended as they come.

    Args:
        warnings, contention: what is known of it before it starts, for its record.
    """
    record = Record(
        method=plan.method,
        repeat=plan.repeat,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    columns = planned_columns(plan) | {"warnings": list(warnings), "contention": list(contention)}
    steps: list[StepTime] = []
    ended: dict[str, Any] = {}
    kills_before = _oom_kills()

    def handle(event: dict[str, Any]) -> None:
        match event.pop("event"):
            case "stage":
                display.stage(event["name"])
            case "columns":
                add_columns(columns, event["columns"])
            case "step":
                steps.append(StepTime(**event))
                step = Step(method=plan.method, repeat=plan.repeat, **event)
                run.append(step)
                display.step(step, plan.window.fraction(step.step, step.elapsed_s))
            case "sample":
                sample = Sample(method=plan.method, repeat=plan.repeat, **event)
                run.append(sample)
                display.sample(sample)
            case "end":
                ended.update(event)

    log = run.folder / "logs" / f"{plan.method}-{plan.repeat}.log"
    outcome = _follow(_start(plan, log), handle, interrupt, timeout)
    record.status, record.error = _verdict(ended, outcome, timeout, _oom_kills() > kills_before)
    if steps and "steps" not in columns:  # it died before it could add them up
        columns |= window_columns(steps, plan.work.batch_size)
    for name in ("warnings", "contention"):
        columns[name] = "; ".join(columns[name]) or None
    for name in columns.keys() & set(column_names(Record)):
        setattr(record, name, columns[name])
    return record


@dataclass(frozen=True)
class _Child:
    process: subprocess.Popen[str]
    events: int
    """The end of the pipe that we read."""


@dataclass(frozen=True)
class _Outcome:
    returncode: int
    timed_out: bool = False
    stopped: bool = False


def _start(plan: Plan, log: Path) -> _Child:
    """A fresh interpreter with the plan on its standard input and a pipe for its events."""
    try:
        log.parent.mkdir(exist_ok=True)
        output = log.open("w")
    except OSError as error:
        raise UserError(f"{log}: cannot be written ({error.strerror})") from None
    read_end, write_end = os.pipe()
    root = str(Path(__file__).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    with output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.trial", str(write_end)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            text=True,
            pass_fds=(write_end,),
            start_new_session=True,  # Ctrl-C is ours to pass on
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
    os.close(write_end)
    assert process.stdin is not None
    try:
        with process.stdin as stdin:
            stdin.write(plan.to_json())
    except BrokenPipeError:
        pass  # it died at once; its return code says so
    return _Child(process, read_end)


def _follow(
    child: _Child,
    handle: Callable[[dict[str, Any]], None],
    interrupt: Interrupt,
    timeout: float | None,
) -> _Outcome:
    """Pass the child's events on until it ends, or is made to end."""
    is_up = passed_on = timed_out = stopped = False
    last_progress = time.monotonic()
    buffer = b""
    try:
        while True:
            # Before its first event, an interrupt would end it instead of being noted.
            if interrupt.count >= 1 and is_up and not passed_on:
                child.process.send_signal(signal.SIGINT)
                passed_on = True
            stopped = stopped or interrupt.count >= 2
            if timeout is not None:
                patience = timeout if is_up else max(timeout, _START_S)
                timed_out = timed_out or time.monotonic() - last_progress > patience
            if stopped or timed_out:
                child.process.kill()
            if not select.select([child.events], [], [], _POLL_S)[0]:
                continue
            chunk = os.read(child.events, 1 << 16)
            if not chunk:
                break
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                is_up = True
                event = json.loads(line)
                if event["event"] != "sample":  # samples come also from a step that hangs
                    last_progress = time.monotonic()
                handle(event)
    finally:
        os.close(child.events)
        if sys.exc_info()[0] is not None:  # our own failure (a full disk) ends the trial too
            child.process.kill()
        child.process.wait()
    return _Outcome(child.process.returncode, timed_out, stopped)


def _verdict(
    ended: dict[str, Any], outcome: _Outcome, timeout: float | None, oom_killed: bool
) -> tuple[Status, str | None]:
    if ended:
        return ended["status"], ended["error"]
    if outcome.timed_out:
        return "timeout", f"no step finished for {timeout:g} s (--timeout)"
    if outcome.stopped:
        return "interrupted", "stopped by a second interrupt"
    if oom_killed:
        return "oom", "the machine ran out of memory and its kernel ended the trial"
    if outcome.returncode < 0:
        name = signal.Signals(-outcome.returncode).name
        return "failed", f"the trial's process was ended by {name}"
    return "failed", f"the trial's process ended with status {outcome.returncode}; see logs/"


def _oom_kills() -> int:
    """How many processes the kernel has ended for want of memory since it started (Linux)."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    except (OSError, StopIteration):
        return 0
