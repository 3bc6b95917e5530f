"""MONAI's two tutorials of a 3D DDPM on BraTS, 32 × 40 × 32.

github.com/Project-MONAI/GenerativeModels, tutorials/generative/3d_ddpm, and its successor in
github.com/Project-MONAI/tutorials, generation/3d_ddpm. Both networks are built from MONAI's
`DiffusionModelUNet`, which the first one became.
"""

import torch
import torch.nn.functional as F
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from .setup import Setup, scaled

SIDES = (32, 40, 32)


def mixed() -> Setup:
    """Of GenerativeModels: batch 8, 16-bit autocast."""
    return _setup((256, 256, 512), batch=8, loss=_mixed_loss)


def single() -> Setup:
    """Of MONAI's tutorials: batch 16, float32."""
    return _setup((64, 64, 128), batch=16, loss=_loss)


def _setup(channels: tuple[int, ...], batch: int, loss: object) -> Setup:
    network = DiffusionModelUNet(
        spatial_dims=3, in_channels=1, out_channels=1, channels=channels, num_res_blocks=2,
        attention_levels=(False, False, True), num_head_channels=(0, 0, channels[-1]),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-5)
    return Setup(network, torch.empty(batch, 1, *SIDES), optimizer, loss)  # type: ignore[arg-type]


def _loss(network: nn.Module, images: Tensor) -> Tensor:
    noise = torch.randn_like(images)
    timesteps = torch.randint(0, 1000, images.shape[:1], device=images.device)
    alpha_bar = torch.rand(images.shape[:1], device=images.device).view(-1, 1, 1, 1, 1)
    noisy = alpha_bar**0.5 * images + (1 - alpha_bar) ** 0.5 * noise
    return F.mse_loss(network(noisy, timesteps).float(), noise.float())


def _mixed_loss(network: nn.Module, images: Tensor) -> Tensor:
    with torch.autocast("cuda", dtype=torch.float16):
        return scaled(_loss(network, images))
