"""The published iUNets, trained as a denoiser."""

from importlib.machinery import ModuleSpec

import pytest
import torch

pytest.importorskip("iunets", reason="the extra `peers`")
pytest.importorskip("memcnn", reason="the extra `peers`")

from baselines import iunet
from bench import methods
from bench.errors import UserError
from bench.methods import METHODS
from tests.baselines.training import nudge, train_once

pytestmark = pytest.mark.filterwarnings("ignore")  # of packages as old as these


def small(**options):
    torch.manual_seed(0)
    return nudge(iunet.build(in_channels=1, channels=(8, 16), **options))


def batch():
    torch.manual_seed(1)
    return torch.randn(2, 1, 8, 8, 8), torch.tensor([3, 1500])


def test_its_inverted_gradients_are_those_of_stored_activations():
    gradients = []
    for stored in (True, False):
        net = small().double()
        if stored:
            net.inverted, inverted = [], net.inverted
            for module in inverted:
                module.disable = True
        x, t = batch()
        net(x.double(), t).square().mean().backward()
        gradients.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


def test_learns_and_sees_the_diffusion_step():
    net, (x, t) = small(), batch()
    with torch.no_grad():
        assert not torch.allclose(net(x.clone(), t), net(x.clone(), 1999 - t), rtol=1e-3)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, fused=True)
    losses = [train_once(net, optimizer, x, t) for _ in range(8)]
    assert losses[-1] < losses[0] / 2


def test_widths_that_do_not_double_are_refused():
    with pytest.raises(ValueError, match="twice the channels: 8 16"):
        iunet.build(in_channels=1, channels=(8, 24))


def test_without_its_packages_it_is_not_listed_and_says_so(monkeypatch):
    def find(name: str) -> ModuleSpec | None:
        return None if name == "memcnn" else ModuleSpec(name, None)

    assert "iunet" in list(METHODS)
    monkeypatch.setattr(methods, "find_spec", find)
    assert "iunet" not in list(METHODS)
    with pytest.raises(UserError, match="iunet: not installed: pip install memcnn"):
        METHODS["iunet"].workload("small")
