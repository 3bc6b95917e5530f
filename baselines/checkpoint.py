"""The standard U-Net with gradient checkpointing on every residual block.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv:1604.06174: a block keeps
its input only, and computes the rest once more when the backward pass needs it. The network is
that of `baselines.unet`, parameter for parameter; only what is kept, and when, differs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import unet

PUBLISHED: dict[str, Any] = unet.PUBLISHED


def build(*, in_channels: int, channels: tuple[int, ...], **_: Any) -> nn.Module:
    """`unet.build`'s network, each of whose residual blocks forgets its activations in training."""
    from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock

    network = unet.build(in_channels=in_channels, channels=channels)
    for module in network.modules():
        if isinstance(module, DiffusionUNetResnetBlock):
            recompute(module)
    return network


def recompute(block: nn.Module) -> None:
    """Let `block` compute its activations again in the backward pass instead of keeping them.

    The block stays the same object under another class, as in PyTorch's own `fully_shard`: a
    wrapper around it would rename its parameters.
    """
    block.__class__ = type(f"Recomputed{type(block).__name__}", (Recomputed, type(block)), {})


class Recomputed(nn.Module):
    """Mixed into the class of a block that draws no random numbers."""

    def forward(self, *inputs: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(*inputs)  # nothing is kept, so there is nothing to forget
        return checkpoint(
            super().forward,
            *inputs,
            use_reentrant=False,
            # Without dropout there is no random state to restore before computing again.
            preserve_rng_state=False,
        )
