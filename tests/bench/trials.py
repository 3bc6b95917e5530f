"""Trials so small that starting Python is most of their time, and a display that can act."""

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.commands import RunCommand
from bench.data import open_source, prepare
from bench.ddpm.step import Training
from bench.harness.environment import describe_environment
from bench.harness.runner import run_all
from bench.harness.window import Window
from bench.presets import Workload
from bench.records.files import to_json
from bench.records.folder import Run
from bench.records.rows import Record, Sample, Step
from bench.run.fairness import EqualConditions
from bench.run.plan import TrialPlan
from bench.run.recorder import TrialRecorder

FOREVER = Window(steps=10**6)


def tiny_plan(folder: Path, **changes: Any) -> TrialPlan:
    """IDM on 8³ under no probe, for three steps."""
    plan = TrialPlan(
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


def new_run(folder: Path, plans: list[TrialPlan], **configuration: Any) -> Run:
    """A run folder as the command makes it, before its first trial."""
    run = Run.create(folder, "small")
    configuration = to_json(RunCommand()) | {"out": str(folder), "idle": 0.0} | configuration
    run.write_environment(
        describe_environment(["run_bench.py"], plans) | {"configuration": configuration}
    )
    return run


def workers() -> list[psutil.Process]:
    """The trials' processes that this one has started."""
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "bench.run.trial" in child.cmdline()
    ]


class Watcher:
    """A display that keeps what it is told, and does `at_step` after each step."""

    def __init__(self, at_step: Callable[[Step], None] = lambda step: None) -> None:
        self.at_step = at_step
        self.steps: list[Step] = []
        self.samples: list[Sample] = []
        self.records: list[Record] = []
        self.notes: list[str] = []

    def begin(self, title: str, what: str) -> None: ...

    def stage(self, name: str) -> None: ...

    def advance(self, fraction: float, figures: str) -> None: ...

    def end(self, text: str, ok: bool, notes: Sequence[str] = ()) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, step: Step) -> None:
        self.steps.append(step)
        self.at_step(step)


class WatchedRecorder(TrialRecorder):
    """Shows its watcher every row."""

    display: Watcher

    def progress(self, kind: str, event: dict[str, Any]) -> None:
        super().progress(kind, event)
        if kind == "step":
            self.display.step(self.steps[-1])
        elif kind == "sample":
            self.display.samples.append(
                Sample(method=self.plan.method, repeat=self.plan.repeat, **event)
            )

    def summary(self) -> str:
        self.display.records.append(self.row)
        return super().summary()


def run_trials(
    run: Run,
    plans: Sequence[TrialPlan],
    watcher: Watcher,
    timeout: float | None = None,
    conditions: EqualConditions | None = None,
) -> None:
    recorders = [WatchedRecorder(run, plan, watcher) for plan in plans]
    run_all(recorders, watcher, timeout, conditions)


@contextmanager
def small_disk_of(kib: int, disk: Path) -> Iterator[Path]:
    """A disk of its own; only root can mount one, others skip."""
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can mount a small disk; a limit on files stands for it elsewhere")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
