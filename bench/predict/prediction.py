"""What a training step will need, without computing it: the same step on fake tensors.

A fake tensor has a shape, a type and a storage of so many bytes that is never allocated. Every
operator is dispatched as in a real step, so that the peak of memory, what it consists of, and the
FLOPs are those of the real step, to the byte; only values are missing.

    from bench.predict import predict

    prediction = predict(network, batch, optimizer)    # your own nn.Module
    prediction = predict("idm", preset="paper")        # a method of this benchmark
    print(prediction)
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..data.batches import moved
from ..ddpm.diffusion import Diffusion
from ..ddpm.samplers import Conditions, ancestral, denoiser, given
from ..ddpm.step import Training, TrainingStep, make_state, random_batch
from ..errors import UserError
from ..harness.process import without_collector
from ..presets import Overrides, Workload
from ..probes.cost import Moment, Operator, Phase, StepCost, StepProbe
from ..probes.flops import dispatched_forward_flops
from ..probes.memory import Change, Part, Storage, tensors_in
from ..sizes import show_size
from .alloc_conf import AllocConf
from .allocator import Block, CachingAllocator, OutOfMemory, Pool
from .card import on_card
from .cluster import Cluster, Units, gathered, refuse_what_cannot_be
from .fake import FaithfulFakeMode, faking
from .own import AllOptimizers, Twins, errors_in_a_line, exchanged, inside, meeting, unwrapped

WORTH_SAYING = 2**20
"""Bytes on the host; fewer are an optimizer's counts of steps."""
Loss = Callable[[nn.Module, Any], Tensor]
Device = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Prediction:
    """One whole training step in steady state: the optimizer has its state. Bytes are bytes.

    Or, where there was no optimizer, one forward pass that keeps nothing for a backward pass.
    """

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
    assumptions: tuple[str, ...] = ()
    """What was taken for granted where the step asked for a value, a line each."""

    @property
    def peak_memory_bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[Part, int]:
        """What is alive at the peak."""
        return {part: getattr(self.cost, f"{part}_bytes") for part in Part}

    @property
    def host_bytes(self) -> int:
        """What the step keeps in the memory of the host, at its own peak; 0 on a CPU."""
        return self.cost.host_bytes or 0

    @property
    def offload_moved_bytes(self) -> int:
        """What is copied to the host and back in a step; 0 on a CPU."""
        return self.cost.offload_moved_bytes or 0

    @property
    def flops_forward(self) -> int | None:
        """By fvcore's rules: a multiply-add as one. None if it was not asked for."""
        return self.cost.flops_forward

    @property
    def flops_step(self) -> int:
        """Forward, backward, recomputation, inversion: a multiply-add as two."""
        assert self.cost.flops_step is not None
        return self.cost.flops_step

    @property
    def attention_share(self) -> float:
        """Of the step's FLOPs, what attention's products of all pairs of voxels take."""
        spent = sum(each.flops for each in self.operators if "attention" in each.name)
        return spent / max(1, self.flops_step)

    def fits_cuda(self, capacity: int, conf: AllocConf | None = None) -> bool:
        """Whether the caching allocator gets through two steps with so many bytes of its own.

        With the workspaces that cuDNN is expected to take.
        """
        try:
            simulate_cuda_allocator(self._with_workspaces(), capacity, conf)
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

    @cached_property
    def cuda_pool_with_workspaces(self) -> Pool:
        """The same with what cuDNN is expected to take for convolutions of volumes.

        An estimate (`bench.probes.cost.expected_workspace`), where `cuda_pool` is counted.
        """
        return simulate_cuda_allocator(self._with_workspaces())

    def _with_workspaces(self) -> list[Change]:
        """Each workspace is taken when the operator's outputs are there, and given back."""
        changes: list[Change] = []
        for change, following in zip(self.changes, [*self.changes[1:], None], strict=True):
            changes.append(change)
            last = following is None or following.nbytes < 0 or following.operator > change.operator
            if change.nbytes > 0 and last and change.storage.operator:
                nbytes = self.operators[change.operator - 1].workspace
                if nbytes:
                    space = Storage(nbytes, Part.OTHER, "workspace", change.storage.layer)
                    changes.append(Change(space, nbytes, change.operator))
                    changes.append(Change(space, -nbytes, change.operator))
        return changes

    def columns(self) -> dict[str, Any]:
        """As in `runs.csv` (`bench.records.rows.Record`)."""
        return self.cost.columns() | {
            "parameters": self.parameters,
            "peak_memory_source": "predicted",
        }

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {show_size(nbytes)}" for part, nbytes in self.parts.items())
        host = (
            f"; {show_size(self.host_bytes)} on the host" if self.host_bytes >= WORTH_SAYING else ""
        )
        step = (
            f"peak {show_size(self.peak_memory_bytes)} ({parts}), in the {self.peak}{host}; "
            f"{self.flops_step / 1e9:,.1f} GFLOP a step"
        )
        return "\n".join([step, *(f"Assumed: {line}" for line in self.assumptions)])


