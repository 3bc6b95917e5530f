"""Hooks on parameters and layers: as often and with the same effect as with stored activations."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.idm import IDM, ReversibleSequential
from models.idm.coupling import AdditiveCoupling, ConvolutionBlock
from models.idm.lean import LeanIDM
from tests.models.live_storages import LiveStorages
from tests.models.test_network import NARROW, batch, perturbed
from tests.models.test_reversible import (
    AffineCoupling,
    assert_same,
    couplings,
    grads_of,
    inputs,
    loss_of,
    mlp,
    pair,
)


def idm(dims: int = 3) -> IDM:
    torch.manual_seed(0)
    widths = (32, 64, 128)  # from 32 on F has slices
    return perturbed(IDM(channels=widths, dims=dims, backward="stored").double())


def twin(net: IDM, kind: str) -> IDM:
    """The same network with another backward pass; `lean` streams, and slices F where it can."""
    if kind == "lean":
        other: IDM = LeanIDM(channels=net.channels, dims=net.dims, stream_bytes=0, slice_bytes=2**9)
        other.double().load_state_dict(net.state_dict())
        return other
    other = copy.deepcopy(net)
    other.backward = kind
    return other


def step(net: IDM) -> list[torch.Tensor]:
    x, t = batch(2, 1, *(8,) * net.dims, dtype=torch.float64)
    (net(x, t) - torch.sin(x)).square().mean().backward()
    return [p.grad for p in net.parameters()]


# --- on parameters ------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["inverse", "lean"])
def test_hooks_on_parameters_run_once_and_change_the_gradient_once(kind, dims):
    results = []
    for net in (twin(idm(dims), kind), idm(dims)):
        fired, afterwards = Counter(), Counter()

        def double(grad, name, fired=fired):
            fired[name] += 1
            return 2 * grad

        for name, p in net.named_parameters():
            p.register_hook(lambda grad, name=name, double=double: double(grad, name))
            p.register_post_accumulate_grad_hook(lambda p, a=afterwards: a.update([id(p)]))
        results.append(step(net))
        count = len(list(net.parameters()))
        assert list(fired.values()) == list(afterwards.values()) == [1] * count
    assert_same(*results)


@pytest.mark.parametrize("kind", ["general", "additive", "shared"])
def test_hooks_on_the_parameters_of_any_layer(kind):
    layers = {
        "general": [AffineCoupling(), AffineCoupling()],
        "additive": couplings(2),
        "shared": [AffineCoupling()] * 3,
    }[kind]
    net, stored = pair(*layers)
    count = 1 if kind != "additive" else 2
    for module in (net, stored):
        fired = []
        for p in module.parameters():
            p.register_hook(lambda grad, fired=fired: fired.append(grad) or 2 * grad)
        loss_of(module(*inputs(count))).backward()
        assert len(fired) == len(list(module.parameters()))
    assert_same([p.grad for p in net.parameters()], [p.grad for p in stored.parameters()])


def test_hooks_run_once_where_gradients_are_accumulated_at_once():
    """`LeanIDM` with its optimizer: the gradient of a coupling is used up in the backward pass."""
    net = LeanIDM(channels=NARROW, stream_bytes=0)
    fired, seen = Counter(), []
    optimizer = net.make_optimizer(learning_rate=1e-3)
    for name, p in net.named_parameters():
        p.register_hook(lambda grad, name=name: (fired.update([name]), seen.append(grad))[0])
    x, t = batch(2, 1, 8, 8, 8)
    net(x, t).square().mean().backward()
    optimizer.step()
    assert any(getattr(layer, "accumulates_at_once", False) for layer in net.body.values())
    assert list(fired.values()) == [1] * len(list(net.parameters()))
    assert None not in seen


def test_parameters_that_gradients_reach_at_once_may_be_all_that_is_trained():
    """The inputs of the region need no gradient: its backward pass runs all the same."""
    layer = AdditiveCoupling(mlp())
    layer.accumulates_at_once = True
    net, _ = pair(layer)
    plain, _ = pair(AdditiveCoupling(copy.deepcopy(layer.function)))
    for module in (net, plain):
        loss_of(module(*inputs(2, requires_grad=False))).backward()
    assert_same([p.grad for p in net.parameters()], [p.grad for p in plain.parameters()])


# --- on layers ----------------------------------------------------------------------------------


def record_backward(net: nn.Module) -> dict[str, list]:
    """What a full backward hook on every module sees."""
    seen: dict[str, list] = {}
    for name, module in net.named_modules():
        module.register_full_backward_hook(
            lambda _, gin, gout, name=name: seen.setdefault(name, []).append((gin, gout))
        )
    return seen


@pytest.mark.parametrize("kind", ["inverse", "lean"])
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_full_backward_hooks_on_every_module_of_an_idm(kind):
    """They see what they see with stored activations: the same gradients, once."""
    ours, stored = twin(idm(), kind), idm()
    seen, expected = record_backward(ours), record_backward(stored)
    assert_same(step(ours), step(stored))
    if kind == "lean":  # the top level runs sample by sample, and its way down twice
        assert seen.keys() == expected.keys()
        return
    assert {n: len(calls) for n, calls in seen.items()} == dict.fromkeys(expected, 1)
    for name, [calls] in expected.items():
        for theirs, mine in zip(calls, seen[name][0], strict=True):
            pairs = [(m, t) for m, t in zip(mine, theirs, strict=True) if t is not None]
            for m, t in pairs:
                assert_same([m], [t], tolerance=1e-9)


@pytest.mark.parametrize("where", ["layer", "inside"])
@pytest.mark.parametrize("kind", ["general", "additive"])
def test_a_full_backward_hook_may_change_gradients(kind, where):
    net, stored = pair(
        *([AffineCoupling() for _ in range(3)] if kind == "general" else couplings())
    )
    for module in (net, stored):
        for layer in module.layers:
            inner = layer.net[0] if kind == "general" else layer.function[0]
            target = layer if where == "layer" else inner
            target.register_full_backward_pre_hook(lambda _, g: tuple(2 * x for x in g))
            target.register_full_backward_hook(lambda _, gin, __: tuple(3 * x for x in gin))
    count = 1 if kind == "general" else 2
    assert_same(grads_of(net, inputs(count)), grads_of(stored, inputs(count)))


@pytest.mark.parametrize("kind", ["general", "additive"])
def test_forward_hooks_inside_a_layer_change_every_evaluation(kind):
    net, stored = pair(
        *([AffineCoupling() for _ in range(3)] if kind == "general" else couplings())
    )
    for module in (net, stored):
        for layer in module.layers:
            inner = layer.net[0] if kind == "general" else layer.function[0]
            inner.register_forward_pre_hook(lambda _, args: (args[0] * 1.5,))
            inner.register_forward_hook(lambda _, __, out: out.sin())
    count = 1 if kind == "general" else 2
    assert_same(grads_of(net, inputs(count)), grads_of(stored, inputs(count)))


def test_forward_hooks_on_a_layer_fire_once_and_inside_a_coupling_twice():
    net, _ = pair(*couplings(1))
    calls = Counter()
    net.layers[0].register_forward_hook(lambda *_: calls.update(["layer"]))
    net.layers[0].function[0].register_forward_hook(lambda *_: calls.update(["inside"]))
    grads_of(net, inputs(2))
    assert calls == {"layer": 1, "inside": 2}


def test_hooks_that_change_a_layers_values_are_refused():
    """Nobody can undo them."""
    for register in (
        lambda layer: layer.register_forward_hook(lambda _, __, out: (out[0] * 2, out[1])),
        lambda layer: layer.register_forward_pre_hook(lambda _, args: (args[0] + 1, args[1])),
        lambda layer: layer.register_forward_pre_hook(lambda _, args: print(args[0].add_(1))),
    ):
        net, _ = pair(*couplings(2))
        register(net.layers[1])
        with torch.no_grad():
            net(*inputs(2))  # nothing has to be undone
        with pytest.raises(RuntimeError, match=r"hook on layers\.1 \(AdditiveCoupling\) changes"):
            net(*[x * 1 for x in inputs(2)])


def test_what_hooks_keep_stays_as_it_is():
    """The backward pass overwrites values and gradients that only it has seen."""
    net, _ = pair(*couplings(4))
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(*tensors):
        kept.extend((tensor, tensor.detach().clone()) for tensor in tensors)

    for layer in net.layers:
        for module in (layer.function, layer.function[0]):
            module.register_forward_hook(lambda _, args, out: keep(*args, out))
            module.register_full_backward_hook(lambda _, gin, gout: keep(*gin, *gout))
    grads_of(net, inputs(2))
    assert len(kept) == 2 * 4 * (2 * 2 + 2)
    assert all(torch.equal(tensor, copied) for tensor, copied in kept)


def test_slices_of_f_are_not_taken_past_hooks_on_its_layers():
    block = ConvolutionBlock(16)
    block.slice_bytes = 2**6
    x = torch.randn(1, 16, 4, 4, 4)
    assert len(block.parts(x)) == 4
    handle = block.second.register_forward_hook(lambda *_: None)
    assert block.parts(x) == [block]
    handle.remove()
    assert len(block.parts(x)) == 4


# --- counters of FLOPs --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"time_in_couplings": True}])
@pytest.mark.parametrize("kind", [IDM, LeanIDM])
def test_flops_of_a_step_are_counted(kind, options):
    net = perturbed(kind(channels=NARROW, **options))
    x, t = batch(2, 1, 8, 8, 8)
    with FlopCounterMode(display=False) as counter:
        net(x, t).square().mean().backward()
    with LiveStorages() as watch:
        net(x, t).square().mean().backward()
    assert counter.get_total_flops() == watch.flops > 0


@pytest.mark.parametrize("kind", ["general", "additive"])
def test_flops_of_any_layer_are_counted(kind):
    layers = [AffineCoupling() for _ in range(3)] if kind == "general" else couplings()
    net = ReversibleSequential(*layers).double()
    with FlopCounterMode(display=False) as counter:
        loss_of(net(*inputs(1 if kind == "general" else 2))).backward()
    assert counter.get_total_flops() > 0
