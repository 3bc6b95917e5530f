"""Gradients of the reversible backward pass against those of stored activations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from models.idm import IDM
from tests.models.test_network import NARROW, batch, perturbed

SIX_LEVELS = (8, 16, 16, 16, 16, 16)  # the depth of `paper`, narrow


def gradients(net: IDM, x: Tensor, t: Tensor, lambda_r: float = 0.0) -> list[Tensor]:
    """Of eq. (8) without its weight decay, for the image and every parameter."""
    x = x.detach().requires_grad_()
    eps = net(x, t)
    loss = (eps - torch.sin(x.detach())).square().mean()
    if lambda_r:
        loss = loss + lambda_r * (net.inverse(eps) - x).square().mean()
    return list(torch.autograd.grad(loss, [x, *net.parameters()]))


def stored_copy(net: IDM) -> IDM:
    net = copy.deepcopy(net)
    net.backward = "stored"
    return net


def error(ours: list[Tensor], exact: list[Tensor]) -> float:
    """Of all gradients as one vector, relative."""
    apart = sum((a.double() - b.double()).square().sum() for a, b in zip(ours, exact, strict=True))
    return float((apart / sum(b.double().square().sum() for b in exact)).sqrt())


@pytest.mark.parametrize("lambda_r", [0.0, 0.5])
@pytest.mark.parametrize("dims", [2, 3])
def test_float64(dims, lambda_r):
    net = perturbed(IDM(channels=NARROW, dims=dims).double())
    x, t = batch(2, 1, *(8,) * dims, dtype=torch.float64)
    ours = gradients(net, x, t, lambda_r)
    exact = gradients(stored_copy(net), x, t, lambda_r)
    for a, b in zip(ours, exact, strict=True):
        assert torch.linalg.norm(a - b) <= 1e-10 * torch.linalg.norm(b)


def test_gradcheck():
    net = perturbed(IDM(channels=(4, 8), couplings=1, dims=2).double())
    x, t = batch(1, 1, 4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: net(x, t), x.requires_grad_())
    assert torch.autograd.gradcheck(net.inverse, x)


@pytest.mark.parametrize(("lambda_r", "seed"), [(0.0, 0), (0.5, 1)])
def test_float32_at_the_depth_of_paper(lambda_r, seed):
    """The bound is 1e-4; smooth activations leave 4e-7. (With a kink, as LeakyReLU has, inputs that
    are rebuilt on its other side change their slope: that alone gave 1e-4 to 5e-4.)"""
    torch.manual_seed(seed)
    net = perturbed(IDM(channels=SIX_LEVELS), 0.02)
    x, t = batch(1, 1, 32, 32, 32)
    ours = gradients(net, x, t, lambda_r)
    assert error(ours, gradients(stored_copy(net), x, t, lambda_r)) <= 1e-5


def test_bfloat16_autocast_is_no_worse_than_twice_stored():
    net = perturbed(IDM(channels=SIX_LEVELS), 0.02)
    x, t = batch(1, 1, 32, 32, 32)
    exact = gradients(stored_copy(net).double(), x.double(), t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, stored = gradients(net, x, t), gradients(stored_copy(net), x, t)
    assert error(stored, exact) > 1e-4  # it did run in 16 bits
    assert error(ours, exact) <= 2 * error(stored, exact)
