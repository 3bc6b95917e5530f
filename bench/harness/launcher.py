"""A run from its command to its report, new or resumed, whatever is run: trials or trainings."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import pandas as pd
from rich.console import Console

from ..errors import UserError
from ..methods import METHODS
from ..records.files import from_json, to_json
from ..records.folder import Run
from ..report.grid import Grid, for_terminal
from .console import ConsoleDisplay, say
from .environment import describe_environment, describe_resumption
from .output import outlive_the_terminal
from .plan import Plan
from .planning import choose_device
from .runner import Conditions, Recorder, run_all

Command = TypeVar("Command")
AnyPlan = TypeVar("AnyPlan", bound=Plan)
AnyRun = TypeVar("AnyRun", bound=Run)


class Launcher(ABC, Generic[Command, AnyPlan, AnyRun]):
    """One command, and the console that it answers on."""

    command_type: ClassVar[type]
    plan_type: ClassVar[type]
    run_type: ClassVar[type]
    kind: ClassVar[str]
    """Of the run, for messages."""
    noun: ClassVar[str]
    """What is run, in the plural."""
    of_a_resumption: ClassVar[tuple[str, ...]]
    """Flags that may stand beside --resume."""
    about_data: Mapping[str, Any] = {}
    """What environment.json is to say of the data, since `plan`."""

    def __init__(self, command: Command, console: Console) -> None:
        self.command, self.console = command, console

    @abstractmethod
    def check(self) -> None:
        """UserError for a flag out of range, before anything has started."""

    @abstractmethod
    def plan(self) -> list[AnyPlan]:
        """Everything that will be run, with its volumes ready; UserError for a wrong flag."""

    @abstractmethod
    def prepare(self, plans: Sequence[AnyPlan], known: Mapping[str, Any]) -> dict[str, Any]:
        """Last steps before the first process; returns what environment.json is to say of them.

        Args:
            known: what environment.json says already.
        """

    @abstractmethod
    def create(self, plans: Sequence[AnyPlan]) -> AnyRun:
        """The run folder."""

    @abstractmethod
    def mend(self, run: AnyRun) -> set[tuple[str, int]]:
        """Make a run that was cut short whole; returns the keys of the plans that are done."""

    @staticmethod
    def check_environment(environment: Mapping[str, Any]) -> None:
        """ValueError for what no command writes beside the plans."""
        if not isinstance(environment.get("resumed", []), list):
            raise ValueError("resumed is not a list")

    @abstractmethod
    def with_volumes(self, plans: list[AnyPlan], run: AnyRun) -> list[AnyPlan]:
        """The plans with volumes that exist: a cache may have been cleared since."""

    @abstractmethod
    def recorder(self, run: AnyRun, plan: AnyPlan, display: ConsoleDisplay) -> Recorder: ...

    def conditions(self) -> Conditions | None:
        """What makes the trials comparable."""
        return None

    @abstractmethod
    def records(self, run: AnyRun) -> pd.DataFrame: ...

    @abstractmethod
    def grid(self, records: pd.DataFrame) -> Grid:
        """The table that ends the command."""

    @abstractmethod
    def write_report(self, run: AnyRun, plans: Sequence[AnyPlan]) -> list[Path]: ...

    def launch(self) -> int:
        """Exit status: 0 when everything is ok, 1 when some is not; UserError before it starts."""
        outlive_the_terminal()
        folder = self.command.resume  # type: ignore[attr-defined]
        return self._start() if folder is None else self._resume(folder)

    def _start(self) -> int:
        self.check()
        plans = self.plan()
        notes = self.prepare(plans, {})
        run = self.create(plans)
        with run.locked():
            configuration = {"configuration": to_json(self.command)}
            environment = describe_environment(sys.argv, plans) | configuration
            run.write_environment({**environment, **self.about_data, **notes})
            return self._carry_out(run, plans, plans)

    def _resume(self, folder: Path) -> int:
        """Run what is missing of a run that was cut short, under the configuration that it had."""
        self.check()
        typed = self._of_a_resumption()
        run = self.run_type(folder)
        environment = run.environment()
        self.command, plans = self.read(folder, environment)
        self.command = replace(self.command, **typed)  # type: ignore[type-var]
        with run.locked():
            done = self.mend(run)
            missing = [plan for plan in plans if plan.key not in done]
            say(
                self.console,
                f"{folder}: {len(plans) - len(missing)} of {len(plans)} {self.noun} are finished, "
                f"{len(missing)} to run.",
            )
            if missing:
                choose_device(missing[0].device)
                missing = self.with_volumes(missing, run)
                notes = self.prepare(missing, environment)
                resumption, changes = describe_resumption(sys.argv, environment)
                for change in changes:
                    say(self.console, f"Changed since the run began: {change}", "yellow")
                environment.setdefault("resumed", []).append(resumption)
                run.write_environment(environment | notes)
            return self._carry_out(run, plans, missing)

    def _of_a_resumption(self) -> dict[str, Any]:
        """The flags that were typed beside --resume; UserError for one that the run has already."""
        default = self.command_type()
        typed = {}
        for field in fields(self.command_type):
            value = getattr(self.command, field.name)
            if field.name == "resume" or value == getattr(default, field.name):
                continue
            if field.name not in self.of_a_resumption:
                flag = field.name.replace("_", "-")
                raise UserError(f"--{flag}: the run has its own; leave it out beside --resume")
            typed[field.name] = value
        return typed

    @classmethod
    def read(cls, folder: Path, environment: Mapping[str, Any]) -> tuple[Command, list[AnyPlan]]:
        """What a run was asked for; UserError where its environment.json does not say it."""
        try:
            command: Any = from_json(cls.command_type, environment.get("configuration"))
            trials = environment.get("trials")
            if not isinstance(trials, list) or not trials:
                raise ValueError("trials: none are there")
            plans: list[Any] = [from_json(cls.plan_type, trial) for trial in trials]
            if len({plan.key for plan in plans}) < len(plans):
                raise ValueError(f"one of its {cls.noun} is there twice")
            for plan in plans:
                if plan.method not in METHODS:
                    raise ValueError(f"{plan.method!r:.40} is no method of this version")
            cls.check_environment(environment)
        except ValueError as error:
            raise UserError(
                f"{folder / 'environment.json'}: not that of a {cls.kind} run ({error})"
            ) from None
        return command, plans

    def _carry_out(self, run: AnyRun, plans: Sequence[AnyPlan], missing: Sequence[AnyPlan]) -> int:
        say(self.console, f"Run folder: {run.folder}")
        with ConsoleDisplay(self.console) as display:
            recorders = [self.recorder(run, plan, display) for plan in missing]
            timeout = self.command.timeout  # type: ignore[attr-defined]
            run_all(recorders, display, timeout, self.conditions())
        records = self.records(run)
        self.console.print(for_terminal(self.grid(records)))
        try:
            for path in self.write_report(run, plans):
                say(self.console, f"  {path}")
        except OSError as error:
            raise UserError(
                f"{run.folder}: the tables and figures cannot be written ({error.strerror}). All "
                f"{self.noun} are kept"
            ) from None
        return 0 if len(records) == len(plans) and (records["status"] == "ok").all() else 1
