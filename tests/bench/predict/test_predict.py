"""Predictions are measurements: the same allocations, in the same order, to the byte."""

import re
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode

from bench.ddpm.samplers import Conditions, denoiser, given
from bench.ddpm.step import TrainingStep, make_state, random_batch
from bench.errors import UserError
from bench.methods import METHODS
from bench.predict import predict, predict_method
from bench.predict.fake import FaithfulFakeMode, faking
from bench.presets import Overrides
from bench.probes.cost import Phase, StepProbe
from bench.probes.flops import forward_flops
from bench.probes.memory import MemoryProbe, Part, tensors_in
from bench.quality.evaluation import sampling_memory
from tests.related import RELATED, slow_but, slow_every, slow_if_related

METHOD_NAMES = list(METHODS)


@pytest.fixture(autouse=True)
def one_thread():
    """On a busy machine threads wait for each other; on one, small steps are as quick."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def allocations(changes):
    return [(change.nbytes, change.storage.part, change.storage.operator) for change in changes]


def trained_step(name, **overrides):
    """A step whose optimizer has its state, from a real first step on smaller volumes."""
    work = METHODS[name].workload("small", Overrides(**overrides))
    step = TrainingStep(METHODS[name].build(work), work)
    volumes, _ = random_batch(work, step.network)
    step(volumes[:1] if name == "latent" else torch.rand(1, 1, 16, 16, 16))
    return step, volumes


def track(step, batch):
    """Peak of a step, in bytes, by PyTorch's tracker."""
    tracker = MemTracker()
    # Its module hooks collect gradients in pairs and so keep them alive: 0.3 % of this peak.
    # They only tell modules apart.
    tracker._mod_tracker = mock.MagicMock(is_bw=False)
    tracker.track_external(step.network, step.optimizer, *tensors_in(step.held(batch)))
    with tracker, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step(batch)
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


SIZE = {"volume": 16, "batch_size": 2, "channels": (16, 32, 64)}


@cache
def predicted(name):
    return predict(name, preset="small", device="cpu", **SIZE)


def measured_step(step, batch):
    """What is found of a step, and every change of memory."""
    probe = StepProbe(step.network, step.optimizer, "cpu", tensors_in(step.held(batch)))
    probe.start()
    step(batch)
    measured = probe.stop().columns()
    x_t, t, _, keywords = step.noised(batch)
    measured["flops_forward"] = forward_flops(step.network, x_t, t, **keywords)
    assert measured.pop("peak_memory_source") == "tensor-storages"
    return measured, allocations(probe.changes)


def assert_predicted(prediction, measured, changes):
    columns = prediction.columns()
    assert {key: columns[key] for key in measured} == measured
    assert columns["peak_memory_source"] == "predicted"
    assert sum(prediction.parts.values()) == prediction.peak_memory_bytes
    assert allocations(prediction.changes) == changes


@pytest.mark.parametrize("name", slow_if_related(METHOD_NAMES))
def test_every_method_is_predicted_to_the_byte(name):
    """As PyTorch's own tracker sees it, alone, and our probe with and without its hooks."""
    step, volumes = trained_step(name, **SIZE)
    batch = step.cut(volumes)
    del volumes
    bare = MemoryProbe(step.network, step.optimizer, "cpu", tensors_in(step.held(batch)))
    bare.start()
    step(batch)
    bare.stop()
    tracked = track(step, batch)
    measured, changes = measured_step(step, batch)

    assert_predicted(predicted(name), measured, changes)
    assert allocations(bare.changes) == changes
    assert predicted(name).peak_memory_bytes == tracked


@pytest.mark.parametrize(
    "name",
    slow_every(3, (name for name in METHOD_NAMES if name not in RELATED or name == "checkpoint")),
)
def test_every_method_at_small_is_predicted_to_the_byte(name):
    step, volumes = trained_step(name)
    batch = step.cut(volumes)
    del volumes
    assert_predicted(predict(name, preset="small", device="cpu"), *measured_step(step, batch))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["unet", "idm"])
def test_memtracker_agrees_at_equal(name):
    """PyTorch's own tracker on fake tensors, or it would take 30 GB."""
    work = METHODS[name].workload("equal")
    with faking(FaithfulFakeMode()):
        step = TrainingStep(METHODS[name].build(work), work)
        make_state(step.optimizer)
        batch = torch.empty(work.batch_size, 1, *(work.volume,) * 3)
        tracked = track(step, batch)

    assert predict(name, preset="equal", device="cpu").peak_memory_bytes == tracked
    assert predict(name, preset="equal").peak_memory_bytes == tracked


