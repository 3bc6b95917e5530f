"""From noise to volumes: eq. (7) and the other samplers.

A sampler calls `denoiser(x_t, t)` on whole volumes; of a conditional network, `given` makes such a
denoiser. A network that trained on patches (`patchddm`)
is called without the keywords of its crop: it then takes its input for the whole volume.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..presets import Sampler, Workload
from .diffusion import EMPTY, TIMESTEPS, Denoiser, Diffusion, shown, split_channels
from .step import autocast_dtype, latents_of

STEPS: Mapping[Sampler, int] = {
    "ddpm": TIMESTEPS, "ddpm-clipped": 250, "ddpm-mean": 250, "ddim": 50
}  # fmt: skip
"""Calls of the denoiser unless told. `ddpm` has no other number, the others up to all timesteps."""

_START_STRIDE = 50  # of the timesteps among which a start is looked for


@dataclass(frozen=True)
class Start:
    """Where a sampler begins: x_t ~ N(√alpha_bar_t · volume, (1 − alpha_bar_t) I), t = timestep."""

    timestep: int
    volume: Tensor
    """(C, D, H, W) in [0, 1]."""


class Conditions(NamedTuple):
    """What a conditional network is given beside the x_t of each of N volumes."""

    volumes: Tensor
    """(N, K, D, H, W) in [−1, 1], K from 0."""
    labels: Tensor | None = None
    """(N,) int64."""
    no_label: int = 0
    """The one that stands for none."""

    @classmethod
    def of(cls, work: Workload, volumes: Tensor, labels: Tensor | None) -> "Conditions":
        """Of prepared volumes, (N, C + K, D, H, W) in [0, 1]."""
        _, condition = split_channels(volumes, len(work.modality))
        return cls(Diffusion.scale_in(condition), labels, work.classes)

    def some(self, chosen: slice, device: torch.device | str) -> "Conditions":
        labels = None if self.labels is None else self.labels[chosen].to(device)
        return self._replace(volumes=self.volumes[chosen].to(device), labels=labels)


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    sampler: Sampler = "ddpm",
    steps: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[float], None] | None = None,
    start: Start | None = None,
) -> Tensor:
    """Volumes (N, C, D, H, W) in [0, 1], on `device`, all N in one batch.

    Args:
        denoiser: in evaluation mode, on `device`.
        shape: (N, C, D, H, W).
        sampler: `ddpm` is eq. (7) with all 2,000 steps, `ddpm-clipped` the same with the volume
            that each step sees clamped, in any number of steps (`clipped`), `ddpm-mean` the same
            from `start`; `ddim` adds no noise (`strided`).
        steps: calls of the denoiser; None: `STEPS`.
        seed: of x_T and, but for `ddim`, of the noise of every step. The same seed gives the same
            volumes on one kind of device.
        progress: told the share that is done, 0 to 1, after every step.
        start: of `ddpm-mean`, as `find_start` finds it; the others begin at T with pure noise.

    Raises:
        ValueError: a number of steps that the sampler does not have, or no start where it needs
            one.
    """
    if (sampler == "ddpm-mean") != (start is not None):
        raise ValueError("ddpm-mean begins at a start, the other samplers with pure noise")
    diffusion = Diffusion(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(shape, generator=generator, device=device)
    steps = sampler_steps(sampler, steps)
    if sampler == "ddpm":
        chain = ancestral(diffusion, denoiser, x, generator)
    elif sampler == "ddpm-clipped":
        chain = clipped(diffusion, denoiser, x, steps, generator)
    elif start is not None:
        volumes = diffusion.scale_in(start.volume.to(device)).expand(shape)
        t = torch.full(shape[:1], start.timestep, dtype=torch.int64, device=device)
        x = diffusion.q_sample(volumes, t, x)
        chain = clipped(diffusion, denoiser, x, steps, generator, start.timestep)
    else:
        chain = strided(diffusion, denoiser, x, steps)
    for done, latest in enumerate(chain, 1):
        x = latest
        if progress is not None:
            progress(min(1.0, done / steps))
    return diffusion.scale_out(x)


def denoiser(network: nn.Module, work: Workload, device: torch.device) -> Denoiser:
    """ε = f(x_t, t) of whole volumes, (B, C, D, H, W) and (B,) int64, in the training's precision.

    Without gradients, on the weights that the network has when it is called. ε is float32, and is ε
    whatever the network's target is.
    """
    dtype = autocast_dtype(work.precision)
    target = work.target
    diffusion = None if target == "eps" else Diffusion(device=device)

    @torch.no_grad()
    def denoise(x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        training = network.training
        network.eval()
        keywords = {} if labels is None else {"class_labels": labels}
        try:
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                predicted = network(x_t, t, **keywords).float()
        finally:
            network.train(training)
        if diffusion is None:
            return predicted
        return diffusion.predict_eps(target, x_t[:, : predicted.shape[1]], t, predicted)

    return denoise


def decoder(
    network: nn.Module, work: Workload, device: torch.device
) -> Callable[[Tensor], Tensor] | None:
    """Volumes (N, C, D, H, W) in [0, 1] of the latents that a network draws; None if of volumes."""
    latents = latents_of(network)
    if latents is None:
        return None
    return partial(latents.decode, device=device, dtype=autocast_dtype(work.precision))


def given(denoise: Denoiser, conditions: "Conditions", guidance: float = 1.0) -> Denoiser:
    """The denoiser of images under their conditions: ε = f(x_t, t), as the samplers call it.

    With classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598) each is asked for twice in
    one batch, without and with its condition: ε = ε_without + g (ε_with − ε_without), their eq. (6)
    with 1 + w = g, as in MONAI's inferers.

    Args:
        guidance: g; 1 for none.
    """
    volumes, labels, no_label = conditions
    if guidance == 1:
        return lambda x_t, t: _call(denoise, shown(x_t, volumes), t, labels)
    volumes = torch.cat([torch.full_like(volumes, EMPTY), volumes])
    if labels is not None:
        labels = torch.cat([torch.full_like(labels, no_label), labels])

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        twice = shown(torch.cat([x_t, x_t]), volumes)
        without, with_it = _call(denoise, twice, torch.cat([t, t]), labels).chunk(2)
        return without + guidance * (with_it - without)

    return guided


def _call(denoise: Denoiser, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    return denoise(x_t, t) if labels is None else denoise(x_t, t, labels)


def name_sampler(sampler: Sampler, steps: int | None = None) -> str:
    """`ddpm-2000`, `ddim-50`: the sampler and its steps."""
    return f"{sampler}-{sampler_steps(sampler, steps)}"


def sampler_steps(sampler: Sampler, steps: int | None = None) -> int:
    """Calls of the denoiser that `generate` makes; ValueError as there."""
    if sampler == "ddpm" and steps not in (None, TIMESTEPS):
        raise ValueError(
            f"ddpm samples in {TIMESTEPS} steps, not {steps}; ddpm-clipped and ddim take fewer"
        )
    if steps is not None and not 1 <= steps <= TIMESTEPS:
        raise ValueError(f"{sampler} samples in 1 to {TIMESTEPS} steps, not {steps}")
    return steps or STEPS[sampler]


def spread_timesteps(steps: int, first: int = TIMESTEPS - 1) -> list[int]:
    """At most so many timesteps, evenly from the first to 0 (Nichol & Dhariwal 2021, §4)."""
    return torch.linspace(first, 0, min(steps, first + 1)).round().long().tolist()


@torch.no_grad()
def find_start(
    denoiser: Denoiser,
    volumes: Tensor,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[float], None] | None = None,
) -> Start:
    """The noisiest timestep at which the denoiser knows more of a volume than their mean says.

    A truncated chain (Zheng et al. 2023, arXiv:2202.09671) with the simplest of priors. Where so
    little of the volume is left in x_t that the denoiser's x_0 is further from it than the mean
    volume is, in mean square, nothing is gained by asking it. A network that has trained for long
    begins near T, where the start is pure noise.

    Args:
        volumes: that it was trained on, (N, C, D, H, W) in [0, 1]; the first 16 are asked for.
        seed: of the noise.
        progress: told the share of the timesteps that were tried, 0 to 1, after each.
    """
    diffusion = Diffusion(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    mean = volumes.mean(0).to(device)
    volumes = volumes[:16].to(device)
    spread = (volumes - mean).square().mean()
    for step in range(TIMESTEPS - 1, 0, -_START_STRIDE):
        squares = []
        for x_0 in diffusion.scale_in(volumes).split(2):
            t = torch.full((len(x_0),), step, dtype=torch.int64, device=device)
            eps = torch.randn(x_0.shape, generator=generator, device=device)
            found = _clamped_volume(diffusion, denoiser, diffusion.q_sample(x_0, t, eps), step)
            squares.append((found - x_0).square().flatten(1).mean(1) / 4)  # of [−1, 1], in [0, 1]
        if progress is not None:
            progress(1 - step / TIMESTEPS)
        if torch.cat(squares).mean() < spread:
            return Start(step, mean)
    return Start(0, mean)


@torch.no_grad()
def ancestral(
    diffusion: Diffusion,
    denoiser: Denoiser,
    x_T: Tensor,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Eq. (7): yields x_{T-1}, x_{T-2}, …, x_0, each (B, C, …).

    No noise is added in the last step, as in Ho et al. 2020, algorithm 2.
    """
    x_t = x_T
    del x_T  # or the noise would live for as long as what is drawn from it
    alpha_bars = [1.0, *diffusion.alpha_bar.tolist()]
    for step in reversed(range(diffusion.timesteps)):
        t = torch.full((x_t.shape[0],), step, dtype=torch.int64, device=x_t.device)
        before, alpha_bar = alpha_bars[step], alpha_bars[step + 1]
        alpha = alpha_bar / before
        beta = 1 - alpha
        x_t = (x_t - beta / math.sqrt(1 - alpha_bar) * denoiser(x_t, t)) / math.sqrt(alpha)  # (7)
        if step > 0:
            z = torch.randn(x_t.shape, generator=generator, device=x_t.device)
            x_t = x_t + math.sqrt(beta) * z
        yield x_t


