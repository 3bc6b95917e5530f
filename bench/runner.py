"""Runs the trials of a benchmark, each in its own process, and keeps every row."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, cast

from bench.fairness import Referee
from bench.probes import add_columns
from bench.results import Instant, Record, Run, Sample, Status, Step, column_names
from bench.training import StepTime
from bench.trial import Plan, planned_columns, window_columns
from bench.worker import Interrupt, Worker


class Display(Protocol):
    """Who is told what happens."""

    def trial_begins(self, plan: Plan, number: int, total: int) -> None: ...
    def stage(self, name: str) -> None: ...
    def step(self, step: Step, fraction: float) -> None: ...
    def sample(self, sample: Sample) -> None: ...
    def trial_ends(self, record: Record) -> None: ...
    def note(self, text: str) -> None: ...


def run_trials(
    run: Run,
    plans: Sequence[Plan],
    display: Display,
    timeout: float | None = None,
    referee: Referee | None = None,
    worker: Worker | None = None,
) -> list[Record]:
    """Carry out `plans` in order; returns their records, which are in `runs.csv` already.

    Args:
        timeout: seconds without a finished step or stage after which a trial is given up.
        referee: sees to it that the trials are measured alike; None: nobody does.
        worker: a process that has loaded `bench.trial` already, for the first trial.
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
            record = run_trial(run, plan, display, interrupt, timeout, warnings, contention, worker)
            worker = None  # the others get theirs when nothing is being measured
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
    worker: Worker | None = None,
) -> Record:
    """One trial in a process of its own; its steps and samples are appended as they come.

    Args:
        warnings, contention: what is known of it before it starts, for its record.
        worker: the process, if it is there already.
    """
    record = Record(
        method=plan.method,
        repeat=plan.repeat,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    columns = planned_columns(plan) | {"warnings": list(warnings), "contention": list(contention)}
    steps: list[StepTime] = []
    ended: dict[str, Any] = {}

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
            case "instant":
                run.append(Instant(method=plan.method, repeat=plan.repeat, **event))
            case "end":
                ended.update(event)

    worker = worker or Worker("bench.trial")
    worker.give(plan, run.folder / "logs" / f"{plan.method}-{plan.repeat}.log")
    outcome = worker.follow(handle, interrupt, timeout)
    status, error = (ended["status"], ended["error"]) if ended else outcome.reason(timeout)
    record.status, record.error = cast(Status, status), error
    if steps and "steps" not in columns:  # it died before it could add them up
        columns |= window_columns(steps, plan.work.batch_size)
    for name in ("warnings", "contention"):
        columns[name] = "; ".join(columns[name]) or None
    for name in columns.keys() & set(column_names(Record)):
        setattr(record, name, columns[name])
    return record
