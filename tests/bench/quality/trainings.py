"""Trainings so small that starting Python is most of their time, in this process or their own."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.data import open_source, prepare
from bench.ddpm.step import Training
from bench.harness.runner import run_all
from bench.harness.window import Window
from bench.harness.worker import Events
from bench.presets import Workload
from bench.quality import trainer
from bench.quality.plan import TrainingPlan
from bench.quality.recorder import TrainingRecorder
from bench.records.folder import QualityRun

WORK = Workload(8, 8, 2, (8, 32), 1, "fp32")
"""Wide enough for idm-lean to keep moments as bytes (it does from 4,096 weights a tensor)."""


def tiny_plan(run: QualityRun, **changes: Any) -> TrainingPlan:
    """IDM on seven brains of 8³, for six steps with three validations, saved after each step."""
    plan = TrainingPlan(
        method="idm",
        preset="small",
        work=WORK,
        training=Training(),
        window=Window(steps=6),
        device="cpu",
        folder=str(run.folder),
        data="phantom",
        volumes=str(volumes(run.folder.parent)),
        train=(0, 2, 3, 5, 6),
        val=(1, 4),
        validations=3,
        checkpoint_s=0,
        sampler="ddim",
        sampler_steps=2,
    )
    return replace(plan, **changes)


def volumes(folder: Path) -> Path:
    return prepare(open_source("phantom", None, ("t1",), 8, 0, 7), folder / "cache")


def train(
    plan: TrainingPlan, stop_after: int | None = None, should_stop: Callable[[], bool] | None = None
) -> list[dict[str, Any]]:
    """Carry a plan out in this process; what it told. A stop comes like Ctrl-C."""
    heard = io.StringIO()
    trainer.run(plan, Events(heard), should_stop or (lambda: steps_in(heard) == stop_after))
    return [json.loads(line) for line in heard.getvalue().splitlines()]


def steps_in(heard: io.StringIO) -> int:
    return heard.getvalue().count('"event": "step"')


def losses(events: list[dict[str, Any]]) -> dict[int, float]:
    """Of each step, to the last bit."""
    return {event["step"]: event["loss"] for event in events if event["event"] == "step"}


class Watcher:
    """A display that keeps what it is told, and does `at_step` when a step is over."""

    def __init__(self, at_step: Callable[[float], None] = lambda fraction: None) -> None:
        self.at_step = at_step
        self.lines: list[str] = []

    def begin(self, title: str, what: str) -> None:
        self.lines.append(f"{title}: {what}")

    def stage(self, name: str) -> None: ...

    def advance(self, fraction: float, figures: str) -> None:
        self.at_step(fraction)

    def end(self, text: str, ok: bool, notes: Any = ()) -> None:
        self.lines += [text, *notes]

    def note(self, text: str) -> None:
        self.lines.append(text)


def run_trainings(run: QualityRun, plans: list[TrainingPlan], watcher: Watcher) -> None:
    """Each in a process of its own."""
    run_all([TrainingRecorder(run, plan, watcher) for plan in plans], watcher)