@torch.no_grad()
def clipped(
    diffusion: Diffusion,
    denoiser: Denoiser,
    x_T: Tensor,
    steps: int,
    generator: torch.Generator | None = None,
    first: int = TIMESTEPS - 1,
) -> Iterator[Tensor]:
    """Eq. (7) over `steps` timesteps, the x_0 that each sees clamped to [−1, 1]; yields each x.

    Eq. (7) is the mean of q(x_t−1 | x_t, x_0) for the x_0 that eps claims (Ho et al. 2020, eqs.
    (7) and (9)); clamping that x_0, as Ho et al. and Nichol & Dhariwal do in their code, changes
    nothing while it lies within. The last beta of the cosine schedule is 0.999, so that eq. (7)
    as it stands multiplies the error of eps in its first step by 0.999 / √0.001 = 32: a network
    that has trained for minutes does not come back from there.

    With fewer steps, alpha is that of a stride, alpha_bar_t / alpha_bar_s. The noise added at each
    step is what lets later steps mend the errors of earlier ones, which `strided` cannot. It begins
    at timestep `first`, which is that of x_T.
    """
    x_t = x_T
    for step, after in _iter_strides(steps, first):
        alpha_bar = float(diffusion.alpha_bar[step])
        before = float(diffusion.alpha_bar[after]) if after is not None else 1.0
        alpha = alpha_bar / before
        beta = 1 - alpha
        x_0 = _clamped_volume(diffusion, denoiser, x_t, step)
        of_x_0 = math.sqrt(before) * beta / (1 - alpha_bar)
        x_t = of_x_0 * x_0 + math.sqrt(alpha) * (1 - before) / (1 - alpha_bar) * x_t
        if after is not None:
            z = torch.randn(x_t.shape, generator=generator, device=x_t.device)
            x_t = x_t + math.sqrt(beta) * z
        yield x_t


