"""A training step of anybody's code, on fake tensors, without changing anything of theirs.

The network, the optimizers and the loss are a person's own objects, which know each other in ways
that no copy could follow: closures, hooks, wrappers, a dictionary by parameter. So nothing is
copied. While a prediction lasts, the tensors inside modules and optimizers are exchanged for fake
ones of the same shape, and put back afterwards, whatever happened. A tensor of theirs that an
operator meets all the same is replaced by its fake twin at that call.
"""

import gc
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_map_only

from ..errors import UserError, last_line

Optimizers = Sequence[torch.optim.Optimizer]


class Twins:
    """Fake tensors, one for each real one that was asked for; views share what they shared.

    Args:
        mode: whose fake tensors they are.
        device: where they lie.
    """

    def __init__(self, mode: FakeTensorMode, device: torch.device) -> None:
        self.mode, self.device = mode, device
        self._known: dict[int, tuple[weakref.ref, Tensor]] = {}
        self._storages: dict[tuple[int, torch.device], torch.UntypedStorage] = {}
        self._alive: list[torch.UntypedStorage] = []  # so that no other storage gets its address

    def of(self, tensor: Tensor, device: torch.device | None = None) -> Tensor:
        """The twin of a tensor; a fake one is its own, and so is the meta tensor inside it.

        PyTorch makes fake tensors in sight of `_Meeting` where C++ calls it: in `Function.apply`.
        """
        if isinstance(tensor, FakeTensor) or isinstance(_local(tensor), FakeTensor):
            return tensor
        if tensor.is_meta:
            return tensor
        known = self._known.get(id(tensor))
        if known is None or known[0]() is not tensor:
            twin = self._make(tensor, device or self.device)
            self._known[id(tensor)] = known = weakref.ref(tensor), twin
        return known[1]

    def of_all(self, value: Any) -> Any:
        """`value` with twins for tensors, in whatever nesting of lists, tuples and dicts."""
        return tree_map_only(Tensor, self.of, value)

    def _make(self, tensor: Tensor, device: torch.device) -> Tensor:
        if tensor.layout is not torch.strided:
            raise UserError(
                f"a tensor of layout {tensor.layout} cannot be predicted; make it dense"
            )
        twin: Tensor
        if is_traceable_wrapper_subclass(tensor):
            names, context = tensor.__tensor_flatten__()
            inner = {name: self.of(getattr(tensor, name), device) for name in names}
            twin = type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
        else:
            with torch.no_grad():
                twin = self._on_shared_storage(tensor, device)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(twin, requires_grad=tensor.requires_grad)
        return twin.requires_grad_(tensor.requires_grad)

    def _on_shared_storage(self, tensor: Tensor, device: torch.device) -> Tensor:
        real = tensor.untyped_storage()
        key = real._cdata, device
        if key not in self._storages:
            self._alive.append(real)
            size = torch.empty(real.nbytes(), dtype=torch.uint8, device="meta")
            self._storages[key] = size.untyped_storage()
        meta = torch.empty(0, dtype=tensor.dtype, device="meta")
        meta.set_(self._storages[key], tensor.storage_offset(), tensor.size(), tensor.stride())  # type: ignore[call-overload]
        return FakeTensor(self.mode, meta, device)


def _local(tensor: Tensor) -> Any:
    """The share that a DTensor has of a whole one; None of others."""
    return getattr(tensor, "_local_tensor", None)


@contextmanager
def exchanged(
    twins: Twins, network: nn.Module, optimizers: Optimizers
) -> Iterator[list[nn.Parameter]]:
    """Twins inside every module and optimizer that holds the network's parameters.

    Yields the twins of all parameters that are trained. Afterwards each object, and any other
    module, has its own again: tensors, other attributes, and what lay in lists, dictionaries and
    sets among them.
    """
    trained = {id(p): p for p in _parameters(network, optimizers)}
    everywhere = _living(nn.Module, "_parameters")  # a loss calls modules that nobody named
    modules, holders = _holders(trained, network, optimizers, everywhere)
    real_gradients = [(p, p.grad) for p in trained.values()]
    before = [_Snapshot(each) for each in (*everywhere, *holders)]
    handles: list[Any] = []
    try:
        for module in modules:
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        tensors[name] = twins.of(tensor)  # type: ignore[assignment]
        for optimizer in holders:
            _exchange_optimizer(optimizer, twins)
        for parameter in trained.values():
            handles += _copy_hooks(parameter, twins.of(parameter))
        yield [twins.of(p) for p in trained.values()]  # type: ignore[misc]
    finally:
        for handle in handles:
            handle.remove()
        for snapshot in before:
            snapshot.restore()
        for parameter, gradient in real_gradients:
            if parameter.grad is not gradient:
                parameter.grad = gradient


