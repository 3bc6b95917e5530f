"""The network works on Haar coefficients: eight times the channels at half the sides.

Friedrich et al. 2024, "WDM: 3D wavelet diffusion models for high-resolution medical image
synthesis", arXiv:2402.19043. The transform is orthonormal: white noise stays white noise, and the
mean square error of ε is the same before and after, so that diffusion in coefficients is a network
between two transforms.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

KIND = "another task"
DIMS = (3,)
HALVINGS = 1


def build(network: Callable[..., nn.Module], *, in_channels: int, **options: Any) -> "OnWavelets":
    if "out_channels" in options:
        options["out_channels"] *= 8
    built = network(in_channels=8 * in_channels, **options)
    if hasattr(built, "crop"):
        raise ValueError(f"{type(built).__name__} reads where its voxels lie; coefficients lie "
                         "nowhere")  # fmt: skip
    return OnWavelets(built)


class OnWavelets(nn.Module):
    """ε of a volume (B, C, D, H, W), by a network of its coefficients (B, 8C, D/2, H/2, W/2)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        if hasattr(network, "inverse"):
            self.inverse = self._inverse

    def forward(self, x: Tensor, timesteps: Tensor, **given: Any) -> Tensor:
        return volume(self.network(coefficients(x), timesteps, **given))

    def _inverse(self, v: Tensor) -> Tensor:
        return volume(self.network.inverse(coefficients(v)))  # type: ignore[operator]


def coefficients(x: Tensor) -> Tensor:
    """The orthonormal Haar transform, (B, C, D, H, W) -> (B, 8C, D/2, H/2, W/2).

    The first C channels are the means of 2³ voxels, times √8.
    """
    for axis in (2, 3, 4):
        even, odd = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
        x = torch.cat([even + odd, even - odd], dim=1)
    return x * 8**-0.5


def volume(w: Tensor) -> Tensor:
    """The way back, (B, 8C, D/2, H/2, W/2) -> (B, C, D, H, W)."""
    for axis in (4, 3, 2):
        low, high = w.chunk(2, dim=1)
        w = torch.stack([low + high, low - high], dim=axis + 1).flatten(axis, axis + 1)
    return w * 8**-0.5
