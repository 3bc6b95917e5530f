"""Reversible backpropagation: a backward pass that rebuilds activations instead of storing them.

A chain of invertible layers x -> y₁ -> ... -> y needs to keep only y. The backward pass walks the
chain from its end: each layer rebuilds its inputs from its outputs, computes its gradients, and
hands both on (Gomez et al. 2017, arXiv:1707.04585; Etmann et al. 2020, arXiv:2005.05220).

Every layer is an autograd node of its own, so parameter gradients (and hooks on them: DDP, an
optimizer inside the backward pass) are ready as soon as their layer is done. Gradients travel
through autograd; values travel beside it, through a `Slot` per intermediate value that the
consumer fills and the producer empties.

A layer is evaluated again in the backward pass. So that nobody can tell:

- its node stands where the layer's `forward` would: hooks on the layer see one ordinary call;
- hooks on parameters rest during the second evaluation and see the gradient that leaves the node;
- the second evaluation finds the autocast, training modes, random numbers and buffers of the
  first (`Mode`).

    ReversibleSequential(*layers)    the usual way in: any modules with `forward` and `inverse`
    Region                           the same for networks with skips: several values at a time
    Frame                            what a layer's own `rewind` gets, if it can beat the default
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, nn

Backward = Literal["inverse", "stored"]

P = ParamSpec("P")
T = TypeVar("T")


class ReconstructionError(RuntimeError):
    """A layer's inverse does not give back the layer's input (raised in checked mode)."""


class Slot:
    """Carries one intermediate value backwards, from the layer that used it to its maker."""

    __slots__ = ("owned", "value")

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self.owned = False

    def put(self, value: Tensor, owned: bool) -> None:
        self.value, self.owned = value, owned

    def take(self) -> tuple[Tensor, bool]:
        value, owned = self.value, self.owned
        if value is None:
            raise RuntimeError(
                "A value that the reversible backward pass needs has not been rebuilt. "
                "Backward passes through one region must not run concurrently."
            )
        self.value, self.owned = None, False
        return value, owned


class Value(NamedTuple):
    """A tensor inside a region, and the slot through which it will be rebuilt."""

    tensor: Tensor
    slot: Slot | None  # None: comes from outside the region, so nobody needs it rebuilt


class Rewound(NamedTuple):
    """What `rewind` returns: the layer's inputs, and the gradients of all it was given."""

    inputs: Sequence[Tensor]
    input_grads: Sequence[Tensor | None]
    side_grads: Sequence[Tensor | None]
    parameter_grads: Sequence[Tensor | None]


class Replay(Protocol):
    """`Mode.replay` of the layer."""

    def __call__(self, continued: bool = False) -> AbstractContextManager[None]: ...


@dataclass
class Frame:
    """Everything a layer needs to undo itself.

    A layer with a cheaper way back than "invert, then recompute" has a method
    `rewind(frame) -> Rewound`. It may overwrite `outputs[i]` where `owned[i]`, never a gradient,
    and should drop outputs as soon as they are used up (`frame.outputs.clear()`). It evaluates
    what it needs in `with frame.replay():`, on views of leaves, and takes gradients by `gradients`.
    """

    outputs: list[Tensor]
    owned: list[bool]
    grads: Sequence[Tensor]
    side: Sequence[Tensor]  # detached, each requires a gradient where one is wanted
    parameters: Sequence[nn.Parameter]  # those that are trained
    needs_grad: Sequence[bool]  # of the inputs
    flipped: bool  # the layer ran as `inverse`: outputs are those of `inverse`
    hooked: bool  # a hook inside the layer may keep what it sees: do not overwrite F's gradients
    at_once: bool  # gradients of parameters go to `.grad` in `rewind`, which returns none of them
    replay: Replay


def left_to_eager(method: Callable[P, T]) -> Callable[P, T]:
    """`torch.compile` calls the method as it is, unless `self.plain`: slots do not fit in a graph.

    `torch.compiler.disable` would do, but imports the compiler at once, which takes two seconds.
    """
    disabled = torch._disable_dynamo(method)

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return (method if args[0].plain else disabled)(*args, **kwargs)  # type: ignore[attr-defined]

    return call


