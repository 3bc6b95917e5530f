"""What a training step will need, without computing it: the same step on fake tensors.

A fake tensor has a shape, a type and a storage of so many bytes that is never allocated. Every
operator is dispatched as in a real step, so that the peak of memory, what it consists of, and the
FLOPs are those of the real step, to the byte; only values are missing.

    from bench.predict import predict

    prediction = predict(network, batch, optimizer)    # your own nn.Module
    prediction = predict("idm", preset="paper")        # a method of this benchmark
    print(prediction)
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode

from ..ddpm.step import Training, TrainingStep, make_state
from ..harness.process import without_collector
from ..presets import Overrides, Workload
from ..probes.cost import Moment, Operator, Phase, StepCost, StepProbe
from ..probes.flops import dispatched_forward_flops
from ..probes.memory import Change, Part, tensors_in
from ..sizes import GIB
from .alloc_conf import AllocConf
from .allocator import Block, CachingAllocator, OutOfMemory, Pool
from .fake import FaithfulFakeMode, faking

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Prediction:
    """One whole training step in steady state: the optimizer has its state. Bytes are bytes."""

    parameters: int
    """Number of trained weights."""
    cost: StepCost
    """The peak, its five parts, the FLOPs, as in `runs.csv`."""
    peak: Moment
    """Where the peak is: phase, layer, operator, and every layer's share of it."""
    changes: list[Change]
    """Every allocation and release, in order; first what is there before the step."""
    operators: list[Operator]
    """Every dispatched operator, in order."""
    phases: list[Phase]
    """Of each operator."""

    @property
    def peak_memory_bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[Part, int]:
        """What is alive at the peak."""
        return {part: getattr(self.cost, f"{part}_bytes") for part in Part}

    @property
    def flops_forward(self) -> int | None:
        """By fvcore's rules: a multiply-add as one. None if it was not asked for."""
        return self.cost.flops_forward

    @property
    def flops_step(self) -> int:
        """Forward, backward, recomputation, inversion: a multiply-add as two."""
        assert self.cost.flops_step is not None
        return self.cost.flops_step

    def fits_cuda(self, capacity: int, conf: AllocConf | None = None) -> bool:
        """Whether the caching allocator gets through two steps with so many bytes of its own."""
        try:
            simulate_cuda_allocator(self.changes, capacity, conf)
        except OutOfMemory:
            return False
        return True

    @property
    def stored_bytes(self) -> int:
        """Activations alive when the backward pass begins: what the forward pass stores for it."""
        forward = self.phases.count(Phase.FORWARD)
        return sum(
            change.nbytes
            for change in self.changes
            if change.storage.part is Part.ACTIVATION and change.operator <= forward
        )

    @cached_property
    def cuda_pool(self) -> Pool:
        """What PyTorch's caching allocator holds of a CUDA device after the second step.

        Beyond it a process needs the CUDA context (a few hundred MiB, by card and driver) and the
        workspaces of cuDNN and cuBLAS: neither is in the number.
        """
        return self.cuda_pool_with(None)

    def cuda_pool_with(self, conf: AllocConf | None) -> Pool:
        """The same under other settings of the allocator (`PYTORCH_ALLOC_CONF`)."""
        return simulate_cuda_allocator(self.changes, conf=conf)

    def columns(self) -> dict[str, Any]:
        """As in `runs.csv` (`bench.records.rows.Record`)."""
        return self.cost.columns() | {
            "parameters": self.parameters,
            "peak_memory_source": "predicted",
        }

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {nbytes / GIB:.3f}" for part, nbytes in self.parts.items())
        return (
            f"peak {self.peak_memory_bytes / GIB:.3f} GiB ({parts}), in the {self.peak}; "
            f"{self.flops_step / 1e9:,.1f} GFLOP a step"
        )


def predict(
    network: nn.Module | str,
    batch: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    loss: Loss | None = None,
    *,
    preset: str = "paper",
    **overrides: Any,
) -> Prediction:
    """Predict one training step of your network, or of a method of this benchmark by its name.

    Args:
        network: your module; it is copied to fake tensors, nothing of it is allocated or changed.
            Hooks on its tensors are not copied. Or the name of a method.
        batch: what `loss` takes: by default a tensor, or a tuple of the network's arguments.
        optimizer: over the network's parameters.
        loss: `loss(network, batch) -> scalar`; default: the mean square of the network's output,
            in float32, which stands for any loss without parameters of its own. `torch.autocast`
            belongs in here.
        preset: with a name: the workload (`bench.presets`).
        overrides: with a name: values of the workload (fields of `bench.presets.Overrides`), such
            as `batch_size=8`.

    Raises:
        bench.errors.UserError: for an unknown name, preset, or a workload that cannot be.
        TypeError: if batch or optimizer are missing, or are given together with a name.
    """
    if isinstance(network, str):
        if batch is not None or optimizer is not None or loss is not None:
            raise TypeError("a method, given by name, brings its own batch, optimizer and loss")
        from ..methods import find_methods

        (method,) = find_methods([network])
        return predict_method(method, method.workload(preset, Overrides(**overrides)))
    if batch is None or optimizer is None:
        raise TypeError("predict(network, batch, optimizer): a network of your own needs all three")
    if overrides:
        raise TypeError(f"{', '.join(overrides)}: only for a method, given by its name")
    return _predict_own(network, batch, optimizer, loss or mean_square)


