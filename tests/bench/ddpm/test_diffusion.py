"""Eqs. (5) to (8) against independent computations."""

import math

import numpy as np
import pytest
import torch

from bench.ddpm.diffusion import TIMESTEPS, Diffusion, cosine_alpha_bar
from bench.ddpm.samplers import ancestral


def test_the_schedule_is_the_cosine_of_its_authors():
    def f(t):
        return math.cos((t / TIMESTEPS + 0.008) / 1.008 * math.pi / 2) ** 2

    alpha_bar = cosine_alpha_bar()
    assert len(alpha_bar) == TIMESTEPS == 2000
    for step in (0, 1, 500, 1000, 1900):  # before the clip of beta, the product telescopes
        assert alpha_bar[step].item() == pytest.approx(f(step + 1) / f(0), rel=1e-9)
    assert 0 < alpha_bar[-1] < 1e-5
    assert (alpha_bar[1:] < alpha_bar[:-1]).all()


def test_eq_6_is_eq_5_repeated():
    """Mean and variance of t single steps, from the recursion, are those of the closed form."""
    diffusion = Diffusion()
    mean, variance = 1.0, 0.0
    beta = betas()
    for step in range(700):
        mean *= math.sqrt(1 - beta[step])
        variance = (1 - beta[step]) * variance + beta[step]
    x_0 = torch.ones(1, 1, 2, 2, 2)
    t = torch.tensor([699])
    eps = torch.zeros_like(x_0)
    assert diffusion.q_sample(x_0, t, eps).mean().item() == pytest.approx(mean, rel=1e-4)
    noise = diffusion.q_sample(torch.zeros_like(x_0), t, torch.ones_like(x_0)).mean().item()
    assert noise**2 == pytest.approx(float(variance), rel=1e-3)


def betas() -> np.ndarray:
    """The schedule from its definition, in float64 NumPy: alpha_bar is a cosine, beta its steps."""
    t = np.arange(TIMESTEPS + 1) / TIMESTEPS
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


def test_q_sample_is_eq_5_walked_step_by_step():
    """Volumes pushed through eq. (5) with noise drawn anew in each step, in NumPy.

    At every t looked at, the walk has the mean and the deviation of what q_sample gives.
    """
    rng, diffusion = np.random.default_rng(0), Diffusion()
    x_0, draws = 0.7, 40_000
    x_t = np.full(draws, x_0)
    looked_at = {0, 10, 200, 500, 1000, 1500, 1999}
    for step, beta in enumerate(betas()):
        x_t = np.sqrt(1 - beta) * x_t + np.sqrt(beta) * rng.standard_normal(draws)  # eq. (5)
        if step not in looked_at:
            continue
        t = torch.full((draws,), step)
        eps = torch.from_numpy(rng.standard_normal((draws, 1))).float()
        jumped = diffusion.q_sample(torch.full((draws, 1), x_0), t, eps).numpy()
        error = x_t.std() / np.sqrt(draws)
        assert jumped.mean() == pytest.approx(x_t.mean(), abs=6 * error)
        assert jumped.std() == pytest.approx(x_t.std(), abs=6 * error)


def test_each_step_of_the_sampler_is_the_posterior_of_eq_7():
    """All 2,000 steps against eq. (7) in float64, and against the mean of q(x_t−1 | x_t, x_0).

    The latter is Ho et al. 2020, eq. (7), with the x_0 that eps claims: the same number by
    another way.
    """

    def denoiser(x_t, t):
        return torch.tanh(x_t) * 0.9 + 0.01 * torch.sin(t.float()).view(-1, 1)

    beta = betas()
    alpha, alpha_bar = 1 - beta, np.cumprod(1 - beta)
    start = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    noise = torch.Generator().manual_seed(2)
    chain = ancestral(Diffusion(), denoiser, start, torch.Generator().manual_seed(2))
    x_t = start
    for step, x_before in zip(reversed(range(TIMESTEPS)), chain, strict=True):
        x = x_t.double().numpy()
        eps = denoiser(x_t, torch.tensor([step, step])).double().numpy()
        mean = (x - beta[step] / np.sqrt(1 - alpha_bar[step]) * eps) / np.sqrt(alpha[step])
        before = alpha_bar[step - 1] if step else 1.0
        x_0 = (x - np.sqrt(1 - alpha_bar[step]) * eps) / np.sqrt(alpha_bar[step])
        posterior = (
            np.sqrt(before) * beta[step] * x_0 + np.sqrt(alpha[step]) * (1 - before) * x
        ) / (1 - alpha_bar[step])
        scale = max(1.0, np.abs(mean).max())
        np.testing.assert_allclose(posterior, mean, atol=1e-9 * scale, rtol=0)
        if step:
            z = torch.randn(x_t.shape, generator=noise).double().numpy()
            mean = mean + np.sqrt(beta[step]) * z
        np.testing.assert_allclose(x_before.double().numpy(), mean, atol=2e-4 * scale, rtol=0)
        x_t = x_before


