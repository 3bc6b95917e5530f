"""Orthogonal layers: channel mixing, and learnable down- and upsampling with stride 2.

Each is a linear map by orthogonal matrices, so its inverse is its transpose and costs the same,
does not amplify rounding errors, and also is the map of the gradients:

    y = Q x,    x = Qᵀ y,    ∂L/∂x = Qᵀ ∂L/∂y,    ∂L/∂Q = ∂L/∂y xᵀ.

The matrices come from Cayley's map of skew-symmetric parameters (Lezcano-Casado 2019,
arXiv:1909.09501; used for iUNets by Etmann et al. 2020, arXiv:2005.05220). They are computed once
a pass and given to the layer as a side input.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from .layout import fastest_layout, layout
from .reversible import Frame, Rewound

LARGEST_BLOCK = 64


class Cayley(nn.Module):
    """Square matrices to orthogonal ones: Q = (I − A/2)⁻¹ (I + A/2) of the skew A = L − Lᵀ.

    L is the lower triangle. I − A/2 has an inverse whatever A is, so no error is looked for: that
    would be to wait for the card in each of some twenty layers of a forward pass, as
    `torch.nn.utils.parametrizations.orthogonal` does.
    """

    def forward(self, weight: Tensor) -> Tensor:
        lower = weight.tril()
        skew = lower - lower.mT
        eye = torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
        minus, plus = eye.add(skew, alpha=-0.5), eye.add(skew, alpha=0.5)
        return torch.linalg.solve_ex(minus, plus, check_errors=False).result


class Rotations(nn.Module):
    """`count` trainable orthogonal matrices, the identity at the start. Returns (count, n, n).

    They are computed in float32 at least, and rounded to the dtype of their parameters.
    """

    weight: Tensor

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        self.shape = (count, size)
        self.weight = nn.Parameter(torch.zeros(count, size, size))
        # Unchecked, so that networks can be built on fake tensors. Cayley(0) = I.
        register_parametrization(self, "weight", Cayley(), unsafe=True)

    def forward(self) -> Tensor:
        parametrization: Any = self.parametrizations["weight"]  # type: ignore[index]
        original = parametrization.original
        wide = original.to(torch.promote_types(original.dtype, torch.float32))
        return parametrization[0](wide).to(original.dtype)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # A parametrized module refuses to be pickled because its class is made at run time;
        # building it again makes the class again.
        return Rotations, self.shape, self.__dict__


class OrthogonalLayer(nn.Module):
    """What the layers of this file share. Subclasses map by `rotate`, both ways.

    Args:
        transposed: run the transposed map forwards: upsampling is transposed downsampling.
    """

    functional = True  # parameters act only through the side input `matrices()`

    def __init__(self, rotations: Rotations, transposed: bool) -> None:
        super().__init__()
        self.rotations = rotations
        self.transposed = transposed

    def matrices(self) -> Tensor:
        """The orthogonal matrices, computed from the parameters; never in 16 bits."""
        with torch.autocast(self.rotations.device.type, enabled=False):
            return self.rotations()

    def rotate(self, tensors: Sequence[Tensor], matrices: Tensor, back: bool) -> tuple[Tensor, ...]:
        """Apply Q, or Qᵀ if `back`."""
        raise NotImplementedError

    def outer(self, ys: Sequence[Tensor], xs: Sequence[Tensor], matrices: Tensor) -> Tensor:
        """Σ y xᵀ over samples and voxels, shaped like `matrices`, for y on the side of Q x."""
        raise NotImplementedError

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        *xs, matrices = tensors
        with torch.autocast(matrices.device.type, enabled=False):
            return self.rotate(xs, matrices, back=self.transposed)

    def inverse(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        *ys, matrices = tensors
        with torch.autocast(matrices.device.type, enabled=False):
            return self.rotate(ys, matrices, back=not self.transposed)

    def rewind(self, frame: Frame) -> Rewound:
        (matrices,) = frame.side
        back = self.transposed == frame.flipped
        with torch.no_grad():
            inputs = self.rotate(frame.outputs, matrices, back)
            frame.outputs.clear()
            grads = self.rotate(frame.grads, matrices, back)
            outer = None
            if matrices.requires_grad:
                # y = Qx: ∂L/∂Q = g_y xᵀ. y = Qᵀx: ∂L/∂Q = x g_yᵀ.
                sides = (frame.grads, inputs) if back else (inputs, frame.grads)
                outer = self.outer(sides[0], sides[1], matrices)
        return Rewound(inputs, grads, [outer], [])


class ChannelMixing(OrthogonalLayer):
    """Mixes channels by block-diagonal orthogonal matrices and shuffles them, voxel by voxel.

    Two mixings with a shuffle between them connect 64 · 64 = 4096 channels. The state arrives and
    leaves in pieces along the channels, which are never concatenated as a whole.

    Args:
        inputs, outputs: channels of the pieces; both add up to C.
        shuffled: after mixing, send channel i of block g to place i · blocks + g.
        transposed: unshuffle, then mix by the transposed matrices.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        *,
        shuffled: bool = True,
        transposed: bool = False,
    ) -> None:
        channels = sum(inputs)
        if channels != sum(outputs):
            raise ValueError(f"pieces must add up to the same: {inputs} and {outputs}")
        block = max(n for n in range(1, min(channels, LARGEST_BLOCK) + 1) if channels % n == 0)
        super().__init__(Rotations(channels // block, block), transposed)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.shuffled = shuffled

    def rotate(self, tensors: Sequence[Tensor], matrices: Tensor, back: bool) -> tuple[Tensor, ...]:
        sizes = self.outputs if back == self.transposed else self.inputs
        batch, grid = tensors[0].shape[0], tensors[0].shape[2:]
        if torch.is_grad_enabled() or torch.jit.is_tracing():
            whole = _cat([tensor.flatten(2) for tensor in tensors])
            mixed = self._mix(whole, matrices, back)
            return tuple(piece.unflatten(2, grid) for piece in mixed.split(sizes, dim=1))
        result = [_empty(tensors[0], batch, size, *grid) for size in sizes]
        flat, filled = ([tensor.flatten(2) for tensor in pieces] for pieces in (tensors, result))
        for sample, voxels in _chunks(flat):
            chunk = _gather(flat, sample, voxels)
            pieces = self._mix(chunk, matrices, back).split(sizes, dim=1)
            for target, piece in zip(filled, pieces, strict=True):
                target[sample, :, voxels].copy_(piece)
        return tuple(result)

    def outer(self, ys: Sequence[Tensor], xs: Sequence[Tensor], matrices: Tensor) -> Tensor:
        ys, xs = [y.flatten(2) for y in ys], [x.flatten(2) for x in xs]
        total = torch.zeros_like(matrices, requires_grad=False)
        for sample, voxels in _chunks(ys):
            y = self._blocks(_gather(ys, sample, voxels), matrices, shuffled=self.shuffled)
            x = self._blocks(_gather(xs, sample, voxels), matrices, shuffled=False)
            for y_sample, x_sample in zip(y, x, strict=True):
                total.baddbmm_(y_sample, x_sample.mT)
        return total

    def _mix(self, x: Tensor, matrices: Tensor, back: bool) -> Tensor:
        blocks = self._blocks(x, matrices, shuffled=back and self.shuffled)
        mixed = _multiply(matrices.mT if back else matrices, blocks)
        return (mixed.transpose(1, 2) if self.shuffled and not back else mixed).flatten(1, 2)

    @staticmethod
    def _blocks(x: Tensor, matrices: Tensor, shuffled: bool) -> Tensor:
        """(B, C, V) -> (B, blocks, C / blocks, V)"""
        blocks, size, _ = matrices.shape
        return (
            x.unflatten(1, (size, blocks)).transpose(1, 2)
            if shuffled
            else x.unflatten(1, (blocks, size))
        )


class Downsampling(OrthogonalLayer):
    """Trades resolution for channels: (B, k, *grid) -> two halves (B, k · 2^(dims-1), *grid/2).

    Each channel's 2^dims neighbours are rotated by a 2^dims × 2^dims matrix of its own, which
    starts as the Haar transform. `transposed` makes it the upsampling.
    """

    signs: Tensor

    def __init__(self, channels: int, dims: int = 3, *, transposed: bool = False) -> None:
        super().__init__(Rotations(channels, 2**dims), transposed)
        self.dims = dims
        self.register_buffer("signs", haar_signs(dims), persistent=False)

    def matrices(self) -> Tensor:
        with torch.autocast(self.rotations.device.type, enabled=False):
            return self.rotations() @ self.signs * 2 ** (-self.dims / 2)

    def rotate(self, tensors: Sequence[Tensor], matrices: Tensor, back: bool) -> tuple[Tensor, ...]:
        half = matrices.shape[1] // 2
        if back:
            low, high = (t.unflatten(1, (-1, half)) for t in tensors)
            grid = low.shape[3:]
            cells = matrices[:, :half].mT @ low.flatten(3)
            cells = cells + matrices[:, half:].mT @ high.flatten(3)
            return (self._from_cells(cells.unflatten(3, grid)),)
        cells = self._to_cells(tensors[0])
        return tuple(self._turned(cells, part) for part in (matrices[:, :half], matrices[:, half:]))

    @staticmethod
    def _turned(cells: Tensor, part: Tensor) -> Tensor:
        """One of the two halves, laid as its level's convolutions are fastest."""
        turned = (part @ cells.flatten(3)).flatten(1, 2).unflatten(2, cells.shape[3:])
        return turned.contiguous(memory_format=fastest_layout(turned, turned.shape[1]))

    def outer(self, ys: Sequence[Tensor], xs: Sequence[Tensor], matrices: Tensor) -> Tensor:
        half = matrices.shape[1] // 2
        cells = self._to_cells(xs[0]).flatten(3)
        parts = (y.unflatten(1, (-1, half)).flatten(3) for y in ys)
        return torch.cat([(part @ cells.mT).sum(0) for part in parts], dim=1)

    def _to_cells(self, x: Tensor) -> Tensor:
        """(B, k, 2D, 2H, 2W) -> (B, k, 8, D, H, W), and so for any number of dimensions."""
        for axis in range(self.dims):  # the grid becomes D, 2, H, 2, W, 2
            x = x.unflatten(2 + 2 * axis, (-1, 2))
        axes = range(2, 2 + 2 * self.dims)
        return x.permute(0, 1, *axes[1::2], *axes[0::2]).flatten(2, 1 + self.dims)

    def _from_cells(self, cells: Tensor) -> Tensor:
        dims = self.dims
        x = cells.unflatten(2, (2,) * dims)
        pairs = [axis for i in range(dims) for axis in (2 + dims + i, 2 + i)]
        x = x.permute(0, 1, *pairs)
        for axis in range(dims):
            x = x.flatten(2 + axis, 3 + axis)
        return x


def haar_signs(dims: int) -> Tensor:
    """The Haar transform of 2^dims neighbours times 2^(dims/2): signs only; row 0 is their sum.

    Kept as signs because these are exact in every dtype that a network may be cast to.
    """
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    return functools.reduce(torch.kron, [pair] * dims)


def _chunks(tensors: Sequence[Tensor]) -> Iterator[tuple[slice, slice]]:
    """Slices (samples, voxels) of pieces (B, c, V): 1/8 of the whole each, but 1 to 128 MiB."""
    batch, voxels = tensors[0].shape[0], tensors[0].shape[2]
    channels = sum(tensor.shape[1] for tensor in tensors)
    limit = min(max(2**18, batch * channels * voxels // 8), 2**25)
    samples = max(1, min(batch, limit // (channels * voxels)))
    width = max(1, min(voxels, limit // channels))
    for first in range(0, batch, samples):
        for start in range(0, voxels, width):
            yield slice(first, first + samples), slice(start, start + width)


def _gather(tensors: Sequence[Tensor], sample: slice, voxels: slice) -> Tensor:
    return _cat([tensor[sample, :, voxels] for tensor in tensors])


def _cat(pieces: list[Tensor]) -> Tensor:
    """Pieces (B, c, V) along the channels, which stay beside each other if they were."""
    if pieces[0].stride(1) == 1:
        return torch.cat([piece.mT for piece in pieces], dim=2).mT
    return torch.cat(pieces, dim=1)


def _multiply(matrices: Tensor, x: Tensor) -> Tensor:
    """Q x, for x (B, blocks, n, V), laid as x is."""
    return (x.mT @ matrices.mT).mT if x.stride(-1) != 1 else matrices @ x


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout(like))