GIVEN = Overrides(
    volume=8, patch=8, batch_size=2, channels=(8, 16), condition=("seg", "t2"), drop_condition=0.1,
    target="v",
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    slow_but(
        ("unet", "idm"),
        (name for name in (*METHOD_NAMES, "idm+wavelet+patch") if name != "latent"),
    ),
)
def test_a_conditional_training_is_predicted_to_the_byte(name):
    """Masks, class labels, some dropped, another target; and FLOPs by both ways to count."""
    method, overrides = METHODS[name], GIVEN
    if "patch" in name:
        overrides = replace(overrides, volume=16)
    work = replace(method.workload("small", overrides), classes=3)
    step = TrainingStep(method.build(work), work)
    step(step.cut(*random_batch(work)))
    batch = step.cut(*random_batch(work))
    probe = StepProbe(step.network, step.optimizer, "cpu", tensors_in(step.held(batch)))
    probe.start()
    step(batch)
    measured = probe.stop().columns()
    x_t, t, _, keywords = step.noised(batch)
    assert x_t.shape[1] == 3
    measured["flops_forward"] = forward_flops(step.network, x_t, t, **keywords)
    del measured["peak_memory_source"]

    columns = predict_method(method, work, device="cpu").columns()
    assert {key: columns[key] for key in measured} == measured


def test_a_network_without_a_condition_says_so():
    with pytest.raises(UserError, match=r"--models latent.*: takes no condition: its autoencoder"):
        METHODS["latent"].workload("small", replace(GIVEN, volume=16, patch=16))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_drawing_under_a_condition_is_predicted_to_the_byte(guidance):
    method = METHODS["idm"]
    work = replace(method.workload("small", GIVEN), classes=3)
    prediction = predict_method(method, work, device="cpu", sampling=True, guidance=guidance)
    conditions = Conditions.of(work, *random_batch(work)).some(slice(None), "cpu")
    network = method.build(work)
    denoise = given(denoiser(network, work, torch.device("cpu")), conditions, guidance)
    measured = sampling_memory(network, (2, 1, 8, 8, 8), denoise, conditions)
    assert prediction.peak_memory_bytes == measured.peak_memory_bytes
    once = predict_method(method, work, device="cpu", sampling=True)
    # Maps of weights alone are made once for both halves of a guided batch.
    assert prediction.flops_step == pytest.approx(
        once.flops_step * (2 if guidance != 1 else 1), rel=1e-4
    )


@pytest.mark.parametrize("name", ["unet", "patchddm", "idm"])
def test_drawing_is_predicted_to_the_byte(name):
    method = METHODS[name]
    work = method.workload("small", Overrides(volume=16, patch=16, batch_size=2))
    prediction = predict_method(method, work, device="cpu", sampling=True)

    measured = sampling_memory(method.build(work), (2, 1, 16, 16, 16))
    assert prediction.peak_memory_bytes == measured.peak_memory_bytes
    assert prediction.parts[Part.ACTIVATION] == measured.activation_bytes
    assert prediction.parts[Part.GRADIENT] == prediction.parts[Part.OPTIMIZER] == 0
    assert prediction.flops_step > prediction.flops_forward > 0


def test_drawing_by_name_sees_whole_volumes():
    """As `predict --sampling` does; guidance takes both halves of its batch at once."""
    work = {"preset": "small", "volume": 16, "channels": (8, 16)}
    drawn = predict("patchddm", sampling=True, **work)
    assert drawn.parts[Part.GRADIENT] == drawn.parts[Part.OPTIMIZER] == 0
    assert drawn.flops_forward == predict("patchddm", patch=16, **work).flops_forward
    guided = predict("patchddm", sampling=True, batch_size=4, **work)
    assert guided.flops_forward == 2 * drawn.flops_forward
    with pytest.raises(TypeError, match="sampling: only for a method"):
        predict(Net(), torch.randn(64, 16), sampling=True)


def test_a_decoder_is_predicted_to_the_byte():
    """From latents to a volume of eight times the sides; nothing is kept for gradients."""
    decoder = nn.Sequential(
        nn.Conv3d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(),
        *(nn.ConvTranspose3d(16, 16, 2, stride=2) for _ in range(3)), nn.Conv3d(16, 1, 1),
    )  # fmt: skip
    autoencoder = nn.ModuleDict({"encoder": nn.Conv3d(1, 3, 8, stride=8), "decoder": decoder})
    latents = torch.randn(1, 3, 4, 4, 4)

    def decode(network, latents):
        return network["decoder"](latents)

    prediction = predict(autoencoder, latents, loss=decode, device="cpu")
    probe = StepProbe(autoencoder, torch.optim.SGD(autoencoder.parameters()), "cpu", [latents])
    with torch.no_grad():
        probe.start()
        volume = decode(autoencoder, latents)
        measured = probe.stop()
    assert volume.shape == (1, 1, 32, 32, 32)
    assert prediction.peak_memory_bytes == measured.peak_memory_bytes
    assert prediction.flops_step == measured.flops_step > 0


