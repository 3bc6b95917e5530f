"""Scores of a trained denoiser and of its samples, as rows of `quality.csv`.

Two protocols, for the denoiser at five timesteps:

- `validation`: mean and standard deviation over all validation volumes;
- `best-batch`: the paper's (§5.3), the best single batch of 2 validation volumes. The paper does
  not say best in what: here it is the batch of the highest PSNR, and its SSIM and MAE are shown
  whatever they are. Batches are those of consecutive volumes, each volume in one of them.

Samples have a protocol of their own, named after the sampler and its steps (`ddpm-2000`).
"""

import math
import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..ddpm.diffusion import TIMESTEPS, Denoiser, Diffusion
from ..ddpm.samplers import Conditions, Start, given, name_sampler
from ..presets import Sampler
from ..records.rows import Peak, Score
from . import metrics

TIMES = tuple(TIMESTEPS * share // 100 for share in (1, 10, 25, 50, 75))
"""At the first, there is so little noise that a young network may do worse than by predicting 0."""
HEADLINE = TIMESTEPS // 4
"""The timestep of Table 1, T/4: alpha_bar is 0.85, the noise at 0.43 of the range [−1, 1]."""

UNITS = {
    "psnr": "dB", "psnr_noisy": "dB", "psnr_decoded": "dB", "ssim": None,
    "mae": "standard deviations of the noise", "mse": "variances of the noise",
    "ms_ssim": None, "ms_ssim_real": None,
    "histogram_distance": "intensity", "histogram_distance_real": "intensity",
    "frechet_random": "variances of real features",
    "frechet_random_real": "variances of real features",
    "dice": None, "dice_real": None,
    "sampling_start": "timestep", "sampling_peak_memory_bytes": "bytes",
}  # fmt: skip


class Masks(NamedTuple):
    """What samples were drawn from, and of the real volumes beside them."""

    names: tuple[str, ...]
    of_samples: Tensor
    """(N, K, D, H, W), 0 and 1."""
    of_real: Tensor

    @classmethod
    def of(cls, names: tuple[str, ...], of_samples: Tensor, of_real: Tensor) -> "Masks | None":
        """Those of the condition's channels that are masks; None where none are."""
        every = torch.cat([of_samples, of_real])
        chosen = [k for k in range(len(names)) if ((every[:, k] == 0) | (every[:, k] == 1)).all()]
        if not chosen:
            return None
        return cls(tuple(names[k] for k in chosen), of_samples[:, chosen], of_real[:, chosen])


class Coded(NamedTuple):
    """The volumes as the denoiser knows them, and the way back."""

    latents: Tensor
    """(N, …)."""
    decode: Callable[[Tensor], Tensor]
    """To volumes in [0, 1]."""


@torch.no_grad()
def score(
    denoiser: Denoiser,
    volumes: Tensor,
    modalities: tuple[str, ...],
    seed: int,
    batch_size: int = 2,
    device: torch.device | str = "cpu",
    progress: Callable[[float], None] | None = None,
    conditions: Conditions | None = None,
    latents: Coded | None = None,
    *,
    method: str = "",
    training_seed: int | None = None,
    data: str | None = None,
) -> list[Score]:
    """MAE and MSE of eps, PSNR and SSIM of x̂_0, at `TIMES`, in both protocols, by modality.

    x̂_0 is eq. (6) solved for x_0 with the denoiser's eps, brought back to [0, 1] and clamped
    there, as every sampler ends. `psnr_noisy` is that of x_t itself, by the same way with
    eps = 0: x_t / √alpha_bar_t, brought back and clamped. A denoiser below it makes it worse.

    Args:
        denoiser: in evaluation mode, on `device`.
        volumes: the validation set, (N, C, D, H, W) float32 in [0, 1].
        modalities: what each of the C channels shows; each is scored by itself.
        seed: of the noise. The same seed gives the same noise for every method, batch size and
            device.
        batch_size: volumes of a batch, and of the paper's best one.
        progress: told the share that is done, 0 to 1, after every batch.
        conditions: that the volumes have, for a conditional denoiser.
        latents: of a denoiser of latents: noise is theirs, so are MAE and MSE of eps, and what it
            finds under the noise is decoded. `psnr_decoded` is that of the latents as they are: of
            the autoencoder, and about the most that x̂_0 can have.
        method, training_seed, data: for the rows.

    Raises:
        ValueError: no volumes, or not a modality a channel.
    """
    if len(volumes) == 0 or volumes.shape[1] != len(modalities):
        raise ValueError(f"volumes {tuple(volumes.shape)} are not of modalities {modalities}")
    diffusion = Diffusion(device=device)
    starts = range(0, len(volumes), batch_size)
    seen = volumes if latents is None else latents.latents
    decode = None if latents is None else latents.decode
    scores = []
    for turn, step in enumerate(TIMES):
        noise = iter_noise(seen, seed * TIMESTEPS + step)
        found: list[dict[str, Tensor]] = [{} for _ in modalities]
        for number, start in enumerate(starts, 1):
            own = slice(start, start + batch_size)
            batch = volumes[own].to(device)
            eps = torch.stack([next(noise) for _ in batch]).to(device)
            denoise = (
                denoiser if conditions is None else given(denoiser, conditions.some(own, device))
            )
            coded = None if decode is None else Coded(seen[own].to(device), decode)
            measured = _measure(diffusion, denoise, batch, eps, step, coded)
            for channel, values in enumerate(measured):
                for name, value in values.items():
                    known = found[channel].get(name, value.new_empty(0))
                    found[channel][name] = torch.cat([known, value])
            if progress is not None:
                progress((turn + number / len(starts)) / len(TIMES))
        for modality, values in zip(modalities, found, strict=True):
            best = best_batch(values["psnr"], batch_size)
            for protocol, chosen in (("validation", slice(None)), ("best-batch", best)):
                for name, value in values.items():
                    mean, sd, count = _mean(value[chosen])
                    scores.append(
                        Score(
                            method=method, modality=modality, column=name, value=mean,
                            unit=UNITS[name], protocol=protocol, timestep=step, count=count,
                            sd=sd if protocol == "validation" else None,
                            note="of latents" if decode and name in ("mae", "mse") else None,
                            seed=training_seed, data=data,
                        )
                    )  # fmt: skip
    return scores


def score_samples(
    samples: Tensor,
    real: Tensor,
    modalities: tuple[str, ...],
    sampler: Sampler,
    steps: int | None = None,
    *,
    method: str = "",
    training_seed: int | None = None,
    data: str | None = None,
    memory: Peak | None = None,
    start: Start | None = None,
    masks: Masks | None = None,
) -> list[Score]:
    """Diversity and intensities of samples beside those of real volumes, by modality.

    `ms_ssim` is the mean over pairs of samples, `ms_ssim_real` over pairs of real volumes;
    `histogram_distance` is between samples and real volumes, `histogram_distance_real` between
    every other real volume and the rest: what two sets of real ones differ by. `frechet_random` is
    between the samples and as many real volumes, `frechet_random_real` between these and, as far as
    there are any, as many others. `dice` is between
    the masks that samples were drawn from and what their own intensities say (`TissueByIntensity`),
    `dice_real` the same of the real volumes: no sample can be expected to have more.

    Args:
        samples: (N, C, D, H, W) in [0, 1], of `generate`.
        real: (M, C, D, H, W) in [0, 1].
        sampler, steps: as they were given to `generate`; they name the protocol.
        memory: what `sampling_memory` returned.
        start: where the sampler began, if not at T.
        masks: that the samples were drawn from, and those of the real volumes.
    """
    protocol = name_sampler(sampler, steps)

    def row(
        modality: str,
        column: str,
        value: float,
        count: int,
        sd: float | None = None,
        note: str | None = None,
    ) -> Score:
        return Score(
            method=method, modality=modality, column=column, value=value, unit=UNITS[column],
            note=note, protocol=protocol, sd=sd, count=count, seed=training_seed, data=data,
        )  # fmt: skip

    scores = []
    for channel, modality in enumerate(modalities):
        drawn, known = samples[:, [channel]].cpu(), real[:, [channel]].cpu()
        for column, volumes in (("ms_ssim", drawn), ("ms_ssim_real", known)):
            similarity = metrics.pairwise_ms_ssim(volumes)
            if len(similarity):
                mean, sd, count = _mean(similarity)
                scores.append(row(modality, column, mean, count, sd))
        as_many = known[: len(drawn)], known[len(drawn) : 2 * len(drawn)]
        for column, measure, one, other in (
            ("histogram_distance", metrics.histogram_distance, drawn, known),
            ("histogram_distance_real", metrics.histogram_distance, known[::2], known[1::2]),
            ("frechet_random", metrics.frechet_distance, drawn, as_many[0]),
            ("frechet_random_real", metrics.frechet_distance, as_many[1], as_many[0]),
        ):
            distance = measure(one, other)
            if math.isfinite(distance):
                scores.append(row(modality, column, distance, len(one)))
        if masks is not None:
            tissue = metrics.TissueByIntensity(known[:, 0], masks.of_real)
            for column, volumes, own in (
                ("dice", drawn, masks.of_samples),
                ("dice_real", known, masks.of_real),
            ):
                value, each = tissue.dice(volumes[:, 0], own)
                if math.isfinite(value):
                    note = ", ".join(
                        f"{name} {part:.3f}"
                        for name, part in zip(masks.names, each, strict=True)
                        if math.isfinite(part)
                    )
                    scores.append(row(modality, column, value, len(volumes), note=note))
    first = TIMESTEPS - 1 if start is None else start.timestep
    scores.append(row("all", "sampling_start", first, len(samples)))
    if memory is not None:
        note = f"one step, {len(samples)} volumes at once; {memory.peak_memory_source}"
        assert memory.peak_memory_bytes is not None
        peak = float(memory.peak_memory_bytes)
        scores.append(row("all", "sampling_peak_memory_bytes", peak, len(samples), note=note))
    return scores


def iter_noise(volumes: Tensor, seed: int) -> Iterator[Tensor]:
    """The noise of each volume in turn, (C, D, H, W); drawn on the CPU, so that devices agree."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(volumes.shape[1:], generator=generator)


def best_batch(psnr: Tensor, batch_size: int) -> slice:
    """The batch of consecutive volumes with the highest mean PSNR.

    A last batch that is not full does not count, unless there is no other.
    """
    full = max(1, len(psnr) // batch_size)
    batches = [slice(start * batch_size, (start + 1) * batch_size) for start in range(full)]
    return max(batches, key=lambda batch: psnr[batch].mean().item())


def _measure(
    diffusion: Diffusion,
    denoiser: Denoiser,
    volumes: Tensor,
    eps: Tensor,
    step: int,
    coded: Coded | None,
) -> Iterator[dict[str, Tensor]]:
    """For each channel its metrics by name, each (B,) on the CPU."""
    seen = volumes if coded is None else coded.latents
    t = torch.full((len(volumes),), step, dtype=torch.int64, device=volumes.device)
    x_t = diffusion.q_sample(diffusion.scale_in(seen), t, eps)
    eps_hat = denoiser(x_t, t).float()
    x_0_hat = diffusion.scale_out(diffusion.predict_x_0(x_t, t, eps_hat))
    noisy = diffusion.scale_out(diffusion.predict_x_0(x_t, t, torch.zeros_like(eps)))
    decoded = None
    if coded is not None:
        x_0_hat, noisy, decoded = (coded.decode(each) for each in (x_0_hat, noisy, seen))
    for channel in range(volumes.shape[1]):
        only = (slice(None), slice(channel, channel + 1))
        of_eps = only if coded is None else (slice(None),)
        values = {
            "psnr": metrics.psnr(x_0_hat[only], volumes[only]),
            "ssim": metrics.ssim(x_0_hat[only], volumes[only]),
            "mae": metrics.mae(eps_hat[of_eps], eps[of_eps]),
            "mse": metrics.mse(eps_hat[of_eps], eps[of_eps]),
            "psnr_noisy": metrics.psnr(noisy[only], volumes[only]),
        }
        if decoded is not None:
            values["psnr_decoded"] = metrics.psnr(decoded[only], volumes[only])
        yield {name: value.double().cpu() for name, value in values.items()}


def _mean(values: Tensor) -> tuple[float, float | None, int]:
    """Mean, standard deviation (n − 1) where there is one, and how many."""
    numbers = values.double().tolist()
    has_sd = len(numbers) > 1 and all(map(math.isfinite, numbers))
    return statistics.fmean(numbers), statistics.stdev(numbers) if has_sd else None, len(numbers)
