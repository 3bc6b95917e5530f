"""MAISI: diffusion of latents, of CT volumes up to 512 × 512 × 768.

Guo et al., "MAISI: Medical AI for Synthetic Imaging", 2024, arXiv:2409.11169;
github.com/NVIDIA-Medtech/NV-Generate-CTMR (Apache 2.0). The autoencoder and its latents are the
technique `latent`. This is their diffusion U-Net, as MONAI has it: residual blocks from level to
level, attention at the two coarsest of them.

What a row of `latent` has of its authors, and what of this benchmark:

    authors     network, autoencoder and channels; a volume a step, in 16 bits
    benchmark   DDPM, where theirs is a rectified flow; no embeddings of spacing and modality; no
                ControlNet; rate and optimizer
"""

import math
from typing import Any

from torch import nn

PUBLISHED: dict[str, Any] = {
    "volume": 256,
    "batch_size": 1,
    "channels": (64, 128, 256, 512),
    "precision": "fp16",
}


def build(
    *,
    in_channels: int,
    channels: tuple[int, ...],
    out_channels: int | None = None,
    num_class_embeds: int | None = None,
    include_spacing_input: bool = False,
    **_: Any,
) -> nn.Module:
    """The network `eps = network(x, t)`, (B, C, D, H, W) and (B,) int64 to (B, C, D, H, W).

    Args:
        include_spacing_input: whether it takes `spacing_tensor`, (B, 3), as its authors' does.
    """
    # MONAI takes seconds to import; listing the methods, or training another, does not need it.
    from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import (
        DiffusionModelUNetMaisi,
    )
    from monai.networks.blocks.selfattention import SABlock

    attends = [level >= len(channels) - 2 for level in range(len(channels))]
    network = DiffusionModelUNetMaisi(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels or in_channels,
        num_res_blocks=2,
        num_channels=channels,
        attention_levels=attends,
        norm_num_groups=math.gcd(32, *channels),  # the authors' 32, or the most that divides
        resblock_updown=True,
        num_head_channels=[math.gcd(32, width) for width in channels],
        include_fc=True,
        num_class_embeds=num_class_embeds,
        include_spacing_input=include_spacing_input,
    )
    for block in network.modules():
        if isinstance(block, SABlock):  # as the authors have it; MONAI would refuse it on a CPU
            block.use_flash_attention = True
    return network
