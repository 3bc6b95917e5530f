"""`torch.compile`, which stores what pays within a budget, and fuses what it recomputes.

`memory_budget` (`--memory-budget`) is `torch._functorch.config.activation_memory_budget`: 1 stores
all that the compiler's minimum cut would; less, in order, what costs most to compute again (He & Yu
2023, pytorch.org, "Recomputation in AOTAutograd"). A prediction runs the network as it is written:
what is fused, and stored, is decided on the device.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch._functorch.config
from torch import nn

KIND = "exact"
WORK = {"memory_budget": 1.0}
ASSUMED = "compile: predicted as not compiled"
EXCLUDES = dict.fromkeys(("offload", "fused-backward"), "hooks do not reach into a compiled graph")


def build(network: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """The network, compiled when it is first called."""
    built = network(**options)
    built.compile(dynamic=False)
    return built


def saving(work: Any, device: torch.device) -> AbstractContextManager[Any]:
    return torch._functorch.config.patch(activation_memory_budget=work.memory_budget)
