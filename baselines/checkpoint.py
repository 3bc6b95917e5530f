"""The standard U-Net with gradient checkpointing on every residual block.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv:1604.06174: a block keeps
its input only, and computes the rest once more when the backward pass needs it. The network is
that of `baselines.unet`, parameter for parameter; only what is kept, and when, differs.
"""

from typing import Any

import torch
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from baselines.unet import PUBLISHED, UNet, divisor

__all__ = ["PUBLISHED", "CheckpointedUNet", "build", "divisor"]


def build(*, in_channels: int, channels: tuple[int, ...], **_: Any) -> "CheckpointedUNet":
    """The network for `in_channels` image channels; `channels` are its widths, finest first."""
    return CheckpointedUNet(in_channels, channels)


class CheckpointedUNet(UNet):
    """`UNet`, each of whose residual blocks forgets its activations while training."""

    def __init__(self, in_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__(in_channels, channels)
        for module in self.modules():
            if isinstance(module, DiffusionUNetResnetBlock):
                # Another class for the same object, as `torch.distributed.fsdp.fully_shard` does
                # it: a wrapper around the block would rename its parameters.
                module.__class__ = CheckpointedResidualBlock


class CheckpointedResidualBlock(DiffusionUNetResnetBlock):
    """MONAI's residual block, recomputed in the backward pass."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(x, emb)  # nothing is kept, so there is nothing to forget
        return checkpoint(
            super().forward,
            x,
            emb,
            use_reentrant=False,
            # The block draws no random numbers, so the recomputation needs no saved generator.
            preserve_rng_state=False,
        )
