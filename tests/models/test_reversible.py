"""The engine, with modules that are not ours: any `forward` and `inverse` will do."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import Tensor, nn

from models.idm import ReconstructionError, ReversibleSequential
from models.idm.coupling import AdditiveCoupling


class AffineCoupling(nn.Module):
    """A user's module: one tensor in and out, no `rewind`."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, 2 * width))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        s, t = self.net(a).chunk(2, dim=-1)
        return torch.cat([b * torch.exp(torch.tanh(s)) + t, a], dim=-1)

    def inverse(self, y: Tensor) -> Tensor:
        b, a = y.chunk(2, dim=-1)
        s, t = self.net(a).chunk(2, dim=-1)
        return torch.cat([a, (b - t) * torch.exp(-torch.tanh(s))], dim=-1)


class Wrong(AffineCoupling):
    def inverse(self, y: Tensor) -> Tensor:
        return super().inverse(y) + 0.1


def mlp(width: int = 4, dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, width))


def couplings(depth: int = 4, dropout: float = 0.0) -> list[nn.Module]:
    return [AdditiveCoupling(mlp(dropout=dropout), changes=i % 2) for i in range(depth)]


def pair(*layers: nn.Module, **options) -> tuple[ReversibleSequential, ReversibleSequential]:
    """The same layers, reversible and stored, in float64."""
    net = ReversibleSequential(*layers, **options).double()
    stored = copy.deepcopy(net)
    stored.backward = "stored"
    return net, stored


def inputs(count: int, requires_grad: bool = True) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    make = {1: (3, 8), 2: (3, 4)}[count]
    return [
        torch.randn(make, generator=generator, dtype=torch.float64, requires_grad=requires_grad)
        for _ in range(count)
    ]


def loss_of(outputs) -> Tensor:
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return sum((o * o.sin()).sum() * (i + 1) for i, o in enumerate(outputs))


def grads_of(net, xs, run="forward", seed=0) -> list[Tensor | None]:
    torch.manual_seed(seed)
    out = net(*xs) if run == "forward" else net.inverse(*xs)
    wanted = [t for t in (*xs, *net.parameters()) if t.requires_grad]
    return list(torch.autograd.grad(loss_of(out), wanted))


def assert_same(ours, theirs, tolerance=1e-10) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.linalg.norm(a - b) <= tolerance * torch.linalg.norm(b)


LAYERS = {
    "general": (1, lambda: [AffineCoupling() for _ in range(4)]),
    "additive": (2, couplings),
    "dropout": (2, lambda: couplings(dropout=0.5)),
    "shared": (1, lambda: [AffineCoupling()] * 3),
}


@pytest.mark.parametrize("run", ["forward", "inverse"])
@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_equal_the_stored_ones(kind, run):
    count, layers = LAYERS[kind]
    net, stored = pair(*layers())
    assert_same(grads_of(net, inputs(count), run), grads_of(stored, inputs(count), run))


@pytest.mark.parametrize("kind", ["general", "additive"])
def test_gradcheck(kind):
    count, layers = LAYERS[kind]
    net, _ = pair(*layers())
    assert torch.autograd.gradcheck(net, inputs(count))
    # gradcheck looks at inputs; parameters are moved along a random direction.
    xs = inputs(count, requires_grad=False)
    analytic = grads_of(net, xs)
    for parameter, grad in zip(net.parameters(), analytic, strict=True):
        step = torch.randn_like(parameter) * 1e-6
        with torch.no_grad():
            parameter += step
            above = loss_of(net(*xs))
            parameter -= 2 * step
            below = loss_of(net(*xs))
            parameter += step
        assert (above - below) / 2 == pytest.approx(float((grad * step).sum()), rel=1e-5, abs=1e-12)


def test_an_additive_coupling_evaluates_its_function_once_each_way():
    calls = []
    layer = AdditiveCoupling(mlp())
    layer.function.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    net, _ = pair(layer)
    grads_of(net, inputs(2))
    assert calls == [False, True]  # forward without a graph, then backward with one


def test_a_function_that_hands_its_gradient_on_leaves_it_alone():
    """F = identity: the gradient of F's input is the very tensor that came in."""
    net, stored = pair(AdditiveCoupling(nn.Identity()), AdditiveCoupling(nn.Identity(), changes=0))
    assert_same(grads_of(net, inputs(2)), grads_of(stored, inputs(2)))


