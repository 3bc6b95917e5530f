"""What a second evaluation must find again: random numbers, training modes; and 16-bit networks."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.idm import IDM, ReversibleSequential
from models.idm.coupling import AdditiveCoupling
from models.idm.lean import LeanIDM
from models.idm.reversible import Mode
from tests.models.test_network import NARROW, batch, perturbed
from tests.models.test_reversible import (
    AffineCoupling,
    assert_same,
    grads_of,
    inputs,
    loss_of,
    mlp,
    pair,
)


class DropPath(nn.Module):
    """Drops F for whole samples (Huang et al. 2016), without any layer of `nn.modules.dropout`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x):
        return self.net(x) * (torch.rand(len(x), 1, dtype=x.dtype) < 0.5)


class FunctionalDropout(DropPath):
    def forward(self, x):
        return F.dropout(self.net(x), 0.5, self.training)


class RandomParts(DropPath):
    """F = F₁ + F₂, each with draws of its own."""

    def parts(self, x):
        return [super().forward, super().forward]

    def forward(self, x):
        return super().forward(x) + super().forward(x)


class RandomAffine(AffineCoupling):
    """A layer without `rewind` that draws in both directions."""

    def forward(self, x):
        a, b = x.chunk(2, dim=-1)
        return torch.cat([b + self._shift(a), a], dim=-1)

    def inverse(self, y):
        b, a = y.chunk(2, dim=-1)
        return torch.cat([a, b - self._shift(a)], dim=-1)

    def _shift(self, a):
        return F.dropout(self.net(a)[:, :4], 0.5)


@pytest.mark.parametrize("run", ["forward", "inverse"])
@pytest.mark.parametrize("function", [DropPath, FunctionalDropout, RandomParts])
def test_a_random_function_draws_the_same_again(function, run):
    net, stored = pair(*(AdditiveCoupling(function(), changes=i % 2) for i in range(4)))
    ours = grads_of(net, inputs(2), run, seed=1)
    drawn = torch.rand(3)
    assert_same(ours, grads_of(stored, inputs(2), run, seed=1))
    assert torch.equal(drawn, torch.rand(3))  # the generator is where it would be


def test_a_random_layer_without_rewind_draws_the_same_again():
    net, stored = pair(RandomAffine(), RandomAffine())
    assert_same(grads_of(net, inputs(1), seed=1), grads_of(stored, inputs(1), seed=1))


def test_a_random_function_in_an_idm():
    net = perturbed(IDM(channels=NARROW).double())
    for layer in net.body.values():
        if isinstance(layer, AdditiveCoupling):
            layer.function.second = nn.Sequential(layer.function.second, Dropped())
    stored = copy.deepcopy(net)
    stored.backward = "stored"
    x, t = batch(2, 1, 8, 8, 8, dtype=torch.float64)
    for module in (net, stored):
        torch.manual_seed(3)
        module(x, t).sin().sum().backward()
    assert_same([p.grad for p in net.parameters()], [p.grad for p in stored.parameters()])


class Dropped(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.2, self.training)


def test_states_of_generators_are_kept_only_where_something_is_drawn():
    net = ReversibleSequential(AdditiveCoupling(mlp()), AdditiveCoupling(DropPath()))
    out, _ = net(torch.randn(3, 4), torch.randn(3, 4))
    exit_ = out.grad_fn
    second = exit_.next_functions[0][0]
    first = second.next_functions[0][0]
    assert [node.step.mode.rng is None for node in (first, second)] == [True, False]


def test_keeping_random_states_can_be_switched_off():
    layers = [AdditiveCoupling(DropPath(), changes=i % 2) for i in range(4)]
    net, stored = pair(*layers, preserve_rng_state=False)
    ours, exact = grads_of(net, inputs(2), seed=1), grads_of(stored, inputs(2), seed=1)
    assert max(float((a - b).norm() / b.norm()) for a, b in zip(ours, exact, strict=True)) > 0.1
    assert IDM(channels=NARROW, preserve_rng_state=False).preserve_rng_state is False


def test_the_generator_of_a_device_in_use_is_restored(monkeypatch):
    """Here without a card: the calls by which PyTorch reaches the card's generator."""
    generator = torch.Generator().manual_seed(4)
    monkeypatch.setattr(torch.cuda, "_initialized", True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: generator.get_state())
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: generator.set_state(state)
    )
    monkeypatch.setattr(Mode, "casting", lambda self: contextlib.nullcontext())
    mode = Mode([], torch.device("cuda", 0), preserve_rng_state=True)
    with mode.record():
        drawn = torch.rand(3, generator=generator)
    torch.rand(5, generator=generator)
    before = generator.get_state()
    with mode.replay():
        assert torch.equal(torch.rand(3, generator=generator), drawn)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
def test_the_cards_generator_is_restored():
    class OnCard(DropPath):
        def forward(self, x):
            return F.dropout(self.net(x), 0.5)

    net, stored = pair(*(AdditiveCoupling(OnCard(), changes=i % 2) for i in range(4)))
    xs = [x.detach().cuda().requires_grad_() for x in inputs(2)]
    assert_same(grads_of(net.cuda(), xs, seed=1), grads_of(stored.cuda(), xs, seed=1))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kind", ["general", "additive"])