def test_the_whole_volume_is_predicted_without_allocating_it():
    """256³: its activations would be 8 GiB and more."""
    prediction = predict("patchddm", preset="full-volume")

    assert prediction.peak_memory_bytes > 40 * 2**30
    assert prediction.parts[Part.ACTIVATION] > 0.9 * prediction.peak_memory_bytes


class Net(nn.Module):
    """Two layers; the first keeps the larger activation."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(16, 4096)
        self.narrow = nn.Linear(4096, 1)

    def forward(self, x):
        return self.narrow(torch.tanh(self.wide(x)))


def measure(network, batch, optimizer, loss):
    """One's own second step, measured."""

    def step():
        optimizer.zero_grad(set_to_none=True)
        value = loss(network, batch)
        value.backward()
        optimizer.step()

    step()
    probe = StepProbe(network, optimizer, "cpu", [batch])
    probe.start()
    step()
    return probe.stop().columns()


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_ones_own_network_is_predicted_to_the_byte(optimizer):
    network, batch = Net(), torch.randn(64, 16)
    prediction = predict(network, batch, optimizer(network.parameters()), device="cpu")

    measured = measure(
        network, batch, optimizer(network.parameters()), lambda n, b: n(b).square().mean()
    )
    del measured["peak_memory_source"]
    columns = prediction.columns()
    assert {key: columns[key] for key in measured} == measured


LOSSES = {
    "mse": nn.functional.mse_loss,
    "smooth_l1": nn.functional.smooth_l1_loss,
    "huber": nn.functional.huber_loss,
    "l1": nn.functional.l1_loss,
    "soft_margin": nn.functional.soft_margin_loss,
    "bce": lambda y, t: nn.functional.binary_cross_entropy(y.sigmoid(), t),
    "bce_logits": nn.functional.binary_cross_entropy_with_logits,
}


