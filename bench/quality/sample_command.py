"""The command `sample`: volumes drawn from the networks that a quality run has trained."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench import planning
from bench.commands import SampleCommand
from bench.console import ConsoleDisplay
from bench.data import load
from bench.errors import UserError
from bench.methods import METHODS
from bench.quality.checkpoint import load_averages
from bench.quality.learning import QualityRun
from bench.quality.plan import Plan
from bench.quality.planning import (
    MOST_SAMPLES,
    check_ranges,
    check_sampler,
    read_plans,
    with_volumes,
)
from bench.quality.runner import name
from bench.quality.sampling import (
    choose_start,
    generate,
    name_sampler,
    write_nifti,
)
from bench.quality.scoring import Score, score_samples
from bench.quality.validation import denoiser
from bench.report.grid import significant
from bench.report.quality import write_figure2
from bench.results import write_rows


def run_sample(command: SampleCommand, console: Console) -> int:
    """Exit status 0; UserError for what cannot be drawn, before anything is."""
    check_ranges(
        ("--samples", command.samples, 1, MOST_SAMPLES),
        ("--batch-size", command.batch_size, 1, MOST_SAMPLES),
        ("--seed", command.seed, 0, 2**31),
    )
    check_sampler(command.sampler, command.sampler_steps)
    device = planning.choose_device(command.device)
    run = QualityRun(command.run)
    original, plans = read_plans(run.folder, run.environment())
    chosen = with_volumes(_choose(plans, run, command), plans, original, run, console)
    sampler = name_sampler(command.sampler, command.sampler_steps)
    out = command.out or run.folder / f"drawn-{sampler}-seed{command.seed}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        drawn, scores = _draw_each(chosen, run, command, device, out, console)
        write_rows(out / "quality.csv", Score, scores)
        figure2 = _write_figure2(chosen, drawn, out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
    console.print(_table(scores, sampler))
    for path in (*figure2, out / "quality.csv"):
        console.print(f"  {path}", highlight=False, markup=False)
    return 0


def _choose(plans: Sequence[Plan], run: QualityRun, command: SampleCommand) -> list[Plan]:
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
    plans: Sequence[Plan],
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
            display.begin(f"[{number}/{len(plans)}] {name(plan)}", f"{command.samples} volumes")
            samples, rows = _draw(plan, run, command, device, display)
            scores += rows
            drawn[plan.method, plan.seed] = samples.numpy()
            write_nifti(out / run.samples_of(plan.method, plan.seed).name, samples)
            display.end(f"{len(samples)} volumes in {out}", ok=True)
    return drawn, scores


def _draw(
    plan: Plan,
    run: QualityRun,
    command: SampleCommand,
    device: torch.device,
    display: ConsoleDisplay,
) -> tuple[Tensor, list[Score]]:
    """(N, C, D, H, W) in [0, 1], on the CPU; and what they are worth."""
    with device:
        network = METHODS[plan.method].build(plan.work)
    load_averages(run.checkpoint(plan.method, plan.seed), network, plan.method, plan.seed)
    denoise = denoiser(network, plan.work.precision, device)
    volumes = load(Path(plan.volumes))
    start = choose_start(command.sampler, denoise, volumes, plan.train, command.seed, device)
    batches = []
    try:
        for first in range(0, command.samples, command.batch_size):
            shape = (min(command.batch_size, command.samples - first), *volumes.shape[1:])

            def progress(share: float, first: int = first, count: int = shape[0]) -> None:
                done = (first + share * count) / command.samples
                display.advance(done, f"volumes {first + 1} to {first + count}: {share:.0%}")

            # Seeds of batches that no other seed of the command comes to.
            seed = command.seed * MOST_SAMPLES + first
            batches.append(
                generate(
                    denoise, shape, command.sampler, command.sampler_steps, seed, device,
                    progress, start,
                ).cpu()
            )  # fmt: skip
    except torch.OutOfMemoryError:
        raise UserError(
            f"--batch-size {command.batch_size}: more than {device} has memory for; take fewer"
        ) from None
    samples = torch.cat(batches)
    real = torch.from_numpy(np.stack([volumes[index] for index in plan.val]))
    scores = score_samples(
        samples, real, plan.work.modality, command.sampler, command.sampler_steps,
        method=plan.method, training_seed=plan.seed, data=plan.data, start=start,
    )  # fmt: skip
    return samples, scores


def _write_figure2(
    plans: Sequence[Plan], drawn: dict[tuple[str, int], np.ndarray], out: Path
) -> list[Path]:
    """Figure 2, of each method's first training of those with the first one's volumes."""
    generated: dict[str, np.ndarray] = {}
    for plan in plans:
        if plan.volumes == plans[0].volumes:
            generated.setdefault(plan.method, drawn[plan.method, plan.seed])
    volumes = load(Path(plans[0].volumes))
    real = np.stack([volumes[index] for index in plans[0].val])
    return write_figure2(real, generated, out, plans[0].work.modality)


def _table(scores: Sequence[Score], sampler: str) -> Table:
    table = Table(title=f"Samples ({sampler}); in brackets, of real volumes")
    for column in ("method", "seed", "modality", "MS-SSIM", "histogram distance"):
        table.add_column(column, justify="left" if column in ("method", "modality") else "right")
    found = {(row.method, row.seed, row.modality, row.column): row.value for row in scores}
    for method, seed, modality in dict.fromkeys(key[:3] for key in found):
        if modality == "all":
            continue
        cells = []
        for column in ("ms_ssim", "histogram_distance"):
            value = found.get((method, seed, modality, column))
            real = found.get((method, seed, modality, f"{column}_real"))
            cell = "–" if value is None else significant(value)
            cells.append(cell if real is None else f"{cell} ({significant(real)})")
        table.add_row(method, str(seed), modality.upper(), *cells)
    return table
