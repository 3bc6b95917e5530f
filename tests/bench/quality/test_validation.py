"""The validation's error: known where it is known, the same whoever asks, and a fair sample."""

import numpy as np
import pytest
import torch

from bench.ddpm.diffusion import Diffusion
from bench.quality.validation import LEAST_PAIRS, Validation

CPU = torch.device("cpu")


@pytest.fixture
def brains() -> np.ndarray:
    return np.random.default_rng(0).random((7, 1, 8, 8, 8), dtype=np.float32)


def validation(brains, members=(1, 4, 5), seed=0, batch_size=2) -> Validation:
    return Validation(brains, members, seed, batch_size, CPU)


def zero(x_t, t):
    return torch.zeros_like(x_t)


def test_predicting_zero_has_the_variance_of_the_noise(brains):
    checked = validation(brains)
    expected = [checked.noise(pair).square().mean().item() for pair in range(checked.pairs)]
    assert checked(zero) == pytest.approx(np.mean(expected), rel=1e-6)
    assert checked(zero) == pytest.approx(1, abs=5 * (2 / (24 * 512)) ** 0.5)


def test_who_knows_the_volume_makes_no_error(brains):
    checked, diffusion = validation(brains), Diffusion()
    shown = iter(range(checked.pairs))

    def solve(x_t, t):
        """Eq. (6), solved for ε."""
        members = [checked.members[next(shown) % 3] for _ in t]
        x_0 = torch.from_numpy(brains[members]) * 2 - 1
        alpha_bar = diffusion.alpha_bar[t].float().view(-1, 1, 1, 1, 1)
        return (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()

    assert checked(solve) < 1e-5


def test_every_method_is_shown_the_same_tensors_in_any_order(brains):
    """Whatever was drawn before, however many at a time."""
    seen = []
    for batch_size in (1, 2, 5):
        torch.manual_seed(batch_size)
        shown = []

        def keep(x_t, t, shown=shown):
            shown.append((x_t, t))
            return torch.zeros_like(x_t)

        before = torch.get_rng_state()
        error = validation(brains, batch_size=batch_size)(keep)
        assert torch.equal(torch.get_rng_state(), before)  # the training does not notice
        seen.append((*(torch.cat(part) for part in zip(*shown, strict=True)), error))
    for x_t, t, error in seen[1:]:
        assert torch.equal(x_t, seen[0][0])
        assert torch.equal(t, seen[0][1])
        assert error == pytest.approx(seen[0][2], rel=1e-6)


def test_another_seed_is_other_noise(brains):
    assert not torch.equal(validation(brains).noise(0), validation(brains, seed=1).noise(0))
    assert not torch.equal(validation(brains).noise(0), validation(brains).noise(1))


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_timesteps_are_an_even_grid_and_each_volume_has_its_share(count):
    brains = np.zeros((count, 1, 2, 2, 2), dtype=np.float32)
    checked = Validation(brains, range(count), 0, 4, CPU)
    assert checked.pairs >= max(count, LEAST_PAIRS)
    assert checked.pairs % count == 0
    edges = [2000 * i / checked.pairs for i in range(checked.pairs + 1)]
    for t, low, high in zip(checked.timesteps, edges, edges[1:], strict=False):
        assert low <= t < high
    if count > 1:  # no volume has the easy end to itself
        share = checked.pairs // count
        means = [np.mean(checked.timesteps[i::count]) for i in range(count)]
        assert np.ptp(means) <= 2000 / share


def test_the_share_that_is_done_is_told_after_every_batch(brains):
    told = []
    found = validation(brains, batch_size=5)
    found(zero, told.append)
    assert len(told) == -(-found.pairs // 5)
    assert told == sorted(told)
    assert told[-1] == 1