@pytest.mark.parametrize("function", LOSSES.values(), ids=LOSSES)
def test_ones_own_loss_is_predicted_to_the_byte(function):
    """Some kernels return a scalar that keeps the storage of every element."""

    def loss(network, batch):
        x, target = batch
        return function(network(x), target)

    network, batch = Net(), (torch.randn(64, 16), torch.rand(64, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    prediction = predict(network, batch, optimizer, loss, device="cpu")

    optimizer.zero_grad(set_to_none=True)
    loss(network, batch).backward()
    probe = MemoryProbe(network, optimizer, "cpu", batch)
    probe.start()
    optimizer.zero_grad(set_to_none=True)
    loss(network, batch).backward()
    optimizer.step()
    measured = probe.stop()
    assert prediction.peak_memory_bytes == measured.peak_memory_bytes


NORMS = {
    "group": lambda: nn.GroupNorm(2, 8),
    "layer": lambda: nn.LayerNorm(8),
    "batch": lambda: nn.BatchNorm3d(8),
    "instance": lambda: nn.InstanceNorm3d(8, affine=True),
    "rms": lambda: nn.RMSNorm(8, elementwise_affine=False),
}


class Made(TorchDispatchMode):
    """Type and bytes of all that operators make."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.made += [(str(func), t.dtype, t.untyped_storage().nbytes()) for t in tensors_in(out)]
        return out


@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
def test_a_norm_of_16_bits_by_weights_of_32_makes_what_a_cpu_makes(make):
    """PyTorch's rules for fake tensors halved the mean, and doubled a gradient."""

    def step():
        norm, x = make(), torch.randn(2, 8, 4, 4, 8, dtype=torch.bfloat16, requires_grad=True)
        with Made() as mode:
            with torch.autocast("cpu", torch.bfloat16):
                y = norm(x)
            y.float().sum().backward()
        return mode.made

    with faking(FaithfulFakeMode()):
        fake = step()
    assert fake == step()


ELEMENTWISE = {
    "elu": F.elu, "gelu": F.gelu, "hardsigmoid": F.hardsigmoid, "hardswish": F.hardswish,
    "hardtanh": F.hardtanh, "mish": F.mish, "silu": F.silu, "softplus": F.softplus,
    "leaky_relu": F.leaky_relu, "tanh": torch.tanh,
    **{f.__name__: lambda x, f=f: f(x, torch.zeros_like(x), reduction="none")
       for f in (F.mse_loss, F.smooth_l1_loss, F.huber_loss)},
}  # fmt: skip


@pytest.mark.parametrize("function", ELEMENTWISE.values(), ids=ELEMENTWISE)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_gradient_lies_in_memory_as_a_kernel_puts_it(function, swapped):
    """Where x lies otherwise than the gradient of what is made of it."""

    def strides():
        x, gradient = torch.zeros(2, 4, 6, 6, 6), torch.zeros(2, 4, 6, 6, 6)
        first = gradient if swapped else x
        first.data = first.to(memory_format=torch.channels_last_3d)
        y = function(x.requires_grad_())
        return torch.autograd.grad(y, x, gradient)[0].stride()

    with faking(FaithfulFakeMode()):
        fake = strides()
    assert fake == strides()


@pytest.mark.parametrize("function", [lambda x, y: x.mul_(y), lambda x, y: x.copy_(y)])
def test_what_is_written_in_place_must_fit(function):
    """Fake tensors take a shorter way through it, which refuses what the real one refuses."""

    def loss(network, batch):
        return function(network(batch), torch.ones(3, 5)).square().mean()

    network = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match=r"size|shape|broadcast|expand"):
        predict(network, torch.randn(2, 4), optimizer, loss)


def test_a_step_that_fails_leaves_no_watcher_behind():
    method = METHODS["patchddm"]
    one_voxel = replace(method.workload("small"), volume=1, patch=1, batch_size=1)
    with pytest.raises(ValueError, match="more than 1 value"):  # of its batch normalisation
        predict_method(method, one_voxel)

    step, batch = trained_step("unet", volume=16, batch_size=1)
    x_t, t, _, _ = step.noised(batch)
    assert forward_flops(step.network, x_t, t) > 0  # fvcore would find nothing beside it


def test_ones_own_network_is_left_alone():
    network, batch = Net(), torch.randn(64, 16)
    optimizer = torch.optim.Adam(network.parameters())
    before = [parameter.clone() for parameter in network.parameters()]

    predict(network, batch, optimizer)

    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not optimizer.state


def test_flops_of_ones_own_network():
    network, batch = Net(), torch.randn(64, 16)
    prediction = predict(network, batch, torch.optim.SGD(network.parameters(), lr=0.1))

    products = 64 * 16 * 4096, 64 * 4096 * 1  # multiply-adds of the two layers
    assert prediction.flops_forward == sum(products)
    # The backward pass multiplies by weights and by inputs, but no gradient of the batch is wanted.
    assert prediction.flops_step == 2 * (2 * products[0] + 3 * products[1])


def test_the_peak_names_its_layer_and_operator():
    network, batch = Net(), torch.randn(1024, 16)
    prediction = predict(network, batch, torch.optim.SGD(network.parameters(), lr=0.1))

    held = prediction.peak.holdings
    assert prediction.peak.phase is Phase.BACKWARD
    assert prediction.peak.operator == "aten.tanh_backward.default"
    assert held[Part.PARAMETER, "wide"] == network.wide.weight.nbytes + network.wide.bias.nbytes
    assert sum(held.values()) == prediction.peak_memory_bytes


def test_a_recomputed_layer_is_named_by_what_runs_again():
    """Checkpointing: the peak is in the backward pass, in a layer of the block that runs again."""
    made_in_backward = {
        operator.layer
        for operator in predicted("checkpoint").operators
        if operator.in_backward and operator.name == "aten.convolution.default"
    }
    assert any(name.endswith("conv1.conv") for name in made_in_backward)


@pytest.mark.parametrize("name", slow_if_related(METHOD_NAMES))
def test_nearly_all_work_has_a_layer(name):
    """Forward, backward and recomputed alike; the rest belongs to the network as a whole."""
    prediction = predicted(name)
    nameless = sum(operator.flops for operator in prediction.operators if not operator.layer)

    assert nameless < 0.01 * prediction.flops_step


def test_phases_come_in_order():
    prediction = predicted("idm")
    order = list(Phase)
    ranks = [order.index(phase) for phase in prediction.phases]

    assert ranks == sorted(ranks)
    assert set(ranks) == {0, 1, 2}


def test_inversion_stores_less_than_the_same_network_without_it():
    idm, stored = predicted("idm"), predicted("idm-stored")

    assert idm.parameters == stored.parameters
    assert idm.stored_bytes < stored.stored_bytes / 5


def test_misuse_is_refused():
    network, batch = Net(), torch.randn(64, 16)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="brings its own"):
        predict("idm", batch, optimizer)
    with pytest.raises(TypeError, match="needs a batch"):
        predict(network)
    with pytest.raises(UserError, match="device mps: predicted are cuda and cpu"):
        predict(network, batch, optimizer, device="mps")
    with pytest.raises(TypeError, match="batch_size"):
        predict(network, batch, optimizer, batch_size=3)


def test_the_five_lines_of_the_page(capsys):
    """docs/predict.md shows them; they are run as they stand there."""
    page = (Path(__file__).parents[3] / "docs" / "predict.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    lines = [line for line in code.splitlines() if line and not line.startswith("import torch")]
    exec(code, {})

    assert len(lines) == 5
    assert capsys.readouterr().out.startswith(
        "peak 5.13 MiB (parameter 1.00 MiB, gradient 1.00 MiB"
    )
