"""Diffusion models of whole volumes: WDM, Med-DDPM.

WDM's network is that of `baselines.wdm`; Med-DDPM's is the U-Net of guided diffusion, as MONAI has
it.
"""

import torch
import torch.nn.functional as F
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from baselines.wdm import build

from .setup import Setup


def wdm(multipliers: tuple[int, ...], side: int, batch: int) -> Setup:
    """Eight Haar coefficients at half of `side` (github.com/pfriedri/wdm-3d, run.sh)."""
    network = build(in_channels=8, channels=tuple(64 * width for width in multipliers))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)
    return Setup(network, torch.empty(batch, 8, *(side // 2,) * 3), optimizer, _predict_noise)


def med_ddpm() -> Setup:
    """A mask of three channels beside the noisy volume, 128³ (scripts/train.sh)."""
    network = DiffusionModelUNet(
        spatial_dims=3, in_channels=4, out_channels=1, channels=(64, 64, 128, 192, 256),
        num_res_blocks=1, attention_levels=(False,) * 4 + (True,), num_head_channels=256,
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)
    return Setup(network, torch.empty(1, 4, 128, 128, 128), optimizer, _predict_noise)


def _predict_noise(network: nn.Module, x: Tensor) -> Tensor:
    timesteps = torch.randint(0, 1000, x.shape[:1], device=x.device)
    predicted = network(x + torch.randn_like(x), timesteps)
    return F.mse_loss(predicted, torch.randn_like(predicted))
