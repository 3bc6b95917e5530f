"""Reversible backpropagation: a backward pass that rebuilds activations instead of storing them.

A chain of invertible layers x -> y₁ -> ... -> y needs to keep only y. The backward pass walks the
chain from its end: each layer rebuilds its inputs from its outputs, computes its gradients, and
hands both on (Gomez et al. 2017, arXiv:1707.04585; Etmann et al. 2020, arXiv:2005.05220).

Every layer is an autograd node of its own, so parameter gradients (and hooks on them: DDP, an
optimizer inside the backward pass) are ready as soon as their layer is done. Gradients travel
through autograd; values travel beside it, through a `Slot` per intermediate value that the
consumer fills and the producer empties.

    ReversibleSequential(*layers)    the usual way in: any modules with `forward` and `inverse`
    Region                           the same for networks with skips: several values at a time
    Frame                            what a layer's own `rewind` gets, if it can beat the default
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

Backward = Literal["inverse", "stored"]


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


@dataclass
class Frame:
    """Everything a layer needs to undo itself.

    A layer with a cheaper way back than "invert, then recompute" has a method
    `rewind(frame) -> Rewound`. It may overwrite `outputs[i]` where `owned[i]`, never a gradient,
    and should drop outputs as soon as they are used up (`frame.outputs.clear()`).
    """

    outputs: list[Tensor]
    owned: list[bool]
    grads: Sequence[Tensor]
    side: Sequence[Tensor]  # detached, each requires a gradient where one is wanted
    parameters: Sequence[nn.Parameter]  # those that are trained
    needs_grad: Sequence[bool]  # of the inputs
    flipped: bool  # the layer ran as `inverse`: outputs are those of `inverse`
    replay: Callable[[], AbstractContextManager[None]]  # forward's autocast and random state


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
        preserve_rng_state: give random layers the same draws when they run again. None: only
            where a layer contains active dropout.
    """

    def __init__(
        self,
        backward: Backward = "inverse",
        *,
        checked: bool = False,
        tolerance: float | None = None,
        preserve_rng_state: bool | None = None,
    ) -> None:
        if backward not in ("inverse", "stored"):
            raise ValueError(f'backward must be "inverse" or "stored", got {backward!r}')
        self.plain = is_plain(backward)
        self.checked = checked
        self.tolerance = tolerance
        self.preserve_rng_state = preserve_rng_state

    def enter(self, *tensors: Tensor) -> tuple[Value, ...]:
        return tuple(Value(tensor, None) for tensor in tensors)

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
            outputs = _call(layer, flipped, *tensors, *side)
            return tuple(Value(tensor, None) for tensor in outputs)
        # A functional layer reads its parameters only through its side inputs.
        functional = getattr(layer, "functional", False)
        parameters = [p for p in layer.parameters() if p.requires_grad and not functional]
        step = _Step(
            layer=layer,
            name=name or type(layer).__name__,
            flipped=flipped,
            inputs=[value.slot for value in values],
            outputs=[],
            side_count=len(side),
            parameters=parameters,
            mode=_Mode.current(tensors[0], self._is_random(layer)),
            tolerance=self.tolerance,
        )
        if self.checked:
            step.originals = [tensor.detach() for tensor in tensors]
        outputs = _ReversibleLayer.apply(step, *tensors, *side, *step.parameters)
        step.outputs = [Slot() for _ in outputs]
        return tuple(map(Value, outputs, step.outputs))

    def exit(self, *values: Value) -> tuple[Tensor, ...]:
        tensors = [value.tensor for value in values]
        if self.plain:
            return tuple(tensors)
        return _Exit.apply([value.slot for value in values], *tensors)

    def _is_random(self, layer: nn.Module) -> bool:
        if self.preserve_rng_state is not None:
            return self.preserve_rng_state
        dropout = (nn.modules.dropout._DropoutNd, nn.MultiheadAttention, nn.RNNBase)
        return any(isinstance(m, dropout) and m.training for m in layer.modules())


