"""Denoising diffusion, as the paper defines it (§4): the forward process.

The method under test is `network(x_t, t)`, which predicts something of the shape of x_t; everything
here is about the process around it and knows no network. What it predicts is its target:

    eps  ε, the noise, as in the paper
    x0   x_0, the volume
    v    v = √alpha_bar_t ε − √(1 − alpha_bar_t) x_0: ε where there is no noise, −x_0 where there is
         nothing else (Salimans & Ho 2022, arXiv:2202.00512, §4 and appendix D)

Given x_t each follows from any other. A denoiser gives ε whatever the target, so that samplers and
scores need not ask.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..presets import Target

TIMESTEPS = 2000  # paper §5.2

Denoiser = Callable[..., Tensor]
"""ε = f(x_t, t): (B, C, …) and (B,) int64 to (B, C, …). Of a conditional network, x_t is followed
by the channels of the condition (`shown`), and class labels (B,) int64 are a third argument."""

EMPTY = -1.0
"""A condition that says nothing, in the range of x_0: a mask of nothing, a black volume."""


def cosine_alpha_bar(timesteps: int = TIMESTEPS, offset: float = 0.008) -> Tensor:
    """alpha_bar_t for t = 0 … timesteps − 1 of the cosine schedule, float64, shape (timesteps,).

    Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. (17): the offset keeps the first steps from
    being too small to predict, the clip of beta at 0.999 the last ones from dividing by zero.
    """
    time = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    signal = torch.cos((time + offset) / (1 + offset) * math.pi / 2) ** 2
    beta = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
    return torch.cumprod(1 - beta, dim=0)


class Diffusion:
    """The forward process, eqs. (5) and (6), on one device, with the cosine schedule.

    Volumes are scaled from the data's [0, 1] to [-1, 1] on the way in and back on the way out, so
    that x_0 has about the variance that the schedule assumes.
    """

    def __init__(self, timesteps: int = TIMESTEPS, device: torch.device | str = "cpu") -> None:
        self.timesteps = timesteps
        self.alpha_bar = cosine_alpha_bar(timesteps)
        """(timesteps,) float64, on the CPU: a sampler takes its coefficients from it one by one."""
        # One table for both √alpha_bar and √(1 − alpha_bar): the logarithm of the ratio of their
        # squares is precise in float32 from t = 0 to T, at whose ends one of the two is tiny.
        log_snr = torch.log(self.alpha_bar / (1 - self.alpha_bar))
        self.log_snr = log_snr.float().to(device)  # (timesteps,), Kingma et al. 2021, §3.1

    @staticmethod
    def scale_in(volume: Tensor) -> Tensor:
        return volume * 2 - 1

    @staticmethod
    def scale_out(x_0: Tensor) -> Tensor:
        return ((x_0 + 1) / 2).clamp(0, 1)

    def q_sample(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0), eq. (6). x_0 and eps (B, C, …), t (B,) int64."""
        signal, noise = self._roots(t, x_0)
        return signal * x_0 + noise * eps

    def predict_x_0(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Eq. (6) solved for x_0: the volume that this eps claims is under the noise."""
        signal, noise = self._roots(t, x_t)
        return (x_t - noise * eps) / signal

    def wanted(self, target: Target, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """What a network with this target is to predict."""
        if target == "eps":
            return eps
        if target == "x0":
            return x_0
        signal, noise = self._roots(t, x_0)
        return signal * eps - noise * x_0

    def predict_eps(self, target: Target, x_t: Tensor, t: Tensor, predicted: Tensor) -> Tensor:
        """The noise that a prediction claims to be in x_t: eq. (6) and its target's, solved."""
        if target == "eps":
            return predicted
        signal, noise = self._roots(t, x_t)
        if target == "x0":
            return (x_t - signal * predicted) / noise
        return signal * predicted + noise * x_t

    def _roots(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """√alpha_bar_t and √(1 − alpha_bar_t), each (B, 1, 1, …), to multiply a batch with."""
        log_snr = self.log_snr[t].view(-1, *([1] * (like.dim() - 1)))
        return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()


def shown(x_t: Tensor, condition: Tensor) -> Tensor:
    """What a network is shown: x_t (B, C, …), and after its channels those of the condition."""
    return torch.cat([x_t, condition], dim=1) if condition.shape[1] else x_t


def split_channels(volumes: Tensor, image_channels: int) -> tuple[Tensor, Tensor]:
    """The image (B, C, …) and the condition (B, K, …) of whole volumes, as views."""
    return volumes[:, :image_channels], volumes[:, image_channels:]
