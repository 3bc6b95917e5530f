"""Anybody's training step is predicted as it stands, and nothing of theirs is changed."""

import copy
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bench.errors import UserError
from bench.predict import predict
from bench.probes.cost import StepProbe
from bench.probes.memory import Part
from models.idm import IDM

WEIGHTS = 4 * (8 * 27 + 8 + 2 * 8 + 8 * 27 + 1)
"""Bytes of Net's parameters."""


class Net(nn.Module):
    """Has buffers, and keeps a count and a tensor of its last forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm3d(8)
        self.last = nn.Conv3d(8, 1, 3, padding=1)
        self.calls, self.seen = 0, []

    def forward(self, x):
        hidden = torch.relu(self.norm(self.first(x)))
        self.calls += 1
        self.seen.append(hidden)
        return self.last(hidden)


def square(network, batch):
    return network(batch).square().mean()


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def batch():
    return torch.randn(2, 1, 8, 8, 8)


def adam(network, **options):
    return torch.optim.AdamW(network.parameters(), **options)


def step_for_real(network, batch, optimizer):
    square(network, batch).backward()
    optimizer.step()
    optimizer.zero_grad()
    network.seen.clear()


@contextmanager
def untouched(network, *optimizers):
    """Every tensor, gradient, count, hook and state is the same object with the same values."""

    def theirs():
        tensors = dict(network.named_parameters()) | dict(network.named_buffers())
        gradients = {name: p.grad for name, p in network.named_parameters()}
        states = [(p, *values.items()) for o in optimizers for p, values in o.state.items()]
        groups = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
        return tensors, gradients, states, groups, network.calls, list(network.seen)

    before = theirs()
    values = copy.deepcopy((network.state_dict(), [o.state_dict() for o in optimizers]))
    yield
    after = theirs()
    for mine, found in zip(before[:2], after[:2], strict=True):
        assert mine.keys() == found.keys()
        assert all(mine[name] is found[name] for name in mine)
    assert str(before[2:]) == str(after[2:])
    assert str(values) == str((network.state_dict(), [o.state_dict() for o in optimizers]))
    assert not any("Fake" in type(t).__name__ for t in after[0].values())


def measured(network, batch, optimizer, step):
    """The second of two real steps."""
    step(network, batch, optimizer)
    inputs = [batch] if isinstance(batch, Tensor) else list(batch)
    probe = StepProbe(network, optimizer, "cpu", inputs)
    probe.start()
    step(network, batch, optimizer)
    return probe.stop()


def test_a_loss_that_closes_over_the_network(net, batch):
    optimizer = adam(net)
    with untouched(net, optimizer):
        closed = predict(net, batch, optimizer, lambda _, b: net(b).square().mean())
        given = predict(net, batch, optimizer, square)

    assert closed.parts == given.parts
    assert closed.parts[Part.GRADIENT] > 0
    assert closed.parts[Part.OPTIMIZER] >= 2 * WEIGHTS


class Module(nn.Module):
    """In the manner of Lightning: the loss is a method of what holds the network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.calls, self.seen = 0, []

    def training_step(self, batch):
        return self.net(batch).square().mean()


def test_a_module_that_brings_its_own_training_step(batch):
    module = Module()
    optimizer = adam(module)
    with untouched(module, optimizer), untouched(module.net):
        prediction = predict(module, batch, optimizer, lambda _, b: module.training_step(b))

    assert prediction.parts == predict(Net(), batch, torch.optim.AdamW, square).parts


