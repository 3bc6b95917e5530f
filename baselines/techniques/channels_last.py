"""Channels beside each other in memory, as a card's 16-bit kernels like them best."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

KIND = "rounded"  # the same sums, in another order
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""By the dimensions of a convolution's weights."""
EXCLUDES = dict.fromkeys(("adam8bit", "fused-backward"), "its moments lie as ordinary weights do")


def build(network: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """The network, its convolutions' weights in that format; their results follow the weights."""
    built = network(**options)
    for module in built.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() in FORMATS:
                there = parameter.detach().contiguous(memory_format=FORMATS[parameter.dim()])
                setattr(module, name, nn.Parameter(there, parameter.requires_grad))
    return built
