"""`torch.compile`: the same gradients, and no compilation for each layer or each step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from models.idm import IDM, ReversibleSequential
from models.idm.coupling import AdditiveCoupling
from models.idm.lean import LeanIDM
from tests.models.test_network import NARROW, batch, perturbed
from tests.models.test_reversible import assert_same, couplings, grads_of, inputs


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make(kind: type[IDM]) -> tuple[IDM, IDM]:
    options = {"stream_bytes": 0} if kind is LeanIDM else {}
    net = perturbed(kind(channels=NARROW, **options).double())
    return net, copy.deepcopy(net)


def train(net, module, steps: int = 3) -> list[torch.Tensor]:
    x, t = batch(2, 1, 8, 8, 8, dtype=torch.float64)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        net(x, t).sin().mean().backward()
        optimizer.step()
    return [*(p.grad for p in module.parameters()), *(p.detach() for p in module.parameters())]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", [IDM, LeanIDM])
def test_a_compiled_network_trains_the_same(kind, backend):
    net, reference = make(kind)
    counter = CompileCounterWithBackend(backend)
    with torch._dynamo.config.patch(error_on_recompile=True):
        ours = train(torch.compile(net, backend=counter), net)
    assert_same(ours, train(reference, reference))
    assert counter.frame_count <= 2  # before the body and after it


@pytest.mark.slow
def test_with_stored_activations_the_whole_network_is_one_graph():
    net, reference = make(IDM)
    net.backward = reference.backward = "stored"
    counter = CompileCounterWithBackend("aot_eager")
    ours = train(torch.compile(net, backend=counter, fullgraph=True), net)
    assert_same(ours, train(reference, reference))
    assert counter.frame_count == 1


@pytest.mark.thorough
def test_another_shape_compiles_once_more():
    net, reference = make(IDM)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(net, backend=counter)
    frames = []
    for size in (8, 16, 24, 32):
        x, t = batch(1, 1, size, 8, 8, dtype=torch.float64)
        for module in (compiled, reference):
            module(x, t).sum().backward()
        frames.append(counter.frame_count)
    assert frames == [2, 4, 4, 4]
    assert_same([p.grad for p in net.parameters()], [p.grad for p in reference.parameters()])


def test_a_compiled_chain_of_any_layers():
    net = ReversibleSequential(*couplings(12)).double()
    compiled = torch.compile(net, backend="eager")
    assert_same(grads_of(compiled, inputs(2)), grads_of(net, inputs(2)))


@pytest.mark.thorough
def test_functions_inside_layers_are_compiled_as_a_whole():
    """F is what costs time; it is compiled for both of its evaluations."""
    net, reference = make(IDM)
    counter = CompileCounterWithBackend("aot_eager")
    layers = [layer for layer in net.body.values() if isinstance(layer, AdditiveCoupling)]
    for layer in layers:
        layer.function.compile(backend=counter, fullgraph=True)
    assert_same(train(net, net), train(reference, reference))
    assert counter.frame_count == 2 * len(NARROW)  # with and without gradients, for each width


def test_a_compiled_layer_is_the_layer():
    net, reference = make(IDM)
    for layer in net.body.values():
        layer.compile(backend="eager")
    assert_same(train(net, net), train(reference, reference))
