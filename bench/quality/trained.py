"""A network that a quality run has trained, for your own code."""

import os
from pathlib import Path

import torch
from torch import nn

from ..ddpm.step import latents_of
from ..errors import UserError
from ..methods import METHODS
from ..records.folder import QualityRun
from .checkpoint import load_averages
from .plan import TrainingPlan


def from_run(
    folder: str | os.PathLike[str],
    method: str | None = None,
    seed: int | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """The network of a training with its averaged weights, in evaluation mode.

    `network(x_t, timesteps)` predicts the target of the training from volumes in [−1, 1] at the
    timesteps 0 to 1,999 of the cosine schedule. `network.plan.work` says what was trained: the
    target, the channels of the image and of the condition after them, the shape. One that was
    trained on latents has them in place of volumes: `network.latents` encodes and decodes.

    Args:
        folder: of the run, with its checkpoints, finished or not. Nothing in them is unpickled.
        method, seed: which of its trainings; None where the run has only one.

    Raises:
        UserError: no such run, training or checkpoint.
    """
    from .trainings import Trainings  # brings tables and figures, which a training does without

    run = QualityRun(Path(folder))
    _, plans = Trainings.read(run.folder, run.environment())
    chosen = [
        plan
        for plan in plans
        if method in (None, plan.method) and seed in (None, plan.seed)
    ]  # fmt: skip
    if len(chosen) != 1:
        known = ", ".join(f"{plan.method} {plan.seed}" for plan in plans)
        raise UserError(f"{run.folder}: name one of its trainings, method and seed: {known}")
    return load_trained(run, chosen[0], torch.device(device))


def load_trained(run: QualityRun, plan: TrainingPlan, device: torch.device) -> nn.Module:
    """The network of one of a run's plans; UserError where it has no checkpoint of it."""
    with device:
        network = METHODS[plan.method].build(plan.work)
    named = plan.method, plan.seed
    load_averages(run.checkpoint(*named), network, *named)
    if (latents := latents_of(network)) is not None:
        load_averages(run.checkpoint(*named, "autoencoder"), latents.autoencoder, *named)
    network.plan = plan  # type: ignore[assignment]
    return network.eval()
