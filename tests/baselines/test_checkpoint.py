"""Checkpointing changes what is kept, and nothing else."""

import copy

import pytest
import torch

from baselines import checkpoint, unet
from tests.baselines.training import Cost, cost_of_fake_step, nudge

WIDTHS = (4, 8, 16)


def pair():
    """The two networks from one seed."""
    networks = []
    for method in (unet, checkpoint):
        torch.manual_seed(0)
        networks.append(method.build(in_channels=1, channels=WIDTHS))
    return networks


def batch():
    torch.manual_seed(1)
    # 16³ is 4³ at the coarsest level. At 2³, oneDNN's bf16 gradients are not reproducible.
    return torch.randn(2, 1, 16, 16, 16), torch.tensor([3, 1500])


def test_is_the_same_network():
    plain, checkpointed = (network.state_dict() for network in pair())
    assert list(plain) == list(checkpointed)
    assert all(torch.equal(plain[key], checkpointed[key]) for key in plain)
    assert checkpoint.PUBLISHED == unet.PUBLISHED


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_gives_the_same_output_and_gradients(bf16):
    outputs, gradients = [], []
    for network in map(nudge, pair()):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            eps = network(*batch())
        eps.float().square().mean().backward()
        outputs.append(eps)
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert outputs[0].any()
    assert torch.equal(*outputs)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


def test_keeps_less_and_computes_more():
    widths = (32, 64, 128)
    plain, checkpointed = (
        cost_of_fake_step(
            lambda m=method: m.build(in_channels=1, channels=widths), (2, 1, *[32] * 3)
        )
        for method in (unet, checkpoint)
    )
    assert checkpointed.peak < 0.7 * plain.peak
    # Forward and backward are 3 forwards; every residual block, which is most of it, adds another.
    assert 1.15 * plain.flops < checkpointed.flops < 4 / 3 * plain.flops


@pytest.mark.parametrize("how", ["eval", "no_grad"])
def test_computes_nothing_twice_where_nothing_is_trained(how):
    flops = []
    for network in pair():
        network.train(how != "eval")
        with Cost() as cost, torch.set_grad_enabled(how != "no_grad"):
            eps = network(*batch())
            if how == "eval":
                eps.sum().backward()
        flops.append(cost.flops)
    assert flops[0] == flops[1] > 0


def test_a_copy_recomputes_with_its_own_parameters():
    original = nudge(pair()[1])
    twin = copy.deepcopy(original)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.zero_()
    twin(*batch()).square().mean().backward()
    assert all(parameter.grad is None for parameter in original.parameters())
    assert all(parameter.grad is not None for parameter in twin.parameters())
