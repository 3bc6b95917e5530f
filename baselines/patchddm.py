"""PatchDDM-3D: train on random patches, sample the whole volume.

Bieder et al., "Memory-Efficient 3D Denoising Diffusion Models for Medical Image Processing",
MIDL 2023, arXiv:2303.15288.

Memory is saved by what the network is shown. While training, it sees a patch, and three more
input channels that say where in the volume the patch lies. Since it is fully convolutional, one
that was trained on 128³ patches denoises a 256³ volume in one pass.

Two choices of the paper's network keep its activations small: few channels at full resolution,
and skips that are averaged into the decoder instead of concatenated, so that no decoder block is
wider than its encoder counterpart.

    level                 0     1     2     3     4     5     6
    side of a 128³ patch  128   64    32    16    8     4     2
    channels              29    87    116   116   116   116   116

What a row of `patchddm` has of its authors, and what of this benchmark:

    authors     network and channels; 128³ patches of 256³ volumes, and where they are drawn;
                batch 1; coordinates; 16-bit autocast
    benchmark   the task (they segment tumours: 8 input channels, four contrasts, the noised mask,
                three coordinates; here 4); bf16 for their fp16 with a loss scaler; diffusion, rate
                and optimizer, which are those of IDM's paper for every method

Written from the paper and from the layout of the authors' network, whose parameter count at these
channels, one image channel and three coordinates, is 24,257,167.
"""

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PUBLISHED: dict[str, Any] = {
    "volume": 256,
    "patch": 128,
    "batch_size": 1,
    "channels": tuple(29 * width for width in (1, 3, 4, 4, 4, 4, 4)),
    "precision": "bf16",  # the authors' 16-bit autocast; bf16, as it needs no loss scaling
}

BLOCKS_PER_LEVEL = 2


def build(
    *,
    in_channels: int,
    channels: tuple[int, ...],
    out_channels: int | None = None,
    num_class_embeds: int | None = None,
    **_: Any,
) -> "PatchDDM":
    """The network for `in_channels` channels; it adds its three coordinates itself."""
    return PatchDDM(in_channels, channels, out_channels, num_class_embeds)


class AdditiveUNet(nn.Module):
    """A U-Net with additive skips.

    Args:
        in_channels: of the input: those of the image, then those of a condition.
        channels: the width of each level, finest first.
        out_channels: of the output.
        num_class_embeds: classes, whose labels enter with t; None: none.
        groups: of every group normalisation, so it must divide all widths.
        resampling_blocks: whether residual blocks go from level to level, with a mean of 2³ voxels
            or a repetition inside, instead of convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        channels: tuple[int, ...],
        out_channels: int,
        num_class_embeds: int | None,
        groups: int,
        resampling_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.embedding_channels, *_ = channels
        time_channels = 4 * channels[0]

        def block(
            width_in: int, width_out: int, resample: nn.Module | None = None
        ) -> ResidualBlock:
            return ResidualBlock(width_in, width_out, time_channels, groups, resample)

        def make_down(width: int) -> nn.Module:
            if resampling_blocks:
                return block(width, width, nn.AvgPool3d(2))
            return nn.Conv3d(width, width, 3, stride=2, padding=1)

        def make_up(width: int) -> nn.Module:
            repeat = nn.Upsample(scale_factor=2, mode="nearest")
            if resampling_blocks:
                return block(width, width, repeat)
            return nn.Sequential(repeat, Conv3d(width, width))

        self.time_embedding = nn.Sequential(
            nn.Linear(self.embedding_channels, time_channels),
            nn.SiLU(),
            nn.Linear(time_channels, time_channels),
        )
        self.class_embedding = (
            nn.Embedding(num_class_embeds, time_channels) if num_class_embeds else None
        )
        width = channels[0]
        self.conv_in = Conv3d(in_channels, width)

        # Every tensor that the encoder makes is a skip: that of conv_in, of each block, and of
        # each downsampling. `skips` is their widths, in the order in which they are made.
        skips = [width]
        self.encoder = nn.ModuleList()
        for depth, level_width in enumerate(channels):
            blocks = nn.ModuleList()
            for _ in range(BLOCKS_PER_LEVEL):
                blocks.append(block(width, level_width))
                width = level_width
                skips.append(width)
            down = None
            if depth < len(channels) - 1:
                down = make_down(width)
                skips.append(width)
            self.encoder.append(EncoderLevel(blocks, down))

        self.middle = nn.ModuleList([block(width, width), block(width, width)])

        # A mean needs equal widths, so each decoder block already gives as many channels as the
        # skip that comes after it has; the last one has none after it and keeps its width.
        self.decoder = nn.ModuleList()
        for depth in reversed(range(len(channels))):
            blocks = nn.ModuleList()
            for _ in range(BLOCKS_PER_LEVEL + 1):
                skips.pop()
                next_width = skips[-1] if skips else width
                blocks.append(block(width, next_width))
                width = next_width
            up = make_up(width) if depth > 0 else None
            self.decoder.append(DecoderLevel(blocks, up))

        self.out = nn.Sequential(
            GroupNorm(groups, width), nn.SiLU(), zero(Conv3d(width, out_channels))
        )

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | int,
        context: None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Predict the noise ε in `x`.

        Args:
            x: (B, in_channels, D, H, W).
            timesteps: t, (B,) int64; a number, or a tensor of one, is that of every sample.
            context: must be None; MONAI's inferers pass it along.
            class_labels: (B,) int64, with `num_class_embeds`.

        Returns:
            ε, (B, out_channels, D, H, W).
        """
        time = self.embed(x, timesteps, context, class_labels)
        return self.through_levels([self.conv_in(x)], time)

    def embed(
        self, x: Tensor, timesteps: Tensor | int, context: None, class_labels: Tensor | None
    ) -> Tensor:
        """What every block is told of t and the class, (B or 1, time_channels)."""
        if context is not None or (class_labels is None) != (self.class_embedding is None):
            raise ValueError(
                "a condition goes into channels after those of the image, class_labels to a "
                "network with num_class_embeds, and to no other"
            )
        t = torch.as_tensor(timesteps, device=x.device).reshape(-1)
        time = self.time_embedding(sinusoidal_embedding(t, self.embedding_channels).to(x.dtype))
        if self.class_embedding is not None and class_labels is not None:
            time = time + self.class_embedding(class_labels)
        return time

    def through_levels(self, skips: list[Tensor], time: Tensor) -> Tensor:
        """`skips` has what `conv_in` gave; each is taken from it when it is used."""
        for level in self.encoder:
            skips += level(skips[-1], time)
        h = skips[-1]
        for block in self.middle:
            h = block(h, time)
        for level in self.decoder:
            h = level(h, time, skips)
        return self.out(h)


