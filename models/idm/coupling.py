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

from .layout import dense, layout
from .reversible import Frame, Rewound, gradients, has_hooks, may_overwrite, views

T = TypeVar("T")

FEWEST_SLICES = 3
"""Two would need more, for what they add up to, than they save."""


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


def may_change(hidden: Tensor) -> bool:
    """Autograd forbids to change in place what a backward hook has handed on: a view."""
    return torch.compiler.is_compiling() or not hidden._is_view()


class ActivatedConvolution(nn.Module):
    """GroupNorm, SiLU, 3×3×3 convolution, in this order; only the input is kept for the gradient.

    The backward pass normalises and activates again, which is no convolution and so costs next to
    nothing. It writes over what it is done with: with the input, two tensors of the input's size
    are alive in it. Ordinary autograd would keep three more for the same layers.

    A single module, without children that a hook could stand on in vain. It is not refused a single
    voxel, which the bottom of a deep network may have.

    Args:
        in_channels, out_channels: of the convolution, which has no bias.
        dims: 2 or 3.

    Attributes:
        slice_bytes: where the input is larger, the backward pass takes its channels in turn, by
            whole groups of the norm.
    """

    eps = 1e-5

    def __init__(self, in_channels: int, out_channels: int, dims: int = 3) -> None:
        super().__init__()
        self.groups = math.gcd(8, in_channels // 4 or 1)
        self.scale = nn.Parameter(torch.ones(in_channels))
        self.offset = nn.Parameter(torch.zeros(in_channels))
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *(3,) * dims))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Conv3d does
        self.slice_bytes: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_channels, *grid) -> (B, out_channels, *grid)"""
        return self._convolve(x, self.weight, self.scale, self.offset, self.groups)

    def to_some(self, x: Tensor, outputs: slice) -> Tensor:
        """The output's channels `outputs`."""
        return self._convolve(x, self.weight[outputs], self.scale, self.offset, self.groups)

    def from_some(self, x: Tensor, inputs: slice, groups: int) -> Tensor:
        """What the channels `inputs`, which x has alone, add to the output: whole groups."""
        norm = self.scale[inputs], self.offset[inputs], groups
        return self._convolve(x, self.weight[:, inputs], *norm)

    def _convolve(
        self, x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor, groups: int
    ) -> Tensor:
        norm = scale, offset, groups, self.eps
        if torch.is_grad_enabled() and not torch.jit.is_tracing():  # fvcore sees no Function
            return _KeepInput.apply(x, weight, *norm, self.slice_bytes)
        return CONVOLVE[x.ndim - 2](_activated(x, *norm), weight, padding=1)


