"""FLOPs of the forward pass: fvcore's rules against what is really dispatched."""

from collections import Counter
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.ddpm.step import random_batch
from bench.methods import METHODS
from bench.presets import Overrides, Workload
from bench.probes.flops import dispatched_forward_flops, flops_of, forward_flops
from tests.related import slow_if_related

SIDE = 16


class Dispatched(TorchDispatchMode):
    """Counts as `flops_step` does, a multiply-add as two."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.flops[str(func)] += int(flops_of(func, args, kwargs or {}, out))
        return out


class Norms(TorchDispatchMode):
    """What fvcore counts beside products: five for each element that a norm normalises."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.native_group_norm.default:
            self.flops += 5 * args[0].numel()
        return func(*args, **(kwargs or {}))


@cache
def built(name: str) -> nn.Module:
    return METHODS[name].build(workload(name))


def workload(name: str, batch: int = 1) -> Workload:
    side, channels = (2 * SIDE, None) if name == "latent" else (SIDE, (16, 32, 64))
    return METHODS[name].workload(
        "small", Overrides(volume=side, batch_size=batch, channels=channels)
    )


def inputs(name: str, batch: int) -> tuple[Tensor, Tensor]:
    x_t, _ = random_batch(workload(name, batch), built(name))
    return x_t, torch.zeros(batch, dtype=torch.int64)


@cache
def counted(name: str, batch: int) -> int:
    return forward_flops(built(name), *inputs(name, batch))


NAMES = slow_if_related(METHODS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "batch",
    [pytest.param(1, marks=pytest.mark.thorough), 2, pytest.param(3, marks=pytest.mark.slow)],
)
def test_both_counts_of_every_method_agree(name, batch):
    network, (x_t, t) = built(name), inputs(name, batch)
    with torch.no_grad(), Norms() as norms, Dispatched() as dispatched:
        network(x_t, t)
    products = dispatched.flops.total()
    assert products % 2 == 0
    assert counted(name, batch) == products // 2 + norms.flops
    assert dispatched_forward_flops(lambda: network(x_t, t)) == products // 2 + norms.flops


@pytest.mark.parametrize("name", NAMES)
def test_flops_of_a_sample_do_not_depend_on_the_batch(name):
    one, two, three = (counted(name, batch) for batch in (1, 2, 3))
    assert three - two == two - one
    of_weights = one - (two - one)  # products of weights alone, once a step
    assert 0 <= of_weights < 1e-3 * one


class Product(nn.Module):
    """One product of the batch with a constant."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.product = product
        self.register_buffer("other", torch.rand(shape))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.product(x, self.other) + 0 * t.sum()


PRODUCTS = {
    "matrix, many vectors": (torch.matmul, (5, 6, 7), (7, 8)),
    "one matrix for a batch": (lambda x, w: w @ x, (5, 7, 6), (8, 7)),
    "broadcast batch": (torch.matmul, (1, 4, 6, 7), (3, 1, 7, 8)),
    "second factor has the batch": (torch.matmul, (6, 7), (3, 4, 7, 8)),
    "bmm": (torch.bmm, (5, 6, 7), (5, 7, 8)),
    "baddbmm": (lambda x, w: torch.baddbmm(torch.zeros(5, 6, 8), x, w), (5, 6, 7), (5, 7, 8)),
    "einsum": (lambda x, w: torch.einsum("bij,bjk->bik", x, w), (53, 61, 71), (53, 71, 89)),
    "einsum, ellipsis": (lambda x, w: torch.einsum("...ij,jk->...ik", x, w), (5, 3, 6, 7), (7, 8)),
    "einsum, summed first": (lambda x, w: torch.einsum("ija,jk->ik", x, w), (6, 7, 5), (7, 8)),
    "convolution": (lambda x, w: torch.conv3d(x, w, padding=1), (2, 4, 6, 6, 6), (8, 4, 3, 3, 3)),
    "same": (lambda x, w: torch.conv3d(x, w, padding="same"), (2, 4, 6, 6, 6), (8, 4, 3, 3, 3)),
    "groups": (lambda x, w: torch.conv3d(x, w, groups=2), (2, 4, 6, 6, 6), (8, 2, 3, 3, 3)),
    "transposed": (
        lambda x, w: torch.conv_transpose3d(x, w, stride=2), (2, 4, 6, 6, 6), (4, 8, 2, 2, 2),
    ),
    "linear": (nn.functional.linear, (5, 6, 7), (8, 7)),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_both_counts_of_every_product_agree(name):
    product, shape, other = PRODUCTS[name]
    network, x, t = Product(product, *other), torch.rand(shape), torch.zeros(1)
    with torch.no_grad(), Dispatched() as dispatched:
        network(x, t)
    assert 2 * forward_flops(network, x, t) == dispatched.flops.total() > 0
    assert 2 * dispatched_forward_flops(lambda: network(x, t)) == dispatched.flops.total()


def test_a_product_that_sums_nothing_is_element_wise():
    network = Product(lambda x, w: torch.einsum("i,j->ij", x, w), 7)
    assert forward_flops(network, torch.rand(6), torch.zeros(1)) == 0