class PatchDDM(AdditiveUNet):
    """The U-Net that also reads where its voxels are.

    Args:
        in_channels: image channels of the input, then those of a condition.
        channels: the width of each level, finest first. The first is also the number of groups
            of every group normalisation, so it must divide the others.
        out_channels: image channels, of the output; None: all input channels are.
        num_class_embeds: classes, whose labels enter with t; None: none.
    """

    def __init__(
        self,
        in_channels: int,
        channels: tuple[int, ...],
        out_channels: int | None = None,
        num_class_embeds: int | None = None,
    ) -> None:
        if any(width % channels[0] for width in channels):
            raise ValueError(f"channels {channels}: the first must divide all others")
        super().__init__(
            in_channels + 3, channels, out_channels or in_channels, num_class_embeds, channels[0]
        )

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        timesteps: Tensor | int,
        coordinates: Tensor | None = None,
        context: None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Predict the noise ε in `x`, as `AdditiveUNet.forward` does.

        Args:
            x: noisy patches or whole volumes, (B, C, D, H, W).
            coordinates: where the voxels of `x` lie, (B, 3, D, H, W), from −1 to 1 over the whole
                volume, as `crop` returns them. None: `x` is the whole volume.
        """
        if coordinates is None:
            axes = [torch.linspace(-1, 1, side, device=x.device) for side in x.shape[2:]]
            coordinates = grid(axes).expand(x.shape[0], -1, -1, -1, -1)
        time = self.embed(x, timesteps, context, class_labels)
        return self.through_levels(
            [self.conv_in(torch.cat([x, coordinates.to(x.dtype)], dim=1))], time
        )

    def shard_units(self) -> list[nn.Module]:
        """What FSDP may gather and free one by one: no levels, whose list of skips it copies."""
        return [module for module in self.modules() if isinstance(module, ResidualBlock)]

    @staticmethod
    def crop(
        x0: Tensor, patch: int | tuple[int, ...], rng: random.Random
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cut one random patch from each volume.

        The positions come from Python's generator: they decide the strides of views, and a fake
        tensor has no value to decide with.

        Args:
            x0: volumes, (B, C, D, H, W), no side shorter than the patch's.
            patch: the sides of the patch, or of a cubic one its side. With those of the volume,
                the volume itself.
            rng: where the positions come from.

        Returns:
            The patches, (B, C, *patch), and the keyword arguments that `forward` needs to know
            where they lie: `coordinates`, (B, 3, *patch).

        Raises:
            ValueError: if a side of the volume is shorter than the patch's.
        """
        sides = tuple(x0.shape[2:])
        sizes = sides_of(patch, len(sides))
        if any(size > side for size, side in zip(sizes, sides, strict=True)):
            raise ValueError(f"a patch of sides {sizes} does not fit into a volume {sides}")
        patches, coordinates = [], []
        for volume in x0:
            corner = patch_corner(sides, sizes, rng)
            cut = [slice(a, a + size) for a, size in zip(corner, sizes, strict=True)]
            patches.append(volume[(slice(None), *cut)])
            axes = [torch.linspace(-1, 1, side, device=x0.device) for side in sides]
            coordinates.append(grid([axis[along] for axis, along in zip(axes, cut, strict=True)]))
        return torch.stack(patches), {"coordinates": torch.stack(coordinates)}


