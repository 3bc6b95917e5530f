"""The training step of §5.2, and the window."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bench.data.batches import iterate_batches
from bench.ddpm.step import Training, TrainingStep, random_batch
from bench.harness.window import StepTime, Window
from bench.methods import METHODS
from bench.presets import Overrides

TINY = Overrides(volume=8, batch_size=2, channels=(8, 16))


def make_step(method: str = "idm", **training) -> TrainingStep:
    torch.manual_seed(0)
    work = METHODS[method].workload("small", TINY)
    return TrainingStep(METHODS[method].build(work), work, Training(**training))


def test_one_step_is_adamw_on_the_gradient_of_eq_8():
    """The whole step against autograd on eq. (8) written out, λ_R and λ_L2 included."""
    step = make_step(lambda_r=0.5, lambda_l2=1e-2)
    twin = make_step(lambda_r=0.5, lambda_l2=1e-2)
    twin.network.load_state_dict(step.network.state_dict())
    volumes = torch.rand(2, 1, 8, 8, 8)

    torch.manual_seed(1)
    reported = step(volumes)

    torch.manual_seed(1)
    x_t, t, eps, _ = twin.noised(volumes)
    predicted = twin.network(x_t, t)
    norm = torch.cat([p.flatten() for p in twin.parameters]).norm()
    loss = (
        F.mse_loss(predicted, eps)
        + 0.5 * F.mse_loss(twin.network.inverse(predicted), x_t)
        + 1e-2 * norm
    )
    loss.backward()
    assert reported.item() == pytest.approx(loss.item(), rel=1e-5)
    for mine, theirs in zip(step.parameters, twin.parameters, strict=True):
        scale = theirs.grad.abs().max().clamp_min(1e-6)
        assert ((mine.grad - theirs.grad).abs().max() / scale) < 1e-3
    assert type(step.optimizer) is torch.optim.AdamW
    assert step.optimizer.param_groups[0]["initial_lr"] == 2e-4


def test_the_defaults_are_the_papers():
    assert Training().learning_rate == 2e-4
    assert Training().lambda_r == 0
    assert Training().lambda_l2 == 1e-4
    step = make_step(anneal_steps=10)
    for _ in range(10):
        step(torch.rand(2, 1, 8, 8, 8))
    assert step.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)  # cosine annealed


def test_training_lowers_the_loss():
    step = make_step()
    torch.manual_seed(0)
    volumes = torch.rand(2, 1, 8, 8, 8)
    losses = [step(volumes).item() for _ in range(80)]
    first, last = sum(losses[:20]) / 20, sum(losses[-20:]) / 20
    assert all(map(math.isfinite, losses))
    assert last < 0.9 * first


def test_patches_are_cut_and_their_place_is_told():
    work = METHODS["patchddm"].workload("small", replace(TINY, channels=(8, 16)))
    assert (work.volume, work.patch) == (8, 4)
    torch.manual_seed(0)
    step = TrainingStep(METHODS["patchddm"].build(work), work)
    x_t, t, eps, keywords = step.noised(torch.rand(2, 1, 8, 8, 8))
    assert x_t.shape == eps.shape == (2, 1, 4, 4, 4)
    assert keywords["coordinates"].shape == (2, 3, 4, 4, 4)
    assert ((t >= 0) & (t < 2000)).all()
    assert torch.isfinite(step(torch.rand(2, 1, 8, 8, 8)))


@pytest.mark.parametrize("target", ["eps", "v", "x0"])
def test_a_condition_is_shown_as_it_is_and_what_is_learnt_is_the_target(target):
    work = METHODS["idm"].workload("small", replace(TINY, condition=("seg", "t2"), target=target))
    work = replace(work, classes=2)
    step = TrainingStep(METHODS["idm"].build(work), work, Training(lambda_r=0.5))
    volumes = torch.rand(2, 3, 8, 8, 8)
    torch.manual_seed(1)
    x_t, t, wanted, keywords = step.noised(step.cut(volumes, torch.tensor([1, 0])))
    torch.manual_seed(1)
    torch.randint(2000, (2,))
    eps, x_0 = torch.randn(2, 1, 8, 8, 8), volumes[:, :1] * 2 - 1
    assert torch.equal(x_t[:, :1], step.diffusion.q_sample(x_0, t, eps))
    assert torch.equal(x_t[:, 1:], volumes[:, 1:] * 2 - 1)
    assert torch.equal(wanted, step.diffusion.wanted(target, x_0, t, eps))
    assert keywords["class_labels"].tolist() == [1, 0]
    assert torch.isfinite(step(step.cut(volumes, torch.tensor([1, 0]))))


def test_some_volumes_are_shown_without_their_condition():
    work = METHODS["patchddm"].workload(
        "small", replace(TINY, condition=("seg",), drop_condition=0.25, batch_size=400)
    )
    work = replace(work, classes=2)
    step = TrainingStep(METHODS["patchddm"].build(work), work)
    torch.manual_seed(0)
    labels = torch.ones(400, dtype=torch.int64)
    x_t, _, _, keywords = step.noised(step.cut(torch.full((400, 2, 8, 8, 8), 0.75), labels))
    without = (x_t[:, 1:] == -1).flatten(1).all(1)
    assert 70 <= without.sum() <= 130  # 100 are expected, ± 9
    assert (x_t[~without, 1:] == 0.5).all()
    assert torch.equal(keywords["class_labels"], torch.where(without, 2, 1))


@pytest.mark.parametrize(("given", "expected"), [({"steps": 4}, 4), ({"seconds": 1e-9}, 1)])
def test_a_window_is_so_many_steps_or_seconds_and_at_least_one_step(given, expected):
    window = Window(**given)
    batches = itertools.repeat(torch.ones(1))
    done = list(window.train(lambda batch: batch.sum(), batches, torch.device("cpu")))
    assert [step.step for step in done] == list(range(1, expected + 1))
    assert all(isinstance(step, StepTime) and step.step_time_s > 0 for step in done)
    assert done[-1].elapsed_s >= sum(step.step_time_s for step in done) * 0.99


def test_a_window_stops_when_told_to_and_keeps_the_step():
    window = Window(steps=100)
    done = list(
        window.train(
            lambda batch: batch.sum(), itertools.repeat(torch.ones(1)), torch.device("cpu"),
            should_stop=lambda: True,
        )
    )  # fmt: skip
    assert len(done) == 1


def test_a_loss_that_is_not_finite_ends_the_window():
    window = Window(steps=5)
    batches = itertools.repeat(torch.full((1,), float("nan")))
    steps = window.train(lambda batch: batch.sum(), batches, torch.device("cpu"))
    assert math.isnan(next(steps).loss)  # the step is told of before the window ends
    with pytest.raises(FloatingPointError, match="step 1 is nan"):
        next(steps)


def test_every_epoch_shows_every_volume_once_in_a_new_order():
    volumes = torch.arange(6, dtype=torch.float32).view(6, 1, 1, 1, 1).numpy()
    work = METHODS["idm"].workload("small", replace(TINY, batch_size=3))

    def order(seed: int) -> list[float]:
        batches = iterate_batches(volumes, work, seed, torch.device("cpu"))
        return [v for _ in range(4) for v in next(batches).flatten().tolist()]

    shown = order(0)
    assert sorted(shown[:6]) == sorted(shown[6:]) == list(range(6))
    assert shown[:6] != shown[6:]
    assert order(0) == shown
    assert order(1) != shown


@pytest.mark.parametrize("method", ["checkpoint", "patchddm", "idm"])
def test_two_modalities_are_two_channels(method):
    overrides = replace(TINY, volume=16, batch_size=1, modality=("t1", "t2"))
    work = METHODS[method].workload("small", overrides)
    torch.manual_seed(0)
    step = TrainingStep(METHODS[method].build(work), work)
    assert torch.isfinite(step(torch.rand(1, 2, 16, 16, 16)))
    x_t, t, _, _ = step.noised(torch.rand(1, 2, 16, 16, 16))
    assert step.network(x_t, t).shape == x_t.shape == (1, 2, *x_t.shape[2:])


WAITS = {
    "aten._local_scalar_dense.default", "aten.nonzero.default", "aten._linalg_check_errors.default",
    "aten.equal.default", "aten.masked_select.default", "aten.is_nonzero.default",
}  # fmt: skip
"""Operators whose result the processor has to know before it goes on."""


@pytest.mark.parametrize("name", METHODS)
def test_no_operator_of_a_step_waits_for_the_card(name):
    """The orthogonal maps did, some twenty times in each forward pass of IDM."""
    method = METHODS[name]
    work = method.workload("small", Overrides(volume=16, batch_size=1, channels=(8, 16)))
    torch.manual_seed(0)
    step = TrainingStep(method.build(work), work)
    volumes, _ = random_batch(work, step.network)
    step(volumes)

    seen: set[str] = set()

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None):
            seen.add(str(func))
            return func(*args, **(kwargs or {}))

    with Names():
        step(volumes)
    assert "aten.convolution.default" in seen
    assert not seen & WAITS
