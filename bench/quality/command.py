"""The command `quality`: plan the trainings, carry them out one by one, show what came out."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from bench import planning
from bench.commands import QualityCommand
from bench.console import ConsoleDisplay
from bench.data import load
from bench.environment import describe_environment, describe_resumption
from bench.errors import UserError
from bench.plain import to_plain
from bench.quality.learning import QualityRun
from bench.quality.plan import Plan
from bench.quality.planning import check_command, plan_trainings, read_plans, with_volumes
from bench.quality.runner import run_trainings
from bench.quality.sampling import read_nifti
from bench.quality.scalars import check_tensorboard
from bench.report import write_report
from bench.report.quality import write_figure2

_OF_A_RESUMPTION = ("resume", "timeout")


def run_quality(command: QualityCommand, console: Console) -> int:
    """Exit status 0 when every training is ok, 1 when some are not; UserError before any starts."""
    if command.resume is not None:
        return _resume(command, command.resume, console)
    check_command(command)
    plans, split = plan_trainings(command, console)
    run = QualityRun.create(command.out, f"quality-{command.preset}")
    plans = [replace(plan, folder=str(run.folder)) for plan in plans]
    with run.locked():
        run.write_json("split.json", split)
        run.write_environment(
            describe_environment(sys.argv, plans)
            | {"configuration": to_plain(command), "split": "split.json"}
        )
        return _run(run, plans, plans, command.timeout, console)


def _resume(command: QualityCommand, folder: Path, console: Console) -> int:
    """Go on with every training that is not ok, from its checkpoint."""
    planning.refuse_settings_of_a_resumption(command, _OF_A_RESUMPTION)
    check_command(command)
    run = QualityRun(folder)
    environment = run.environment()
    original, plans = read_plans(folder, environment)
    plans = [replace(plan, folder=str(folder)) for plan in plans]
    with run.locked():
        records = run.trained()
        done = records[records["status"] == "ok"]
        finished = set(done[["method", "seed"]].itertuples(index=False, name=None))
        missing = [plan for plan in plans if (plan.method, plan.seed) not in finished]
        console.print(
            f"{folder}: {len(plans) - len(missing)} of {len(plans)} trainings are finished, "
            f"{len(missing)} to go on with.", highlight=False, markup=False,
        )  # fmt: skip
        if missing:
            planning.choose_device(missing[0].device)
            if original.tensorboard:
                check_tensorboard()
            missing = with_volumes(missing, plans, original, run, console)
            run.forget_trainings({(plan.method, plan.seed) for plan in missing})
            resumption, changes = describe_resumption(sys.argv, environment)
            for change in changes:
                console.print(f"Not as it was: {change}", style="yellow", markup=False)
            environment.setdefault("resumed", []).append(resumption)
            run.write_environment(environment)
        return _run(run, plans, missing, command.timeout or original.timeout, console)


def _run(
    run: QualityRun,
    plans: Sequence[Plan],
    missing: Sequence[Plan],
    timeout: float | None,
    console: Console,
) -> int:
    console.print(f"Run folder: {run.folder}", highlight=False, markup=False)
    with ConsoleDisplay(console) as display:
        run_trainings(run, missing, display, timeout)
    records = run.trained()
    console.print(_table(records))
    try:
        written = [*_write_figure2(run, plans), *write_report(run)]
    except OSError as error:
        raise UserError(
            f"{run.folder}: the tables and figures cannot be written ({error.strerror}). Every "
            "training is kept"
        ) from None
    for path in written:
        console.print(f"  {path}", highlight=False, markup=False)
    return 0 if len(records) == len(plans) and (records["status"] == "ok").all() else 1


def _write_figure2(run: QualityRun, plans: Sequence[Plan]) -> list[Path]:
    """Figure 2, of each method's first training that left samples."""
    generated: dict[str, np.ndarray] = {}
    for plan in plans:
        channels = len(plan.work.modality)
        samples = read_nifti(run.samples_of(plan.method, plan.seed), channels)
        if samples is not None and plan.work.volume == plans[0].work.volume:
            generated.setdefault(plan.method, samples)
    if not generated:
        return []
    volumes = load(Path(plans[0].volumes))
    real = np.stack([volumes[index] for index in plans[0].val])
    return write_figure2(real, generated, run.folder, plans[0].work.modality)


def _table(records: pd.DataFrame) -> Table:
    table = Table(title="Validation: mean square error of ε (predicting 0 has 1)")
    for column in ("method", "seed", "status", "steps", "minutes", "raw", "averaged"):
        table.add_column(column, justify="left" if column in ("method", "status") else "right")
    for _, record in records.assign(minutes=records["elapsed_s"] / 60).iterrows():
        numbers = {"steps": "d", "minutes": ".1f", "val_mse": ".4f", "val_mse_ema": ".4f"}
        table.add_row(
            *(str(record[column]) for column in ("method", "seed", "status")),
            *(
                "" if pd.isna(record[column]) else format(record[column], spec)
                for column, spec in numbers.items()
            ),
        )
    return table
