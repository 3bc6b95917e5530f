"""Checkpointing changes what is kept, and nothing else."""

import copy
from functools import partial

import pytest
import torch

from baselines import patchddm, unet
from baselines.techniques import checkpoint
from tests.baselines.training import Cost, cost_of_fake_step, nudge

WIDTHS = (4, 8, 16)


WAYS = {
    "block": {}, "all": {"scope": "all"}, "level": {"scope": "level"},
    "nested": {"scope": "nested"}, "selective": {"keep_convolutions": True},
}  # fmt: skip


def build_checkpointed(network=unet, **options):
    return checkpoint.build(network.build, **options)


def pair(network=unet, **way):
    """The two networks from one seed."""
    networks = []
    for build in (network.build, partial(checkpoint.build, network.build, **way)):
        torch.manual_seed(0)
        networks.append(build(in_channels=1, channels=WIDTHS))
    return networks


def batch():
    torch.manual_seed(1)
    # 16³ is 4³ at the coarsest level. At 2³, oneDNN's bf16 gradients are not reproducible.
    return torch.randn(2, 1, 16, 16, 16), torch.tensor([3, 1500])


def test_is_the_same_network():
    plain, checkpointed = (network.state_dict() for network in pair())
    assert list(plain) == list(checkpointed)
    assert all(torch.equal(plain[key], checkpointed[key]) for key in plain)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", [unet, patchddm], ids=["unet", "patchddm"])
@pytest.mark.parametrize(
    "bf16", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["fp32", "bf16"]
)
def test_gives_the_same_output_and_gradients(bf16, kind, way):
    outputs, gradients = [], []
    for network in map(nudge, pair(kind, **way)):
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
        cost_of_fake_step(lambda b=build: b(in_channels=1, channels=widths), (2, 1, *[32] * 3))
        for build in (unet.build, build_checkpointed)
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


@pytest.mark.slow
def test_what_each_way_keeps_and_computes_twice():
    """The finest level has most of what a U-Net stores: to recompute it whole saves less."""
    costs = {
        name: cost_of_fake_step(
            lambda way=way: build_checkpointed(in_channels=1, channels=(32, 64, 128), **way),
            (2, 1, *[32] * 3),
        )
        for name, way in WAYS.items()
    }
    plain = cost_of_fake_step(lambda: unet.build(in_channels=1, channels=(32, 64, 128)),
                              (2, 1, *[32] * 3))  # fmt: skip
    assert costs["selective"].flops < 1.02 * plain.flops
    assert costs["block"].peak < costs["selective"].peak < 0.9 * plain.peak
    assert costs["all"].peak < costs["block"].peak < costs["nested"].peak < costs["level"].peak
    assert costs["nested"].flops > costs["level"].flops >= costs["block"].flops


def test_levels_are_those_of_the_u_and_its_head():
    for network in (unet.build(in_channels=1, channels=WIDTHS), pair(patchddm)[0]):
        levels = checkpoint.levels_of(network)
        assert levels[-1] is network.out
        blocks = checkpoint.blocks_of(network)
        inside = [block for level in levels for block in level.modules() if block in blocks]
        assert sorted(map(id, inside)) == sorted(map(id, blocks))


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ValueError, match="Linear has no modules of a class called like ResBlock"):
        checkpoint.build(lambda **_: torch.nn.Linear(1, 1))
