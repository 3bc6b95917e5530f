"""Everything about one training step that does not depend on the machine, in one dispatch mode.

What `MemoryProbe` finds, the FLOPs, and beside them which layer ran, in which phase, and how much
data moved. One mode instead of several because each costs a pass through Python per operator; and
a plain one, because the module hooks of torch's `FlopCounterMode` keep tensors alive, which changes
the peak, and fail on `torch.autograd.grad` inside a custom backward pass (pytorch#131753).
"""

import math
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from ..records.rows import Flops, Peak, describe_place
from .flops import flops_of
from .layers import RunningLayer
from .memory import MemoryProbe, Part, operator_name


class Phase(StrEnum):
    FORWARD = "forward"
    """Up to the first operator of the backward pass: noising the batch, the loss."""
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"


_CONVOLUTION = torch.ops.aten.convolution.default
_CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward.default


@dataclass(frozen=True, slots=True)
class Operator:
    """One dispatched operator."""

    name: str
    layer: str
    flops: int
    """A multiply-add as two."""
    traffic: int
    """Bytes of the tensors that it reads and writes; 0 for a view."""
    in_backward: bool
    workspace: int = 0
    """Bytes that cuDNN is expected to take on a card beside the tensors, and to give back."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The state of memory right after an allocation."""

    change: int
    """Index into the probe's `changes`."""
    phase: Phase
    layer: str
    """The layer whose allocation it was; "" is outside of the network."""
    operator: str
    """The operator that allocated; empty if that was before the step."""
    holdings: dict[tuple[Part, str], int]
    """Bytes alive by part and layer: the one that made it or, for parameters, owns it."""

    def __str__(self) -> str:
        return describe_place(self.phase, self.layer, self.operator)


@dataclass(kw_only=True)
class StepCost(Flops, Peak):
    """Memory and work of one training step."""


class StepProbe(MemoryProbe):
    """Watches one training step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.trace: list[Operator] = []
        self._layers = RunningLayer(self.network)

    def start(self) -> None:
        for parameter in self.network.parameters():
            self.layer = self._layers.owner(parameter)
            self._follow(parameter, Part.PARAMETER, "")
        self.layer = ""
        # Hooks in the modules would have it compiled anew, into a graph a layer: another network.
        if not any(module._compiled_call_impl for module in self.network.modules()):
            self._layers.start()
        super().start()

    def stop(self) -> StepCost:
        peak = super().stop()
        self._layers.stop()
        flops = sum(operator.flops for operator in self.trace)
        return StepCost(**peak.columns(), flops_step=flops)

    def about_to_run(self, func: Any) -> None:
        self.layer = self._layers.current()

    def has_run(
        self, func: Any, args: tuple, kwargs: dict[str, Any], out: Any, tensors: list[Tensor]
    ) -> None:
        moved = 0 if func.is_view else sum([tensor.nbytes for tensor in tensors])
        flops = int(flops_of(func, args, kwargs, out))
        in_backward = torch._C._current_graph_task_id() != -1
        scratch = expected_workspace(func, args, out)
        self.trace.append(
            Operator(operator_name(func), self.layer, flops, moved, in_backward, scratch)
        )

    def phases(self) -> list[Phase]:
        """The phase of each operator."""
        inside = [index for index, operator in enumerate(self.trace) if operator.in_backward]
        first, last = (inside[0], inside[-1]) if inside else (len(self.trace), len(self.trace))
        return [
            Phase.FORWARD if i < first else Phase.BACKWARD if i <= last else Phase.OPTIMIZER
            for i in range(len(self.trace))
        ]

    def peak(self) -> Moment:
        """The first moment at which the most is alive."""
        alive = highest = at = 0
        for index, change in enumerate(self.changes):
            alive += change.nbytes
            if alive > highest:
                highest, at = alive, index
        holdings: Counter[tuple[Part, str]] = Counter()
        for change in self.changes[: at + 1]:
            holdings[change.storage.part, change.storage.layer] += change.nbytes
        change = self.changes[at]
        return Moment(
            at,
            self.phases()[change.operator - 1] if change.storage.operator else Phase.FORWARD,
            change.storage.layer,
            change.storage.operator,
            {key: nbytes for key, nbytes in sorted(holdings.items()) if nbytes},
        )


def expected_workspace(func: Any, args: tuple, out: Any) -> int:
    """Bytes of the channels-last copies that cuDNN makes for a convolution of volumes.

    Its fast kernels read and write channels last; where a volume lies otherwise, copies of input,
    weights and output are the workspace. In 16 bits, and in float32 where PyTorch may take TF32,
    that is so in both directions. In IEEE float32 the forward pass needs none, and the backward
    pass copies the weights only where they are more than a matrix, and pads channels to 4.

    It is an estimate: cuDNN chooses its kernels on the card, and takes others where memory is
    short. docs/validation.md and, operator by operator, docs/cards.md have what speaks for it.
    """
    if func is _CONVOLUTION:
        copied = (args[0], args[1], out)
    elif func is _CONVOLUTION_BACKWARD:
        copied = args[:3]  # the gradient of the output, the input, the weights
    else:
        return 0
    volume = args[0]
    on_tensor_cores = volume.dtype in (torch.float16, torch.bfloat16) or (
        volume.dtype is torch.float32 and torch.backends.cudnn.allow_tf32
    )
    if volume.dim() != 5 or all(
        tensor.is_contiguous(memory_format=torch.channels_last_3d) for tensor in copied
    ):
        return 0
    if on_tensor_cores:
        return sum(tensor.nbytes for tensor in copied)
    if volume.dtype is not torch.float32 or func is _CONVOLUTION:
        return 0
    gradient, volume, weights = args[:3]
    nbytes = _aligned(gradient, 1) + _aligned(volume, 1)
    return nbytes if weights.shape[2:].numel() == 1 else nbytes + _aligned(weights, 0, 1)


def _aligned(tensor: Tensor, *axes: int) -> int:
    """Bytes of a copy whose channels, on these axes, are padded to groups of 16 bytes."""
    group = 16 // tensor.element_size()
    sides = [
        -(-side // group) * group if axis in axes else side
        for axis, side in enumerate(tensor.shape)
    ]
    return math.prod(sides) * tensor.element_size()
