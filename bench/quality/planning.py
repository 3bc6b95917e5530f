"""From what a person typed, or what a run folder says, to the plans of trainings.

Whatever is wrong with it is said here, before anything has started.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import planning
from bench.commands import QualityCommand, Sampler
from bench.data import Source
from bench.errors import UserError
from bench.methods import METHODS, Method
from bench.plain import from_plain
from bench.presets import Workload
from bench.probes.energy import check_country
from bench.quality.budget import Question, choose_widths
from bench.quality.cohort import Cohort, default_subjects, describe_split, divide
from bench.quality.learning import QualityRun
from bench.quality.plan import Plan
from bench.quality.sampling import sampler_steps
from bench.quality.scalars import check_tensorboard
from bench.sizes import parse_size, show_size
from bench.training import Training

MOST_SAMPLES = 10_000
MINUTES = 15.0
"""Of each training, unless told."""


@dataclass(frozen=True)
class Trainings:
    """The plans of a run, as environment.json holds them."""

    trials: tuple[Plan, ...]


@dataclass(frozen=True)
class Data:
    """Per side of volume: where the volumes come from, who does what, where they are prepared."""

    sources: dict[int, Source]
    cohorts: dict[int, Cohort]
    paths: dict[int, Path]
    split: dict[str, Any]
    """For split.json."""

    @classmethod
    def ready(
        cls, command: QualityCommand, chosen: Sequence[tuple[Method, Workload]], console: Console
    ) -> "Data":
        """Every volume prepared; UserError for data that cannot be trained and validated on."""
        subjects = command.subjects
        if subjects is None:
            largest = max(work.volume for _, work in chosen)
            subjects = default_subjects(command.data, largest)
        data = planning.DataChoice(command.data, command.data_dir, subjects)
        sources = planning.open_sources(chosen, data, command.split_seed)
        cohorts = {side: divide(source, command.split_seed) for side, source in sources.items()}
        cache = command.cache_dir or planning.default_cache_dir()
        prepared = planning.prepare_all(sources, cache, console)
        paths = {side: path for side, (_, path) in prepared.items()}
        return cls(sources, cohorts, paths, describe_split(sources, command.split_seed))


def check_command(command: QualityCommand) -> None:
    """UserError for a flag that cannot be, before anything has started."""
    check_ranges(
        ("--seeds", min(command.seeds, default=-1), 0, 2**31),
        ("--split-seed", command.split_seed, 0, 2**31),
        ("--validations", command.validations, 1, 10_000),
        ("--checkpoint-minutes", command.checkpoint_minutes, 0, 10_000),
        ("--samples", command.samples, 0, MOST_SAMPLES),
    )
    check_sampler(command.sampler, command.sampler_steps)
    if len(set(command.seeds)) < len(command.seeds):
        raise UserError(f"--seeds {' '.join(map(str, command.seeds))}: each once")
    if not 0 <= command.ema < 1:
        raise UserError(f"--ema {command.ema:g}: a decay is at least 0 and less than 1")
    if command.timeout is not None and not command.timeout > 0:
        raise UserError(f"--timeout {command.timeout:g}: more than 0 seconds")
    if command.country is not None:
        check_country(command.country)
    if command.tensorboard:
        check_tensorboard()


def check_ranges(*ranges: tuple[str, float, float, float]) -> None:
    """UserError for the first (flag, value, least, most) whose value is not from least to most."""
    for flag, value, least, most in ranges:
        if not least <= value <= most:
            raise UserError(f"{flag} {value:g}: from {least} to {most}")


def check_sampler(sampler: Sampler, steps: int | None) -> None:
    """UserError for a number of steps that the sampler does not have."""
    try:
        sampler_steps(sampler, steps)
    except ValueError as error:
        raise UserError(f"--sampler-steps {steps}: {error}") from None


def plan_trainings(command: QualityCommand, console: Console) -> tuple[list[Plan], dict[str, Any]]:
    """Every training, with its volumes ready, and what split.json says."""
    minutes = MINUTES if command.minutes is None and command.steps is None else command.minutes
    window = planning.choose_window(minutes, command.steps)
    device = planning.choose_device(command.device)
    chosen = planning.choose_workloads(command.models, command.preset, command.overrides)
    limit = None if command.budget is None else parse_size(command.budget, "--budget")
    data = Data.ready(command, chosen, console)
    chosen = [
        (method, replace(work, modality=data.sources[work.volume].channels))
        for method, work in chosen
    ]
    peaks: list[int | None] = [None] * len(chosen)
    if limit is not None:
        chosen, peaks = _within(limit, chosen, console)
    plans = [
        Plan(
            method=method.name,
            preset=command.preset,
            work=work,
            training=Training(seed=seed),
            window=window,
            device=str(device),
            folder="",  # there is none before all this is known to be possible
            data=data.sources[work.volume].name,
            volumes=str(data.paths[work.volume]),
            train=data.cohorts[work.volume].train,
            val=data.cohorts[work.volume].val,
            split_seed=command.split_seed,
            validations=command.validations,
            ema=command.ema,
            checkpoint_s=command.checkpoint_minutes * 60,
            budget_bytes=limit,
            predicted_peak_bytes=peak,
            samples=command.samples,
            sampler=command.sampler,
            sampler_steps=command.sampler_steps,
            tensorboard=command.tensorboard,
            country=command.country,
        )
        for seed in command.seeds
        for (method, work), peak in zip(chosen, peaks, strict=True)
    ]
    return plans, data.split


def _within(
    limit: int, chosen: Sequence[tuple[Method, Workload]], console: Console
) -> tuple[list[tuple[Method, Workload]], list[int | None]]:
    """Each method as wide as fits, and its predicted peak; said to the person, too."""
    with console.status(f"Looking for the widest networks that train in {show_size(limit)}"):
        widths = choose_widths([Question(method.name, work, limit) for method, work in chosen])
    for (method, _), width in zip(chosen, widths, strict=True):
        channels, wider = (
            " ".join(map(str, each)) for each in (width.channels, width.next_channels)
        )
        console.print(
            f"{method.name}: channels {channels}, predicted peak "
            f"{show_size(width.peak_memory_bytes)} of {show_size(limit)}; {wider} would need "
            f"{show_size(width.next_peak_memory_bytes)}",
            highlight=False, markup=False,
        )  # fmt: skip
    widened = [
        (method, replace(work, channels=width.channels))
        for (method, work), width in zip(chosen, widths, strict=True)
    ]
    return widened, [width.peak_memory_bytes for width in widths]


def read_plans(folder: Path, environment: Mapping[str, Any]) -> tuple[QualityCommand, list[Plan]]:
    """What a run was asked for; UserError where its environment.json does not say it."""
    try:
        original = from_plain(QualityCommand, environment.get("configuration"))
        plans = list(from_plain(Trainings, {"trials": environment.get("trials")}).trials)
        if not isinstance(environment.get("resumed", []), list):
            raise ValueError("resumed is not a list")
        _check_plans(plans)
    except ValueError as error:
        raise UserError(
            f"{folder / 'environment.json'}: not that of a quality run ({error})"
        ) from None
    return original, plans


def _check_plans(plans: Sequence[Plan]) -> None:
    """ValueError for plans that no command makes, in a file that somebody changed."""
    if len({(plan.method, plan.seed) for plan in plans}) < len(plans):
        raise ValueError("a training is there twice")
    for plan in plans:
        planning.check_workload(plan.method, plan.work)
        if not plan.train or not plan.val or min(*plan.train, *plan.val) < 0:
            raise ValueError(f"{plan.method}: train and val must be indices of volumes")
        if plan.validations < 1 or plan.checkpoint_s < 0 or not 0 <= plan.ema < 1:
            raise ValueError(f"{plan.method}: validations, checkpoint_s or ema cannot be")


def with_volumes(
    missing: list[Plan],
    plans: Sequence[Plan],
    command: QualityCommand,
    run: QualityRun,
    console: Console,
) -> list[Plan]:
    """The missing plans with volumes that exist: a cache may have been cleared since."""
    if all(Path(plan.volumes).is_file() for plan in missing):
        return missing
    data = Data.ready(command, [(METHODS[plan.method], plan.work) for plan in plans], console)
    if run.read_json("split.json") != data.split:
        raise UserError(
            f"{run.folder / 'split.json'}: names other subjects than the data have now; restore "
            "the data, or start a new run"
        )
    return [replace(plan, volumes=str(data.paths[plan.work.volume])) for plan in missing]