@pytest.mark.parametrize("where", ["forward", "loss", "backward", "step"])
def test_nothing_is_changed_whatever_fails(net, batch, where):
    class Boom(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise ArithmeticError("boom")

    def loss(network, batch):
        if where == "loss":
            network(batch)
            raise ArithmeticError("boom")
        return (Boom.apply(network(batch)) if where == "backward" else network(batch)).mean()

    def boom(*_):
        raise ArithmeticError("boom")

    optimizer = adam(net)
    step_for_real(net, batch, optimizer)
    if where == "step":
        optimizer.register_step_pre_hook(boom)
    if where == "forward":
        net.last.register_forward_hook(boom)
    with untouched(net, optimizer), pytest.raises(ArithmeticError, match="boom"):
        predict(net, batch, optimizer, loss)
    assert not torch.cuda.is_available()
    assert torch.zeros(2).sum().item() == 0  # no mode is left behind, either


@pytest.mark.parametrize("options", [{}, {"foreach": False}, {"fused": True}, {"amsgrad": True}])
def test_an_optimizer_that_has_stepped_before(net, batch, options):
    fresh, stepped = adam(Net(), **options), adam(net, **options)
    expected = predict(
        lambda: Net(), batch, lambda parameters: torch.optim.AdamW(parameters, **options), square
    )
    step_for_real(net, batch, stepped)
    with untouched(net, stepped):
        prediction = predict(net, batch, stepped, square)

    assert prediction.parts == expected.parts
    assert not fresh.state


class WithMemory(torch.optim.SGD):
    """As 8-bit optimizers do, it keeps what it needs in attributes, by parameter."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, lr=0.1)
        self.by_parameter: dict[Tensor, dict] = {}
        self.steps = 0

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                moment = self.by_parameter.setdefault(p, {}).setdefault("m", torch.zeros_like(p))
                self.state[p]["m"] = moment.add_(p.grad)
        self.steps += 1


def test_an_optimizer_with_attributes_of_its_own(net, batch):
    optimizer = WithMemory(net.parameters())
    with untouched(net, optimizer):
        prediction = predict(net, batch, optimizer, square)

    assert prediction.parts[Part.OPTIMIZER] == WEIGHTS
    assert optimizer.by_parameter == {}
    assert optimizer.steps == 0


@pytest.mark.parametrize("name", ["Adam", "NAdam", "RAdam", "Adamax", "Adagrad"])
def test_an_optimizer_counts_its_steps_on_the_host(net, batch, name):
    """Also those that say no device, which a card's default would then take (Adam in 2.10)."""
    prediction = predict(net, batch, getattr(torch.optim, name), square)
    moments = 1 if name == "Adagrad" else 2
    assert prediction.parts[Part.OPTIMIZER] == moments * WEIGHTS


def test_adafactor_is_smaller_than_adam(net, batch):
    factored = predict(net, batch, torch.optim.Adafactor(net.parameters()), square)
    assert 0 < factored.parts[Part.OPTIMIZER] < predict(net, batch, adam(net)).parts[Part.OPTIMIZER]


def test_lbfgs_is_refused_in_a_line(net, batch):
    with untouched(net), pytest.raises(UserError, match="predict with SGD, and add 2 × history"):
        predict(net, batch, torch.optim.LBFGS(net.parameters()))


def test_two_optimizers_of_a_gan(net, batch):
    critic = Net()

    def step(network, batch, optimizers):
        generators, critics = optimizers
        critics.zero_grad()
        (critic(network(batch).detach()).mean() - critic(batch).mean()).backward()
        critics.step()
        generators.zero_grad()
        (-critic(network(batch)).mean()).backward()
        generators.step()

    both = adam(net), adam(critic)
    with untouched(net, both[0]), untouched(critic, both[1]):
        prediction = predict(net, batch, list(both), step=step)

    assert prediction.parts[Part.PARAMETER] == 2 * WEIGHTS
    assert prediction.parts[Part.OPTIMIZER] == 2 * 2 * WEIGHTS
    assert prediction.parameters == 2 * WEIGHTS // 4


def test_what_is_read_of_a_value_is_said(net, batch):
    def loss(network, batch):
        error = network(batch).square().mean()
        return error / error.item()

    prediction = predict(net, batch, adam(net), loss)

    (line,) = prediction.assumptions
    assert __file__ in line
    assert "1.0 was taken for it" in line
    assert line in str(prediction)


def test_gradients_that_are_released_in_the_backward_pass(net, batch):
    """PyTorch's recipe: an optimizer and a hook for each parameter."""
    optimizers = {p: torch.optim.Adam([p]) for p in net.parameters()}

    def release(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(release)
    with untouched(net, *optimizers.values()):
        prediction = predict(
            net, batch, step=lambda network, batch, _: square(network, batch).backward()
        )

    usual = predict(Net(), batch, torch.optim.AdamW, square)
    last_weight = net.last.weight.nbytes
    assert prediction.parts[Part.OPTIMIZER] >= 2 * WEIGHTS
    assert prediction.parts[Part.GRADIENT] <= last_weight < usual.parts[Part.GRADIENT] + last_weight
    assert prediction.parts[Part.OTHER] == usual.parts[Part.OTHER]


def test_hooks_on_gradients_run(net, batch):
    seen = []
    net.last.weight.register_hook(lambda gradient: seen.append(gradient.shape))
    with untouched(net):
        predict(net, batch, adam(net))
    assert seen
    assert set(seen) == {net.last.weight.shape}


def test_a_compiled_network_is_predicted_as_not_compiled(net, batch):
    compiled = torch.compile(net)
    with untouched(net):
        prediction = predict(compiled, batch, adam(net), square)

    assert prediction.parts == predict(net, batch, adam(net), square).parts
    assert "torch.compile: predicted as not compiled" in prediction.assumptions
    assert not any("_orig_mod" in operator.layer for operator in prediction.operators)


@pytest.fixture
def alone(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_a_network_of_ddp(net, batch, alone):
    replicated = DistributedDataParallel(net)
    with untouched(net):
        prediction = predict(replicated, batch, adam(replicated), square)

    assert prediction.parts == predict(net, batch, adam(net), square).parts
    assert any("DistributedDataParallel" in line for line in prediction.assumptions)


class Wrapped:
    """In the manner of accelerate and Lightning: an optimizer that holds PyTorch's."""

    def __init__(self, optimizer) -> None:
        self.optimizer = optimizer

    def __getattr__(self, name):
        return getattr(self.optimizer, name)


def test_a_wrapped_optimizer(net, batch):
    optimizer = adam(net)
    with untouched(net, optimizer):
        prediction = predict(net, batch, Wrapped(optimizer), square)
    assert prediction.parts == predict(net, batch, optimizer, square).parts


def test_no_optimizer_at_all(net, batch):
    with pytest.raises(UserError, match=r"a torch.optim.Optimizer is needed, not str"):
        predict(net, batch, "adam")


def test_an_optimizer_that_takes_no_part(net, batch):
    step_for_real(net, batch, adam(net))
    stale = adam(net)
    step_for_real(net, batch, stale)
    prediction = predict(net, batch, torch.optim.SGD(net.parameters(), lr=0.1))

    assert prediction.parts[Part.OPTIMIZER] == 0
    assert len(stale.state) == len(list(net.parameters()))


def test_an_optimizer_as_a_class(net, batch):
    assert predict(net, batch, torch.optim.AdamW).parts == predict(net, batch, adam(net)).parts


def test_batches_may_be_dicts_and_tuples(net, batch):
    plain = predict(net, batch, adam(net))
    assert predict(net, {"x": batch}, adam(net)).parts == plain.parts
    assert predict(net, (batch,), adam(net)).parts == plain.parts
    assert predict(net, lambda: torch.randn(2, 1, 8, 8, 8), adam(net)).parts == plain.parts


@dataclass
class Output:
    sample: Tensor


@pytest.mark.parametrize("wrap", [lambda y: (y, y), lambda y: {"y": y}, Output])
def test_a_network_that_returns_more_than_a_tensor_needs_a_loss(net, batch, wrap):
    net.register_forward_hook(lambda module, inputs, output: wrap(output))
    kind = type(wrap(batch)).__name__
    with untouched(net), pytest.raises(UserError, match=f"returns a {kind}: say what is trained"):
        predict(net, batch, adam(net))


def test_gradient_accumulation_to_the_byte(net, batch):
    def step(network, batch, optimizer):
        optimizer.zero_grad()
        for part in batch.split(1):
            (square(network, part) / 2).backward()
        optimizer.step()

    optimizer = adam(net)
    net.seen = Forgetful()
    found = predict(net, batch, optimizer, step=step, device="cpu")
    assert found.peak_memory_bytes == measured(net, batch, optimizer, step).peak_memory_bytes


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_functions_with_a_backward_pass_of_their_own(device):
    """IDM's, whose last one wraps views: in C++, and so in sight of what exchanges tensors."""
    net = IDM(in_channels=1, channels=(4, 8), couplings=1, attention_levels=0, backward="inverse")
    batch = torch.randn(1, 1, 8, 8, 8), torch.zeros(1, dtype=torch.long)

    def step(network, batch, optimizer):
        network(*batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    found = predict(net, batch, optimizer, step=step, device=device)
    assert found.peak_memory_bytes == measured(net, batch, optimizer, step).peak_memory_bytes


class Forgetful(list):
    """Keeps nothing, or each real step would add to what is alive."""

    def append(self, _) -> None:
        pass


def test_a_grad_scaler(net, batch):
    scalers = []

    def step(network, batch, optimizer):
        scalers.append(scaler := torch.amp.GradScaler("cuda"))
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = square(network, batch)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    optimizer = adam(net)
    with untouched(net, optimizer):
        prediction = predict(net, batch, optimizer, step=step)

    full = predict(net, batch, optimizer, square)
    assert prediction.parts[Part.ACTIVATION] < 0.7 * full.parts[Part.ACTIVATION]
    assert prediction.parts[Part.OPTIMIZER] == full.parts[Part.OPTIMIZER]  # it has stepped
    assert all(scaler.is_enabled() for scaler in scalers)


LINES = {
    "nonzero": (lambda n, b: n(b)[b > 0].mean(), "the size of what it returns depends on values"),
    "numpy": (lambda n, b: torch.tensor(n(b).detach().cpu().numpy()), "and a prediction has none"),
    "cpu": (lambda n, b: (n(b) - b.to("cpu")).mean(), "tensors on the card and on the CPU meet"),
}


@pytest.mark.parametrize(("loss", "line"), LINES.values(), ids=LINES)
def test_what_cannot_be_predicted_is_said_in_a_line(net, batch, loss, line):
    with untouched(net), pytest.raises(UserError, match=line) as error:
        predict(net, batch, adam(net), loss)
    assert "\n" not in str(error.value)


def test_drawing_keeps_nothing_for_a_backward_pass(net, batch):
    plain = nn.Sequential(net.first, nn.ReLU(), net.last)
    drawing, training = predict(plain, batch), predict(plain, batch, adam(plain), square)

    assert drawing.parts[Part.GRADIENT] == drawing.parts[Part.OPTIMIZER] == 0
    hidden = 2 * 8 * 8**3 * 4  # of `first`, and of ReLU
    assert drawing.parts[Part.ACTIVATION] == 2 * hidden < training.parts[Part.ACTIVATION]


def test_small_networks_are_shown_in_units_of_their_size(net, batch):
    text = str(predict(net, batch, adam(net)))
    assert "0.000" not in text
    assert "KiB" in text