def predict(
    network: nn.Module | Callable[[], nn.Module] | str,
    batch: Any = None,
    optimizer: Any = None,
    loss: Loss | None = None,
    *,
    step: Callable[[nn.Module, Any, Any], Any] | None = None,
    device: Device = "cuda",
    gpus: int = 1,
    shard: bool | Units = False,
    sampling: bool = False,
    preset: str = "paper",
    **overrides: Any,
) -> Prediction:
    """Predict one training step of your network, or of a method of this benchmark by its name.

    Your objects are used as they are, with fake tensors in place of theirs, and get theirs back:
    nothing of them is allocated or changed, also where the prediction fails.

    Args:
        network: your module, or a function that builds it inside the prediction, where `cuda` is
            there and nothing is allocated. Or the name of a method.
        batch: what `loss` takes: by default a tensor, a tuple of the network's arguments or a dict
            of its keywords. Or a function that makes it.
        optimizer: over the network's parameters; several, as a list, all step after one backward
            pass; or a function of the parameters, such as `torch.optim.AdamW`. None: a forward pass
            without gradients, as in sampling; what `loss` returns is what is drawn.
        loss: `loss(network, batch) -> scalar`; default: the mean square of the network's output,
            in float32, which stands for any loss without parameters of its own. `torch.autocast`
            belongs in here.
        step: `step(network, batch, optimizer)`, a whole training step in place of zero_grad,
            loss, backward and step: accumulation, a GradScaler, clipping, two losses.
        device: "cuda": what a card needs, by CUDA's rules; "cpu": what this processor needs.
        gpus: cards that train together, each on such a batch; the prediction is of one of them.
            Under DistributedDataParallel with its defaults, unless there is
        shard: FSDP2 (`fully_shard`) of every member of the network's lists of modules (ModuleList,
            ModuleDict), or of the modules that the network's `shard_units()` returns, and of the
            whole. Or a function from the network to those modules.
        sampling: with a name: a step of drawing volumes, whole ones, in place of a training step.
        preset: with a name: the workload (`bench.presets`).
        overrides: with a name: values of the workload (fields of `bench.presets.Overrides`), such
            as `batch_size=8`.

    Raises:
        bench.errors.UserError: for an unknown name, preset, or a workload that cannot be; for what
            cannot be predicted, in one line that says what to do.
        TypeError: if the batch is missing, or is given together with a name.
    """
    if isinstance(network, str):
        if any(each is not None for each in (batch, optimizer, loss, step)):
            raise TypeError("a method, given by name, brings its own batch, optimizer and loss")
        from ..methods import find_methods

        (method,) = find_methods([network])
        given = Overrides(**overrides)
        work = method.workload(preset, seen_whole(method, preset, given) if sampling else given)
        return predict_method(
            method, work, device=device, sampling=sampling, gpus=gpus, shard=shard
        )
    if batch is None:
        raise TypeError("predict(network, batch, optimizer): a network of your own needs a batch")
    if overrides or sampling:
        names = ", ".join([*overrides, *(["sampling"] if sampling else [])])
        raise TypeError(f"{names}: only for a method, given by its name")
    refuse_what_cannot_be(gpus, shard, sampling=optimizer is None and step is None)
    cluster = Cluster(gpus, shard)
    return _predict_own(network, batch, optimizer, loss or mean_square, step, device, cluster)