def test_incoming_gradients_and_the_users_tensors_stay_as_they_are():
    net, _ = pair(*couplings())
    xs = inputs(2)
    before = [x.detach().clone() for x in xs]
    ys = net(*xs)
    kept = [y.detach().clone() for y in ys]
    seeds = [torch.ones_like(y) for y in ys]
    torch.autograd.backward(ys, seeds)
    for tensor, original in [*zip(xs, before, strict=True), *zip(ys, kept, strict=True)]:
        assert torch.equal(tensor, original)
    assert all(torch.equal(seed, torch.ones_like(seed)) for seed in seeds)


def test_relu_before_the_region():
    """A ReLU needs its output, which is the region's input: it must survive the region."""
    net, stored = pair(AffineCoupling(), AffineCoupling())

    class Whole(nn.Module):
        def __init__(self, region):
            super().__init__()
            self.region = region

        def forward(self, x):
            return self.region(torch.relu(x))

    assert_same(grads_of(Whole(net), inputs(1)), grads_of(Whole(stored), inputs(1)))


def test_the_input_is_not_kept():
    net, _ = pair(*couplings())
    xs = [x * 2 for x in inputs(2)]
    refs = [weakref.ref(x.untyped_storage()) for x in xs]
    ys = net(*xs)
    del xs
    assert [ref() for ref in refs] == [None, None]
    loss_of(ys).backward()


def test_nothing_but_the_output_is_stored():
    """Whatever the depth, only the region's end saves activations."""

    def saved_elements(depth):
        seen = {}
        net, _ = pair(*couplings(depth))

        def pack(tensor):
            seen[tensor.untyped_storage()._cdata] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            ys = net(*inputs(2))
        assert len(ys) == 2
        return sum(seen.values())

    assert saved_elements(2) == saved_elements(12) == 2 * 3 * 4


def test_under_no_grad_layers_are_simply_called():
    net, stored = pair(*couplings())
    with torch.no_grad():
        for ours, theirs in zip(net(*inputs(2)), stored(*inputs(2)), strict=True):
            assert torch.equal(ours, theirs)
            assert not ours.requires_grad
        back = net.inverse(*net(*inputs(2)))
    for x, again in zip(inputs(2), back, strict=True):
        torch.testing.assert_close(x, again)


def test_inputs_that_need_no_gradient():
    net, stored = pair(*couplings())
    xs = inputs(2, requires_grad=False)
    assert_same(grads_of(net, xs), grads_of(stored, xs))


@pytest.mark.parametrize("frozen", [[0, 1], [1, 2], [3], [0, 1, 2, 3]])
@pytest.mark.parametrize("kind", ["general", "additive"])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_frozen_layers(kind, frozen, requires_grad):
    if len(frozen) == 4 and not requires_grad:
        return
    count, layers = LAYERS[kind]
    net, stored = pair(*layers())
    for module in (net, stored):
        for index in frozen:
            module.layers[index].requires_grad_(False)
    xs = inputs(count, requires_grad)
    assert_same(grads_of(net, xs), grads_of(stored, xs))


def test_one_output_unused():
    net, stored = pair(*couplings())
    xs = inputs(2)
    ours = torch.autograd.grad(net(*xs)[0].square().sum(), xs)
    theirs = torch.autograd.grad(stored(*xs)[0].square().sum(), xs)
    assert_same(ours, theirs)


def test_gradients_accumulate_over_two_passes():
    net, stored = pair(*couplings())
    for module in (net, stored):
        for scale in (1.0, 0.3):
            loss_of(module(*[x * scale for x in inputs(2)])).backward()
    assert_same([p.grad for p in net.parameters()], [p.grad for p in stored.parameters()])


def test_two_passes_may_be_open_at_once():
    net, stored = pair(*couplings())
    for module in (net, stored):
        first = loss_of(module(*inputs(2)))
        second = loss_of(module(*[x * 0.5 for x in inputs(2)]))
        (first * second).backward()
    assert_same([p.grad for p in net.parameters()], [p.grad for p in stored.parameters()])


def test_two_losses_on_one_graph():
    net, stored = pair(*couplings())
    for module in (net, stored):
        a, b = module(*inputs(2))
        (a.square().sum() + b.sum()).backward(retain_graph=True)
        b.sin().sum().backward()
    assert_same([p.grad for p in net.parameters()], [p.grad for p in stored.parameters()])