@contextmanager
def meeting(twins: Twins) -> Iterator[None]:
    """Whatever is called of PyTorch sees twins in place of real tensors."""
    apply = vars(torch.autograd.Function)["apply"]  # of Python, from 2.14 on of C

    def apply_to_twins(cls: type, *args: Any, **kwargs: Any) -> Any:
        return apply.__get__(None, cls)(*twins.of_all(args), **twins.of_all(kwargs))

    with ExitStack() as stack:
        stack.enter_context(
            patch.object(torch.autograd.Function, "apply", classmethod(apply_to_twins))
        )
        # A compiled network runs as it was written, one that is replicated without its replicas.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for wrapper in _WRAPPERS:

            def call(self: Any, *args: Any, **kwargs: Any) -> Any:
                return inside(self)(*args, **kwargs)

            stack.enter_context(patch.object(wrapper, "__call__", call))
        stack.enter_context(_Meeting(twins))
        yield


_WRAPPERS: dict[type[nn.Module], tuple[str, str]] = {
    OptimizedModule: ("_orig_mod", "torch.compile: predicted as not compiled"),
    nn.parallel.DistributedDataParallel: (
        "module",
        "DistributedDataParallel: predicted without its buckets, which take as many bytes as the "
        "gradients unless gradient_as_bucket_view=True; gpus=N predicts them",
    ),
}
"""Modules around a network that change how it runs: where it is, and what a prediction says."""


def inside(network: nn.Module, note: Callable[[str], None] = lambda text: None) -> nn.Module:
    """The network without what `torch.compile` and DDP put around it; `note` is told of it."""
    for wrapper, (name, text) in _WRAPPERS.items():
        if isinstance(network, wrapper):
            note(text)
            return inside(getattr(network, name), note)
    return network


class _Meeting(TorchFunctionMode):
    def __init__(self, twins: Twins) -> None:
        super().__init__()
        self.twins = twins

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*_with_twins(args, self.twins), **_with_twins(kwargs or {}, self.twins))


def _with_twins(value: Any, twins: Twins) -> Any:
    if isinstance(value, Tensor):
        return twins.of(value)
    if type(value) in (tuple, list):
        return type(value)(_with_twins(each, twins) for each in value)
    if type(value) is dict:
        return {key: _with_twins(each, twins) for key, each in value.items()}
    return value


