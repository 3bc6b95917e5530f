"""Additive coupling: x_b + F(x_a), undone by subtraction (Dinh et al. 2014, arXiv:1410.8516)."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from .reversible import Frame, Rewound, gradients, has_hooks, may_overwrite, views

T = TypeVar("T")


def is_too_thin(x: Tensor) -> bool:
    """Whether oneDNN's 16-bit convolution would leave weight gradients uninitialised.

    It does for volumes of depth 2 (seen with PyTorch 2.13), which the bottom of `paper` is. Asked
    on every device, so that the memory predicted on one is that of another.
    """
    return x.ndim == 5 and x.shape[2] == 2


def full_precision_if_thin(x: Tensor) -> AbstractContextManager[Any]:
    return torch.autocast(x.device.type, enabled=False) if is_too_thin(x) else nullcontext()


def wide_if_thin(convolve: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same for networks whose weights are of 16 bits: the convolution in float32, rounded."""

    @functools.wraps(convolve)
    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
        if weight.dtype.itemsize > 2 or not is_too_thin(x):
            return convolve(x, weight, bias, **options)
        wide = None if bias is None else bias.float()
        return convolve(x.float(), weight.float(), wide, **options).to(weight.dtype)

    return run


CONVOLVE: dict[int, Callable[..., Tensor]] = {2: F.conv2d, 3: wide_if_thin(F.conv3d)}


class Conv3d(nn.Conv3d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return CONVOLVE[3](input, weight, bias, padding=self.padding)


CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: Conv3d}