def is_plain(backward: Backward) -> bool:
    """Whether layers are simply called: nothing to rebuild, or a tracer (fvcore) is watching."""
    return backward == "stored" or not torch.is_grad_enabled() or torch.jit.is_tracing()


class Region:
    """One pass through reversible layers; make a new one for every forward pass.

    Values enter as plain tensors (`enter`), run through layers, and leave with `exit`, which is
    the only place that saves activations. Each value must be used exactly once.

    Args:
        backward: "inverse" rebuilds activations; "stored" calls the layers as they are, and
            ordinary autograd stores what it likes.
        checked: keep every input and compare it with its reconstruction; `ReconstructionError`
            names the first layer whose error exceeds `tolerance` (relative to the largest value;
            the default is the square root of the dtype's epsilon). For debugging: it stores
            everything.
        preserve_rng_state: give random layers the same draws when they run again, on the CPU and
            on the device of their inputs. States of generators are kept only for layers that draw.

    Hooks on parameters fire once, with the whole gradient. Hooks on a layer fire once in each
    pass, as without a region; one that changes the layer's inputs or outputs is refused
    (RuntimeError), because that could not be undone. Hooks on modules inside a layer may change
    what they like: forward hooks fire at each evaluation, also in the backward pass, backward
    hooks once in the backward pass.
    """

    def __init__(
        self,
        backward: Backward = "inverse",
        *,
        checked: bool = False,
        tolerance: float | None = None,
        preserve_rng_state: bool = True,
    ) -> None:
        if backward not in ("inverse", "stored"):
            raise ValueError(f'backward must be "inverse" or "stored", got {backward!r}')
        self.plain = is_plain(backward)
        self.checked = checked
        self.tolerance = tolerance
        self.preserve_rng_state = preserve_rng_state

    def enter(self, *tensors: Tensor) -> tuple[Value, ...]:
        return tuple(Value(tensor, None) for tensor in tensors)

    @left_to_eager
    def run(
        self,
        layer: nn.Module,
        values: Sequence[Value],
        *side: Tensor,
        flipped: bool = False,
        name: str = "",
    ) -> tuple[Value, ...]:
        """Run `layer(*values, *side)`, or its `inverse` when `flipped`.

        `side` are tensors that the layer reads but that are not rebuilt (weights computed from
        parameters, a time embedding); they are saved, and they receive gradients.
        """
        tensors = [value.tensor for value in values]
        if self.plain:
            run: Any = layer.inverse if flipped else layer
            return tuple(Value(tensor, None) for tensor in _as_tuple(run(*tensors, *side)))
        step = _Step(
            layer=layer,
            name=name or type(layer).__name__,
            flipped=flipped,
            inputs=[value.slot for value in values],
            side_count=len(side),
            preserve_rng_state=self.preserve_rng_state,
            tolerance=self.tolerance,
        )
        if self.checked:
            step.originals = [tensor.detach() for tensor in tensors]
        outputs = step.run(*tensors, *side)
        step.outputs = [Slot() for _ in outputs]
        return tuple(map(Value, outputs, step.outputs))

    @left_to_eager
    def exit(self, *values: Value) -> tuple[Tensor, ...]:
        tensors = [value.tensor for value in values]
        if self.plain:
            return tuple(tensors)
        return _Exit.apply([value.slot for value in values], *tensors)


