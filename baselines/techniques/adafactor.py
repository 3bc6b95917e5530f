"""Adafactor: the second moment of a matrix as its row and column means, no first moment.

Shazeer & Stern 2018, arXiv:1804.04235; torch's. A convolution's weight is a stack of matrices
there, of its kernel's last two sides: those are 3 wide, so little of it is saved.
"""

from typing import Any

import torch
from torch import nn

KIND = "rounded"


def make_optimizer(network: nn.Module, *, learning_rate: float, **_: Any) -> torch.optim.Optimizer:
    trained = [p for p in network.parameters() if p.requires_grad]
    return torch.optim.Adafactor(trained, lr=learning_rate)