def test_x_0_is_found_under_the_true_noise():
    diffusion = Diffusion()
    x_0, eps = torch.randn(2, 1, 4, 4, 4), torch.randn(2, 1, 4, 4, 4)
    t = torch.tensor([10, 1200])
    x_t = diffusion.q_sample(x_0, t, eps)
    assert torch.allclose(diffusion.predict_x_0(x_t, t, eps), x_0, atol=1e-4)


@pytest.mark.parametrize("target", ["eps", "v", "x0"])
def test_every_target_says_the_same_noise(target):
    diffusion = Diffusion()
    x_0, eps = torch.randn(3, 1, 4, 4, 4), torch.randn(3, 1, 4, 4, 4)
    t = torch.tensor([0, 700, 1990])
    x_t = diffusion.q_sample(x_0, t, eps)
    wanted = diffusion.wanted(target, x_0, t, eps)
    found = diffusion.predict_eps(target, x_t, t, wanted)
    assert torch.allclose(found, eps, atol=1e-4)
    alpha_bar = diffusion.alpha_bar[t].float().view(3, 1, 1, 1, 1)
    closed = {"eps": eps, "x0": x_0, "v": alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0}
    assert torch.allclose(wanted, closed[target], atol=1e-4)


def test_each_sample_of_a_batch_has_its_own_t():
    diffusion = Diffusion()
    x_0, eps = torch.randn(2, 1, 4, 4, 4), torch.randn(2, 1, 4, 4, 4)
    together = diffusion.q_sample(x_0, torch.tensor([3, 1500]), eps)
    alone = diffusion.q_sample(x_0[1:], torch.tensor([1500]), eps[1:])
    assert torch.equal(together[1:], alone)


def test_the_sampler_recovers_a_known_gaussian():
    """For x_0 ~ N(m, s²) the best eps is known in closed form; eq. (7) must sample N(m, s²)."""
    diffusion, m, s = Diffusion(), 0.4, 0.3

    def best_eps(x_t, t):
        alpha_bar = diffusion.alpha_bar[t].view(-1, 1)
        variance = alpha_bar * s**2 + 1 - alpha_bar
        return (1 - alpha_bar).sqrt() * (x_t - alpha_bar.sqrt() * m) / variance

    generator = torch.Generator().manual_seed(0)
    x_T = torch.randn(20_000, 1, generator=generator)
    *_, x_0 = ancestral(diffusion, best_eps, x_T, generator)
    # Standard errors at 20,000 samples: 0.002 of the mean, 0.0015 of the deviation; the
    # discretisation in 2,000 steps adds less.
    assert x_0.mean().item() == pytest.approx(m, abs=0.01)
    assert x_0.std().item() == pytest.approx(s, abs=0.01)


def test_volumes_survive_scaling():
    volume = torch.from_numpy(np.linspace(0, 1, 27, dtype=np.float32)).view(1, 1, 3, 3, 3)
    x_0 = Diffusion.scale_in(volume)
    assert x_0.min() == -1
    assert x_0.max() == 1
    assert torch.allclose(Diffusion.scale_out(x_0), volume)


def test_the_roots_of_eq_6_are_precise_at_every_timestep():
    """1 − alpha_bar was taken in float32: off by 2.6e-4 at t ≤ 1."""
    diffusion, t = Diffusion(), torch.arange(TIMESTEPS)
    one, none = torch.ones(TIMESTEPS, 1), torch.zeros(TIMESTEPS, 1)
    alpha_bar = cosine_alpha_bar()
    signal, noise = diffusion.q_sample(one, t, none), diffusion.q_sample(none, t, one)
    for found, exact in ((signal, alpha_bar.sqrt()), (noise, (1 - alpha_bar).sqrt())):
        error = (found[:, 0].double() / exact - 1).abs().max()
        assert error < 2e-6