class ReversibleSequential(nn.Module):
    """Runs invertible modules one after the other and stores only the last output.

    Each module has `forward` and `inverse` over the same tensors, one or several:
    `inverse(*forward(*x)) == x`. Modules with a `rewind` method (see `Frame`) use it; the others
    are inverted without gradients and then recomputed with gradients.

    The input is neither kept nor changed. Double backward (`create_graph=True`) is refused.
    Modules run again in the backward pass, with the autocast, training modes, random numbers and
    buffers that they had in the forward pass: dropout draws the same, batch normalisation counts
    once. State elsewhere must not change in `forward`. Hooks behave as `Region` says.

    `torch.compile` leaves the chain as it is; compile the functions inside (`layer.net.compile()`).

    Args:
        layers: the modules. One module may appear several times.
        backward: "inverse", or "stored" to run the same layers through ordinary autograd.
        checked, tolerance, preserve_rng_state: see `Region`.
    """

    def __init__(
        self,
        *layers: nn.Module,
        backward: Backward = "inverse",
        checked: bool = False,
        tolerance: float | None = None,
        preserve_rng_state: bool = True,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.backward = backward
        self.checked = checked
        self.tolerance = tolerance
        self.preserve_rng_state = preserve_rng_state

    def forward(self, *x: Tensor) -> Any:
        return self._run(x, flipped=False)

    def inverse(self, *y: Tensor) -> Any:
        return self._run(y, flipped=True)

    @property
    def plain(self) -> bool:
        return is_plain(self.backward)

    @left_to_eager
    def _run(self, tensors: Sequence[Tensor], flipped: bool) -> Any:
        region = Region(
            self.backward,
            checked=self.checked,
            tolerance=self.tolerance,
            preserve_rng_state=self.preserve_rng_state,
        )
        values = region.enter(*tensors)
        order = list(enumerate(self.layers))
        for index, layer in reversed(order) if flipped else order:
            name = f"layers.{index} ({type(layer).__name__})"
            values = region.run(layer, values, flipped=flipped, name=name)
        outputs = region.exit(*values)
        return outputs[0] if len(outputs) == 1 else outputs


# ---------------------------------------------------------------------------------------------
# The autograd nodes


class Mode:
    """What layers must find again when they are evaluated a second time.

    Autocast, training modes, random numbers, and buffers that the layers changed themselves, as
    batch normalisation does. What the first evaluation leaves as it was is not kept.
    """

    def __init__(
        self, layers: Iterable[nn.Module], device: torch.device, preserve_rng_state: bool
    ) -> None:
        self.device = device
        self.preserve_rng_state = preserve_rng_state
        self.modules = [module for layer in layers for module in layer.modules()]
        self.autocast = (
            torch.is_autocast_enabled(device.type),
            torch.get_autocast_dtype(device.type),
        )
        self.rng: list[Tensor] | None = None  # where the generators stood
        self.rng_left: list[Tensor] | None = None  # and where a replay left them
        # Entries of modules' dictionaries, with their values.
        self.state: list[tuple[dict[str, Any], str, Any]] = [
            (vars(module), "training", module.training) for module in self.modules
        ]

    @contextmanager
    def record(self) -> Iterator[None]:
        """Around the first evaluation."""
        rng = _random_states(self.device) if self.preserve_rng_state else []
        saved = [
            (module, {n: (b, b._version, b.detach().clone()) for n, b in _buffers_of(module)})
            for module in self.modules
        ]
        with self.casting():
            yield
        # Generators that stand where they stood have drawn nothing.
        if rng and [*map(_bytes, rng)] != [*map(_bytes, _random_states(self.device))]:
            self.rng = rng
        for module, buffers in saved:
            now: dict[str, Any] = module._buffers
            # Normalisation changes its statistics, but not the version of the tensors.
            if isinstance(module, nn.modules.batchnorm._NormBase) or any(
                now.get(name) is not buffer or buffer._version != version
                for name, (buffer, version, _) in buffers.items()
            ):
                self.state += [(now, name, before) for name, (*_, before) in buffers.items()]

    @contextmanager
    def replay(self, continued: bool = False) -> Iterator[None]:
        """Around a second one; `continued`: with the random numbers after those of the last."""
        now = [(entries, name, entries[name]) for entries, name, _ in self.state]
        rng = [] if self.rng is None else _random_states(self.device)
        try:
            for entries, name, value in self.state:
                entries[name] = value.clone() if isinstance(value, Tensor) else value
            if self.rng is not None:
                start = self.rng_left if continued and self.rng_left else self.rng
                _set_random_states(self.device, start)
            with self.casting():
                yield
        finally:
            for entries, name, value in now:
                entries[name] = value
            if rng:
                self.rng_left = _random_states(self.device)
                _set_random_states(self.device, rng)

    def casting(self) -> torch.autocast:
        enabled, dtype = self.autocast
        # No cache: it would hold a 16-bit copy of every weight until the end of the user's
        # autocast block, and copies made without gradients would be found again with gradients.
        return torch.autocast(self.device.type, dtype=dtype, enabled=enabled, cache_enabled=False)


def _buffers_of(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Without its children's; of a functional layer, none: it is not evaluated again."""
    if getattr(module, "functional", False):
        return []
    return [(name, buffer) for name, buffer in module._buffers.items() if buffer is not None]


def _random_states(device: torch.device) -> list[Tensor]:
    """Of the CPU's generator, and of the device's if it is in use."""
    get = _generator(device, "get")
    return [torch.get_rng_state(), *([get()] if get else [])]


def _set_random_states(device: torch.device, states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    set_state = _generator(device, "set")
    if set_state and len(states) > 1:
        set_state(states[1])


def _generator(device: torch.device, verb: str) -> Callable[..., Any] | None:
    if device.type == "mps":
        return getattr(torch.mps, f"{verb}_rng_state")
    module = getattr(torch, device.type, None)
    if device.type == "cpu" or not getattr(module, "_initialized", False):
        return None
    return functools.partial(getattr(module, f"{verb}_rng_state"), device=device)


def _bytes(state: Tensor) -> bytes:
    # Past the dispatcher: a mode that fakes or counts operators has no business here.
    return ctypes.string_at(state.data_ptr(), state.nbytes)


@dataclass
class _Step:
    """One layer's turn in one forward pass: what its node needs to go back."""

    layer: nn.Module
    name: str
    flipped: bool
    inputs: list[Slot | None]
    side_count: int
    preserve_rng_state: bool
    tolerance: float | None
    originals: list[Tensor] | None = None
    outputs: list[Slot] = field(default_factory=list)
    parameters: list[nn.Parameter] = field(default_factory=list)
    single: bool = False  # the layer returns a tensor, not a tuple
    at_once: bool = False
    seen: list[tuple[int, int]] = field(default_factory=list)
    mode: Mode = field(init=False)

    def run(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the layer, with its node in the place of its `forward`.

        So the node is what hooks on the layer stand around, also those by which FSDP gathers and
        frees parameters. `inverse` has no hooks, with a region or without.
        """
        if self.flipped:
            return self.apply(*tensors)
        attributes = vars(self.layer)
        own = {"forward": attributes["forward"]} if "forward" in attributes else {}
        expected = [_identity(tensor) for tensor in tensors]

        def forward(*seen: Tensor) -> Any:
            del attributes["forward"]
            attributes.update(own)
            self.refuse_changes("inputs", expected, seen)
            outputs = self.apply(*seen)
            expected[:] = [_identity(tensor) for tensor in outputs]
            return outputs[0] if self.single else outputs

        attributes["forward"] = forward
        try:
            # Not `layer(...)`, which is something else after `layer.compile()`.
            outputs = _as_tuple(self.layer._call_impl(*tensors))
        finally:
            if attributes.get("forward") is forward:  # a hook failed before it
                del attributes["forward"]
                attributes.update(own)
        self.refuse_changes("outputs", expected, outputs)
        return outputs

    def apply(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        layer = self.layer
        # A functional layer reads its parameters only through its side inputs.
        if not getattr(layer, "functional", False):
            self.parameters = [p for p in layer.parameters() if p.requires_grad]
        if _any_sharded(self.parameters) and not _any_sharded(tensors):
            raise RuntimeError(
                f"The parameters of {self.name} are sharded while it runs. Use fully_shard on the "
                "layer itself, or on what contains the region, not on a module inside the layer."
            )
        trained: Sequence[Tensor] = self.parameters
        accumulates = getattr(layer, "accumulates", None)
        if trained and accumulates is not None and accumulates(*tensors):
            # Their gradients do not come out of the node; something must make autograd visit it.
            self.at_once = True
            trained = [torch.empty(0, device=tensors[0].device, requires_grad=True)]
        return _ReversibleLayer.apply(self, *tensors, *trained)

    def refuse_changes(self, what: str, expected: list[Any], seen: Sequence[Tensor]) -> None:
        if expected != [_identity(tensor) for tensor in seen]:
            raise RuntimeError(
                f"A hook on {self.name} changes its {what}, which the backward pass could not "
                'undo. Hook a module inside the layer instead, or use backward="stored".'
            )

    def remember_parameters(self) -> None:
        self.seen = [(id(p), p._version) for p in self.layer.parameters()]

    def check_parameters(self) -> None:
        """Autograd notices when a saved tensor has changed; nothing is saved here, so we look."""
        if self.seen != [(id(p), p._version) for p in self.layer.parameters()]:
            raise RuntimeError(
                f"A parameter of {self.name} was modified or replaced between the forward and "
                "the backward pass, so the layer cannot be recomputed. Step the optimizer when "
                "all backward passes through the old weights are done."
            )

    def check_reconstruction(self, inputs: Sequence[Tensor]) -> None:
        if self.originals is None:
            return
        for index, (original, rebuilt) in enumerate(zip(self.originals, inputs, strict=True)):
            allowed = self.tolerance or torch.finfo(original.dtype).eps ** 0.5
            error = (rebuilt - original).abs().max() / original.abs().max().clamp_min(1e-30)
            if not error <= allowed:  # also catches NaN
                raise ReconstructionError(
                    f"{self.name}: input {index} is rebuilt with a relative error of "
                    f"{float(error):.1e} (allowed: {allowed:.1e}). Its "
                    f"{'forward' if self.flipped else 'inverse'} does not undo its "
                    f"{'inverse' if self.flipped else 'forward'}."
                )


class _ReversibleLayer(torch.autograd.Function):
    """Runs a layer without storing anything but its side inputs."""

    @staticmethod
    def forward(ctx: Any, step: _Step, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(step.inputs)
        side = tensors[count : count + step.side_count]
        ctx.step = step
        ctx.save_for_backward(*side)
        step.remember_parameters()
        step.mode = Mode([step.layer], tensors[0].device, step.preserve_rng_state)
        detached = [tensor.detach() for tensor in (*tensors[:count], *side)]
        with step.mode.record():
            outputs = _evaluate(step.layer, step.flipped, *detached)
        step.single = isinstance(outputs, Tensor)
        return _as_tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        refuse_double_backward()
        step: _Step = ctx.step
        step.check_parameters()
        count = len(step.inputs)
        needs = ctx.needs_input_grad[1:]
        held = [slot.take() for slot in step.outputs]
        # By address, so as not to keep them alive while the layer works.
        foreign = {_address(value) for value, owned in held if not owned}
        frame = Frame(
            outputs=[value for value, _ in held],
            owned=[owned for _, owned in held],
            grads=grads,
            side=[
                tensor.detach().requires_grad_(need)
                for tensor, need in zip(ctx.saved_tensors, needs[count:], strict=False)
            ],
            parameters=step.parameters,
            needs_grad=needs[:count],
            flipped=step.flipped,
            hooked=any(map(has_hooks, step.layer.children())),
            at_once=step.at_once,
            replay=step.mode.replay,
        )
        del held, grads
        rewind = getattr(step.layer, "rewind", functools.partial(_invert_and_recompute, step.layer))
        # A user may call backward() inside autocast; the layers' own is in `replay`.
        with torch.autocast(step.mode.device.type, enabled=False):
            rewound: Rewound = rewind(frame)
        step.check_reconstruction(rewound.inputs)
        for slot, tensor in zip(step.inputs, rewound.inputs, strict=True):
            if slot is not None:
                slot.put(tensor, owned=not frame.hooked and may_overwrite(tensor, foreign))
        parameter_grads = [None] if step.at_once else rewound.parameter_grads
        return (None, *rewound.input_grads, *rewound.side_grads, *parameter_grads)


class _Exit(torch.autograd.Function):
    """The end of a region: saves the only activations, and starts the way back from them."""

    @staticmethod
    def forward(ctx: Any, slots: list[Slot | None], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.slots = slots
        outputs = tuple(tensor.view_as(tensor) for tensor in tensors)
        ctx.save_for_backward(*outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        refuse_double_backward()
        for slot, value in zip(ctx.slots, ctx.saved_tensors, strict=True):
            if slot is not None:
                slot.put(value.detach(), owned=False)  # the user may still read it
        return (None, *grads)


def _evaluate(layer: nn.Module, flipped: bool, *tensors: Tensor) -> Any:
    """Past the layer's own hooks: they stand around its node (`_Step.run`)."""
    return layer.inverse(*tensors) if flipped else layer.forward(*tensors)  # type: ignore[operator]


def _as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _invert_and_recompute(layer: nn.Module, frame: Frame) -> Rewound:
    """The general way back, for any module: two evaluations, one of them with gradients."""
    with torch.no_grad(), frame.replay():
        inputs = _as_tuple(_evaluate(layer, not frame.flipped, *frame.outputs, *frame.side))
    frame.outputs.clear()
    with torch.enable_grad(), frame.replay():
        leaves = [
            tensor.detach().requires_grad_(need)
            for tensor, need in zip(inputs, frame.needs_grad, strict=True)
        ]
        outputs = _evaluate(layer, frame.flipped, *views(*leaves, *frame.side))
    found = gradients(_as_tuple(outputs), [*leaves, *frame.side, *frame.parameters], frame.grads)
    count, side = len(leaves), len(frame.side)
    return Rewound(
        [leaf.detach() for leaf in leaves],
        found[:count],
        found[count : count + side],
        found[count + side :],
    )


def views(*leaves: Tensor) -> list[Tensor]:
    """To evaluate a layer on: hooks of `FlopCounterMode` reject leaves (pytorch#131753)."""
    return [leaf.view_as(leaf) for leaf in leaves]


def gradients(
    outputs: Sequence[Any],
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor],
    accumulate: Sequence[nn.Parameter] = (),
) -> list[Tensor | None]:
    """`torch.autograd.grad` that gives None for inputs that want or get no gradient.

    Hooks on the inputs rest: those on a parameter wait for the gradient that leaves the node.
    Gradients of `accumulate` are not returned but added to `.grad` one by one, each as soon as it
    exists, so that a hook may use up one before the next is made. Inputs must then be leaves.
    """
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    pairs = [
        (output, grad)
        for output, grad in zip(outputs, grads, strict=True)
        if not isinstance(output, Tensor) or output.requires_grad
    ]
    if not pairs or not (wanted or accumulate):
        return [None] * len(inputs)
    roots, seeds = zip(*pairs, strict=True)
    if accumulate:
        torch.autograd.backward(roots, seeds, inputs=[*wanted, *accumulate])
        return [tensor.grad for tensor in inputs]
    with _resting_hooks(wanted):
        found = iter(torch.autograd.grad(roots, wanted, seeds, allow_unused=True))
    return [next(found) if tensor.requires_grad else None for tensor in inputs]


@contextmanager
def _resting_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    registered = [tensor._backward_hooks for tensor in tensors if tensor._backward_hooks]
    kept = [dict(hooks) for hooks in registered]
    try:
        for hooks in registered:
            hooks.clear()
        yield
    finally:
        for hooks, before in zip(registered, kept, strict=True):
            hooks.update(before)


def may_overwrite(tensor: Tensor, others: Iterable[Tensor | int]) -> bool:
    """Whether a tensor has its memory to itself; `others` are tensors, or addresses of theirs."""
    addresses = {_address(o) if isinstance(o, Tensor) else o for o in others}
    return tensor.untyped_storage().nbytes() == tensor.nbytes and _address(tensor) not in addresses


def has_hooks(module: nn.Module) -> bool:
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return any(getattr(part, kind) for part in module.modules() for kind in kinds)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Of a tensor's contents, whatever views of it hooks hand on."""
    where = _address(tensor), tensor.storage_offset(), tensor._version
    strides = [s for size, s in zip(tensor.shape, tensor.stride(), strict=True) if size != 1]
    return *where, tensor.shape, *strides, tensor.dtype


def _any_sharded(tensors: Iterable[Tensor]) -> bool:
    return any(hasattr(tensor, "placements") for tensor in tensors)  # DTensor, without its import


def refuse_double_backward() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "The reversible backward pass cannot be differentiated again (create_graph=True): it "
            'keeps no graph. Use backward="stored" for higher-order gradients.'
        )
