"""idm-fine: couplings by level, most where the volume is fine; exact in its three forms."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from models.idm import IDM, PUBLISHED
from models.idm.fine import build, tapered
from models.idm.lean import LeanIDM
from tests.models.live_storages import cost_of_step
from tests.models.test_exactness import gradients
from tests.models.test_network import GIB, PAPER, batch, perturbed

CHANNELS = (16, 32, 64)


def test_the_number_of_couplings_halves_from_level_to_level():
    assert tapered(2, 6) == (4, 2, 1, 1, 1, 1)
    assert tapered(3, 4) == (6, 3, 1, 1)
    text = build(channels=CHANNELS).describe()
    assert "level 0: 16 channels, 1/1 size: 4 couplings, split 12 skip | 4 down, 4 cou" in text
    assert "level 1: 32 channels, 1/2 size: 2 couplings, split 24 skip | 8 down, 2 cou" in text
    assert "level 2: 64 channels, 1/4 size: 1 couplings, mix, 1 couplings" in text
    assert "iTrans" not in text


@pytest.mark.parametrize("couplings", [(2, 2), (2, 2, 2, 2), ()])
def test_couplings_of_too_few_or_too_many_levels_are_explained(couplings):
    with pytest.raises(ValueError, match="couplings: a number, or one for each of 3 levels"):
        IDM(channels=CHANNELS, couplings=couplings)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("lambda_r", [0.0, 0.5])
def test_gradients_are_those_of_stored_activations(dims, lambda_r):
    net = perturbed(build(channels=CHANNELS, dims=dims).double(), 0.05)
    stored = build(channels=CHANNELS, dims=dims, backward="stored").double()
    lean = build(channels=CHANNELS, dims=dims, lean=True, stream_bytes=0, slice_bytes=2**10)
    assert isinstance(lean, LeanIDM)
    x, t = batch(2, 1, *(8,) * dims, dtype=torch.float64)
    want = gradients(net, x, t, lambda_r)
    for twin in (stored, lean.double()):
        twin.load_state_dict(net.state_dict())
        for a, b in zip(gradients(twin, x, t, lambda_r), want, strict=True):
            assert torch.linalg.norm(a - b) <= 1e-10 * torch.linalg.norm(b)


def test_the_body_is_inverted_without_t():
    net = perturbed(build(channels=CHANNELS).double(), 0.05)
    halves = [torch.randn(2, 8, 8, 8, 8, dtype=torch.float64) for _ in range(2)]
    with torch.no_grad():
        back = net._run_body(net._run_body(halves, None, flipped=False), None, flipped=True)
    for half, same in zip(halves, back, strict=True):
        torch.testing.assert_close(half, same)


def test_couplings_at_the_finest_level_store_nothing():
    """Its activations at the peak are those of two couplings and attention, to the byte."""
    shape, channels = (2, 1, 32, 32, 32), (32, 64, 128, 256)
    fine = cost_of_step(lambda: build(channels=channels), shape)
    idm = cost_of_step(lambda: IDM(channels=channels), shape)
    assert fine.activations == idm.activations
    assert fine.peak < idm.peak


@pytest.mark.slow
def test_the_published_widths_need_half_of_the_memory():
    fine = cost_of_step(lambda: build(channels=PUBLISHED["channels"]), PAPER)
    assert fine.peak <= 3.2 * GIB
    assert fine.activations <= 1.0 * GIB
    with FakeTensorMode():
        assert sum(p.numel() for p in build(channels=PUBLISHED["channels"]).parameters()) < 153e6
