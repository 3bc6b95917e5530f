"""The command `run`: check everything, prepare the data, run the trials, write the report."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench import planning
from bench.commands import RunCommand
from bench.console import ConsoleDisplay
from bench.environment import describe_environment, describe_resumption
from bench.errors import UserError
from bench.fairness import Referee, Rest, measure_rest
from bench.plain import from_plain, to_plain
from bench.probes.energy import Meter, check_country, open_meter
from bench.probes.nvml import Card, CardUnavailable
from bench.probes.temperature import TemperatureProbe, open_thermometer
from bench.report import write_report
from bench.report.tables import console_table
from bench.results import Run
from bench.runner import run_trials
from bench.training import Training
from bench.trial import Plan, open_card
from bench.worker import Worker

_OF_A_RESUMPTION = ("resume", "timeout", "cooldown", "strict")


def run_benchmark(command: RunCommand, console: Console, worker: Worker) -> int:
    """Carry out `command`, the first trial in `worker`, which is loading `bench.trial` meanwhile.

    Returns:
        Exit status: 0 when every trial is ok, 1 when some are not.

    Raises:
        UserError: before any trial starts.
    """
    if command.resume is not None:
        return _resume(command, command.resume, console, worker)
    _check(command)
    plans = _plan(command, console)
    instruments = Instruments.open(plans[0])
    worker.wait_until_loaded()
    rest = _rest(instruments, command, console)
    run = Run.create(command.out, plans[0].preset)
    with run.locked():
        run.write_environment(
            describe_environment(sys.argv, plans)
            | {"configuration": to_plain(command), "rest": asdict(rest)}
        )
        referee = instruments.referee(rest, command)
        return _run(run, plans, plans, referee, command, console, worker)


def _resume(command: RunCommand, folder: Path, console: Console, worker: Worker) -> int:
    """Run what is missing of a run that was cut short, under the configuration that it had."""
    planning.refuse_settings_of_a_resumption(command, _OF_A_RESUMPTION)
    run = Run(folder)
    environment = run.environment()
    original, plans, rest = _read_environment(folder, environment)
    with run.locked():
        run.mend()
        done = set(run.records()[["method", "repeat"]].itertuples(index=False, name=None))
        missing = [plan for plan in plans if (plan.method, plan.repeat) not in done]
        console.print(
            f"{folder}: {len(plans) - len(missing)} of {len(plans)} trials are there, "
            f"{len(missing)} to run.", highlight=False, markup=False,
        )  # fmt: skip
        settings = replace(
            original,
            timeout=command.timeout or original.timeout,
            strict=command.strict or original.strict,
            cooldown=original.cooldown if command.cooldown == RunCommand.cooldown
            else command.cooldown,
        )  # fmt: skip
        _check(settings)
        if not missing:
            return _run(run, plans, [], None, settings, console, worker)
        planning.choose_device(missing[0].device)
        missing = _with_volumes(missing, original, console)
        instruments = Instruments.open(missing[0])
        worker.wait_until_loaded()
        if rest is None:
            rest = _rest(instruments, settings, console)
        resumption, changes = describe_resumption(sys.argv, environment)
        for change in changes:
            console.print(f"Not as in the trials before: {change}", style="yellow", markup=False)
        environment.setdefault("resumed", []).append(resumption)
        run.write_environment(environment | {"rest": asdict(rest)})
        referee = instruments.referee(rest, settings)
        return _run(run, plans, missing, referee, settings, console, worker)


def _run(
    run: Run,
    plans: Sequence[Plan],
    missing: Sequence[Plan],
    referee: Referee | None,
    command: RunCommand,
    console: Console,
    worker: Worker,
) -> int:
    console.print(f"Run folder: {run.folder}", highlight=False, markup=False)
    with ConsoleDisplay(console) as display:
        run_trials(run, missing, display, command.timeout, referee, worker)
    records = run.records()
    console.print(console_table(records))
    try:
        for path in write_report(run):
            console.print(f"  {path}", highlight=False, markup=False)
    except OSError as error:
        raise UserError(
            f"{run.folder}: the tables and figures cannot be written ({error.strerror}). Every "
            "trial is kept in runs.csv"
        ) from None
    return 0 if len(records) == len(plans) and (records["status"] == "ok").all() else 1


@dataclass
class Instruments:
    """What this process can read of the device under test."""

    card: Card | None
    meter: Meter | None
    thermometer: TemperatureProbe | None
    lines: list[str]
    """What cannot be read, in a line each, to be said once."""

    @classmethod
    def open(cls, plan: Plan) -> "Instruments":
        device, card, lines = torch.device(plan.device), None, []
        try:
            card = open_card(plan)
        except CardUnavailable as why:
            lines.append(f"{why}: no energy, no temperature.")
            return cls(None, None, None, lines)
        of = "the card" if card is not None else str(device)
        meter, thermometer = open_meter(device, card), open_thermometer(device, card)
        if meter is None:
            lines.append(f"No energy source for {of} on this machine: those cells stay empty.")
        elif meter.counter_source == "tdp-estimate":
            lines.append(
                "No energy counter on this machine: energy is CodeCarbon's estimate from the CPU's "
                "thermal design power (tdp-estimate)."
            )
        if thermometer is None:
            lines.append(f"No temperature sensor for {of} on this machine: those cells stay empty.")
        return cls(card, meter, thermometer, lines)

    def referee(self, rest: Rest, command: RunCommand) -> Referee:
        read = self.thermometer.read if self.thermometer is not None else None
        return Referee(rest, read, command.cooldown, self.card, command.strict)


def _rest(instruments: Instruments, command: RunCommand, console: Console) -> Rest:
    """The device before the first trial; with --strict, UserError where it has company."""
    for line in instruments.lines:
        console.print(line, style="yellow", highlight=False, markup=False)
    read = instruments.thermometer.read if instruments.thermometer is not None else None
    rest, contention = measure_rest(instruments.meter, read, command.idle)
    contention += Referee(rest, card=instruments.card).look_around()
    for line in contention:
        console.print(f"Not alone: {line}", style="yellow", highlight=False, markup=False)
    if contention and command.strict:
        raise UserError(f"--strict: {'; '.join(contention)}; end it, or measure without --strict")
    return rest


def _check(command: RunCommand) -> None:
    """UserError for a flag that cannot be, before anything has started."""
    if command.repeats < 1:
        raise UserError(f"--repeats {command.repeats}: at least 1")
    if not 0 < command.sample_hz <= 1000:
        raise UserError(f"--sample-hz {command.sample_hz:g}: more than 0, at most 1000")
    if command.timeout is not None and not command.timeout > 0:
        raise UserError(f"--timeout {command.timeout:g}: more than 0 seconds")
    for flag in ("idle", "cooldown"):
        if not 0 <= getattr(command, flag) <= 86_400:
            raise UserError(f"--{flag} {getattr(command, flag):g}: from 0 to 86400 seconds")
    if command.country is not None:
        check_country(command.country)


def _plan(command: RunCommand, console: Console) -> list[Plan]:
    """Every trial, with its volumes ready; UserError for what cannot be."""
    window = planning.choose_window(command.minutes, command.steps)
    device = planning.choose_device(command.device)
    preset = command.preset or planning.default_preset(device)
    chosen = planning.choose_workloads(command.models, preset, command.overrides)
    limit = planning.choose_memory_limit(command.memory_limit)
    data = planning.DataChoice(command.data, command.data_dir, command.subjects)
    sources = planning.open_sources(chosen, data, command.seed)
    volumes = planning.prepare_all(
        sources, command.cache_dir or planning.default_cache_dir(), console
    )
    template = Plan(
        method="",
        repeat=0,
        preset=preset,
        work=chosen[0][1],
        training=Training(seed=command.seed, lambda_r=command.lambda_r),
        window=window,
        device=str(device),
        data="",
        volumes="",
        sample_hz=command.sample_hz,
        country=command.country,
        memory_limit=limit,
        card=command.card,
    )
    return planning.make_plans(chosen, volumes, template, command.repeats)


def _with_volumes(plans: list[Plan], command: RunCommand, console: Console) -> list[Plan]:
    """The plans with volumes that exist: a cache may have been cleared since."""
    if all(Path(plan.volumes).is_file() for plan in plans):
        return plans
    chosen = planning.chosen_by(plans)
    data = planning.DataChoice(command.data, command.data_dir, command.subjects)
    sources = planning.open_sources(chosen, data, command.seed)
    volumes = planning.prepare_all(
        sources, command.cache_dir or planning.default_cache_dir(), console
    )
    return [replace(plan, volumes=str(volumes[plan.work.volume][1])) for plan in plans]


def _read_environment(
    folder: Path, environment: dict[str, Any]
) -> tuple[RunCommand, list[Plan], Rest | None]:
    """What a run was asked for; UserError where its environment.json does not say it."""
    try:
        original = from_plain(RunCommand, environment.get("configuration"))
        plans = list(from_plain(planning.Plans, {"trials": environment.get("trials")}).trials)
        rest = from_plain(Rest, environment["rest"]) if "rest" in environment else None
        if not isinstance(environment.get("resumed", []), list):
            raise ValueError("resumed is not a list")
        planning.check_plans(plans)
    except ValueError as error:
        raise UserError(f"{folder / 'environment.json'}: cannot be resumed: {error}") from None
    return original, plans, rest
