"""Gradient accumulation: the batch passes through the network in micro-batches (`--micro-batch`).

Exact for networks that treat each sample by itself: with group, layer or instance normalisation.
Batch normalisation takes its statistics over what passes at a time, and is refused.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

KIND = "exact"
WORK = {"micro_batch": 1}
EXCLUDES = {"fused-backward": "that applies each gradient as soon as it is there"}


def build(network: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """The network as it is; ValueError where micro-batches would change what it computes."""
    built = network(**options)
    for name, module in built.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(f"{name} would take its statistics over a micro-batch")
    return built
