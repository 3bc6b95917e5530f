"""Invertible attention on skips: iTrans (Sukthanker et al. 2022, arXiv:2106.03959), in 3D.

Voxels are coloured like a 3D checkerboard into y₁ (even) and y₂ (odd). Attention weights f come
from y₁ alone and scale y₂, so they can be computed again from the output and divided out:

    a = y₂ ⊙ f(y₁)    (1)        y₂ = a ⊘ f(y₁)    (4)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .coupling import CONVOLUTIONS, full_precision_if_thin
from .reversible import Frame, Rewound, gradients, views

HEAD_WIDTH = 64


class InvertibleAttention(nn.Module):
    """y -> y with its odd voxels scaled by f(even voxels), voxel by voxel and channel by channel.

    f = 2^tanh(s) lies between 1/2 and 2 and is 1 at the start (s = 0). So dividing by it at most
    doubles a rounding error, whatever the weights are; an exponential or a sigmoid, which can come
    arbitrarily close to zero, has no such bound.

    s is computed in three steps. A 3×3×3 convolution of y₁ (zeros at odd voxels) gives features of
    every voxel: the two colours share no position, so only a neighbourhood can tell an odd voxel
    about the even ones. The odd voxels then attend to the even voxels of the whole volume
    (queries and keys by 1×1×1 convolutions). A second 3×3×3 convolution, zero at the start, turns
    features plus attention into s. No N × N matrix is stored (`scaled_dot_product_attention`).

    Args:
        channels: of y, (B, channels, *grid); the last axis of the grid must be even.
        dims: 2 or 3.
    """

    def __init__(self, channels: int, dims: int = 3) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[dims]
        width = math.gcd(channels, HEAD_WIDTH)
        self.heads = channels // width if width >= 8 else 1
        self.values = convolution(channels, channels, 3, padding=1, bias=False)
        self.query = nn.Conv1d(channels, channels, 1, bias=False)
        self.key = nn.Conv1d(channels, channels, 1, bias=False)
        self.exponent = convolution(channels, channels, 3, padding=1, bias=False)
        nn.init.zeros_(self.exponent.weight)

    def forward(self, y: Tensor) -> Tensor:
        return y * self.factor(self.even(y))  # eq. (1)

    def inverse(self, a: Tensor) -> Tensor:
        return a / self.factor(self.even(a))  # eq. (4); even voxels are as they were

    def rewind(self, frame: Frame) -> Rewound:
        (out,), (grad,), (need,) = frame.outputs, frame.grads, frame.needs_grad
        frame.outputs.clear()
        with torch.enable_grad(), frame.replay():
            leaf = self.even(out).detach().requires_grad_(need)
            factor = self.factor(*views(leaf))
        with torch.no_grad():
            f = factor.detach()
            if frame.flipped:  # out = a / f
                rebuilt, grad_direct = out * f, grad / f
                grad_factor = -grad_direct * out
            else:  # out = y · f
                rebuilt, grad_direct = out / f, grad * f
                grad_factor = grad * rebuilt
        through_f, *found = gradients([factor], [leaf, *frame.parameters], [grad_factor])
        if through_f is not None:
            grad_direct += self.even(through_f)
        return Rewound([rebuilt], [grad_direct], [], found)

    def factor(self, y1: Tensor) -> Tensor:
        """f(y₁) at the odd voxels of (B, C, *grid), and exactly 1 at the even ones."""
        with full_precision_if_thin(y1):
            features = self.values(y1)
            flat = features.flatten(2)
            even, odd = checkerboard(y1.shape[2:], y1.device)
            here, there = flat.index_select(2, odd), flat.index_select(2, even)
            width = features.shape[1] // self.heads
            attended = F.scaled_dot_product_attention(
                self._split(self.query(here)), self._split(self.key(there)), self._split(there),
                scale=1 / math.sqrt(width),
            )  # fmt: skip
            attended = attended[..., :width].transpose(2, 3).flatten(1, 2)
            s = self.exponent(flat.index_add(2, odd, attended).view_as(features))
        return torch.exp2(torch.tanh(s.to(y1.dtype)) * self._parity(y1))

    def even(self, y: Tensor) -> Tensor:
        """y₁ on the grid of y: zeros at odd voxels."""
        return y * (1 - self._parity(y))

    def _split(self, x: Tensor) -> Tensor:
        """(B, C, N) -> (B, heads, N, C / heads), with zeros up to whole 16 bytes a head"""
        # Contiguous and in 16 bytes, or else a card's kernels decline and make an N × N matrix.
        heads = x.unflatten(1, (self.heads, -1)).transpose(2, 3)
        rest = -heads.shape[-1] % (16 // x.element_size())
        return F.pad(heads, (0, rest)) if rest else heads.contiguous()

    @staticmethod
    def _parity(like: Tensor) -> Tensor:
        return parity(like.shape[2:], like.device).to(like.dtype)


def parity(grid: torch.Size, device: torch.device) -> Tensor:
    """The checkerboard: sum of a voxel's coordinates modulo 2, shaped like the grid."""
    total = torch.zeros((1,) * len(grid), dtype=torch.long, device=device)
    for axis, size in enumerate(grid):
        shape = [1] * len(grid)
        shape[axis] = size
        total = total + torch.arange(size, device=device).reshape(shape)
    return total % 2


def checkerboard(grid: torch.Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of the even and of the odd voxels in the flattened grid.

    By arithmetic, not by `nonzero`, whose size depends on data and stops fake tensors.
    """
    *rows, last = grid
    if last % 2:
        raise ValueError(f"the checkerboard needs an even last axis, got a grid of {tuple(grid)}")
    first = parity(torch.Size((*rows, 1)), device).reshape(-1, 1)  # colour of each row's start
    starts = torch.arange(first.shape[0], device=device).reshape(-1, 1) * last
    steps = torch.arange(0, last, 2, device=device)
    return (starts + first + steps).flatten(), (starts + (1 - first) + steps).flatten()
