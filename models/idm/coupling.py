"""Additive coupling: x_b + F(x_a), undone by subtraction (Dinh et al. 2014, arXiv:1410.8516)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from models.idm.reversible import Frame, Rewound, gradients, may_overwrite

CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}


class AdditiveCoupling(nn.Module):
    """(x_a, x_b) -> (x_a, x_b + F(x_a)) for any F that keeps the shape of x_b.

    One evaluation of F serves both the inverse and the gradient: F(y_a), run once with gradients
    on, gives x_b = y_b - F(y_a) by its value and the backward pass by its graph. A training step
    costs 4/3 of the FLOPs of stored activations; inverting first and recomputing after, 5/3.

    Args:
        function: F. Called as `F(x_a, *side)`; `side` may be a time embedding.
        changes: which of the two halves is x_b. Alternate it, so that both change.
    """

    def __init__(self, function: nn.Module, changes: Literal[0, 1] = 1) -> None:
        super().__init__()
        self.function = function
        self.changes = changes

    def forward(self, x1: Tensor, x2: Tensor, *side: Tensor) -> tuple[Tensor, Tensor]:
        """Both halves (B, C/2, *grid), and back the same."""
        a, b = self._roles(x1, x2)
        return self._halves(a, b + self.function(a, *side))

    def inverse(self, y1: Tensor, y2: Tensor, *side: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self._roles(y1, y2)
        return self._halves(a, b - self.function(a, *side))

    def rewind(self, frame: Frame) -> Rewound:
        a, b = self._roles(*frame.outputs)
        _, b_owned = self._roles(*frame.owned)
        grad_a, grad_b = self._roles(*frame.grads)
        need_a, _ = self._roles(*frame.needs_grad)
        frame.outputs.clear()
        sign = -1 if frame.flipped else 1  # y_b = x_b + sign · F(x_a)
        with torch.enable_grad(), frame.replay():
            leaf = a.detach().requires_grad_(need_a)
            out = self.function(leaf.view_as(leaf), *frame.side)
        with torch.no_grad():
            value = out.detach()
            b = b.sub_(value, alpha=sign) if b_owned else torch.sub(b, value, alpha=sign)
            seed = grad_b.to(out.dtype)
            seed = -seed if frame.flipped else seed
        # The graph does not need F's value any more: an edge into it lets the value go.
        edges = [get_gradient_edge(out)] if out.requires_grad else []
        del out, value
        leaves = [leaf, *frame.side, *frame.parameters]
        found = gradients(edges, leaves, [seed][: len(edges)])
        through_f = found[0]
        if through_f is not None:
            # F may hand its incoming gradient on as it is; only a new tensor may be overwritten.
            fresh = may_overwrite(through_f, frame.grads)
            grad_a = through_f.add_(grad_a) if fresh else through_f + grad_a
        count = len(frame.side)
        return Rewound(
            self._halves(a, b),
            self._halves(grad_a, grad_b),
            found[1 : 1 + count],
            found[1 + count :],
        )

    def _roles(self, first, second):
        return (first, second) if self.changes == 1 else (second, first)

    def _halves(self, a, b):
        return (a, b) if self.changes == 1 else (b, a)


class GroupNorm(nn.GroupNorm):
    """Without torch.nn's refusal of a single voxel, which the bottom of a deep network may have."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class ConvolutionBlock(nn.Module):
    """F: convolution, LeakyReLU, GroupNorm, convolution; starts as the zero map.

    The activation comes before the norm and works in place: it needs its output only, which is
    the very tensor that the norm keeps. Two tensors of the size of the input are alive in the
    backward pass instead of three.

    GroupNorm looks at one sample at a time, so F may be evaluated on slices of the batch.

    Args:
        channels: C/2, of input and output.
        dims: 2 or 3.
        embedding: width of a time embedding that shifts the hidden channels; 0: there is none.
    """

    def __init__(self, channels: int, dims: int = 3, embedding: int = 0) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[dims]
        self.first = convolution(channels, channels, 3, padding=1, bias=False)
        self.shift = nn.Linear(embedding, channels) if embedding else None
        self.activation = nn.LeakyReLU(inplace=True)
        self.norm = GroupNorm(math.gcd(8, channels // 4 or 1), channels)
        self.second = convolution(channels, channels, 3, padding=1, bias=False)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """x (B, C/2, *grid), embedding (B, E)."""
        hidden = self.first(x)
        if self.shift is not None and embedding is not None:
            shift = self.shift(embedding).to(hidden.dtype)
            hidden += shift.reshape(*shift.shape, *(1,) * (x.ndim - 2))
        return self.second(self.norm(self.activation(hidden)))