def test_the_training_mode_is_that_of_the_forward_pass(kind, before):
    class Mode(nn.Module):
        def forward(self, x):
            return x * 2 if self.training else x

    def layer(index):
        if kind == "additive":
            return AdditiveCoupling(nn.Sequential(mlp(dropout=0.5), Mode()), changes=index % 2)
        affine = AffineCoupling()
        affine.net.append(Mode())
        return affine

    net, stored = pair(*(layer(i) for i in range(3)))
    count = 2 if kind == "additive" else 1
    for module in (net, stored):
        torch.manual_seed(0)
        module.train(before)
        module.layers[1].train(not before)
        loss = loss_of(module(*inputs(count)))
        module.train(not before)
        modes = [m.training for m in module.modules()]
        loss.backward()
        assert [m.training for m in module.modules()] == modes  # the user's choice stands
    assert_same([p.grad for p in net.parameters()], [p.grad for p in stored.parameters()])


@pytest.mark.parametrize("kind", ["general", "additive"])
@pytest.mark.parametrize("norm", ["batch", "instance", "spectral"])
def test_buffers_change_once_and_are_found_again(kind, norm):
    """Batch normalisation counts a batch once; the power iteration goes on by one step."""

    def function(width):
        if norm == "batch":
            layers = nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, width)
        elif norm == "instance":
            instance = nn.InstanceNorm1d(3, track_running_stats=True)  # (3, 8): channels, length
            layers = nn.Linear(4, 8, bias=False), instance, nn.Tanh(), nn.Linear(8, width)
        else:
            spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8))
            layers = spectral, nn.Tanh(), nn.Linear(8, width)
        return nn.Sequential(*layers)

    def layer(index):
        if kind == "additive":
            return AdditiveCoupling(function(4), changes=index % 2)
        affine = AffineCoupling()
        affine.net = function(8)
        return affine

    net, stored = pair(*(layer(i) for i in range(3)))
    for _ in range(3):
        count = 2 if kind == "additive" else 1
        assert_same(grads_of(net, inputs(count)), grads_of(stored, inputs(count)))
        ours, theirs = ([b.double() for b in module.buffers()] for module in (net, stored))
        assert ours
        assert_same(ours, theirs)


def test_lean_descends_twice_in_the_same_mode():
    """The top level's way down is recomputed by `checkpoint`."""

    class Without(LeanIDM):
        def _descend_twice(self, *sample):
            return self._descend(*sample)

    results = []
    for kind, backward in ((LeanIDM, "inverse"), (Without, "stored")):
        torch.manual_seed(0)
        net = perturbed(kind(channels=NARROW, stream_bytes=0, backward=backward).double())
        for layer in net.body.values():
            if isinstance(layer, AdditiveCoupling):
                layer.function.second = nn.Sequential(layer.function.second, Dropped())
        x, t = batch(2, 1, 8, 8, 8, dtype=torch.float64)
        loss = net(x, t).sin().sum()
        net.eval()
        loss.backward()
        results.append([p.grad for p in net.parameters()])
    assert_same(*results)


# --- 16-bit networks ----------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_of_16_bits_train(dtype, dims):
    """As near to float64 as with stored activations, within a factor of three."""
    exact = perturbed(IDM(channels=NARROW, dims=dims), 0.05)
    x, t = batch(2, 1, *(16,) * dims)

    def grads(net, backward):
        net = copy.deepcopy(net)
        net.backward = backward
        dtype = next(net.parameters()).dtype
        eps = net(x.to(dtype), t)
        assert eps.dtype == dtype
        (eps - x.sin().to(dtype)).float().square().mean().backward()
        assert all(p.grad.dtype == dtype for p in net.parameters())
        return torch.cat([p.grad.double().flatten() for p in net.parameters()])

    want = grads(exact.double(), "stored")
    rounded = exact.bfloat16() if dtype == torch.bfloat16 else exact.half()
    errors = {
        backward: float((grads(rounded, backward) - want).norm() / want.norm())
        for backward in ("inverse", "stored")
    }
    assert errors["inverse"] <= 3 * errors["stored"], errors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_orthogonal_maps_are_made_in_float32(dtype):
    net = perturbed(IDM(channels=NARROW))
    layer = net.body["level0_split"].to(dtype)
    matrices = layer.matrices()
    assert matrices.dtype == dtype
    original = layer.rotations.parametrizations.weight.original
    wide = copy.deepcopy(layer).float().matrices()
    assert torch.equal(matrices, wide.to(dtype))
    matrices.float().square().sum().backward()
    assert original.grad.dtype == dtype


def test_times_are_told_apart_in_bfloat16():
    """In 8 bits of mantissa, 1,990 and 1,992 would be the same time."""
    time = IDM(channels=NARROW).time
    t = torch.arange(1990, 1999)
    wide = time(t)
    seen = []
    time.bfloat16().mlp[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert time(t).dtype == torch.bfloat16
    assert len(seen[0].unique(dim=0)) == len(t)
    torch.testing.assert_close(time(t).float(), wide, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("backward", ["inverse", "stored"])
def test_thin_volumes_train_in_bfloat16(backward):
    """oneDNN leaves the weight gradients of a bfloat16 convolution of depth 2 uninitialised."""
    net = perturbed(IDM(channels=(32, 128), couplings=1, backward=backward), 0.02)
    x, t = batch(2, 1, 4, 4, 4)
    exact = copy.deepcopy(net).double()
    exact(x.double(), t).sin().sum().backward()
    net.bfloat16()(x.bfloat16(), t).sin().sum().backward()
    bottom = [p for n, p in net.named_parameters() if "level1" in n]
    wanted = [p.grad for n, p in exact.named_parameters() if "level1" in n]
    for p, want in zip(bottom, wanted, strict=True):
        assert torch.linalg.norm(p.grad - want) <= 0.2 * torch.linalg.norm(want)