class AllOptimizers:
    """Several optimizers as one, for a probe, which asks for nothing but their state.

    They are those that were given, and within `noticing` those that step, also if nobody named
    them. One that does not step is no part of the prediction.
    """

    def __init__(self, optimizers: Optimizers) -> None:
        self.optimizers = list(optimizers)

    @contextmanager
    def noticing(self) -> Iterator[None]:
        def stepped(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            if not any(optimizer is each for each in self.optimizers):
                self.optimizers.append(optimizer)

        hook = register_optimizer_step_post_hook(stepped)
        try:
            yield
        finally:
            hook.remove()

    @property
    def state(self) -> dict[Any, Any]:
        return {
            (index, key): value
            for index, optimizer in enumerate(self.optimizers)
            for key, value in optimizer.state.items()
        }


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """PyTorch's optimizer inside those of accelerate and Lightning; UserError for what is none."""
    inner = optimizer
    while not type(inner).__module__.startswith("torch.") and (
        found := getattr(inner, "optimizer", None) or getattr(inner, "_optimizer", None)
    ):
        inner = found
    if not isinstance(inner, torch.optim.Optimizer):
        raise UserError(f"optimizer: a torch.optim.Optimizer is needed, not {type(inner).__name__}")
    if isinstance(inner, torch.optim.LBFGS):
        raise UserError(
            "LBFGS evaluates the loss as often as its values decide, which a prediction does not "
            "have: predict with SGD, and add 2 × history_size × the bytes of the parameters"
        )
    return inner


@contextmanager
def errors_in_a_line() -> Iterator[None]:
    """UserError in place of what fake tensors raise, for what a person can do about it."""
    try:
        yield
    except DynamicOutputShapeException as error:
        raise UserError(
            f"{error.func}: the size of what it returns depends on values, which a prediction does "
            "not have; replace it in the loss by something of a known size"
        ) from error
    except DataDependentOutputException as error:
        raise UserError(
            f"{error.func}: its result depends on values, which a prediction does not have"
        ) from error
    except RuntimeError as error:
        text = str(error)
        if "different devices" in text or "same device" in text:
            raise UserError(
                f"tensors on the card and on the CPU meet ({last_line(error)}): on a card the "
                "network and the loss must make theirs with device='cuda' or that of the batch"
            ) from error
        if "overflowed" in text:
            raise UserError(f"larger than a computer can count ({last_line(error)})") from error
        if "DTensor" in text or "placement" in text:
            raise UserError(
                f"shares of weights are taken for whole ones ({last_line(error)}), by an optimizer "
                "or outside of a forward pass; shard=lambda network: [modules] says what to shard"
            ) from error
        no_values = ("not supported for tensor subclasses", "data pointer", "data_ptr")
        if any(each in text for each in no_values):
            raise UserError(
                f"the values of a tensor are read outside of PyTorch ({last_line(error)}), and a "
                "prediction has none"
            ) from error
        raise


class _Snapshot:
    """The attributes of an object, and what lies in those that are containers."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.attributes = dict(vars(owner))
        self.contents = [
            (value, type(value)(value) if not isinstance(value, defaultdict) else dict(value))
            for value in self.attributes.values()
            if isinstance(value, (dict, list, set))
        ]

    def restore(self) -> None:
        vars(self.owner).clear()
        vars(self.owner).update(self.attributes)
        for container, content in self.contents:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)


def _parameters(network: nn.Module, optimizers: Optimizers) -> Iterator[nn.Parameter]:
    yield from network.parameters()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            yield from group["params"]


def _holders(
    trained: Mapping[int, Tensor],
    network: nn.Module,
    optimizers: Optimizers,
    everywhere: Iterable[nn.Module],
) -> tuple[list[nn.Module], list[torch.optim.Optimizer]]:
    """Modules and optimizers with any of these parameters: also those that nobody named.

    A gradient that is released in the backward pass has an optimizer for each parameter; a
    discriminator is known by its optimizer only.
    """
    modules = {id(module): module for module in network.modules()}
    found = {id(optimizer): optimizer for optimizer in optimizers}
    for module in everywhere:
        if any(id(p) in trained for p in module._parameters.values()):
            modules[id(module)] = module
    for optimizer in _living(torch.optim.Optimizer, "param_groups"):
        if any(id(p) in trained for group in optimizer.param_groups for p in group["params"]):
            found[id(optimizer)] = optimizer
    for module in modules.values():
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(
                "a scripted network cannot be predicted; give the one that was scripted"
            )
    return list(modules.values()), list(found.values())


def _living(kind: type[Any], attribute: str) -> list[Any]:
    """All objects of this kind that are complete."""
    return [
        each
        for each in gc.get_objects()
        if issubclass(type(each), kind) and attribute in vars(each)
    ]


def _exchange_optimizer(optimizer: torch.optim.Optimizer, twins: Twins) -> None:
    optimizer.param_groups = [
        {**group, "params": [twins.of(p) for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    on_device = {
        id(p)
        for group in optimizer.param_groups
        if group.get("fused") or group.get("capturable")
        for p in group["params"]
    }
    state: defaultdict[Any, Any] = defaultdict(dict)
    for parameter, values in optimizer.state.items():
        key = twins.of(parameter) if isinstance(parameter, Tensor) else parameter
        if isinstance(values, dict):
            values = dict(values)
            step = values.get("step")
            if isinstance(step, Tensor) and id(key) not in on_device:  # it counts on the host
                values["step"] = twins.of(step, torch.device("cpu"))
        state[key] = twins.of_all(values)
    optimizer.state = state


def _copy_hooks(parameter: Tensor, twin: Tensor) -> Iterable[Any]:
    """On gradients; those that run after accumulation get the real parameter, as they expect."""
    for hook in (parameter._backward_hooks or {}).values():
        yield twin.register_hook(hook)
    after: Mapping[int, Callable[[Tensor], None]]
    after = getattr(parameter, "_post_accumulate_grad_hooks", None) or {}
    for accumulated in after.values():
        yield twin.register_post_accumulate_grad_hook(
            lambda _, hook=accumulated: hook(parameter)  # type: ignore[misc]
        )
