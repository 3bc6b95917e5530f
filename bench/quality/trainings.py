"""The command `quality`: plan the trainings, carry them out one by one, show what came out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from ..commands import QualityCommand
from ..data import Source, load
from ..data.batches import as_drawn, whole
from ..data.nifti import read_nifti
from ..data.split import Split, default_subjects, describe_split, divide
from ..ddpm.diffusion import split_channels
from ..ddpm.samplers import sampler_steps
from ..ddpm.step import Training
from ..errors import UserError
from ..harness import planning
from ..harness.console import ConsoleDisplay, say
from ..harness.launcher import Launcher
from ..harness.planning import Chosen
from ..predict.parallel import side_by_side
from ..presets import Sampler, Workload, check_guidance
from ..probes.energy import check_country
from ..records.folder import QualityRun
from ..report.figure2 import write_figure2
from ..report.grid import Cell, Grid
from ..report.write import write_report
from ..sizes import Shape, parse_size, show_size
from .budget import Question, widest
from .evaluation import pictures
from .plan import TrainingPlan
from .recorder import TrainingRecorder
from .tensorboard_log import check_tensorboard

MINUTES = 15.0
"""Of each training, unless told."""


def run_quality(command: QualityCommand, console: Console) -> int:
    """Exit status 0 when every training is ok, 1 when some are not; UserError before any starts."""
    return Trainings(command, console).launch()


@dataclass(frozen=True)
class Data:
    """Per shape of volume: the volumes' source, their split, their prepared file."""

    sources: dict[Shape, Source]
    splits: dict[Shape, Split]
    paths: dict[Shape, Path]

    @classmethod
    def ready(cls, command: QualityCommand, chosen: Chosen, console: Console) -> "Data":
        """Every volume prepared; UserError for data that cannot be trained and validated on."""
        largest = max((work.volume for _, work in chosen), key=lambda shape: shape.voxels)
        subjects = default_subjects(command.data, largest)
        data = planning.DataChoice.of(command, command.split_seed, subjects)
        sources = data.open(chosen)
        splits = {shape: divide(source, command.split_seed) for shape, source in sources.items()}
        return cls(sources, splits, data.prepare(sources, console))