def predict_method(
    method: Any,
    work: Workload,
    training: Training | None = None,
    *,
    device: Device = "cuda",
    sampling: bool = False,
    guidance: float = 1.0,
    count_forward: bool = True,
    gpus: int = 1,
    shard: bool | Units = False,
) -> Prediction:
    """The second step of `method` (`bench.methods.Method`) on `work`.

    With `sampling` it is a step of eq. (7) instead, without gradients, on whole volumes; a
    `guidance` other than 1 doubles its batch. Without `count_forward` there are no `flops_forward`,
    and a tenth of the time is saved. `gpus` and `shard` are as in `predict`.
    """
    refuse_what_cannot_be(gpus, shard, method.name, method.technique_names, sampling=sampling)
    if sampling:
        return _predict_sampling(method, work, device, guidance, count_forward)
    mode, cluster = FaithfulFakeMode(), Cluster(gpus, shard)
    mode.assumptions += [each.assumed for each in method.techniques if each.assumed]
    with ExitStack() as stack:
        stack.enter_context(_ieee())
        where = stack.enter_context(_on(device, mode))
        stack.enter_context(cluster.joined(where))
        stack.enter_context(errors_in_a_line())
        stack.enter_context(faking(mode))
        with where:
            network = method.build(work)
        stack.enter_context(cluster.sharded(network))
        step = TrainingStep(network, work, training, where)
        make_state(step.optimizer)
        # A card need not see whole volumes.
        batch = moved(step.cut(*random_batch(work, network)), where)
        step.network = cluster.replicated(network)
        if gpus > 1:  # the first makes what is gathered into, and the buckets
            step(batch)
        probe = StepProbe(
            network,
            step.optimizer,
            where,
            [*tensors_in(step.held(batch)), *cluster.buckets()],
            gathered(network),
        )
        cost = _watched(step, batch, probe)
        if count_forward:
            x_t, t, _, keywords = step.noised(batch)
            cost.flops_forward = dispatched_forward_flops(lambda: network(x_t, t, **keywords))
    return _prediction(network, probe, cost, mode)


def _predict_sampling(
    method: Any, work: Workload, device: Device, guidance: float, count_forward: bool
) -> Prediction:
    mode = FaithfulFakeMode()
    diffusion = Diffusion()  # the coefficients are values
    with _ieee(), _on(device, mode) as where, errors_in_a_line(), faking(mode):
        with where:
            network = method.build(work).eval()
        drawn_from = random_batch(work, sides=work.grid)
        conditions = Conditions.of(work, *drawn_from).some(slice(None), where)
        x_T = torch.empty(work.batch_size, len(work.modality), *work.grid, device=where)
        nothing: Any = AllOptimizers([])
        denoise = given(denoiser(network, work, where), conditions, guidance)
        probe = StepProbe(network, nothing, where, tensors_in([x_T, *conditions]))
        cost = _watched(lambda x_T: next(ancestral(diffusion, denoise, x_T)), x_T, probe)
        if count_forward:
            t = torch.zeros(work.batch_size, dtype=torch.int64, device=where)
            cost.flops_forward = dispatched_forward_flops(lambda: denoise(x_T, t))
    return _prediction(network, probe, cost, mode)


def _ieee() -> AbstractContextManager[None]:
    """float32 as `run` computes it."""
    cudnn = torch.backends.cudnn
    flags: AbstractContextManager[None] = cudnn.flags(enabled=cudnn.enabled, allow_tf32=False)
    return flags


def seen_whole(method: Any, preset: str, overrides: Overrides) -> Overrides:
    """The same with whole volumes in place of patches: what a sampler sees."""
    volume = overrides.volume or method.workload(preset).volume
    return replace(overrides, patch=volume)


def mean_square(network: nn.Module, batch: Any) -> Tensor:
    """The loss that stands for any other; `batch` is a tensor or the network's arguments.

    Raises UserError where the network's output is not one tensor.
    """
    output = _output(network, batch)
    if not isinstance(output, Tensor):
        raise UserError(
            f"the network returns a {type(output).__name__}: say what is trained on it, "
            "loss=lambda network, batch: …"
        )
    return output.float().square().mean()


def _output(network: nn.Module, batch: Any) -> Any:
    if isinstance(batch, dict):
        return network(**batch)
    return network(*batch) if isinstance(batch, (tuple, list)) else network(batch)


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
                allocator.allocate(change.nbytes, change.storage.stream)

    def run_step() -> Iterable[Block]:
        blocks = {}
        for change in step:
            if change.nbytes > 0:
                blocks[id(change.storage)] = allocator.allocate(
                    change.nbytes, change.storage.stream
                )
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


