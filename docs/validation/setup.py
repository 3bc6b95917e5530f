"""What a published figure is predicted from: a network, a batch, and how it was used."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.predict import Prediction, predict


@dataclass(frozen=True)
class Setup:
    """Without an optimizer and a loss: a forward pass that stores nothing for a backward pass.

    All of it as `bench.predict.predict` takes it, so that it may be functions that build it.
    """

    network: nn.Module | Callable[[], nn.Module]
    batch: Any
    optimizer: torch.optim.Optimizer | Callable[..., torch.optim.Optimizer] | None = None
    loss: Callable[[nn.Module, Any], Tensor] | None = None

    def predict(self) -> Prediction:
        return predict(self.network, self.batch, self.optimizer, self.loss)


def scaled(loss: Tensor) -> Tensor:
    """As `torch.amp.GradScaler` scales it: the scalar counts, the scale does not."""
    return loss * 2.0**16