class Trainings(Launcher[QualityCommand, TrainingPlan, QualityRun]):
    """A training of every method from every seed."""

    command_type, plan_type, run_type = QualityCommand, TrainingPlan, QualityRun
    kind, noun = "quality", "trainings"
    of_a_resumption = ("timeout",)

    def check(self) -> None:
        command = self.command
        check_sampler(command.sampler, command.sampler_steps)
        if len(set(command.seeds)) < len(command.seeds):
            raise UserError(f"--seeds {' '.join(map(str, command.seeds))}: each once")
        if command.country is not None:
            check_country(command.country)
        if command.tensorboard:
            check_tensorboard()

    def plan(self) -> list[TrainingPlan]:
        command = self.command
        window = planning.choose_window(command.minutes, command.steps, MINUTES)
        device = planning.choose_device(command.device)
        command.backends.check(str(device))
        chosen = planning.choose_workloads(command.models, command.preset, command.overrides)
        check_samples(command.sampler, command.guidance, (work for _, work in chosen))
        limit = None if command.budget is None else parse_size(command.budget, "--budget")
        for method, _ in chosen:
            if limit is not None and "latent" in method.technique_names:
                raise UserError(
                    f"--budget: {method.name} trains an autoencoder, too, which needs more than "
                    "is predicted; leave one of them out"
                )
        data = Data.ready(command, chosen, self.console)
        self.split = describe_split(data.sources, command.split_seed)
        self.about_data = planning.describe_data(data.sources)
        chosen = [
            (method, planning.shown_by(data.sources[work.volume], work)) for method, work in chosen
        ]
        peaks: list[int | None] = [None] * len(chosen)
        if limit is not None:
            chosen, peaks = self._within(limit, device.type, chosen)
        return [
            TrainingPlan(
                **planning.common_fields(
                    method, work, Training(seed=seed), data.sources[work.volume],
                    data.paths[work.volume], command,
                ),
                window=window,
                device=str(device),
                train=data.splits[work.volume].train,
                val=data.splits[work.volume].val,
                split_seed=command.split_seed,
                validations=command.validations,
                ema=command.ema,
                checkpoint_s=command.checkpoint_minutes * 60,
                budget_bytes=limit,
                predicted_peak_bytes=peak,
                samples=command.samples,
                sampler=command.sampler,
                sampler_steps=command.sampler_steps,
                guidance=command.guidance,
                tensorboard=command.tensorboard,
            )
            for seed in command.seeds
            for (method, work), peak in zip(chosen, peaks, strict=True)
        ]  # fmt: skip

    def _within(self, limit: int, device: Any, chosen: Chosen) -> tuple[Chosen, list[int | None]]:
        """Each method as wide as fits, and its predicted peak; said to the person, too."""
        title = f"Looking for the widest networks that train in {show_size(limit)}"
        questions = [Question(method.name, work, device, limit) for method, work in chosen]
        widths = side_by_side(widest, questions, self.console, title)
        for (method, _), width in zip(chosen, widths, strict=True):
            channels, wider = (
                " ".join(map(str, each)) for each in (width.channels, width.next_channels)
            )
            say(
                self.console,
                f"{method.name}: channels {channels}, predicted peak "
                f"{show_size(width.peak_memory_bytes)} of {show_size(limit)}; {wider} would need "
                f"{show_size(width.next_peak_memory_bytes)}",
            )
        widened = [
            (method, replace(work, channels=width.channels, match=None))
            for (method, work), width in zip(chosen, widths, strict=True)
        ]
        return widened, [width.peak_memory_bytes for width in widths]

    def prepare(self, plans: Sequence[TrainingPlan], known: Mapping[str, Any]) -> dict[str, Any]:
        if self.command.tensorboard:
            check_tensorboard()
        return {"split": "split.json"}

    def create(self, plans: Sequence[TrainingPlan]) -> QualityRun:
        run = QualityRun.create(self.command.out, f"quality-{self.command.preset}")
        run.write_json("split.json", self.split)
        return run

    def mend(self, run: QualityRun) -> set[tuple[str, int]]:
        """A training that is not ok continues from its checkpoint."""
        records = run.trained()
        finished = records[records["status"] == "ok"][["method", "seed"]]
        done = set(finished.itertuples(index=False, name=None))
        run.keep_trainings(done)
        return done

    def with_volumes(self, plans: list[TrainingPlan], run: QualityRun) -> list[TrainingPlan]:
        return with_volumes(plans, self.command, run, self.console)

    def recorder(
        self, run: QualityRun, plan: TrainingPlan, display: ConsoleDisplay
    ) -> TrainingRecorder:
        return TrainingRecorder(run, plan, display)

    def records(self, run: QualityRun) -> pd.DataFrame:
        return run.trained()

    def grid(self, records: pd.DataFrame) -> Grid:
        numbers = {"steps": "d", "minutes": ".1f", "val_mse": ".4f", "val_mse_ema": ".4f"}
        records = records.assign(minutes=records["elapsed_s"] / 60)
        rows = [
            (
                *(Cell(str(record[column])) for column in ("method", "seed", "status")),
                *(
                    Cell("" if pd.isna(record[column]) else format(record[column], spec))
                    for column, spec in numbers.items()
                ),
            )
            for _, record in records.iterrows()
        ]
        caption = (
            "Validation: mean square error of ε; a network that always predicts 0 has an error of 1"
        )
        if of_latents := sorted(set(records.dropna(subset=["autoencoder_steps"])["method"])):
            caption += f". Of {', '.join(of_latents)}: ε of latents, which compares with no other"
        return Grid(
            "Validation", caption,
            ("method", "seed", "status", "steps", "minutes", "raw", "averaged"), tuple(rows),
        )  # fmt: skip

    def write_report(self, run: QualityRun, plans: Sequence[TrainingPlan]) -> list[Path]:
        return [*self._write_figure2(run, plans), *write_report(run)]

    def _write_figure2(self, run: QualityRun, plans: Sequence[TrainingPlan]) -> list[Path]:
        """Figure 2, of each method's first training that left samples."""
        generated: dict[str, np.ndarray] = {}
        for plan in plans:
            channels = len(plan.work.modality)
            samples = read_nifti(run.samples_of(plan.method, plan.seed), channels)
            if samples is not None and plan.work.volume == plans[0].work.volume:
                generated.setdefault(plan.method, samples)
        if not generated:
            return []
        real, conditions = volumes_beside(plans[0], plans[0].val)
        return write_figure2(
            real, generated, run.folder, plans[0].work.modality, conditions=conditions
        )


def volumes_beside(
    plan: TrainingPlan, members: Sequence[int]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Real volumes or slices (N, C, …) in [0, 1], and pictures of their conditions, (N, …) each.

    All masks together are one picture, each label a grey of its own.
    """
    volumes = whole(as_drawn(load(Path(plan.volumes)), plan.work), members)
    real, condition = split_channels(volumes, len(plan.work.modality))
    shown = pictures(plan.work.condition, condition)
    if "mask" in shown:
        shown["mask"] = shown["mask"] / shown["mask"].max().clamp(min=1)
    return real.numpy(), {name: each.numpy() for name, each in shown.items()}


def with_volumes(
    plans: list[TrainingPlan], command: QualityCommand, run: QualityRun, console: Console
) -> list[TrainingPlan]:
    """The plans with volumes that exist: a cache may have been cleared since."""
    if planning.have_volumes(plans):
        return plans
    data = Data.ready(command, planning.chosen_by(plans), console)
    if run.read_json("split.json") != describe_split(data.sources, command.split_seed):
        raise UserError(
            f"{run.folder / 'split.json'}: names other subjects than the data have now; restore "
            "the data, or start a new run"
        )
    return [replace(plan, volumes=str(data.paths[plan.work.volume])) for plan in plans]


def check_samples(sampler: Sampler, guidance: float, works: Iterable[Workload]) -> None:
    """UserError for samples that trainings of these workloads cannot give."""
    for work in works:
        check_guidance(guidance, work)
        if sampler == "ddpm-mean" and work.is_conditional:
            raise UserError(
                "--sampler ddpm-mean: begins at the mean volume, which contradicts a condition; "
                "ddpm-clipped begins with noise"
            )


def check_sampler(sampler: Sampler, steps: int | None) -> None:
    """UserError for a number of steps that the sampler does not have."""
    try:
        sampler_steps(sampler, steps)
    except ValueError as error:
        raise UserError(f"--sampler-steps {steps}: {error}") from None
