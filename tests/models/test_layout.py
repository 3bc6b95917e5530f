"""Channels last on a CPU: the same function, laid otherwise."""

import copy

import pytest
import torch

from models.idm import IDM, network, resampling
from models.idm.layout import dense, fastest_layout, layout
from tests.models.test_network import NARROW, batch, perturbed
from tests.models.test_reversible import assert_same


def contiguous(like, channels):
    return torch.contiguous_format


@pytest.mark.parametrize("backward", ["inverse", "stored"])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("samples", [1, 2])
def test_the_layout_changes_no_value_and_no_gradient(monkeypatch, backward, dims, samples):
    # A volume of float64 is convolved by a kernel that has one layout only.
    dtype = {2: torch.float64, 3: torch.float32}[dims]
    net = perturbed(IDM(channels=NARROW, backward=backward, dims=dims).to(dtype))
    x, t = batch(samples, 1, *(16,) * dims, dtype=dtype)
    exact = copy.deepcopy(net).double()
    first = net.body["level0_encode0"]
    laid = []
    watching = first.register_forward_pre_hook(lambda _, halves: laid.append(layout(halves[0])))

    def run(net, x):
        net.zero_grad()
        out = net(x, t)
        out.square().mean().backward()
        back = net.inverse(out.detach())
        found = [out.detach(), back.detach(), *(p.grad.clone() for p in net.parameters())]
        return torch.cat([each.flatten() for each in found]).double()

    ours = run(net, x)
    for module in (network, resampling):
        monkeypatch.setattr(module, "fastest_layout", contiguous)
    theirs = run(net, x)
    watching.remove()
    if dims == 2:
        assert_same([ours], [theirs])
    else:
        right = run(exact, x.double())
        assert (ours - right).norm() < 1.5 * (theirs - right).norm() < 1e-5 * right.norm()
    last = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    if samples == 2:  # a single small volume does not go to oneDNN, and is left as it is
        assert laid[0] == last
    assert laid[-1] == torch.contiguous_format


def test_a_deep_level_whose_weights_are_more_than_its_state_is_left_as_it_is():
    state = torch.empty(2, 128, 4, 4, 4)
    assert fastest_layout(state, 128) == torch.contiguous_format
    assert fastest_layout(torch.empty(2, 16, 32, 32, 32), 16) == torch.channels_last_3d
    with torch.autocast("cpu", torch.bfloat16):
        assert fastest_layout(torch.empty(2, 16, 32, 32, 32), 16) == torch.contiguous_format
    on_a_card = torch.empty(2, 16, 32, 32, 32, device="meta")  # any device that is no CPU
    assert fastest_layout(on_a_card, 16) == torch.contiguous_format


def test_strides_of_axes_of_length_1_are_made_to_say_what_the_layout_is():
    x = torch.randn(1, 8, 8, 8, 4).permute(0, 4, 1, 2, 3)
    strange = x.as_strided(x.shape, (4, *x.stride()[1:]))
    laid = dense(strange, torch.channels_last_3d)
    assert laid.data_ptr() == x.data_ptr()
    assert torch.equal(laid, x)
    norm = torch.ones(4), torch.zeros(4)
    with pytest.raises(RuntimeError, match="contiguous"):  # what it is there for
        torch.native_group_norm(strange, *norm, 1, 4, 512, 1, 1e-5)
    torch.native_group_norm(laid, *norm, 1, 4, 512, 1, 1e-5)
