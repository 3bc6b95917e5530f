"""From what a person typed to the plans of the trials; whatever is wrong with it is said here."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.data import Source, open_source, prepare
from bench.errors import UserError
from bench.methods import METHODS, Method, find_methods
from bench.presets import Overrides, Workload
from bench.sizes import parse_size
from bench.training import Window
from bench.trial import Plan


@dataclass(frozen=True)
class DataChoice:
    """Which volumes to train on."""

    data: str
    data_dir: Path | None = None
    subjects: int | None = None


@dataclass(frozen=True)
class Plans:
    """The plans of a run, as environment.json holds them."""

    trials: tuple[Plan, ...]


def check_plans(plans: Sequence[Plan]) -> None:
    """ValueError for plans that no command makes, in a file that somebody changed."""
    if not plans:
        raise ValueError("no trials")
    if len({(plan.method, plan.repeat) for plan in plans}) < len(plans):
        raise ValueError("a trial is there twice")
    for plan in plans:
        check_workload(plan.method, plan.work)
        if not 0 < plan.sample_hz <= 1000:
            raise ValueError(f"{plan.method}: sample_hz must be more than 0, at most 1000")


def check_workload(method: str, work: Workload) -> None:
    """ValueError for what no command makes."""
    if method not in METHODS:
        raise ValueError(f"{method!r:.40} is no method of this version")
    if min(work.volume, work.patch, work.batch_size, work.couplings, *work.channels) < 1:
        raise ValueError(f"{method}: sizes must be at least 1")


def chosen_by(plans: Sequence[Plan]) -> list[tuple[Method, Workload]]:
    """Each method of these plans with what it trains on."""
    return [(METHODS[plan.method], plan.work) for plan in plans]


def choose_memory_limit(text: str | None) -> int | None:
    """Bytes that a trial's process may have; UserError for what is no size or leaves nothing."""
    if text is None:
        return None
    limit = parse_size(text, "--memory-limit")
    if limit == 0:
        raise UserError(f"--memory-limit {text}: a trial needs more than that")
    return limit


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:1` as a device that is there; UserError otherwise."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: unknown; give auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: only cpu and cuda are measured")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: this machine shows PyTorch {torch.cuda.device_count()} CUDA devices"
        )
    return device


def default_preset(device: torch.device) -> str:
    return "paper" if device.type == "cuda" else "small"


def choose_window(minutes: float | None, steps: int | None) -> Window:
    if minutes is not None and steps is not None:
        raise UserError("--minutes and --steps: give one of the two, not both")
    if steps is not None:
        if steps < 1:
            raise UserError(f"--steps {steps}: the window needs at least 1 step")
        return Window(steps=steps)
    minutes = 2.0 if minutes is None else minutes
    if not 0 < minutes < float("inf"):
        raise UserError(f"--minutes {minutes:g}: the window must be longer than 0")
    return Window(seconds=minutes * 60)


def choose_workloads(
    names: Sequence[str], preset: str, overrides: Overrides
) -> list[tuple[Method, Workload]]:
    """Each method with what it will train on; UserError for what cannot be."""
    return [(method, method.workload(preset, overrides)) for method in find_methods(names)]


def open_sources(
    chosen: Sequence[tuple[Method, Workload]], data: DataChoice, seed: int
) -> dict[int, Source]:
    """One source for every side of volume that the methods train on."""
    return {
        side: open_source(
            data.data, data.data_dir, next(w.modality for _, w in chosen if w.volume == side),
            side, seed, data.subjects,
        )
        for side in sorted({work.volume for _, work in chosen})
    }  # fmt: skip


def prepare_all(
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


def refuse_settings_of_a_resumption(command: Any, own: Sequence[str]) -> None:
    """UserError for a flag beside --resume that the run has already, at another value or not.

    Args:
        own: the fields of the command that belong to a resumption.
    """
    default = type(command)()
    for field in fields(command):
        if field.name not in own and getattr(command, field.name) != getattr(default, field.name):
            flag = field.name.replace("_", "-")
            raise UserError(f"--{flag}: the run has its own; leave it out beside --resume")


def make_plans(
    chosen: Sequence[tuple[Method, Workload]],
    volumes: dict[int, tuple[Source, Path]],
    template: Plan,
    repeats: int,
) -> list[Plan]:
    """Every trial of the benchmark, the methods interleaved (A B C A B C), not in blocks.

    Interleaved, so that a machine that warms up or is busy for a while does so to all of them.
    """
    plans = []
    for repeat in range(1, repeats + 1):
        for method, work in chosen:
            source, path = volumes[work.volume]
            plans.append(
                replace(
                    template,
                    method=method.name,
                    repeat=repeat,
                    work=replace(work, modality=source.channels),
                    data=source.name,
                    volumes=str(path),
                )
            )
    return plans


def default_cache_dir() -> Path:
    """Where prepared volumes are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "idm-bench"
