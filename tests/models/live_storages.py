"""Bytes of the tensors that are alive, followed through every dispatched operation.

Works on real and on fake tensors. The harness has its own probe; this one stays small so that the
network's tests depend on nothing but torch.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry


class LiveStorages(TorchDispatchMode):
    """Counts live bytes, their peak, and the FLOPs of what is dispatched (multiply-add = 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.live = self.peak = self.flops = 0

    def restart(self) -> None:
        self.peak, self.flops = self.live, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if count := flop_registry.get(func._overloadpacket):
            self.flops += count(*args, **kwargs, out_val=out)
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: Any) -> None:
        key = storage._cdata
        if key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self.sizes.pop(key)


@dataclass
class StepCost:
    """One training step in steady state, in bytes and FLOPs."""

    peak: int
    parameters: int  # bytes of the parameters
    optimizer: int  # bytes of the optimizer state
    flops: int

    @property
    def activations(self) -> int:
        """The peak less parameters, gradients (as large as they) and optimizer state."""
        return self.peak - 2 * self.parameters - self.optimizer


def cost_of_step(
    build: Callable[[], nn.Module],
    shape: Sequence[int],
    *,
    time: bool = True,
    condition: int = 0,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
) -> StepCost:
    """A second step of fused AdamW on fake tensors, for `build()(x, t)` with x of `shape`.

    Args:
        condition: further channels of x, of which the output has none.
    """
    with FakeTensorMode(), LiveStorages() as watch:
        net = build()
        adamw = torch.optim.AdamW(net.parameters(), lr=2e-4, fused=True)
        x, noise = torch.randn(shape[0], shape[1] + condition, *shape[2:]), torch.randn(*shape)
        inputs = (x, torch.zeros(shape[0], dtype=torch.long)) if time else (x,)
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        adamw.step()  # makes its state
        adamw.zero_grad(set_to_none=True)
        watch.restart()
        (net(*inputs) - noise).square().mean().backward()
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        state = [t for s in adamw.state.values() for t in s.values()]
        return StepCost(
            peak=watch.peak,
            parameters=sum(p.nbytes for p in net.parameters()),
            optimizer=sum(t.nbytes for t in state),
            flops=watch.flops,
        )
