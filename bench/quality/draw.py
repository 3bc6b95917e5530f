"""The command `sample`: volumes drawn from the networks that a quality run has trained."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from ..commands import SampleCommand
from ..data import load
from ..data.batches import as_drawn, whole
from ..ddpm.diffusion import split_channels
from ..ddpm.samplers import decoder, denoiser, find_start, generate, given, name_sampler
from ..ddpm.step import prepared, seen_shape
from ..errors import UserError
from ..harness import planning
from ..harness.console import ConsoleDisplay, say
from ..harness.worker import is_out_of_memory
from ..records.files import write_rows
from ..records.folder import QualityRun
from ..records.rows import Score
from ..report.figure2 import write_figure2
from ..report.grid import NOTHING, Cell, Grid, for_terminal, significant
from .evaluation import affines_of, conditions_of, pictures, write_samples
from .plan import TrainingPlan
from .recorder import name_training
from .scoring import Masks, score_samples
from .trained import load_trained
from .trainings import (
    Trainings,
    check_sampler,
    check_samples,
    volumes_beside,
    with_volumes,
)

MOST_SAMPLES = 10_000  # of a command (`bench.presets.Samples`)


def run_sample(command: SampleCommand, console: Console) -> int:
    """Exit status 0; UserError before anything is drawn."""
    check_sampler(command.sampler, command.sampler_steps)
    device = planning.choose_device(command.device)
    run = QualityRun(command.run)
    original, plans = Trainings.read(run.folder, run.environment())
    check_samples(command.sampler, command.guidance, (plan.work for plan in plans))
    if device.type == "cuda":
        plans[0].backends.apply()
    chosen = with_volumes(_choose(plans, run, command), original, run, console)
    sampler = name_sampler(command.sampler, command.sampler_steps)
    out = command.out or run.folder / f"drawn-{sampler}-seed{command.seed}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        drawn, scores = _draw_each(chosen, run, command, device, out, console)
        write_rows(out / "quality.csv", Score, scores)
        figure2 = _write_figure2(chosen, drawn, command, out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
    console.print(for_terminal(_grid(scores, sampler)))
    for path in (*figure2, out / "quality.csv"):
        say(console, f"  {path}")
    return 0


def _choose(
    plans: Sequence[TrainingPlan], run: QualityRun, command: SampleCommand
) -> list[TrainingPlan]:
    """The trainings that were asked for and have left a checkpoint, finished or not."""
    for flag, asked, known in (
        ("--models", command.models, {plan.method for plan in plans}),
        ("--seeds", command.seeds, {plan.seed for plan in plans}),
    ):
        for value in asked:
            if value not in known:
                names = " ".join(map(str, sorted(known)))
                raise UserError(f"{flag} {value}: {run.folder} trained {names}")
    chosen = [
        plan
        for plan in plans
        if (not command.models or plan.method in command.models)
        and (not command.seeds or plan.seed in command.seeds)
        and run.checkpoint(plan.method, plan.seed).exists()
    ]
    if not chosen:
        raise UserError(f"{run.folder / 'checkpoints'}: none of what was asked for; train it first")
    return chosen


def _draw_each(
    plans: Sequence[TrainingPlan],
    run: QualityRun,
    command: SampleCommand,
    device: torch.device,
    out: Path,
    console: Console,
) -> tuple[dict[tuple[str, int], np.ndarray], list[Score]]:
    """By method and seed of the training the volumes, which are files by then; their scores."""
    drawn, scores = {}, []
    with ConsoleDisplay(console) as display:
        for number, plan in enumerate(plans, 1):
            display.begin(
                f"[{number}/{len(plans)}] {name_training(plan)}", f"{command.samples} volumes"
            )
            samples, rows = _draw(plan, run, command, device, display)
            scores += rows
            drawn[plan.method, plan.seed] = samples.numpy()
            members = _members(plan, command)
            _, drawn_from = split_channels(whole(_known(plan), members), len(plan.work.modality))
            path = out / run.samples_of(plan.method, plan.seed).name
            shown = pictures(plan.work.condition, drawn_from)
            write_samples(path, samples, shown, affines_of(plan, members))
            display.end(f"{len(samples)} volumes in {out}", ok=True)
    return drawn, scores


def _draw(
    plan: TrainingPlan,
    run: QualityRun,
    command: SampleCommand,
    device: torch.device,
    display: ConsoleDisplay,
) -> tuple[Tensor, list[Score]]:
    """(N, C, D, H, W) in [0, 1], or slices (N, C, D, H), on the CPU, and their scores."""

    def tell(what: str) -> Callable[[float], None]:
        return lambda share: display.stage(f"{what}: {share:.0%}")

    network = load_trained(run, plan, device)
    denoise = denoiser(network, plan.work, device)
    decode = decoder(network, plan.work, device)
    volumes = _known(plan)
    members, image = _members(plan, command), len(plan.work.modality)
    conditions = conditions_of(plan, volumes, members)
    start = None
    if command.sampler == "ddpm-mean":
        trained_on = volumes[list(plan.train)]
        known = prepared(network, plan.work, trained_on, device, tell("encoding"))
        finding = tell("finding a start")
        start = find_start(denoise, torch.from_numpy(known), command.seed, device, finding)
    batches = []
    try:
        for first in range(0, command.samples, command.batch_size):
            shape = (min(command.batch_size, command.samples - first), image, *volumes.shape[2:])
            of_these = given(
                denoise, conditions.some(slice(first, first + shape[0]), device), command.guidance
            )

            def progress(share: float, first: int = first, count: int = shape[0]) -> None:
                done = (first + share * count) / command.samples
                display.advance(done, f"volumes {first + 1} to {first + count}: {share:.0%}")

            # Seeds of batches that no other seed of the command comes to.
            seed = command.seed * MOST_SAMPLES + first
            drawn = generate(
                of_these, seen_shape(network, shape), command.sampler, command.sampler_steps, seed,
                device, progress, start,
            )  # fmt: skip
            batches.append((drawn if decode is None else decode(drawn)).cpu())
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"--batch-size {command.batch_size}: more than {device} has memory for; take fewer"
        ) from None
    samples = torch.cat(batches)
    _, drawn_from = split_channels(whole(volumes, members), image)
    real, of_real = split_channels(whole(volumes, plan.val), image)
    scores = score_samples(
        samples, real, plan.work.modality, command.sampler, command.sampler_steps,
        method=plan.method, training_seed=plan.seed, data=plan.data, start=start,
        masks=Masks.of(plan.work.condition, drawn_from, of_real),
    )  # fmt: skip
    return samples, scores


def _known(plan: TrainingPlan) -> np.ndarray:
    """Its volumes, as they are drawn."""
    return as_drawn(load(Path(plan.volumes)), plan.work)


def _members(plan: TrainingPlan, command: SampleCommand) -> list[int]:
    """The volume whose condition each sample has; UserError where the part has none."""
    part = command.condition_from
    known = {"train": plan.train, "val": plan.val}
    others = sorted(set(range(plan.subjects)) - {*plan.train, *plan.val})
    members = known.get(part, others)
    if not members:
        raise UserError(f"--condition-from {part}: the data have no volumes for it")
    return [members[index % len(members)] for index in range(command.samples)]


def _write_figure2(
    plans: Sequence[TrainingPlan],
    drawn: dict[tuple[str, int], np.ndarray],
    command: SampleCommand,
    out: Path,
) -> list[Path]:
    """Figure 2, of each method's first training of those with the first one's volumes."""
    generated: dict[str, np.ndarray] = {}
    first = plans[0]
    for plan in plans:
        if plan.volumes == first.volumes:
            generated.setdefault(plan.method, drawn[plan.method, plan.seed])
    members = _members(first, command) if first.work.condition else first.val
    real, conditions = volumes_beside(first, members)
    return write_figure2(real, generated, out, first.work.modality, conditions=conditions)


def _grid(scores: Sequence[Score], sampler: str) -> Grid:
    found = {(row.method, row.seed, row.modality, row.column): row.value for row in scores}
    names = {"ms_ssim": "MS-SSIM", "histogram_distance": "histogram distance"}
    for column, name in (("frechet_random", "Fréchet distance"), ("dice", "Dice with the mask")):
        if any(row.column == column for row in scores):
            names[column] = name
    rows = []
    for method, seed, modality in dict.fromkeys(key[:3] for key in found):
        if modality == "all":
            continue
        cells = []
        for column in names:
            value = found.get((method, seed, modality, column))
            real = found.get((method, seed, modality, f"{column}_real"))
            text = NOTHING if value is None else significant(value)
            cells.append(Cell(text if real is None else f"{text} ({significant(real)})"))
        rows.append((Cell(method), Cell(str(seed)), Cell(modality.upper()), *cells))
    return Grid(
        "Samples", f"Samples ({sampler}); in parentheses, of real volumes",
        ("method", "seed", "modality", *names.values()), tuple(rows),
    )  # fmt: skip