class _KeepInput(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor,
        groups: int, eps: float, slice_bytes: int | None,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight, scale, offset)
        ctx.groups, ctx.eps, ctx.slice_bytes = groups, eps, slice_bytes
        return CONVOLVE[x.ndim - 2](_activated(x, scale, offset, groups, eps), weight, padding=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, scale, offset = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:4]
        count = 1 if ctx.slice_bytes is None else min(ctx.groups, -(-x.nbytes // ctx.slice_bytes))
        if count < FEWEST_SLICES:
            norm = scale, offset, ctx.groups, ctx.eps
            return *_gradients(x, weight, *norm, grad, wanted), None, None, None
        found: list[Any] = []
        grad_x = torch.empty_like(x) if wanted[0] else None
        for first, last in _slices(ctx.groups, count):
            width = len(scale) // ctx.groups
            some = slice(first * width, last * width)
            norm = scale[some], offset[some], last - first, ctx.eps
            part, *others = _gradients(x[:, some], weight[:, some], *norm, grad, wanted)
            if grad_x is not None and part is not None:
                grad_x[:, some] = part
            found.append(others)
        grads = [
            None if parts[0] is None else torch.cat(parts, dim)
            for dim, parts in zip((1, 0, 0), zip(*found, strict=True), strict=True)
        ]
        return grad_x, *grads, None, None, None


def _activated(x: Tensor, scale: Tensor, offset: Tensor, groups: int, eps: float) -> Tensor:
    """SiLU of the normalised x, in the precision of the weights whatever autocast says."""
    wide = dense(x.to(scale.dtype), layout(x))
    return F.silu(torch.group_norm(wide, groups, scale, offset, eps), inplace=True)


def _gradients(
    x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor, groups: int, eps: float,
    grad: Tensor, wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Of x, weight, scale and offset, for `grad` of the output."""
    norm = scale, offset, groups, eps
    dims = x.ndim - 2
    dtype = torch.float32 if is_too_thin(x) and grad.dtype.itemsize < 4 else grad.dtype
    through = any((wanted[0], *wanted[2:]))
    grad_y, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad.to(dtype), _activated(x, *norm).to(dtype), weight.to(dtype), None,
        [1] * dims, [1] * dims, [1] * dims, False, [0] * dims, 1, [through, wanted[1], False],
    )  # fmt: skip
    grad_weight = grad_weight.to(weight.dtype) if wanted[1] else None
    if not through:
        return None, grad_weight, None, None
    grad_y = dense(grad_y.to(scale.dtype), layout(x))
    wide = dense(x.to(scale.dtype), layout(x))
    count, channels, *grid = x.shape
    shape = count, channels, math.prod(grid), groups
    y, mean, deviation = torch.native_group_norm(wide, scale, offset, *shape, eps)
    torch.ops.aten.silu_backward.grad_input(grad_y, y, grad_input=grad_y)
    del y
    grad_x, grad_scale, grad_offset = torch.ops.aten.native_group_norm_backward(
        grad_y, wide, mean, deviation, scale, *shape, [wanted[0], *wanted[2:]]
    )
    grad_x = grad_x.to(x.dtype) if wanted[0] else None
    return grad_x, grad_weight, grad_scale, grad_offset


def _slices(groups: int, count: int) -> list[tuple[int, int]]:
    return list(itertools.pairwise(round(i * groups / count) for i in range(count + 1)))


class ConvolutionBlock(nn.Module):
    """F: twice GroupNorm, SiLU and a convolution; starts as the zero map.

    Activations before both convolutions (He et al. 2016, arXiv:1603.05027), because F has only two
    of these: with one activation between them IDM learns far less (docs/idm.md). SiLU is smooth: a
    rebuilt input that rounding moves across the kink of a LeakyReLU gets the other slope, which
    left gradients 1e-4 to 5e-4 apart in float32.

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
        self.first = ActivatedConvolution(channels, channels, dims)
        self.shift = nn.Linear(embedding, channels) if embedding else None
        self.second = ActivatedConvolution(channels, channels, dims)
        nn.init.zeros_(self.second.weight)
        self.half_precision = False

    @property
    def slice_bytes(self) -> int | None:
        return self.first.slice_bytes

    @slice_bytes.setter
    def slice_bytes(self, size: int | None) -> None:
        self.first.slice_bytes = self.second.slice_bytes = size

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """x (B, C/2, *grid), embedding (B, E)."""
        with self._precision(x):
            hidden = self.first(x)
            if self.shift is not None and embedding is not None:
                shift = self._shift(embedding, hidden)
                hidden = hidden.add_(shift) if may_change(hidden) else hidden + shift
            return self.second(hidden)

    def parts(self, x: Tensor) -> Sequence[Callable[..., Tensor]]:
        """F as a sum over slices of the hidden channels, by whole groups of the norm: exact."""
        if self.slice_bytes is None or has_hooks(self):
            return [self]
        wanted = -(-x.nbytes // self.slice_bytes)
        if wanted < FEWEST_SLICES or self.second.groups < FEWEST_SLICES:
            return [self]
        groups = self.second.groups
        count = min(groups, wanted)
        return [functools.partial(self._part, *bound) for bound in _slices(groups, count)]

    def _part(
        self, first_group: int, last_group: int, x: Tensor, embedding: Tensor | None = None
    ) -> Tensor:
        width = len(self.second.scale) // self.second.groups
        some = slice(first_group * width, last_group * width)
        with self._precision(x):
            hidden = self.first.to_some(x, some)
            if self.shift is not None and embedding is not None:
                hidden += self._shift(embedding, hidden)[:, some]
            return self.second.from_some(hidden, some, last_group - first_group)

    def _shift(self, embedding: Tensor, hidden: Tensor) -> Tensor:
        assert self.shift is not None
        shift = self.shift(embedding).to(hidden.dtype)
        return shift.reshape(*shift.shape, *(1,) * (hidden.ndim - 2))

    def _precision(self, x: Tensor) -> AbstractContextManager[Any]:
        if self.half_precision and not is_too_thin(x):
            return torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False)
        return full_precision_if_thin(x)
