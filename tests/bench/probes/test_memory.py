"""The step probes: exact, in agreement with the allocator, and blind to each other."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.probes.cost import StepProbe
from bench.probes.flops import forward_flops
from bench.probes.memory import AllocatorProbe, MemoryProbe, Part


def scratch_free_network() -> nn.Module:
    """Products and element-wise layers: on some CPUs, convolutions of any width take scratch."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8), nn.Tanh())


class Training:
    """The smallest training step: network, AdamW, mean square."""

    def __init__(self, network: nn.Module, batch: torch.Tensor):
        self.network = network
        self.batch = batch
        self.optimizer = torch.optim.AdamW(network.parameters(), fused=True)

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        self.network(self.batch).square().mean().backward()
        self.optimizer.step()
        # The allocator's log does not show the release of what was there before it was opened.
        self.optimizer.zero_grad(set_to_none=True)

    def memory_probe(self) -> MemoryProbe:
        return MemoryProbe(self.network, self.optimizer, "cpu", [self.batch])

    def step_probe(self) -> StepProbe:
        return StepProbe(self.network, self.optimizer, "cpu", [self.batch])


@pytest.fixture
def training() -> Training:
    training = Training(scratch_free_network(), torch.randn(2, 16, 8, 8, 8))
    training.step()  # the optimizer's state exists from here on
    return training


def test_the_probe_agrees_to_the_byte_with_the_allocators_log_of_the_same_step(training):
    memory = training.memory_probe()
    allocator = AllocatorProbe(memory.live_bytes)
    memory.start()
    allocator.start()
    training.step()
    allocated = allocator.stop().peak_allocated_bytes
    assert memory.stop().peak_memory_bytes == allocated


def test_the_allocators_log_shows_scratch_that_is_no_tensor():
    # Convolutions of unequal width make oneDNN reorder weights into buffers of its own.
    network = nn.Sequential(nn.Conv3d(3, 40, 3, padding=1), nn.SiLU(), nn.Conv3d(40, 1, 3))
    training = Training(network, torch.randn(1, 3, 12, 12, 12))
    training.step()
    memory = training.memory_probe()
    allocator = AllocatorProbe(memory.live_bytes)
    memory.start()
    allocator.start()
    training.step()
    allocated = allocator.stop().peak_allocated_bytes
    assert allocated >= memory.stop().peak_memory_bytes


def test_the_parts_of_a_step_worked_out_by_hand():
    """y = w·x, 1000 weights: at the peak, the parameters, moments, batch, product, gradients."""

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1000))

        def forward(self, x):
            return self.w * x

    training = Training(Scale(), torch.ones(1000))
    training.step()
    probe = training.memory_probe()
    probe.start()
    training.step()
    columns = probe.stop().columns()
    assert columns["parameter_bytes"] == 4000
    assert columns["optimizer_bytes"] == 8000 + 4  # two moments and the step count
    assert columns["other_bytes"] == 4000  # the batch
    total = sum(columns[f"{part}_bytes"] for part in Part)
    assert columns["peak_memory_bytes"] == total
    # Backward of mean(y²): the loss, y, then dL/dy on its way to dL/dw.
    assert columns["activation_bytes"] + columns["gradient_bytes"] >= 8000


def test_gradients_freed_in_the_backward_pass_are_gradients_all_the_same():
    torch.manual_seed(0)
    network = nn.Sequential(*[nn.Linear(100, 100, bias=False) for _ in range(4)])
    optimizers = {p: torch.optim.AdamW([p], fused=True) for p in network.parameters()}

    def apply(parameter):
        optimizers[parameter].step()
        parameter.grad = None

    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(apply)
    batch = torch.randn(1, 100)
    network(batch).sum().backward()
    probe = MemoryProbe(network, next(iter(optimizers.values())), "cpu", [batch])
    probe.start()
    network(batch).sum().backward()
    probe.stop()
    gradient = 100 * 100 * 4
    made = {id(c.storage): c.storage for c in probe.changes if c.storage.part is Part.GRADIENT}
    assert [storage.nbytes for storage in made.values()] == 4 * [gradient]
    assert max(parts[Part.GRADIENT] for _, parts in probe.timeline()) <= 2 * gradient


@pytest.mark.parametrize("fake", [False, True])
def test_storages_that_are_emptied_and_filled_again(fake):
    """As FSDP and MemCNN do it, without an operator."""
    inherited = torch.UntypedStorage.resize_
    network = nn.Linear(1, 1)
    probe = MemoryProbe(network, torch.optim.SGD(network.parameters()), "cpu")
    with FakeTensorMode() if fake else nullcontext():
        probe.start()
        tensor = torch.zeros(1024)
        tensor.untyped_storage().resize_(0)
        between = probe.live_bytes()
        tensor.untyped_storage().resize_(4096)
        torch.ones(512)
        del tensor
        peak = probe.stop()
    assert between == 8  # the weights
    assert peak.peak_memory_bytes == 8 + 4096 + 2048
    changes = [change.nbytes for change in probe.changes if change.storage.operator]
    assert changes == [4096, -4096, 0, 0, 4096, 2048, -2048, -4096]
    assert torch.UntypedStorage.resize_ is inherited


def test_switching_any_probe_off_changes_no_other_probes_number():
    def measure(names: tuple[str, ...]) -> dict[str, int]:
        training = Training(scratch_free_network(), torch.randn(2, 16, 8, 8, 8))
        training.step()
        everything = {"memory": training.memory_probe(), "step": training.step_probe()}
        everything["allocator"] = AllocatorProbe(lambda: 0)
        probes = [everything[name] for name in names]
        for probe in probes:
            probe.start()
        training.step()
        columns = {}
        for probe in reversed(probes):
            columns |= probe.stop().columns()
        return columns

    names = ("memory", "step", "allocator")
    together = measure(names)
    for count in (1, 2):
        for some in itertools.permutations(names, count):
            for column, value in measure(some).items():
                assert together[column] == value, (some, column)


def test_flops_of_a_convolution_in_closed_form():
    network = nn.Conv3d(4, 8, 3, padding=1, bias=False)
    training = Training(network, torch.randn(2, 4, 6, 6, 6))
    training.step()
    probe = training.step_probe()
    probe.start()
    training.step()
    multiply_adds = 2 * 6**3 * 4 * 8 * 27
    # Forward, and the gradient of the weight; that of the batch is not asked for.
    assert probe.stop().flops_step == 2 * 2 * multiply_adds
    wrapped = _IgnoresTime(network)
    assert (
        forward_flops(wrapped, training.batch, torch.zeros(2, dtype=torch.int64)) == multiply_adds
    )


def test_attention_is_counted_on_the_cpu_too():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query = nn.Parameter(torch.randn(1, 2, 32, 16))

        def forward(self, _):
            query = self.query
            return nn.functional.scaled_dot_product_attention(query, query, query)

    training = Training(Attention(), torch.zeros(1))
    training.step()
    probe = training.step_probe()
    probe.start()
    training.step()
    product = 2 * (2 * 32 * 32 * 16)  # of q kᵀ, and of it with v
    # Two products forward; backward q kᵀ again, and four gradients.
    assert probe.stop().flops_step == (2 + 5) * product


class _IgnoresTime(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x, t):
        return self.network(x) + 0 * t.sum()
