"""The command `run`: check everything, prepare the data, run the trials, write the report."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench import planning
from bench.cli import RunCommand
from bench.console import ConsoleDisplay
from bench.data import Source, prepare
from bench.environment import describe_environment
from bench.errors import UserError
from bench.probes.energy import open_meter
from bench.probes.nvml import Card
from bench.probes.temperature import open_thermometer
from bench.report import write_report
from bench.report.tables import console_table
from bench.results import Run
from bench.runner import run_trials
from bench.training import Training
from bench.trial import Plan


def run_benchmark(command: RunCommand, console: Console) -> int:
    """Exit status 0 when every trial is ok, 1 when some are not; UserError before any starts."""
    if command.repeats < 1:
        raise UserError(f"--repeats {command.repeats}: at least 1")
    if not 0 < command.sample_hz <= 1000:
        raise UserError(f"--sample-hz {command.sample_hz:g}: more than 0, at most 1000")
    if command.timeout is not None and command.timeout <= 0:
        raise UserError(f"--timeout {command.timeout:g}: more than 0 seconds")
    window = planning.choose_window(command.minutes, command.steps)
    device = planning.choose_device(command.device)
    preset = command.preset or planning.default_preset(device)
    chosen = planning.choose_workloads(command.models, preset, command.overrides)
    data = planning.DataChoice(command.data, command.data_dir, command.subjects)
    sources = planning.open_sources(chosen, data, command.seed)
    volumes = _prepare_all(sources, command.cache_dir or planning.default_cache_dir(), console)
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
    )
    plans = planning.make_plans(chosen, volumes, template, command.repeats)

    run = Run.create(command.out, preset)
    run.write_environment(describe_environment(sys.argv, plans))
    console.print(f"Run folder: {run.folder}", highlight=False, markup=False)
    for line in missing_sensors(device):
        console.print(line, style="yellow", highlight=False, markup=False)
    with ConsoleDisplay(console) as display:
        records = run_trials(run, plans, display, command.timeout)
    console.print(console_table(run.records()))
    for path in write_report(run):
        console.print(f"  {path}", highlight=False, markup=False)
    all_ok = len(records) == len(plans) and all(record.status == "ok" for record in records)
    return 0 if all_ok else 1


def missing_sensors(device: torch.device) -> list[str]:
    """What this machine cannot tell of `device`, in a line each, to be said once."""
    card = Card.open(device.index or 0) if device.type == "cuda" else None
    lines = []
    meter = open_meter(device, card)
    if meter is None:
        lines.append(f"No energy source for {device} on this machine: those cells stay empty.")
    elif meter.source == "tdp-estimate":
        lines.append(
            "No energy counter on this machine: energy is CodeCarbon's estimate from the CPU's "
            "thermal design power (tdp-estimate)."
        )
    if open_thermometer(device, card) is None:
        lines.append(f"No temperature sensor for {device} on this machine: those cells stay empty.")
    return lines


def _prepare_all(
    sources: dict[int, Source], cache: Path, console: Console
) -> dict[int, tuple[Source, Path]]:
    """Every volume, ready to be read without delay in the window."""
    volumes = {}
    for side, source in sources.items():
        title = f"Preparing {len(source)} volumes of {side}³"
        with console.status(title) as status:

            def show(done: int, total: int, title: str = title, status: Any = status) -> None:
                status.update(f"{title}: {done} of {total}")

            volumes[side] = source, prepare(source, cache, show)
    return volumes