def test_a_second_backward_without_retain_graph_is_refused_by_autograd():
    net, _ = pair(*couplings())
    loss = loss_of(net(*inputs(2)))
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_double_backward_is_refused():
    net, _ = pair(*couplings())
    xs = inputs(2)
    with pytest.raises(RuntimeError, match='backward="stored"'):
        torch.autograd.grad(loss_of(net(*xs)), xs, create_graph=True)


def test_a_parameter_changed_in_between_is_refused():
    net, _ = pair(*couplings())
    loss = loss_of(net(*inputs(2)))
    with torch.no_grad():
        next(net.parameters()).add_(1)
    with pytest.raises(RuntimeError, match=r"layers\.0.*modified or replaced"):
        loss.backward()


def test_parameters_swapped_in_between_are_refused():
    """`functional_call` puts the module's own parameters back before the backward pass."""
    net, _ = pair(*couplings())
    others = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    loss = loss_of(torch.func.functional_call(net, others, tuple(inputs(2))))
    with pytest.raises(RuntimeError, match="replaced"):
        loss.backward()


def test_the_output_changed_in_between_is_refused():
    net, _ = pair(AffineCoupling())
    y = net(*inputs(1))
    loss = loss_of(y)
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_checked_mode_names_the_layer_with_a_wrong_inverse():
    layers = [AffineCoupling(), Wrong(), AffineCoupling()]
    net, _ = pair(*layers, checked=True)
    with pytest.raises(ReconstructionError, match=r"layers\.1 \(Wrong\): input 0"):
        grads_of(net, inputs(1))
    net, stored = pair(*couplings(), checked=True)
    assert_same(grads_of(net, inputs(2)), grads_of(stored, inputs(2)))


def test_dropout_draws_the_same_masks_and_leaves_the_generator_alone():
    net, stored = pair(*couplings(dropout=0.5))
    grads_of(net, inputs(2), seed=1)
    after_ours = torch.rand(3)
    grads_of(stored, inputs(2), seed=1)
    assert torch.equal(after_ours, torch.rand(3))


def test_hooks_fire_layer_by_layer_from_the_end():
    net, _ = pair(*couplings(3))
    order = []
    for index, layer in enumerate(net.layers):
        for parameter in layer.parameters():
            parameter.register_post_accumulate_grad_hook(lambda _, i=index: order.append(i))
    done_before = []
    net.layers[0].function.register_forward_hook(lambda *_: done_before.append(len(order)))
    loss_of(net(*inputs(2))).backward()
    assert order == [2] * 4 + [1] * 4 + [0] * 4
    assert done_before == [0, 8]  # the first layer is recomputed when the others are finished


def test_an_optimizer_inside_the_backward_pass():
    def train(net, inside):
        groups = {p: torch.optim.SGD([p], lr=0.1) for p in net.parameters()}

        def step(parameter):
            groups[parameter].step()
            parameter.grad = None

        if inside:
            for parameter in groups:
                parameter.register_post_accumulate_grad_hook(step)
        for _ in range(3):
            loss_of(net(*inputs(2))).backward()
            if not inside:
                for parameter in groups:
                    step(parameter)
        return list(net.parameters())

    net, stored = pair(*couplings())
    assert_same(train(net, inside=True), train(stored, inside=False))


def test_autocast_is_the_forward_passes_own():
    """backward() is called outside autocast, as it should be, yet F runs in bf16 again."""
    dtypes = []
    net = ReversibleSequential(*couplings(2))
    for layer in net.layers:
        layer.function.register_forward_hook(lambda _, __, out: dtypes.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ys = net(torch.randn(3, 4), torch.randn(3, 4))
    loss_of(ys).backward()
    assert dtypes == [torch.bfloat16] * 4
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())


def test_backward_inside_autocast():
    net, stored = (m.float() for m in pair(*couplings(2)))
    for module in (net, stored):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss_of(module(*[x.float() for x in inputs(2)])).backward()
    assert_same([p.grad for p in net.parameters()], [p.grad for p in stored.parameters()], 5e-2)


def test_an_unknown_backward_is_an_error():
    with pytest.raises(ValueError, match="inverse"):
        ReversibleSequential(AffineCoupling(), backward="magic")(*inputs(1))
