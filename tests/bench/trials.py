"""Trials so small that starting Python is most of their time, and a display that can act."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil

from bench.commands import RunCommand
from bench.data import open_source, prepare
from bench.environment import describe_environment
from bench.presets import Workload
from bench.results import Record, Run, Sample, Step
from bench.training import Training, Window
from bench.trial import Plan

FOREVER = Window(steps=10**6)


def tiny_plan(folder: Path, **changes: Any) -> Plan:
    """IDM on 8³ under no probe, for three steps."""
    plan = Plan(
        method="idm",
        repeat=1,
        preset="small",
        work=Workload(8, 8, 1, (4, 8), 1, "fp32"),
        training=Training(),
        window=Window(steps=3),
        device="cpu",
        data="phantom",
        volumes=str(volumes(folder)),
        probes=(),
    )
    return replace(plan, **changes)


def volumes(folder: Path, side: int = 8) -> Path:
    """Two phantoms, as the command prepares them."""
    return prepare(open_source("phantom", None, ("t1",), side, 0, 2), folder / "cache")


def new_run(folder: Path, plans: list[Plan], **configuration: Any) -> Run:
    """A run folder as the command makes it, before its first trial."""
    run = Run.create(folder, "small")
    configuration = asdict(RunCommand()) | {"out": str(folder), "idle": 0.0} | configuration
    run.write_environment(
        describe_environment(["run_bench.py"], plans) | {"configuration": configuration}
    )
    return run


def workers() -> list[psutil.Process]:
    """The trials' processes that this one has started."""
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "bench.trial" in child.cmdline()
    ]


class Watcher:
    """A display that keeps what it is told, and does `at_step` after each step."""

    def __init__(self, at_step: Callable[[Step], None] = lambda step: None) -> None:
        self.at_step = at_step
        self.steps: list[Step] = []
        self.samples: list[Sample] = []
        self.records: list[Record] = []
        self.notes: list[str] = []

    def trial_begins(self, plan: Plan, number: int, total: int) -> None: ...

    def stage(self, name: str) -> None: ...

    def step(self, step: Step, fraction: float) -> None:
        self.steps.append(step)
        self.at_step(step)

    def sample(self, sample: Sample) -> None:
        self.samples.append(sample)

    def trial_ends(self, record: Record) -> None:
        self.records.append(record)

    def note(self, text: str) -> None:
        self.notes.append(text)
