"""The partially reversible U-Net: reversible couplings inside each level, ordinary resampling.

Brügger, Baumgartner and Konukoglu, "A Partially Reversible U-Net for Memory-Efficient Volumetric
Image Segmentation", MICCAI 2019, arXiv:1906.06148. A level keeps its output only, whatever its
depth; what lies between levels (pooling, trilinear upsampling, 1×1×1 convolutions, skips by
addition) is not invertible and keeps its inputs. Theirs segments. Here the time enters at every
level, so that it predicts noise, and F has an ELU for their leaky ReLU (`ConvolutionBlock` says
why).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .idm.coupling import CONVOLUTIONS, AdditiveCoupling, may_change
from .idm.network import TimeEmbedding
from .idm.reversible import Backward, ReversibleSequential

# Widths and blocks a level are the authors' (github.com/RobinBruegger/PartiallyReversibleUnet,
# noNewReversible), the volumes those of IDM's paper: theirs are segmented, and larger.
PUBLISHED: dict[str, Any] = {
    "volume": 64,
    "batch_size": 4,
    "channels": (60, 120, 240, 360, 480),
    "couplings": 2,
    "precision": "fp32",
}


class GroupNorm(nn.GroupNorm):
    """Without torch.nn's refusal of a single voxel, which the bottom of a deep network may have."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class ELU(nn.ELU):
    def forward(self, input: Tensor) -> Tensor:
        return F.elu(input, self.alpha, self.inplace and may_change(input))


class Level(nn.Module):
    """x + shift(t), cut into two halves of channels, through couplings that change them in turn."""

    def __init__(
        self,
        channels: int,
        couplings: int,
        groups: int,
        embedding: int,
        dims: int,
        backward: Backward,
    ) -> None:
        super().__init__()
        self.shift = nn.Linear(embedding, channels)
        self.chain = ReversibleSequential(
            *(
                AdditiveCoupling(_function(channels // 2, groups, dims), 0 if index % 2 else 1)
                for index in range(couplings)
            ),
            backward=backward,
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, C, *grid), embedding (B, E) -> (B, C, *grid)"""
        shift = self.shift(embedding)
        x = x + shift.reshape(*shift.shape, *(1,) * (x.ndim - 2))
        return torch.cat(self.chain(*x.chunk(2, dim=1)), dim=1)


class RevUNet(nn.Module):
    """A U-Net whose levels are reversible; `eps = network(x, t)`.

    Args:
        in_channels: image channels, then those of a condition.
        channels: C per level, even.
        couplings: per level and branch; two are the authors' reversible block.
        dims: 2 or 3.
        backward: "inverse" rebuilds the activations of a level, "stored" keeps them.
        out_channels: image channels, of the output; None: all input channels are.
        num_class_embeds: how many classes there are, whose labels enter with t; None: none.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (60, 120, 240, 360, 480),
        couplings: int = 2,
        dims: int = 3,
        backward: Backward = "inverse",
        out_channels: int | None = None,
        num_class_embeds: int | None = None,
    ) -> None:
        super().__init__()
        if dims not in CONVOLUTIONS:
            raise ValueError(f"dims must be 2 or 3, got {dims}")
        if not channels or any(width < 2 or width % 2 for width in channels):
            raise ValueError(f"every level needs an even number of channels, got {tuple(channels)}")
        if couplings < 1:
            raise ValueError(f"a level needs a coupling, got {couplings}")
        convolution, embedding = CONVOLUTIONS[dims], 4 * channels[0]
        self.pool = F.max_pool3d if dims == 3 else F.max_pool2d
        self.mode = "trilinear" if dims == 3 else "bilinear"
        self.time = TimeEmbedding(embedding)
        self.classes = nn.Embedding(num_class_embeds, embedding) if num_class_embeds else None
        self.lift = convolution(in_channels, channels[0], 3, padding=1)
        steps = list(itertools.pairwise(channels))
        self.down = nn.ModuleList(convolution(above, below, 1) for above, below in steps)
        self.up = nn.ModuleList(convolution(below, above, 1) for above, below in steps)
        self.encode, self.decode = (
            nn.ModuleList(
                Level(width, couplings, channels[0] // 2, embedding, dims, backward)
                for width in channels
            )
            for _ in range(2)
        )
        self.project = convolution(channels[0], out_channels or in_channels, 1)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x (B, in_channels, *grid), t and labels (B,) int64 -> the noise (B, out_channels, *grid).

        Labels are for a network with `num_class_embeds`, and for no other.
        """
        factor = 2 ** len(self.down)
        if any(size % factor for size in x.shape[2:]):
            raise ValueError(f"sizes must be multiples of {factor}; got {tuple(x.shape[2:])}")
        embedding = self.time(t)
        if (self.classes is None) != (class_labels is None):
            raise ValueError("class_labels are for a network with num_class_embeds, and no other")
        if self.classes is not None:
            embedding = embedding + self.classes(class_labels)
        x = self.encode[0](self.lift(x), embedding)
        skips = []
        for level, down in zip(self.encode[1:], self.down, strict=True):
            skips.append(x)
            x = level(down(self.pool(x, 2)), embedding)
        x = self.decode[-1](x, embedding)
        for level, up in reversed(list(zip(self.decode[:-1], self.up, strict=True))):
            x = F.interpolate(up(x), scale_factor=2, mode=self.mode, align_corners=False)
            x = level(x + skips.pop(), embedding)
        return self.project(x)


def build(
    *,
    in_channels: int = 1,
    channels: Sequence[int],
    couplings: int = 2,
    dims: int = 3,
    **options: Any,
) -> RevUNet:
    """The network by keywords, for registries."""
    return RevUNet(in_channels, channels, couplings, dims, **options)


def _function(channels: int, groups: int, dims: int) -> nn.Module:
    return nn.Sequential(
        GroupNorm(math.gcd(groups, channels), channels),
        ELU(inplace=True),
        CONVOLUTIONS[dims](channels, channels, 3, padding=1, bias=False),
    )
