"""What follows a training: its scores, samples of it, and what sampling needs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import load_affines, load_typical_affine
from ..data.batches import labels_of, whole
from ..data.nifti import write_nifti
from ..ddpm.diffusion import Denoiser, Diffusion, split_channels
from ..ddpm.samplers import Conditions, ancestral, decoder, find_start, generate, given
from ..ddpm.step import seen_shape
from ..harness.worker import Events
from ..probes.memory import MemoryProbe, tensors_in
from ..records.folder import QualityRun
from ..records.rows import Peak
from .metrics import label_map
from .plan import TrainingPlan
from .scoring import Coded, Masks, score, score_samples


class Stopped(Exception):
    """The person typed Ctrl-C: what is not done now, `--resume` does."""


Tell = Callable[[str], Callable[[float], None]]
"""Of what is done, by its name: a function that is told the share of it that is over."""


def stoppable(events: Events, should_stop: Callable[[], bool]) -> Tell:
    """What is told shows on the display, or raises `Stopped`."""

    def tell(what: str) -> Callable[[float], None]:
        show = events.progress(what)

        def progress(share: float) -> None:
            if should_stop():
                raise Stopped
            show(share)

        return progress

    return tell


def evaluate(
    plan: TrainingPlan,
    network: nn.Module,
    denoise: Denoiser,
    volumes: np.ndarray,
    events: Events,
    should_stop: Callable[[], bool],
    seen: np.ndarray | None = None,
) -> None:
    """Rows of `quality.csv`; samples, with their conditions, as `write_samples` names them.

    Done again, it replaces what it left before.

    Args:
        network: with the averaged weights.
        denoise: its ε of whole volumes, (B, C + K, D, H, W) and (B,) int64, without gradients, in
            the precision of the training; or of latents.
        volumes: (N, C + K, …) float32 in [0, 1], as they are drawn (`as_drawn`), of which
            `plan.train` and `plan.val` are the indices of those that trained and that validate.
        events: `events.stage(name)` shows what is done.
        should_stop: whether Ctrl-C was typed.
        seen: the latents of the volumes, if the network works on these (`bench.ddpm.step`).

    Raises:
        Stopped: it was.
    """

    tell = stoppable(events, should_stop)
    run = QualityRun(Path(plan.folder))
    device = torch.device(plan.device)
    modalities = plan.work.modality
    real, of_real = split_channels(whole(volumes, plan.val), len(modalities))
    names: dict[str, Any] = {"method": plan.method, "training_seed": plan.seed, "data": plan.data}
    decode = decoder(network, plan.work, device)
    seen = volumes if seen is None else seen
    scores = score(
        denoise, real, modalities, plan.split_seed, device=device,
        progress=tell("scoring"), conditions=conditions_of(plan, volumes, plan.val),
        latents=None if decode is None else Coded(whole(seen, plan.val), decode), **names,
    )  # fmt: skip
    if plan.samples:
        shape = seen_shape(network, (plan.samples, *real.shape[1:]))
        chosen = [plan.val[index % len(plan.val)] for index in range(plan.samples)]
        _, drawn_from = split_channels(whole(volumes, chosen), len(modalities))
        conditions = conditions_of(plan, volumes, chosen).some(slice(None), device)
        of_these = given(denoise, conditions, plan.guidance)
        start = None
        if plan.sampler == "ddpm-mean":
            known = whole(seen, plan.train)
            start = find_start(denoise, known, plan.split_seed, device, tell("finding a start"))
        samples = generate(
            of_these, shape, plan.sampler, plan.sampler_steps, plan.split_seed, device,
            tell(f"sampling ({plan.sampler})"), start,
        )  # fmt: skip
        memory = sampling_memory(network, shape, of_these, conditions)
        events.stage("comparing the samples")
        samples = samples if decode is None else decode(samples)
        scores += score_samples(
            samples, real, modalities, plan.sampler, plan.sampler_steps, memory=memory,
            start=start, masks=Masks.of(plan.work.condition, drawn_from, of_real), **names,
        )  # fmt: skip
        path = run.samples_of(plan.method, plan.seed)
        path.parent.mkdir(exist_ok=True)
        shown = pictures(plan.work.condition, drawn_from)
        write_samples(path, samples.cpu(), shown, affines_of(plan, chosen))
    run.forget_scores(plan.method, plan.seed)
    for row in scores:
        run.append(row)


def conditions_of(plan: TrainingPlan, volumes: np.ndarray, chosen: Sequence[int]) -> Conditions:
    """Those of some volumes, on the CPU."""
    return Conditions.of(plan.work, whole(volumes, chosen), labels_of(plan.labels, chosen))


def affines_of(plan: TrainingPlan, chosen: Sequence[int]) -> np.ndarray:
    """From voxels to mm, (N, 4, 4): samples lie where the volumes do whose condition they have.

    Without a condition (4, 4), where a volume of the training typically does. Of slices it is that
    of the middle one.
    """
    path = Path(plan.volumes)
    conditional = bool(plan.work.condition)
    of = load_affines(path)[list(chosen)] if conditional else load_typical_affine(path, plan.train)
    if plan.work.dims == 2:
        of[..., :3, 3] += of[..., :3, 2] * (plan.work.volume.sides[2] // 2)
    return of


def write_samples(
    path: Path, samples: Tensor, condition: Mapping[str, Tensor], affines: np.ndarray
) -> None:
    """Samples as NIfTI files, and beside each its condition, on the same grid.

    Args:
        path: of the samples, `idm-0.nii.gz`; a condition is `idm-0_mask.nii.gz`, both as
            `write_nifti` numbers them.
        samples: (N, C, D, H, W), or slices (N, C, D, H).
        condition: of `pictures`.
    """
    write_nifti(path, samples, affines)
    stem = path.name.removesuffix(".nii.gz")
    for name, volumes in condition.items():
        write_nifti(path.with_name(f"{stem}_{name}.nii.gz"), volumes[:, None], affines)


def pictures(names: tuple[str, ...], condition: Tensor) -> dict[str, Tensor]:
    """The channels (N, K, …) of a condition as volumes or slices (N, …) for people.

    `mask` has the number of the label, from 1 in the order of the channels; an image its own name.
    """
    masks = Masks.of(names, condition, condition)
    of_masks = () if masks is None else masks.names
    shown = {name: condition[:, k] for k, name in enumerate(names) if name not in of_masks}
    return shown if masks is None else {"mask": label_map(masks.of_real), **shown}


def sampling_memory(
    network: nn.Module,
    shape: tuple[int, ...],
    denoise: Denoiser | None = None,
    conditions: Sequence[Any] = (),
) -> Peak:
    """Peak memory of one step of eq. (7) without gradients, on the network's device.

    Every step of a sampler is alike, so one tells the peak of all. Gradients that training left
    on the network are dropped: a sampler needs none.

    Args:
        network: left in the mode it came in.
        shape: (N, C, D, H, W).
        denoise: the network as a sampler calls it; None: the network itself.
        conditions: tensors that are there beside its x_t.
    """
    device = next(network.parameters()).device
    network.zero_grad(set_to_none=True)
    stateless = torch.optim.SGD(network.parameters(), lr=0.0)  # the probe asks for an optimizer
    diffusion = Diffusion(device=device)
    x_T = torch.randn(shape, device=device)
    training = network.training
    network.eval()
    probe = MemoryProbe(network, stateless, device, tensors_in([x_T, *conditions]))
    probe.start()
    try:
        next(ancestral(diffusion, denoise or network, x_T))
    finally:
        peak = probe.stop()
        network.train(training)
    return peak
