"""Runs the trainings one after another, each in its own process, and keeps what became of each."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

from bench.console import ConsoleDisplay, describe_work
from bench.probes import Columns, add_columns
from bench.probes.energy import co2_kg
from bench.quality.learning import QualityRun, Trained
from bench.quality.plan import Plan
from bench.results import Status, column_names
from bench.sizes import show_size
from bench.worker import Interrupt, Worker


def run_trainings(
    run: QualityRun,
    plans: Sequence[Plan],
    display: ConsoleDisplay,
    timeout: float | None = None,
) -> None:
    """Carry out `plans` in order, until Ctrl-C; their records are in `trained.csv` then.

    Args:
        timeout: seconds without a finished step or stage after which a training is given up.
    """

    def notice(count: int) -> None:
        display.note(
            "Interrupted: the training ends after this step, with a checkpoint. Again to stop at "
            "once."
            if count == 1
            else "Stopping now."
        )

    with Interrupt(notice) as interrupt:
        for number, plan in enumerate(plans, 1):
            display.begin(f"[{number}/{len(plans)}] {name(plan)}", describe(plan))
            record = run_training(run, plan, display, interrupt, timeout)
            run.append(record)
            notes = [record.warnings] if record.warnings is not None else []
            display.end(summary(record), record.status == "ok", notes)
            if interrupt.count:
                break


def run_training(
    run: QualityRun,
    plan: Plan,
    display: ConsoleDisplay,
    interrupt: Interrupt,
    timeout: float | None = None,
) -> Trained:
    """One training in a process of its own, from its checkpoint if there is one."""
    record = Trained(
        method=plan.method,
        seed=plan.seed,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    columns = planned_columns(plan)
    ended: dict[str, Any] = {}
    validated = ""

    def handle(event: dict[str, Any]) -> None:
        nonlocal validated
        match event.pop("event"):
            case "stage":
                display.stage(event["name"])
            case "columns":
                add_columns(columns, event["columns"])
            case "step":
                rate = event["step"] / event["elapsed_s"]
                figures = f"step {event['step']}, {rate:.2f} steps/s, loss {event['loss']:.4f}"
                display.advance(event["fraction"], figures + validated)
            case "validated":
                validated = f", validation {event['val_mse_ema']:.4f}"
            case "end":
                ended.update(event)

    log = run.folder / "logs" / f"{plan.method}-{plan.seed}.log"
    with Worker("bench.quality.trainee") as worker:
        worker.give(plan, log)
        outcome = worker.follow(handle, interrupt, timeout)
    status, error = (ended["status"], ended["error"]) if ended else outcome.reason(timeout)
    record.status, record.error = cast(Status, status), error
    columns |= carbon(columns, plan)
    columns["warnings"] = "; ".join(columns.get("warnings", [])) or None
    for column in columns.keys() & set(column_names(Trained)):
        setattr(record, column, columns[column])
    return record


def planned_columns(plan: Plan) -> Columns:
    """What of a record is known before anything has run."""
    return {
        "preset": plan.preset,
        "data": plan.data,
        "device": plan.device,
        **plan.work.columns(),
        "budget_bytes": plan.budget_bytes,
        "predicted_peak_bytes": plan.predicted_peak_bytes,
        "subjects_train": len(plan.train),
        "subjects_val": len(plan.val),
        "split_seed": plan.split_seed,
    }


def carbon(columns: Columns, plan: Plan) -> Columns:
    if columns.get("energy_j") is None:
        return {}
    return {
        "co2_kg": co2_kg(columns["energy_j"], plan.country),
        "co2_source": f"codecarbon:{plan.country or 'world'}",
    }


def name(plan: Plan) -> str:
    return f"{plan.method}, seed {plan.seed}"


def describe(plan: Plan) -> str:
    return (
        f"{describe_work(plan.work)}, channels {' '.join(map(str, plan.work.channels))}, "
        f"{len(plan.train)} volumes, {len(plan.val)} validate"
    )


def summary(record: Trained) -> str:
    """A training that ended, in a line."""
    text = str(record.status)
    if record.steps and record.elapsed_s is not None:
        text += f" after {record.steps} steps, {record.elapsed_s:.0f} s"
    if record.status != "ok":
        return f"{text}: {record.error or 'kept; --resume goes on with it'}"
    if record.peak_memory_bytes is not None:
        text += f", peak {show_size(record.peak_memory_bytes)}"
    if record.val_mse is not None:
        text += f", validation {record.val_mse:.4f} (averaged weights {record.val_mse_ema:.4f})"
    return text