@contextmanager
def _on(device: Device, mode: FaithfulFakeMode) -> Iterator[torch.device]:
    """The device of a prediction: the CPU, or the card that `cuda` then is."""
    with without_collector():
        if device == "cpu":
            yield torch.device("cpu")
        elif device == "cuda":
            with on_card(mode.assumptions.append) as card:
                yield card
        else:
            raise UserError(f"device {device}: predicted are cuda and cpu")


class _OwnStep:
    """A training step of anybody's network, or a forward pass of it."""

    def __init__(
        self,
        network: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        loss: Loss,
        step: Callable[[], Any] | None,
    ) -> None:
        self.network, self.optimizers, self.loss, self.step = network, optimizers, loss, step
        self.drawn: Any = None
        """What a forward pass returns lives on."""

    def __call__(self, batch: Any) -> None:
        if self.step is not None:
            self.step()
        elif not self.optimizers:
            with torch.no_grad():
                draw = _output if self.loss is mean_square else self.loss
                self.drawn = draw(self.network, batch)
        else:
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            self.loss(self.network, batch).backward()
            for optimizer in self.optimizers:
                optimizer.step()


def _predict_own(
    network: Any,
    batch: Any,
    optimizer: Any,
    loss: Loss,
    step: Any,
    device: Device,
    cluster: Cluster,
) -> Prediction:
    # Constants that a forward pass takes from elsewhere are real; they count as "other".
    mode = FaithfulFakeMode(allow_non_fake_inputs=True)
    with ExitStack() as stack:
        where = stack.enter_context(_on(device, mode))
        stack.enter_context(cluster.joined(where))
        twins = Twins(mode, where)
        stack.enter_context(errors_in_a_line())
        if not isinstance(network, nn.Module):
            with faking(mode), where:
                network = network()
        if not isinstance(batch, Tensor) and callable(batch):
            with faking(mode), where:
                batch = batch()
        batch = twins.of_all(batch)
        if not any(p.is_cuda for p in network.parameters()):
            # Written where the CPU is all there is: a tensor without a device is one of the step's.
            stack.enter_context(where)
        is_made = isinstance(optimizer, type) or (
            callable(optimizer) and not hasattr(optimizer, "step")
        )
        given = [] if is_made or not optimizer else optimizer
        optimizers = [
            unwrapped(e) for e in (given if isinstance(given, (list, tuple)) else [given])
        ]
        parameters = stack.enter_context(exchanged(twins, network, optimizers))
        stack.enter_context(faking(mode))
        stack.enter_context(meeting(twins))
        bare = inside(network, mode.assumptions.append)
        parameters = stack.enter_context(cluster.spread(bare, parameters, optimizers))
        if is_made:
            given = optimizer(bare.parameters())
            optimizers.append(unwrapped(given))
        whole = _with_parameters(bare, parameters)
        called = network if cluster.shard else cluster.replicated(network)
        own = step and (lambda: step(called, batch, given))
        once = _OwnStep(called, optimizers, loss, own)
        holders: Any = AllOptimizers(optimizers)
        if optimizers or step:
            with holders.noticing():
                once(batch)
        others = [*tensors_in(batch), *cluster.buckets()]
        probe = StepProbe(whole, holders, where, others, gathered(bare))
        cost = _watched(once, batch, probe)
        if step is None:
            cost.flops_forward = dispatched_forward_flops(lambda: loss(network, batch))
        return _prediction(whole, probe, cost, mode)


def _with_parameters(network: nn.Module, parameters: Sequence[nn.Parameter]) -> nn.Module:
    """The network, or it and the parameters that only an optimizer knows: a discriminator's."""
    own = {id(p) for p in network.parameters()}
    others = [p for p in parameters if id(p) not in own]
    if not others:
        return network
    return nn.ModuleDict({"network": network, "others": nn.ParameterList(others)})


def _watched(step: Callable[[Any], Any], batch: Any, probe: StepProbe) -> StepCost:
    probe.start()
    try:
        step(batch)
    finally:  # a step that cannot be must not leave its watcher behind
        cost = probe.stop()
    return cost


def _prediction(
    network: nn.Module, probe: StepProbe, cost: StepCost, mode: FaithfulFakeMode
) -> Prediction:
    return Prediction(
        parameters=sum(p.numel() for p in network.parameters()),
        cost=cost,
        peak=probe.peak(),
        changes=probe.changes,
        operators=probe.trace,
        phases=probe.phases(),
        assumptions=tuple(dict.fromkeys(mode.assumptions)),
    )