class ReversibleSequential(nn.Module):
    """Runs invertible modules one after the other and stores only the last output.

    Each module has `forward` and `inverse` over the same tensors, one or several:
    `inverse(*forward(*x)) == x`. Modules with a `rewind` method (see `Frame`) use it; the others
    are inverted without gradients and then recomputed with gradients.

    The input is neither kept nor changed. Double backward (`create_graph=True`) is refused.
    Modules must not change state in `forward`: it runs again in the backward pass, so batch
    normalisation would count every batch twice.

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
        preserve_rng_state: bool | None = None,
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


@dataclass
class _Mode:
    """The global switches of the forward pass that a second evaluation must see again."""

    device: torch.device
    autocast: tuple[bool, torch.dtype]
    rng: list[Tensor] | None

    @classmethod
    def current(cls, tensor: Tensor, random: bool) -> _Mode:
        device = tensor.device
        autocast = (torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type))
        rng = None
        if random:
            rng = [torch.get_rng_state()]
            if device.type != "cpu":
                rng.append(getattr(torch, device.type).get_rng_state(device))
        return cls(device, autocast, rng)

    def casting(self) -> torch.autocast:
        enabled, dtype = self.autocast
        # No cache: it would hold a 16-bit copy of every weight until the end of the user's
        # autocast block, and copies made without gradients would be found again with gradients.
        return torch.autocast(self.device.type, dtype=dtype, enabled=enabled, cache_enabled=False)

    @contextmanager
    def replay(self) -> Iterator[None]:
        with self.casting():
            if self.rng is None:
                yield
                return
            accelerators = [] if self.device.type == "cpu" else [self.device]
            kind = self.device.type if accelerators else "cuda"
            with torch.random.fork_rng(accelerators, device_type=kind):
                torch.set_rng_state(self.rng[0])
                if accelerators:
                    getattr(torch, kind).set_rng_state(self.rng[1], self.device)
                yield


@dataclass
class _Step:
    """One layer's turn in one forward pass: what its node needs to go back."""

    layer: nn.Module
    name: str
    flipped: bool
    inputs: list[Slot | None]
    outputs: list[Slot]
    side_count: int
    parameters: list[nn.Parameter]
    mode: _Mode
    tolerance: float | None
    originals: list[Tensor] | None = None
    seen: list[tuple[int, int]] = field(default_factory=list)

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
        with step.mode.casting():
            return _call(step.layer, step.flipped, *tensors[:count], *side)

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
                slot.put(tensor, owned=may_overwrite(tensor, foreign))
        return (None, *rewound.input_grads, *rewound.side_grads, *rewound.parameter_grads)


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


def _call(layer: nn.Module, flipped: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
    run: Any = layer.inverse if flipped else layer
    outputs = run(*tensors)
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


def _invert_and_recompute(layer: nn.Module, frame: Frame) -> Rewound:
    """The general way back, for any module: two evaluations, one of them with gradients."""
    with torch.no_grad(), frame.replay():
        inputs = _call(layer, not frame.flipped, *frame.outputs, *frame.side)
    frame.outputs.clear()
    with torch.enable_grad(), frame.replay():
        leaves = [
            tensor.detach().requires_grad_(need)
            for tensor, need in zip(inputs, frame.needs_grad, strict=True)
        ]
        outputs = _call(layer, frame.flipped, *leaves, *frame.side)
    grads = gradients(outputs, [*leaves, *frame.side, *frame.parameters], frame.grads)
    count, side = len(leaves), len(frame.side)
    return Rewound(
        [leaf.detach() for leaf in leaves],
        grads[:count],
        grads[count : count + side],
        grads[count + side :],
    )


def gradients(
    outputs: Sequence[Any],
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor],
    accumulate: Sequence[nn.Parameter] = (),
) -> list[Tensor | None]:
    """`torch.autograd.grad` that gives None for inputs that want or get no gradient.

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
    found = iter(torch.autograd.grad(roots, wanted, seeds, allow_unused=True))
    return [next(found) if tensor.requires_grad else None for tensor in inputs]


def may_overwrite(tensor: Tensor, others: Iterable[Tensor | int]) -> bool:
    """Whether a tensor has its memory to itself; `others` are tensors, or addresses of theirs."""
    addresses = {_address(o) if isinstance(o, Tensor) else o for o in others}
    return tensor.untyped_storage().nbytes() == tensor.nbytes and _address(tensor) not in addresses


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def refuse_double_backward() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "The reversible backward pass cannot be differentiated again (create_graph=True): it "
            'keeps no graph. Use backward="stored" for higher-order gradients.'
        )
