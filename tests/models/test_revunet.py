"""The partially reversible U-Net: the gradients of stored activations, from each level's output."""

import pytest
import torch
from torch import Tensor

from models.revunet import PUBLISHED, RevUNet, build
from tests.baselines.training import cost_of_fake_step, nudge


def test_gradients_are_those_of_stored_activations():
    x, t, results = *batch(3), []
    for backward in ("inverse", "stored"):
        torch.manual_seed(0)
        network = nudge(RevUNet(2, (8, 16, 32), dims=3, backward=backward).double())
        loss = network(x, t).square().mean()
        loss.backward()
        results.append((loss, {name: p.grad for name, p in network.named_parameters()}))
    (loss, gradients), (expected, stored) = results
    assert loss == expected
    assert gradients.keys() == stored.keys()
    for name, gradient in gradients.items():
        assert stored[name].abs().max() > 0, name
        torch.testing.assert_close(gradient, stored[name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("dims", [2, 3])
def test_noise_is_shaped_like_the_image_and_depends_on_the_time(dims):
    network = nudge(RevUNet(2, (8, 16, 32), dims=dims).double())
    x, t = batch(dims)
    assert network(x, t).shape == x.shape
    assert (network(x, t) - network(x, t + 1)).abs().max() > 0


def test_deeper_levels_cost_parameters_but_no_activations():
    """What the paper claims: a level stores its output, however many couplings it has."""
    extra = {}
    for backward in ("inverse", "stored"):
        shallow, deep = (step_beyond_state(couplings, backward) for couplings in (2, 8))
        extra[backward] = deep - shallow
    tensor = 2 * 16 * 16**3 * 4  # B × C × grid × float32, at the first level
    assert extra["inverse"] < tensor < 4 * tensor < extra["stored"]


def test_widths_of_the_authors_build():
    with torch.device("meta"):
        network = build(channels=PUBLISHED["channels"])
    assert [level.shift.out_features for level in network.encode] == [60, 120, 240, 360, 480]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": (8, 15)}, "even number"),
        ({"channels": ()}, "even number"),
        ({"couplings": 0}, "a coupling"),
        ({"dims": 4}, "2 or 3"),
    ],
)
def test_what_cannot_be_built(options, message):
    with pytest.raises(ValueError, match=message):
        RevUNet(**options)


def test_sizes_that_cannot_be_halved():
    with pytest.raises(ValueError, match="multiples of 4"):
        RevUNet(1, (8, 16, 32))(torch.zeros(1, 1, 8, 8, 6), torch.zeros(1, dtype=torch.int64))


def batch(dims: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 2, *(8,) * dims, dtype=torch.float64, generator=generator)
    return x, torch.tensor([3, 1500])


def step_beyond_state(couplings: int, backward: str) -> int:
    """Peak bytes of a step less four copies of the parameters: gradients and two moments, too."""
    make = lambda: RevUNet(1, (16, 32), couplings, backward=backward)  # noqa: E731
    with torch.device("meta"):
        parameters = sum(p.nbytes for p in make().parameters())
    return cost_of_fake_step(make, (2, 1, 16, 16, 16)).peak - 4 * parameters
