"""The command `run`: check everything, prepare the data, run the trials, write the report."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from ..commands import RunCommand
from ..ddpm.step import Training
from ..errors import UserError
from ..harness import planning
from ..harness.console import ConsoleDisplay, say
from ..harness.launcher import Launcher
from ..harness.runner import Conditions
from ..harness.worker import Worker
from ..probes.energy import check_country
from ..records.files import from_json
from ..records.folder import Run
from ..report.grid import Grid
from ..report.tables import table2_grid
from ..report.write import write_report
from ..sizes import parse_size
from .cooldown import how_long
from .fairness import EqualConditions, Idle, measure_idle
from .plan import TrialPlan
from .recorder import TrialRecorder
from .sensors import Sensors

WINDOW_MINUTES = 2.0
"""Of each trial, unless told."""


def run_benchmark(command: RunCommand, console: Console) -> int:
    """Exit status 0 when every trial is ok, 1 when some are not; UserError before any starts."""
    return Benchmark(command, console).launch()


class Benchmark(Launcher[RunCommand, TrialPlan, Run]):
    """Trials of every method, the methods interleaved."""

    command_type, plan_type, run_type = RunCommand, TrialPlan, Run
    kind, noun = "benchmark", "trials"
    of_a_resumption = ("timeout", "cooldown", "strict")
    sensors: Sensors | None = None
    idle: Idle | None = None
    """Both since `prepare`."""
    start_c: float | None = None
    """Temperature at the start of the first window, of a run that is resumed."""

    def check(self) -> None:
        if self.command.country is not None:
            check_country(self.command.country)

    def plan(self) -> list[TrialPlan]:
        """Interleaved (A B C A B C), so that a machine that warms up or is busy for a while does
        so to all methods.
        """
        command = self.command
        window = planning.choose_window(command.minutes, command.steps, WINDOW_MINUTES)
        device = planning.choose_device(command.device)
        command.backends.check(str(device))
        preset: Any = command.preset or planning.default_preset(device)
        chosen = planning.choose_workloads(command.models, preset, command.overrides)
        limit = _memory_limit(command.memory_limit)
        data = planning.DataChoice.of(command, command.seed)
        sources = data.open(chosen)
        paths = data.prepare(sources, self.console)
        self.about_data = planning.describe_data(sources)
        training = Training(seed=command.seed, lambda_r=command.lambda_r)
        asked = replace(command, preset=preset)
        return [
            TrialPlan(
                **planning.common_fields(
                    method, work, training, sources[work.volume], paths[work.volume], asked
                ),
                window=window,
                device=str(device),
                repeat=repeat,
                sample_hz=command.sample_hz,
                memory_limit=limit,
                card=command.card,
            )
            for repeat in range(1, command.repeats + 1)
            for method, work in chosen
        ]

    def prepare(self, plans: Sequence[TrialPlan], known: Mapping[str, Any]) -> dict[str, Any]:
        """Look at the device before the first trial; with --strict, UserError for other load."""
        command = self.command
        self.sensors = Sensors.open(plans[0])
        Worker.wait_for_spare()
        self.idle = from_json(Idle, known["idle"]) if "idle" in known else None
        if self.idle is None:
            for line in self.sensors.missing:
                say(self.console, line, "yellow")
            read = self.sensors.read_temperature
            self.idle, others = measure_idle(self.sensors.meter, read, command.idle)
            others += EqualConditions(self.idle, card=self.sensors.card).other_load()
            for line in others:
                say(self.console, f"Warning: other load on this machine: {line}", "yellow")
            if others and command.strict:
                raise UserError(
                    f"--strict: {'; '.join(others)}; end it, or measure without --strict"
                )
        cooldown = command.cooldown if self.sensors.thermometer is not None else 0.0
        say(self.console, how_long([plan.window.seconds for plan in plans], cooldown))
        return {"idle": asdict(self.idle)}

    def create(self, plans: Sequence[TrialPlan]) -> Run:
        return Run.create(self.command.out, plans[0].preset)

    def mend(self, run: Run) -> set[tuple[str, int]]:
        run.mend()
        records = run.records()
        self.start_c = next(iter(records["temperature_start_c"].dropna().tolist()), None)
        return set(records[["method", "repeat"]].itertuples(index=False, name=None))

    @staticmethod
    def check_environment(environment: Mapping[str, Any]) -> None:
        Launcher.check_environment(environment)
        if "idle" in environment:
            from_json(Idle, environment["idle"])

    def with_volumes(self, plans: list[TrialPlan], run: Run) -> list[TrialPlan]:
        if planning.have_volumes(plans):
            return plans
        data = planning.DataChoice.of(self.command, self.command.seed)
        paths = data.prepare(data.open(planning.chosen_by(plans)), self.console)
        return [replace(plan, volumes=str(paths[plan.work.volume])) for plan in plans]

    def recorder(self, run: Run, plan: TrialPlan, display: ConsoleDisplay) -> TrialRecorder:
        return TrialRecorder(run, plan, display)

    def conditions(self) -> Conditions | None:
        if self.sensors is None or self.idle is None:  # nothing is left to run
            return None
        return EqualConditions(
            self.idle, self.start_c, self.command.cooldown, self.sensors.card, self.command.strict
        )

    def records(self, run: Run) -> pd.DataFrame:
        return run.records()

    def grid(self, records: pd.DataFrame) -> Grid:
        return table2_grid(records)

    def write_report(self, run: Run, plans: Sequence[TrialPlan]) -> list[Path]:
        return write_report(run)


def _memory_limit(text: str | None) -> int | None:
    """Bytes that a trial's process may have; UserError for what is no size or leaves nothing."""
    if text is None:
        return None
    limit = parse_size(text, "--memory-limit")
    if limit == 0:
        raise UserError(f"--memory-limit {text}: a trial needs more than that")
    return limit
