"""What every baseline must do, whatever its network: train, for real and on fake tensors."""

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch._subclasses import FakeTensorMode

from baselines import maisi, patchddm, unet, wdm
from tests.baselines.training import nudge, train_once

METHODS = pytest.mark.parametrize(
    "method", [unet, patchddm, wdm, maisi], ids=lambda module: module.__name__.split(".")[-1]
)
WIDTHS = (4, 8)


def small_batch(channels=1, side=8):
    torch.manual_seed(0)
    return torch.randn(2, channels, side, side, side), torch.tensor([0, 1999])


@METHODS
@pytest.mark.parametrize("channels", [1, 2])
def test_predicts_noise_of_the_shape_of_its_input_and_starts_at_zero(method, channels):
    x, t = small_batch(channels)
    eps = method.build(in_channels=channels, channels=WIDTHS)(x, t)
    assert eps.shape == x.shape
    assert torch.equal(eps, torch.zeros_like(x))  # the last convolution starts at zero


@METHODS
def test_depends_on_the_diffusion_step(method):
    x, t = small_batch()
    network = nudge(method.build(in_channels=1, channels=WIDTHS))
    assert not torch.allclose(network(x, t), network(x, 1999 - t), rtol=1e-3)


@METHODS
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_the_gradient_reaches_every_parameter(method, bf16):
    x, t = small_batch()
    network = nudge(method.build(in_channels=1, channels=WIDTHS))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        network(x, t).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # Not of biases: right before a norm with a channel a group they have no influence.
        if parameter.ndim == 5:
            assert parameter.grad.any(), name


@METHODS
def test_learns(method):
    torch.manual_seed(0)
    network = nudge(method.build(in_channels=1, channels=WIDTHS))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, fused=True)
    losses = [train_once(network, optimizer, *small_batch()) for _ in range(8)]
    assert losses[-1] < losses[0] / 2


@METHODS
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_trains_on_fake_tensors(method, bf16):
    with FakeTensorMode():
        network = method.build(in_channels=1, channels=WIDTHS)
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        x, t = torch.randn(2, 1, 8, 8, 8), torch.zeros(2, dtype=torch.int64)
        train_once(network, optimizer, x, t, bf16)
        assert all(p.grad.shape == p.shape for p in network.parameters())


@METHODS
def test_fvcore_can_trace_it(method):
    network = method.build(in_channels=1, channels=WIDTHS)
    with torch.no_grad():
        flops = FlopCountAnalysis(network, small_batch()).unsupported_ops_warnings(False)
        assert flops.by_operator()["conv"] > 0


@METHODS
def test_the_same_seed_gives_the_same_network(method):
    def weights(seed):
        torch.manual_seed(seed)
        network = method.build(in_channels=1, channels=WIDTHS)
        return torch.cat([parameter.flatten() for parameter in network.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
