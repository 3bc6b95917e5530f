"""The averaged weights against the sum that they are."""

import pytest
import torch
from torch import nn

from bench.quality.ema import Ema, decay_after


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99, 0.9999])
def test_the_mean_is_the_weighted_sum(decay):
    """Σ over steps of value · (1 − d_k) · Π of the later decays, and the rest is the start."""
    network = nn.Linear(3, 2).double()
    ema = Ema(network, decay)
    values = [torch.randn(2, 3, dtype=torch.double) for _ in range(50)]
    expected = network.weight.detach().clone()
    weights = [torch.tensor(1.0, dtype=torch.double)]  # of the start, then of each step
    for step, value in enumerate(values, 1):
        with torch.no_grad():
            network.weight.copy_(value)
        ema.update(step)
        kept = min(decay, (1 + step) / (10 + step))
        weights = [weight * kept for weight in weights] + [torch.tensor(1 - kept).double()]
    expected = sum(w * v for w, v in zip(weights, [expected, *values], strict=True))
    torch.testing.assert_close(ema.means["weight"], expected)
    assert float(sum(weights)) == pytest.approx(1)


def test_the_warm_up_ends_at_the_decay():
    assert decay_after(1, 0.995) == pytest.approx(2 / 11)
    assert decay_after(1789, 0.995) < 0.995
    assert decay_after(1791, 0.995) == 0.995


def test_applied_exchanges_and_gives_back():
    network = nn.Linear(3, 2)
    ema = Ema(network, 0.9)
    start = network.weight.detach().clone()
    with torch.no_grad():
        network.weight.add_(1)
    trained = network.weight.detach().clone()
    with ema.applied():
        assert torch.equal(network.weight, start)
    assert torch.equal(network.weight, trained)
    assert torch.equal(ema.means["weight"], start)