def predict_method(
    method: Any,
    work: Workload,
    training: Training | None = None,
    *,
    count_forward: bool = True,
) -> Prediction:
    """The second step of `method` (`bench.methods.Method`) on `work`.

    Without `count_forward` there are no `flops_forward`, and a tenth of the time is saved.
    """
    with without_collector(), faking(FaithfulFakeMode()):
        network = method.build(work)
        step = TrainingStep(network, work, training)
        make_state(step.optimizer)
        shape = (work.batch_size, len(work.modality), *(work.volume,) * 3)
        batch = step.cut(torch.empty(shape))  # on the host: a card need not see whole volumes
        probe = StepProbe(network, step.optimizer, "cpu", tensors_in(batch))
        cost = _watched(step, batch, probe)
        if count_forward:
            x_t, t, _, keywords = step.noised(batch)
            cost.flops_forward = dispatched_forward_flops(lambda: network(x_t, t, **keywords))
    return _prediction(network, probe, cost)


def mean_square(network: nn.Module, batch: Any) -> Tensor:
    """The loss that stands for any other; `batch` is a tensor or the network's arguments."""
    output = network(*batch) if isinstance(batch, (tuple, list)) else network(batch)
    return output.float().square().mean()


def simulate_cuda_allocator(
    changes: list[Change], capacity: int | None = None, conf: AllocConf | None = None
) -> Pool:
    """Two steps on an empty device; the optimizer's state appears at the end of the first.

    Raises OutOfMemory where `capacity` bytes are not enough.
    """
    allocator = CachingAllocator(capacity, conf)
    before = [change for change in changes if not change.storage.operator and change.nbytes > 0]
    step = [change for change in changes if change.storage.operator]

    def allocate_before(*, optimizer: bool) -> None:
        for change in before:
            part = change.storage.part  # gradients are made, and remade, in the steps
            if part is not Part.GRADIENT and (part is Part.OPTIMIZER) == optimizer:
                allocator.allocate(change.nbytes)

    def run_step() -> Iterable[Block]:
        blocks = {}
        for change in step:
            if change.nbytes > 0:
                blocks[id(change.storage)] = allocator.allocate(change.nbytes)
            elif change.nbytes < 0:
                allocator.release(blocks.pop(id(change.storage)))
        return blocks.values()  # the gradients

    allocate_before(optimizer=False)
    gradients = run_step()
    allocate_before(optimizer=True)
    for block in gradients:  # by the next step's zero_grad
        allocator.release(block)
    run_step()
    return allocator.pool()


class _OwnStep:
    """A training step of anybody's network."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss) -> None:
        self.network, self.optimizer, self.loss = network, optimizer, loss

    def __call__(self, batch: Any) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.network, batch)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def _predict_own(
    network: nn.Module, batch: Any, optimizer: torch.optim.Optimizer, loss: Loss
) -> Prediction:
    # Constants that a forward pass takes from elsewhere are real; they count as "other".
    mode = FaithfulFakeMode(allow_non_fake_inputs=True)
    with FakeCopyMode(mode):  # at once, so that the optimizer's parameters are the network's
        network, batch, optimizer = copy.deepcopy((network, batch, optimizer))
    with without_collector(), faking(mode):
        step = _OwnStep(network, optimizer, loss)
        step(batch)
        inputs = tensors_in(batch)
        probe = StepProbe(network, optimizer, next(network.parameters()).device, inputs)
        cost = _watched(step, batch, probe)
        cost.flops_forward = dispatched_forward_flops(lambda: loss(network, batch))
    return _prediction(network, probe, cost)


def _watched(step: Callable[[Any], Tensor], batch: Any, probe: StepProbe) -> StepCost:
    probe.start()
    try:
        step(batch)
    finally:  # a step that cannot be must not leave its watcher behind
        cost = probe.stop()
    return cost


def _prediction(network: nn.Module, probe: StepProbe, cost: StepCost) -> Prediction:
    return Prediction(
        parameters=sum(p.numel() for p in network.parameters()),
        cost=cost,
        peak=probe.peak(),
        changes=probe.changes,
        operators=probe.trace,
        phases=probe.phases(),
    )
