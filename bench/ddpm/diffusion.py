"""Denoising diffusion, as the paper defines it (§4): the forward process.

The method under test is `network(x_t, t) -> eps`, eps having the shape of x_t; everything here is
about the process around it and knows no network.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

TIMESTEPS = 2000  # paper §5.2

Denoiser = Callable[[Tensor, Tensor], Tensor]


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

    def _roots(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """√alpha_bar_t and √(1 − alpha_bar_t), each (B, 1, 1, …), to multiply a batch with."""
        log_snr = self.log_snr[t].view(-1, *([1] * (like.dim() - 1)))
        return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()
