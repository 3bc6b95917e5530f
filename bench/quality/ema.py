"""The exponential moving average of the weights: what is validated, sampled and kept."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def decay_after(step: int, decay: float) -> float:
    """What the mean keeps of itself after step `step`, counted from 1: min(d, (1 + k) / (10 + k)).

    The warm-up: with d alone, the mean would consist of the initial weights for 1 / (1 − d) steps.
    With it, it spans about the last ninth of a training that is shorter than 9 / (1 − d) steps.
    """
    return min(decay, (1 + step) / (10 + step))


class Ema:
    """A mean of each trained parameter over the steps, in its own dtype on its own device.

    Args:
        network: whose parameters; the mean starts at what they are now.
        decay: of the mean per step, once it is warm; 0: the mean is the last value.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self.means: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in self._parameters.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after step `step`, counted from 1."""
        weight = 1 - decay_after(step, self.decay)
        torch._foreach_lerp_(list(self.means.values()), list(self._parameters.values()), weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network has the means as its weights, and its own again afterwards."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():  # pointers: nothing is copied
            parameter.data, self.means[name] = self.means[name], parameter.data
