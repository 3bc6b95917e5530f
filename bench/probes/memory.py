"""Peak memory of one training step, to the byte, and what it consists of.

`MemoryProbe` follows every live tensor storage on the device through a dispatch mode. It sees the
same operators on real and on fake tensors, so that a prediction and a measurement are one number.
What it does not see is what never becomes a tensor: the scratch of the kernels. `AllocatorProbe`
reads that from what the allocator gave out.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..records.rows import Peak, Pool

_WHICH_DEVICE = torch.ops.prim.device.default
_COPIES = frozenset({torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default})


class Part(StrEnum):
    """What a storage serves; the five add up to the whole."""

    PARAMETER = "parameter"
    GRADIENT = "gradient"
    OPTIMIZER = "optimizer"
    ACTIVATION = "activation"
    """Made in the step and none of the others: kept by the forward pass, made by the backward."""
    OTHER = "other"
    """There before the step and none of the others: the batch, buffers, the noise schedule."""


@dataclass(slots=True)
class Storage:
    """One allocation."""

    nbytes: int
    part: Part
    operator: str
    """The operator that made it; empty if it was there before the step."""
    layer: str = ""
    """The layer that was running, where someone names layers (`bench.probes.cost`)."""
    stream: int = 0
    """Of a fake card, where FSDP has streams of its own; 0 is the default one."""


@dataclass(frozen=True, slots=True)
class Change:
    """One allocation or release, in order of happening."""

    storage: Storage
    nbytes: int
    """Positive for an allocation, negative for a release."""
    operator: int
    """How many operators had been dispatched."""


class MemoryProbe(TorchDispatchMode):
    """Follows the live tensor storages of one step: `start`, a step, `stop`.

    Args:
        network: whose parameters, gradients and buffers are told apart.
        optimizer: whose state is; it must exist, so step once before.
        device: only storages there count.
        others: tensors that live through the step beside those (the batch).
        gathered: whole weights whose storages FSDP fills from all cards, and empties.
    """

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # of a compiled network, what it allocates is seen, not how it is compiled

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard has its price at every operator

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device | str,
        others: Iterable[Tensor] = (),
        gathered: Iterable[Tensor] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer = optimizer
        self.device_type = torch.device(device).type
        self._both = {"cpu", self.device_type} if self.device_type != "cpu" else None
        self.others = list(others)
        self.gathered = list(gathered)
        self.changes: list[Change] = []
        self.operators: list[str] = []
        self.layer = ""
        """The layer that is running, where a subclass knows it."""
        self._live: dict[int, Storage] = {}  # by the identity of the storage's Python object
        self._on_host: dict[int, int] = {}  # bytes of those of the step in the host's memory
        self._host_peak = 0
        self._crossed = 0  # bytes that were copied between the host and the device
        self._finalizers: list[weakref.finalize] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def start(self) -> None:
        self._follow_all([*self.network.parameters(), *self.gathered], Part.PARAMETER)
        self._follow_all(_gradients(self.network), Part.GRADIENT)
        self._follow_all(optimizer_tensors(self.optimizer), Part.OPTIMIZER)
        self._follow_all([*self.network.buffers(), *self.others], Part.OTHER)
        self.others.clear()  # or the batch would outlive its use
        # A gradient is one as soon as it reaches its parameter, also for a method that applies
        # and frees it in the backward pass, before anyone could look at `.grad`.
        self._hooks = [
            parameter.register_hook(self._mark_gradient)
            for parameter in (*self.network.parameters(), *self.gathered)
            if parameter.requires_grad
        ]
        self._watch_resizing()
        self.__enter__()

    def stop(self) -> Peak:
        self.__exit__(None, None, None)
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        for hook in self._hooks:
            hook.remove()
        for gradient in _gradients(self.network):
            self._mark_gradient(gradient)
        for tensor in optimizer_tensors(self.optimizer):  # state that was made anew in the step
            self._mark(tensor, Part.OPTIMIZER)
        for finalizer in self._finalizers:
            finalizer.detach()
        self._live.clear()
        self._on_host.clear()
        parts = self.peak_parts()
        return Peak(
            peak_memory_bytes=sum(parts.values()),
            peak_memory_source="tensor-storages",
            parameter_bytes=parts[Part.PARAMETER],
            gradient_bytes=parts[Part.GRADIENT],
            optimizer_bytes=parts[Part.OPTIMIZER],
            activation_bytes=parts[Part.ACTIVATION],
            other_bytes=parts[Part.OTHER],
            host_bytes=self._host_peak,
            offload_moved_bytes=self._crossed,
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is _WHICH_DEVICE:  # a question, not an operator; only fake tensors are asked
            return args[0].device
        kwargs = kwargs or {}
        inputs = tensors_in((args, kwargs) if kwargs else args)
        for tensor in inputs:  # a constant that no one had declared
            self._follow(tensor, Part.OTHER, "")
        self.about_to_run(func)
        out = func(*args, **kwargs)
        outputs = tensors_in(out)
        self.has_run(func, args, kwargs, out, [*inputs, *outputs])
        if func in _COPIES and {t.device.type for t in (*inputs, *outputs)} == self._both:
            self._crossed += outputs[0].nbytes
        name = operator_name(func)
        self.operators.append(name)
        for tensor in outputs:
            self._follow(tensor, Part.ACTIVATION, name)
        return out

    def about_to_run(self, func: Any) -> None:
        """A hook for subclasses that record more of an operator (`bench.probes.cost`)."""

    def has_run(
        self, func: Any, args: tuple, kwargs: dict[str, Any], out: Any, tensors: list[Tensor]
    ) -> None:
        """As `about_to_run`; `tensors` are those that it read or wrote."""

    def live_bytes(self) -> int:
        """Bytes of the storages that are live now."""
        return sum(storage.nbytes for storage in self._live.values())

    def timeline(self) -> Iterator[tuple[Change, Counter[Part]]]:
        """Each change with the bytes of every part after it, in order of happening.

        What a storage turned out to be (a gradient, say) it was from its allocation.
        """
        parts: Counter[Part] = Counter(dict.fromkeys(Part, 0))
        for change in self.changes:
            parts[change.storage.part] += change.nbytes
            yield change, parts

    def peak_parts(self) -> Counter[Part]:
        """Bytes of every part at the moment of the peak."""
        peak, at_peak = -1, Counter(dict.fromkeys(Part, 0))
        for _, parts in self.timeline():
            if (total := sum(parts.values())) > peak:
                peak, at_peak = total, Counter(parts)
        return at_peak

    def _follow_all(self, tensors: Iterable[Tensor], part: Part) -> None:
        for tensor in tensors:
            self._follow(tensor, part, "")

    def _follow(self, tensor: Tensor, part: Part, operator: str) -> None:
        for storage in self._storages(tensor):
            key = id(storage)
            if key in self._live or key in self._on_host:
                continue
            if tensor.device.type != self.device_type:
                if tensor.device.type == "cpu" and part is not Part.OTHER:
                    self._follow_on_host(storage)
                continue
            entry = Storage(storage.nbytes(), part, operator, self.layer, _stream())
            self._live[key] = entry
            self._record(entry, entry.nbytes)
            self._finalizers.append(weakref.finalize(storage, self._release, key))

    def _watch_resizing(self) -> None:
        """A storage is emptied and filled again by FSDP and by MemCNN; no operator tells of it."""
        self._resize, probe = torch.UntypedStorage.resize_, self

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:
            result = probe._resize(storage, size)
            entry = probe._live.get(id(storage))
            if entry is not None and entry.nbytes != size:
                # What was empty before the step is filled in it.
                entry.operator = entry.operator or ("" if entry.nbytes else "resize_")
                probe._record(entry, -entry.nbytes)
                probe._record(entry, size)
                entry.nbytes = size
            return result

        torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign, assignment]

    def _release(self, key: int) -> None:
        entry = self._live.pop(key, None)
        if entry is not None:
            self._record(entry, -entry.nbytes)

    def _record(self, entry: Storage, nbytes: int) -> None:
        self.changes.append(Change(entry, nbytes, len(self.operators)))

    def _follow_on_host(self, storage: torch.UntypedStorage) -> None:
        self._on_host[id(storage)] = storage.nbytes()
        self._host_peak = max(self._host_peak, sum(self._on_host.values()))
        self._finalizers.append(weakref.finalize(storage, self._on_host.pop, id(storage), None))

    def _mark_gradient(self, gradient: Tensor | None) -> None:
        if gradient is not None:  # or a parameter got it within the backward pass of a layer
            self._mark(gradient, Part.GRADIENT)

    def _mark(self, tensor: Tensor, part: Part) -> None:
        for storage in self._storages(tensor):
            entry = self._live.get(id(storage))
            if entry is not None and entry.part is Part.ACTIVATION:
                entry.part = part

    def _storages(self, tensor: Tensor) -> list[torch.UntypedStorage]:
        if _is_wrapper(type(tensor)):  # 8-bit optimizer state, say
            inner = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])  # type: ignore[attr-defined]
            tensors = [each for each in inner if isinstance(each, Tensor)]  # a mesh is none
            return [storage for each in tensors for storage in self._storages(each)]
        return [tensor.untyped_storage()] if tensor.layout is torch.strided else []


class AllocatorProbe:
    """What the allocator gave out during one step: `peak_allocated_bytes`.

    On a CPU this is the log of `torch.profiler` on top of what was live at the start; it adds the
    scratch of the kernels to the tensors. (On CUDA the trial reads
    `torch.cuda.max_memory_allocated` over the whole window instead.)

    Args:
        live_bytes: tells what is live at the start, which no log of the step shows.
    """

    def __init__(self, live_bytes: Callable[[], int]) -> None:
        self._live_bytes = live_bytes

    def start(self) -> None:
        self.at_start = self._live_bytes()
        self.profiler = torch.autograd.profiler.profile(profile_memory=True, use_device=None)
        self.profiler.__enter__()

    def stop(self) -> Pool:
        self.profiler.__exit__(None, None, None)
        return Pool(peak_allocated_bytes=self.at_start + self._highest_above_start())

    def _highest_above_start(self) -> int:
        result = self.profiler.kineto_results
        assert result is not None
        log = [event for event in result.events() if event.name() == "[memory]"]
        allocated = highest = 0
        for event in sorted(log, key=lambda event: event.start_ns()):
            allocated += event.nbytes()  # type: ignore[attr-defined]
            highest = max(highest, allocated)
        return highest


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Every tensor of the optimizer's state."""
    for leaf in tree_leaves(list(optimizer.state.values())):
        if isinstance(leaf, Tensor):
            yield leaf


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors among an operator's arguments or results, which nest lists, tuples and dicts.

    Several times faster than a general walk over trees, and there are ten thousands of operators.
    """
    if isinstance(value, Tensor):
        return [value]
    found: list[Tensor] = []
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return found
    for element in value:
        if isinstance(element, Tensor):
            found.append(element)
        elif isinstance(element, (tuple, list, dict)):
            found += tensors_in(element)
    return found


def _stream() -> int:
    current = torch.cpu.current_stream()
    return 0 if current is torch.cpu._default_cpu_stream else id(current)


@cache
def operator_name(func: Any) -> str:
    """Such as `aten.convolution.default`."""
    return str(func)


@cache
def _is_wrapper(kind: type) -> bool:
    """Whether tensors of this class only hold others (`__tensor_flatten__` names them)."""
    return hasattr(kind, "__tensor_flatten__")


def _gradients(network: nn.Module) -> Iterator[Tensor]:
    return (p.grad for p in network.parameters() if p.grad is not None)