class AdditiveCoupling(nn.Module):
    """(x_a, x_b) -> (x_a, x_b + F(x_a)) for any F that keeps the shape of x_b.

    One evaluation of F serves both the inverse and the gradient: F(y_a), run once with gradients
    on, gives x_b = y_b - F(y_a) by its value and the backward pass by its graph. A training step
    costs 4/3 of the FLOPs of stored activations; inverting first and recomputing after, 5/3.

    If F is a sum of functions that can be evaluated one after the other, it may offer them as
    `parts(x_a) -> [F₁, F₂, ...]`; then only one of their graphs exists at a time.

    Args:
        function: F. Called as `F(x_a, *side)`; `side` may be a time embedding.
        changes: which of the two halves is x_b. Alternate it, so that both change.

    Attributes:
        accumulates_at_once: gradients reach F's parameters one by one while F is differentiated,
            for an optimizer that uses them up in the backward pass. F must not be shared.
    """

    def __init__(self, function: nn.Module, changes: Literal[0, 1] = 1) -> None:
        super().__init__()
        self.function = function
        self.changes = changes
        self.accumulates_at_once = False

    def forward(self, x1: Tensor, x2: Tensor, *side: Tensor) -> tuple[Tensor, Tensor]:
        """Both halves (B, C/2, *grid), and back the same."""
        a, b = self._roles(x1, x2)
        return self._halves(a, self._shifted(b, a, side, 1))

    def inverse(self, y1: Tensor, y2: Tensor, *side: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self._roles(y1, y2)
        return self._halves(a, self._shifted(b, a, side, -1))

    def rewind(self, frame: Frame) -> Rewound:
        a, b = self._roles(*frame.outputs)
        _, b_owned = self._roles(*frame.owned)
        grad_a, grad_b = self._roles(*frame.grads)
        need_a, _ = self._roles(*frame.needs_grad)
        frame.outputs.clear()
        sign = -1 if frame.flipped else 1  # y_b = x_b + sign · F(x_a)
        leaf = a.detach().requires_grad_(need_a)
        parts: Sequence[Callable[..., Tensor]] = (
            [self.function] if frame.at_once else self._parts(a)
        )
        accumulate = frame.parameters if frame.at_once else ()
        leaves = [leaf, *frame.side, *(() if frame.at_once else frame.parameters)]
        total: list[Tensor | None] = [None] * len(leaves)
        for index, part in enumerate(parts):
            with torch.enable_grad(), frame.replay(continued=index > 0):
                out = part(*views(leaf, *frame.side))
            with torch.no_grad():
                value = out.detach()
                b = b.sub_(value, alpha=sign) if b_owned else torch.sub(b, value, alpha=sign)
                b_owned = True
                seed = grad_b.to(out.dtype)
                seed = -seed if frame.flipped else seed
            # The graph does not need F's value any more: an edge into it lets the value go.
            edges = [get_gradient_edge(out)] if out.requires_grad else []
            del out, value
            found = gradients(edges, leaves, [seed][: len(edges)], accumulate)
            total = [_sum(*pair) for pair in zip(total, found, strict=True)]
            del found
        through_f = total[0]
        if through_f is not None:
            # F may hand its incoming gradient on as it is; only a new tensor may be overwritten.
            fresh = not frame.hooked and may_overwrite(through_f, frame.grads)
            grad_a = through_f.add_(grad_a) if fresh else through_f + grad_a
        count = 1 + len(frame.side)
        return Rewound(
            self._halves(a, b), self._halves(grad_a, grad_b), total[1:count], total[count:]
        )

    def accumulates(self, x1: Tensor, x2: Tensor, *side: Tensor) -> bool:
        """Whether F's gradients go straight to `.grad`: if wanted, and F is in one piece."""
        a, _ = self._roles(x1, x2)
        return self.accumulates_at_once and len(self._parts(a)) == 1

    def _shifted(self, b: Tensor, a: Tensor, side: Sequence[Tensor], sign: int) -> Tensor:
        first, *others = self._parts(a)
        b = torch.add(b, first(a, *side), alpha=sign)
        for part in others:
            b.add_(part(a, *side), alpha=sign)
        return b

    def _parts(self, a: Tensor) -> Sequence[Callable[..., Tensor]]:
        parts = getattr(self.function, "parts", None)
        return [self.function] if parts is None else parts(a)

    def _roles(self, first: T, second: T) -> tuple[T, T]:
        return (first, second) if self.changes == 1 else (second, first)

    def _halves(self, a: T, b: T) -> tuple[T, T]:
        return (a, b) if self.changes == 1 else (b, a)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first.add_(second)  # parts of one F: a gradient of `second` alone is never `first`'s


class GroupNorm(nn.GroupNorm):
    """Without torch.nn's refusal of a single voxel, which the bottom of a deep network may have."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class ELU(nn.ELU):
    def forward(self, input: Tensor) -> Tensor:
        return F.elu(input, self.alpha, self.inplace and may_change(input))


def may_change(hidden: Tensor) -> bool:
    """Autograd forbids to change in place what a backward hook has handed on: a view."""
    return torch.compiler.is_compiling() or not hidden._is_view()


class ConvolutionBlock(nn.Module):
    """F: convolution, ELU, GroupNorm, convolution; starts as the zero map.

    The activation comes before the norm and works in place: it needs its output only, which is
    the very tensor that the norm keeps. Two tensors of the size of the input are alive in the
    backward pass instead of three. It is an ELU because its slope has no jump: a rebuilt input that
    rounding moves across the kink of a LeakyReLU gets the other slope, which left gradients 1e-4
    to 5e-4 apart in float32, and leaves them 1e-6 apart now.

    Args:
        channels: C/2, of input and output.
        dims: 2 or 3.
        embedding: width of a time embedding that shifts the hidden channels; 0: there is none.

    Attributes:
        slice_bytes: where x is larger, `parts` evaluates F in slices of its hidden channels; not
            where there are hooks on its layers, which slices would pass by.
        half_precision: run in bfloat16 whatever the dtype of x.
    """

    def __init__(self, channels: int, dims: int = 3, embedding: int = 0) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[dims]
        self.first = convolution(channels, channels, 3, padding=1, bias=False)
        self.shift = nn.Linear(embedding, channels) if embedding else None
        self.activation = ELU(inplace=True)
        self.norm = GroupNorm(math.gcd(8, channels // 4 or 1), channels)
        self.second = convolution(channels, channels, 3, padding=1, bias=False)
        nn.init.zeros_(self.second.weight)
        self.slice_bytes: int | None = None
        self.half_precision = False

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """x (B, C/2, *grid), embedding (B, E)."""
        with self._precision(x):
            hidden = self.first(x)
            if self.shift is not None and embedding is not None:
                shift = self._shift(embedding, hidden)
                hidden = hidden.add_(shift) if may_change(hidden) else hidden + shift
            return self.second(self.norm(self.activation(hidden)))

    def parts(self, x: Tensor) -> Sequence[Callable[..., Tensor]]:
        """F as a sum over slices of the hidden channels, by whole groups of the norm: exact."""
        if self.slice_bytes is None or has_hooks(self):
            return [self]
        groups = self.norm.num_groups
        count = min(groups, -(-x.nbytes // self.slice_bytes))
        if count == 1:
            return [self]
        bounds = [round(i * groups / count) for i in range(count + 1)]
        return [functools.partial(self._part, *bound) for bound in itertools.pairwise(bounds)]

    def _part(
        self, first_group: int, last_group: int, x: Tensor, embedding: Tensor | None = None
    ) -> Tensor:
        width = self.norm.num_channels // self.norm.num_groups
        hidden_channels = slice(first_group * width, last_group * width)
        convolve = CONVOLVE[x.ndim - 2]
        with self._precision(x):
            hidden = convolve(x, self.first.weight[hidden_channels], padding=1)
            if self.shift is not None and embedding is not None:
                hidden += self._shift(embedding, hidden)[:, hidden_channels]
            hidden = torch.group_norm(
                self.activation(hidden),
                last_group - first_group,
                self.norm.weight[hidden_channels],
                self.norm.bias[hidden_channels],
                self.norm.eps,
            )
            return convolve(hidden, self.second.weight[:, hidden_channels], padding=1)

    def _shift(self, embedding: Tensor, hidden: Tensor) -> Tensor:
        assert self.shift is not None
        shift = self.shift(embedding).to(hidden.dtype)
        return shift.reshape(*shift.shape, *(1,) * (hidden.ndim - 2))

    def _precision(self, x: Tensor) -> AbstractContextManager[Any]:
        if self.half_precision and not is_too_thin(x):
            return torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False)
        return full_precision_if_thin(x)
