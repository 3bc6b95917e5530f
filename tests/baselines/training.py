"""A training step for tests of the baselines, and what it costs, without the harness's help."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry


def nudge(network: nn.Module) -> nn.Module:
    """Move every parameter off its start: zero-initialised layers hide what lies before them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network


def train_once(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    t: Tensor,
    bf16: bool = False,
    **keywords: Tensor,
) -> Tensor:
    """One step towards predicting zero; returns its loss."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = network(x, t, **keywords).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


class Cost(TorchDispatchMode):
    """Counts the bytes of live storages, at their peak, and the FLOPs of what is dispatched."""

    def __init__(self, alive: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0
        self.flops = 0
        for tensor in alive:
            self.follow(tensor)

    def follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.live:
            self.live[key] = storage.nbytes()
            weakref.finalize(storage, self.live.pop, key, None)
            self.peak = max(self.peak, sum(self.live.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (flops := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += flops(*args, **(kwargs or {}), out_val=out)
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor):
                self.follow(leaf)
        return out


def cost_of_fake_step(
    make: Callable[[], nn.Module], shape: tuple[int, ...], bf16: bool = False
) -> Cost:
    """What the second step costs, when the optimizer has its state; nothing is computed."""
    with FakeTensorMode():
        network = make()
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        x, t = torch.randn(shape), torch.zeros(shape[0], dtype=torch.int64)
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # makes its state
        optimizer.zero_grad(set_to_none=True)
        state = [v for values in optimizer.state.values() for v in values.values()]
        with Cost([*network.parameters(), *state, x, t]) as cost:
            train_once(network, optimizer, x, t, bf16)
        return cost


def parameters_of(make: Callable[[], nn.Module]) -> int:
    """The parameter count, without the parameters."""
    with FakeTensorMode():
        return sum(parameter.numel() for parameter in make().parameters())