def sides_of(patch: int | Sequence[int], dims: int) -> tuple[int, ...]:
    return (patch,) * dims if isinstance(patch, int) else tuple(patch)


def patch_corner(sides: Sequence[int], patch: int | Sequence[int], rng: random.Random) -> list[int]:
    """The first voxel of a random patch along each axis.

    As in the authors' loader, the sum of two uniform draws, over a quarter and three quarters of
    the way: patches from the middle, where the brain is, come up more often than from the rim.
    """
    sizes = sides_of(patch, len(sides))
    ways = [side - size for side, size in zip(sides, sizes, strict=True)]
    return [rng.randint(0, way // 4) + rng.randint(0, way - way // 4) for way in ways]


def grid(axes: list[Tensor]) -> Tensor:
    """The coordinates of each voxel, (3, D, H, W), from those along each axis."""
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def sinusoidal_embedding(t: Tensor, channels: int, max_period: float = 10_000) -> Tensor:
    """The embedding of Ho et al. 2020 (arXiv:2006.11239), (B,) to (B, channels).

    Half of the channels are cosines, half sines; an odd channel stays 0.
    """
    half = channels // 2
    k = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * k / half)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, channels % 2))


class EncoderLevel(nn.Module):
    """The blocks at one resolution, and the way down to the next; the coarsest has none."""

    def __init__(self, blocks: nn.ModuleList, down: nn.Module | None) -> None:
        super().__init__()
        self.blocks, self.down = blocks, down

    def forward(self, h: Tensor, time: Tensor) -> list[Tensor]:
        """Every tensor made on the way, each a skip; the last one is what goes on."""
        made = []
        for block in self.blocks:
            h = block(h, time)
            made.append(h)
        if self.down is not None:
            made.append(_through(self.down, h, time))
        return made


class DecoderLevel(nn.Module):
    """The blocks at one resolution, and the way up to the next; the finest has none."""

    def __init__(self, blocks: nn.ModuleList, up: nn.Module | None) -> None:
        super().__init__()
        self.blocks, self.up = blocks, up

    def forward(self, h: Tensor, time: Tensor, skips: list[Tensor]) -> Tensor:
        """Takes a skip off the end of `skips` for each block."""
        for block in self.blocks:
            # Named, `skip` outlives its use by one block. In the authors' network it does, too, and
            # in the last block, where the memory peaks under autocast, that is 1.5 % of the peak.
            skip = skips.pop()
            h = block((h + skip) / 2, time)
        return h if self.up is None else _through(self.up, h, time)


def _through(resampling: nn.Module, h: Tensor, time: Tensor) -> Tensor:
    return resampling(h, time) if isinstance(resampling, ResidualBlock) else resampling(h)


class ResidualBlock(nn.Module):
    """x ↦ shortcut(x) + conv(SiLU(norm(conv(SiLU(norm(x))) + W·SiLU(time)))).

    The second convolution starts at zero, so the block starts as its shortcut. With `resample`, x
    passes through it before the shortcut, and SiLU(norm(x)) before the first convolution.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        time_channels: int,
        groups: int,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.resample = resample
        between = [] if resample is None else [resample]
        self.conv1 = nn.Sequential(
            GroupNorm(groups, channels), nn.SiLU(), *between, Conv3d(channels, out_channels)
        )
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, out_channels))
        self.conv2 = nn.Sequential(
            GroupNorm(groups, out_channels),
            nn.SiLU(),
            zero(Conv3d(out_channels, out_channels)),
        )
        self.shortcut = (
            nn.Identity() if channels == out_channels else nn.Conv3d(channels, out_channels, 1)
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, channels, D, H, W) and (B, time_channels) to (B, out_channels, D, H, W)."""
        h = self.conv1(x) + self.time(time)[:, :, None, None, None]
        if self.resample is not None:
            x = self.resample(x)
        return self.shortcut(x) + self.conv2(h)


class GroupNorm(nn.GroupNorm):
    """Group normalisation that computes in fp32 whatever comes in, and gives it back as it came.

    The authors' choice. Under 16-bit autocast it keeps an fp32 copy of its input for the backward
    pass, where a 16-bit one would do: together they are almost half of what the network stores.
    """

    def forward(self, input: Tensor) -> Tensor:
        wide = input if input.dtype.itemsize > 4 else input.float()
        return super().forward(wide).to(input.dtype)


class Conv3d(nn.Conv3d):
    """A 3³ convolution that keeps the size, and pads a depth of 2 by itself.

    On CPUs with AVX-512, the gradient of the weights of a bf16 convolution that pads a depth of 2
    is uninitialised memory (oneDNN; seen with PyTorch 2.13). A 128³ patch is 2³ at the coarsest
    level of the paper's network.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        # On every device, so that the memory predicted on one is that of another.
        if input.shape[2] == 2:
            padded = F.pad(input, (0, 0, 0, 0, 1, 1))
            return F.conv3d(padded, self.weight, self.bias, padding=(0, 1, 1))
        return super().forward(input)


def zero(module: nn.Module) -> nn.Module:
    """`module`, its parameters set to zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
