"""What follows a training: its scores, samples of it, and what sampling needs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data.nifti import write_nifti
from ..ddpm.diffusion import Denoiser, Diffusion
from ..ddpm.samplers import ancestral, choose_start, generate
from ..harness.worker import Events
from ..probes.memory import MemoryProbe
from ..records.folder import QualityRun
from ..records.rows import Peak
from .plan import TrainingPlan
from .scoring import score, score_samples


class Stopped(Exception):
    """The person typed Ctrl-C: what is not done now, `--resume` does."""


def evaluate(
    plan: TrainingPlan,
    network: nn.Module,
    denoise: Denoiser,
    volumes: np.ndarray,
    events: Events,
    should_stop: Callable[[], bool],
) -> None:
    """Rows of `quality.csv`, and `samples/<method>-<seed>_<n>.nii.gz`.

    Done again, it replaces what it left before.

    Args:
        network: with the averaged weights.
        denoise: its ε of whole volumes, (B, C, D, H, W) and (B,) int64, without gradients, in the
            precision of the training.
        volumes: (N, C, D, H, W) float32 in [0, 1], of which `plan.train` and `plan.val` are the
            indices of those that trained and those that validate.
        events: `events.stage(name)` shows what is done.
        should_stop: whether Ctrl-C was typed.

    Raises:
        Stopped: it was.
    """

    def tell(what: str) -> Callable[[float], None]:
        def progress(share: float) -> None:
            if should_stop():
                raise Stopped
            events.stage(f"{what}: {share:.0%}")

        return progress

    run = QualityRun(Path(plan.folder))
    device = torch.device(plan.device)
    validating = torch.from_numpy(np.stack([volumes[index] for index in plan.val]))
    modalities = plan.work.modality
    names: dict[str, Any] = {"method": plan.method, "training_seed": plan.seed, "data": plan.data}
    scores = score(
        denoise, validating, modalities, plan.split_seed, device=device,
        progress=tell("scoring"), **names,
    )  # fmt: skip
    if plan.samples:
        shape = (plan.samples, *validating.shape[1:])
        start = choose_start(plan.sampler, denoise, volumes, plan.train, plan.split_seed, device)
        samples = generate(
            denoise, shape, plan.sampler, plan.sampler_steps, plan.split_seed, device,
            tell(f"sampling ({plan.sampler})"), start,
        )  # fmt: skip
        memory = sampling_memory(network, shape)
        scores += score_samples(
            samples, validating, modalities, plan.sampler, plan.sampler_steps, memory=memory,
            start=start, **names,
        )  # fmt: skip
        path = run.samples_of(plan.method, plan.seed)
        path.parent.mkdir(exist_ok=True)
        write_nifti(path, samples.cpu())
    run.forget_scores(plan.method, plan.seed)
    for row in scores:
        run.append(row)


def sampling_memory(network: nn.Module, shape: tuple[int, ...]) -> Peak:
    """Peak memory of one step of eq. (7) without gradients, on the network's device.

    Every step of a sampler is alike, so one tells the peak of all. Gradients that training left
    on the network are dropped: a sampler needs none.

    Args:
        network: called as a sampler calls it, on whole volumes; left in the mode it came in.
        shape: (N, C, D, H, W).
    """
    device = next(network.parameters()).device
    network.zero_grad(set_to_none=True)
    stateless = torch.optim.SGD(network.parameters(), lr=0.0)  # the probe asks for an optimizer
    diffusion = Diffusion(device=device)
    x_T = torch.randn(shape, device=device)
    training = network.training
    network.eval()
    probe = MemoryProbe(network, stateless, device, [x_T])
    probe.start()
    try:
        next(ancestral(diffusion, network, x_T))
    finally:
        peak = probe.stop()
        network.train(training)
    return peak