@torch.no_grad()
def strided(diffusion: Diffusion, denoiser: Denoiser, x_T: Tensor, steps: int) -> Iterator[Tensor]:
    """DDIM without noise: yields x at `steps` timesteps spread evenly from T − 1 to 0, then x_0.

    Song et al. 2021 (arXiv:2010.02502), eq. (12) with σ = 0. The x_0 that each step sees is
    clamped to [−1, 1], and eps taken again from it, as Nichol & Dhariwal 2021 do in their code:
    near t = T alpha_bar is 6e-10, and an error of eps is divided by its root.

    MONAI's DDIMScheduler does not serve. Its schedule is ours, but its timesteps lie
    (T − 1) / (steps − 1) apart while its step goes T // steps down, so that the denoiser is told
    a t that its input does not have.
    """
    x_t = x_T
    for step, after in _iter_strides(steps):
        x_0 = _clamped_volume(diffusion, denoiser, x_t, step)
        if after is None:
            yield x_0
            return
        alpha_bar, before = (float(diffusion.alpha_bar[index]) for index in (step, after))
        eps = (x_t - math.sqrt(alpha_bar) * x_0) / math.sqrt(1 - alpha_bar)
        x_t = math.sqrt(before) * x_0 + math.sqrt(1 - before) * eps
        yield x_t


def _iter_strides(steps: int, first: int = TIMESTEPS - 1) -> Iterator[tuple[int, int | None]]:
    """Each timestep and the one after it, which the last has not."""
    times = spread_timesteps(steps, first)
    yield from zip(times, [*times[1:], None], strict=True)


def _clamped_volume(diffusion: Diffusion, denoiser: Denoiser, x_t: Tensor, step: int) -> Tensor:
    t = torch.full((x_t.shape[0],), step, dtype=torch.int64, device=x_t.device)
    return diffusion.predict_x_0(x_t, t, denoiser(x_t, t)).clamp(-1, 1)
