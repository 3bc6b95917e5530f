"""IDM: an invertible U-Net with invertible attention, for denoising diffusion.

    ε ≈ U(x_t, t) = project ∘ body ∘ lift(·, t)

A condition enters the lift beside x_t, class labels with t. The body is invertible from end to
end. Its state at a level with C channels travels as two halves of C/2 channels, because a coupling
changes only one of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import InvertibleAttention
from .coupling import CONVOLUTIONS, CONVOLVE, AdditiveCoupling, ConvolutionBlock, wide_if_thin
from .layout import fastest_layout
from .resampling import ChannelMixing, Downsampling, OrthogonalLayer
from .reversible import Backward, Region, Value, is_plain, left_to_eager

CONVOLVE_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    2: F.conv_transpose2d,
    3: wide_if_thin(F.conv_transpose3d),
}


class Wire(NamedTuple):
    """One layer of the body and the names of the values that it turns into others."""

    layer: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class TimeEmbedding(nn.Module):
    """t (B,) -> (B, width): sinusoids (Vaswani et al. 2017, arXiv:1706.03762) and an MLP."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.register_buffer("frequencies", self._frequencies(half), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * half, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        frequencies = self.frequencies
        if frequencies.dtype.itemsize < 4:  # rounded, they would mix up neighbouring times
            frequencies = self._frequencies(len(frequencies), t.device)
        angles = t[:, None].to(frequencies.dtype) * frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        return self.mlp(waves.to(self.frequencies.dtype))

    @staticmethod
    def _frequencies(count: int, device: torch.device | None = None) -> Tensor:
        return torch.exp(-math.log(10_000) * torch.arange(count, device=device) / count)


class Lift(nn.Module):
    """The non-invertible first layer: x_t, a condition and t -> two halves of C₀/2 channels.

    A 3×3×3 convolution of x_t, of `gates` multiples of it, whose factors depend on t, and of the
    condition, plus a shift per channel that depends on t. So t scales and shifts every channel,
    while what is stored for the backward pass is as thin as the image and the condition.

    At the start the factors and shifts are 0, and x_t and the condition go voxel by voxel along
    orthonormal directions of the channels.

    Args:
        in_channels: of the image, which come first, and of the condition.
        image_channels: of the image alone.
    """

    gates = 3

    def __init__(
        self, in_channels: int, image_channels: int, channels: int, dims: int, embedding: int
    ) -> None:
        super().__init__()
        self.dims = dims
        self.image_channels = image_channels
        self.convolution = CONVOLUTIONS[dims](
            image_channels * self.gates + in_channels, channels, 3, padding=1
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(embedding, self.gates + channels))
        directions = nn.init.orthogonal_(torch.empty(channels, in_channels))
        with torch.no_grad():
            image, condition = self._ungated()
            nn.init.zeros_(image)
            nn.init.zeros_(condition)
            _middle(image).copy_(directions[:, :image_channels])
            _middle(condition).copy_(directions[:, image_channels:])
            for parameter in (self.bias, *self.modulation[-1].parameters()):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, in_channels, *grid), embedding (B, E) -> 2 × (B, C₀/2, *grid)"""
        gates, shift = self.modulation(embedding).split([self.gates, len(self.weight)], dim=1)
        scales = torch.cat([torch.ones_like(gates[:, :1]), gates], dim=1)
        image, condition = x.tensor_split([self.image_channels], dim=1)
        scales = scales.reshape(*scales.shape, *(1,) * (x.ndim - 1))
        copies = (image[:, None] * scales).flatten(1, 2)
        if condition.shape[1]:
            copies = torch.cat([copies, condition], dim=1)
        copies = copies.contiguous(memory_format=fastest_layout(copies, len(self.weight) // 2))
        shift = (shift + self.bias).reshape(len(x), -1, *(1,) * self.dims)
        convolve = CONVOLVE[self.dims]
        first, second = (
            # Autocast must not round the state: the layers that follow are to be inverted.
            convolve(copies, weight, padding=1).to(self.weight.dtype) + offset
            for weight, offset in zip(self.weight.chunk(2), shift.chunk(2, 1), strict=True)
        )
        return first, second

    def pseudo_inverse(self, first: Tensor, second: Tensor) -> Tensor:
        """L⁺: the adjoint of what t leaves alone, scaled to be L's inverse on average."""
        weight, _ = self._ungated()
        x = sum(
            CONVOLVE_TRANSPOSED[self.dims](half, part, padding=1)
            for half, part in zip((first, second), weight.chunk(2), strict=True)
        )
        scale = weight.square().sum(dim=(0, *range(2, weight.ndim)))
        return x / scale.reshape(-1, *(1,) * self.dims)

    @property
    def weight(self) -> Tensor:
        return self.convolution.weight

    @property
    def directions(self) -> tuple[Tensor, Tensor]:
        """What the channels get of a voxel's own image and condition, (C₀, channels) each."""
        image, condition = self._ungated()
        return _middle(image), _middle(condition)

    def _ungated(self) -> tuple[Tensor, Tensor]:
        """The kernels of the image and of the condition, as t leaves them alone."""
        image = self.image_channels
        return self.weight[:, :image], self.weight[:, image * (1 + self.gates) :]

    @property
    def bias(self) -> Tensor:
        assert self.convolution.bias is not None
        return self.convolution.bias


class Project(nn.Module):
    """The non-invertible last layer: two halves of C₀/2 channels -> the noise, by a convolution.

    At the start it undoes what the lift does to x_t: its kernels are orthogonal to the directions
    of x_t and the condition in the channels, except that in the middle they are the transposed of
    those of x_t.
    """

    def __init__(self, lift: Lift) -> None:
        super().__init__()
        self.dims = lift.dims
        image, condition = (each.detach() for each in lift.directions)
        channels, out_channels = image.shape
        directions = torch.cat([image, condition], dim=1)
        self.convolution = CONVOLUTIONS[lift.dims](channels, out_channels, 3, padding=1)
        with torch.no_grad():
            weight = self.convolution.weight
            weight -= torch.einsum("oc...,ci,di->od...", weight, directions, directions)
            _middle(weight).add_(image.T)
            if self.convolution.bias is not None:
                nn.init.zeros_(self.convolution.bias)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """2 × (B, C₀/2, *grid) -> (B, out_channels, *grid)"""
        # Half by half: concatenating would store the state a second time.
        one, two = self.convolution.weight.chunk(2, dim=1)
        convolve = CONVOLVE[self.dims]
        return convolve(first, one, self.convolution.bias, padding=1) + convolve(
            second, two, padding=1
        )

    def pseudo_inverse(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """P⁺: the adjoint, scaled to be P's right inverse on average."""
        weight, bias = self.convolution.weight, self.convolution.bias
        scale = weight.square().sum(dim=tuple(range(1, weight.ndim)))
        shape = (-1, *(1,) * self.dims)
        v = v if bias is None else v - bias.reshape(shape)
        v = v / scale.reshape(shape)
        laid = fastest_layout(v, weight.shape[1] // 2)
        first, second = (
            CONVOLVE_TRANSPOSED[self.dims](v, part, padding=1)
            .to(weight.dtype)
            .contiguous(memory_format=laid)
            for part in weight.chunk(2, dim=1)
        )
        return first, second


class IDM(nn.Module):
    """An invertible U-Net that predicts noise, trained without storing activations.

    Each level has `couplings` additive couplings on the way down and as many on the way up. After
    those on the way down, channels are mixed; C_{i+1} / 2^dims of them go down by an orthogonal
    downsampling and become C_{i+1}, the others are the skip. On the way up they meet again, after
    the skip went through invertible attention at the deepest `attention_levels` levels that have
    one. At the start the body is the identity map, and so is U: the noise predicted is x_t, which
    is right where noise is all there is. From other starts it takes a training of minutes to get
    back there, and samples, which begin with pure noise, show no anatomy before.

    It is called as MONAI's `DiffusionModelUNet` is, so that MONAI's inferers can draw from it. A
    condition is further input channels: they enter the lift, which is not inverted, so that
    memory and exactness of the body are what they are without.

    Args:
        in_channels: input channels: those of the image, then those of a condition.
        channels: C per level. Even; C_{i+1} a multiple of 2^dims and less than 2^dims · C_i.
        couplings: per branch of every level, or of each, finest first. More of them store nothing
            more; at the finest level they are what IDM learns most by (docs/idm.md).
        attention_levels: how many levels get iTrans on their skip, from the deepest up.
        dims: 2 for images (B, C, H, W), 3 for volumes (B, C, D, H, W).
        backward: "inverse" rebuilds activations in the backward pass, "stored" keeps them. The
            network, its parameters and its initial values are the same.
        out_channels: image channels, of the output; None: all input channels are.
        num_class_embeds: how many classes there are, whose labels enter with t; None: none.
        time_in_couplings: t enters every F, not only the lift. `inverse` then needs t, too.
        checked: compare every reconstruction with the original (see `Region`).
        preserve_rng_state: as in `Region`. IDM draws nothing, so no state is kept; it is there for
            an F of your own.

    Hooks on parameters and modules behave as `Region` says. Under `torch.compile` the body stays
    eager where its activations are rebuilt.

    Example::

        net = IDM(channels=(32, 64, 128, 256))
        eps = net(x_t, t)          # (B, 1, D, H, W), (B,) int64 -> (B, 1, D, H, W)
        x_hat = net.inverse(eps)   # U⁻¹
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = (32, 64, 128, 256),
        couplings: int | Sequence[int] = 2,
        attention_levels: int = 2,
        dims: int = 3,
        backward: Backward = "inverse",
        *,
        out_channels: int | None = None,
        num_class_embeds: int | None = None,
        time_in_couplings: bool = False,
        checked: bool = False,
        preserve_rng_state: bool = True,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        if not 1 <= out_channels <= in_channels:
            raise ValueError(
                f"out_channels are those of in_channels that are the image, 1 to {in_channels}; "
                f"got {out_channels}"
            )
        _check_widths(channels, dims)
        counts = (couplings,) * len(channels) if isinstance(couplings, int) else tuple(couplings)
        if len(counts) != len(channels):
            raise ValueError(
                f"couplings: a number, or one for each of {len(channels)} levels; got {counts}"
            )
        if min(counts) < 0 or attention_levels < 0:
            raise ValueError("couplings and attention_levels must not be negative")
        if backward not in ("inverse", "stored"):
            raise ValueError(f'backward must be "inverse" or "stored", got {backward!r}')
        self.in_channels, self.out_channels = in_channels, out_channels
        self.channels = tuple(channels)
        self.dims = dims
        self.backward = backward
        self.time_in_couplings = time_in_couplings
        self.checked = checked
        self.preserve_rng_state = preserve_rng_state

        embedding = 4 * channels[0]
        self.time = TimeEmbedding(embedding)
        self.classes = nn.Embedding(num_class_embeds, embedding) if num_class_embeds else None
        self.lift = Lift(in_channels, out_channels, channels[0], dims, embedding)
        self.body = nn.ModuleDict()
        self.wiring: list[Wire] = []
        self._build_body(counts, attention_levels, embedding if time_in_couplings else 0)
        self.project = Project(self.lift)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | int,
        context: None = None,
        class_labels: Tensor | int | None = None,
    ) -> Tensor:
        """The predicted noise, (B, out_channels, *grid).

        Args:
            x: (B, in_channels, *grid), x_t and after its channels those of the condition.
            timesteps: t, (B,) int64; a number, or a tensor of one, is that of every sample.
            context: must be None; MONAI's inferers pass it along.
            class_labels: (B,) int64, or one for all; with `num_class_embeds`.

        Raises:
            ValueError: shapes that do not fit, in words.
        """
        embedding = self._prepare(x, timesteps, context, class_labels)
        halves = self._run_body(self.lift(x, embedding), embedding, flipped=False)
        return self.project(*halves)

    def inverse(
        self,
        v: Tensor,
        timesteps: Tensor | int | None = None,
        class_labels: Tensor | int | None = None,
    ) -> Tensor:
        """U⁻¹ v = L⁺ body⁻¹ P⁺ v: the image channels, shaped like v.

        It takes t, and class labels, only with `time_in_couplings`.
        """
        self._check_input(v, self.out_channels)
        embedding = None
        if self.time_in_couplings:
            if timesteps is None:
                raise ValueError("with time_in_couplings the inverse depends on t: inverse(v, t)")
            embedding = self._embed(v, timesteps, class_labels)
        halves = self._run_body(self.project.pseudo_inverse(v), embedding, flipped=True)
        return self.lift.pseudo_inverse(*halves)

    def _prepare(self, x: Tensor, timesteps: Any, context: None, class_labels: Any) -> Tensor:
        """Check what `forward` was given; the embedding of t and the labels, (B, E)."""
        self._check_input(x, self.in_channels)
        if context is not None:
            raise ValueError(
                "an IDM has no cross-attention for a context: give the condition as channels after "
                "those of the image (mode='concat' of MONAI's inferers)"
            )
        return self._embed(x, timesteps, class_labels)

    def _embed(self, x: Tensor, timesteps: Any, class_labels: Any) -> Tensor:
        embedding = self.time(_one_a_sample("timesteps", timesteps, x))
        if (self.classes is None) != (class_labels is None):
            raise ValueError(
                "class_labels are given to a network with num_class_embeds, and to no other"
            )
        if self.classes is None:
            return embedding
        return embedding + self.classes(_one_a_sample("class_labels", class_labels, x))

    def shard_units(self) -> list[nn.Module]:
        """What FSDP may gather and free one by one: layers whose weights nothing else reads."""
        kinds = AdditiveCoupling, InvertibleAttention
        return [layer for layer in self.body.values() if isinstance(layer, kinds)]

    def accumulate_at_once(self) -> None:
        """Let gradients of F reach `.grad` one by one, for an optimizer that uses them up there."""
        self._accumulate_at_once(self.wiring)

    def _accumulate_at_once(self, wires: Sequence[Wire]) -> None:
        for wire in wires:
            if isinstance(coupling := self.body[wire.layer], AdditiveCoupling):
                coupling.accumulates_at_once = True

    def describe(self) -> str:
        """The U as text: a line per level with its channels, its split, and what works there."""
        bottom = len(self.channels) - 1
        lines = [f"lift: {self.in_channels} channels and t -> {self.channels[0]}"]
        for level, width in enumerate(self.channels):
            names = [w.layer for w in self.wiring if w.layer.startswith(f"level{level}_")]
            down, up = (sum(branch in n for n in names) for branch in ("encode", "decode"))
            count = sum(p.numel() for n in names for p in self.body[n].parameters())
            middle = "mix"
            if level < bottom:
                sent = self.channels[level + 1] // 2**self.dims
                attention = " -> iTrans" if f"level{level}_attention" in self.body else ""
                middle = f"split {width - sent} skip{attention} | {sent} down"
            line = f"{count:>13,} parameters  {'  ' * level}level {level}: {width} channels, "
            line += f"1/{2**level} size: "
            line += f"{down} couplings, {middle}, {up} couplings"
            lines.append(line)
        lines.append(f"project: {self.channels[0]} -> {self.out_channels}")
        return "\n".join(lines)

    @property
    def plain(self) -> bool:
        return is_plain(self.backward)

    def _run_body(
        self, halves: Sequence[Tensor], embedding: Tensor | None, flipped: bool
    ) -> tuple[Tensor, Tensor]:
        state = dict(zip(("x1", "x2"), halves, strict=True))
        del halves
        state = self._run(self.wiring, state, embedding, flipped)
        return state["x1"], state["x2"]

    @left_to_eager
    def _run(
        self,
        wires: Sequence[Wire],
        tensors: dict[str, Tensor],
        embedding: Tensor | None,
        flipped: bool = False,
    ) -> dict[str, Tensor]:
        """Run a stretch of the body in a region of its own. Empties `tensors`."""
        region = Region(
            self.backward, checked=self.checked, preserve_rng_state=self.preserve_rng_state
        )
        state: dict[str, Value] = {}
        for key in list(tensors):
            (state[key],) = region.enter(tensors.pop(key))
        for name, inputs, outputs in reversed(wires) if flipped else wires:
            if flipped:
                inputs, outputs = outputs, inputs
            layer = self.body[name]
            side: tuple[Tensor, ...] = ()
            if isinstance(layer, OrthogonalLayer):
                side = (layer.matrices(),)
            elif isinstance(layer, AdditiveCoupling) and self.time_in_couplings:
                assert embedding is not None
                side = (embedding,)
            values = [state.pop(key) for key in inputs]
            results = region.run(layer, values, *side, flipped=flipped, name=name)
            state.update(zip(outputs, results, strict=True))
        return dict(zip(state, region.exit(*state.values()), strict=True))

    def _build_body(self, couplings: Sequence[int], attention_levels: int, embedding: int) -> None:
        dims, bottom = self.dims, len(self.channels) - 1
        halves = ("x1", "x2")

        def add(name: str, layer: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]):
            self.body[name] = layer
            self.wiring.append(Wire(name, inputs, outputs))

        def add_couplings(level: int, branch: str) -> None:
            for index in range(couplings[level]):
                block = ConvolutionBlock(self.channels[level] // 2, dims, embedding)
                changes: Literal[0, 1] = 0 if index % 2 else 1
                add(
                    f"level{level}_{branch}{index}",
                    AdditiveCoupling(block, changes),
                    halves,
                    halves,
                )

        def pieces(level: int) -> tuple[tuple[int, int], tuple[int, int]]:
            width = self.channels[level]
            down = self.channels[level + 1] // 2**dims
            return (width // 2, width // 2), (width - down, down)

        for level in range(bottom):
            state, (skip, down) = pieces(level)
            add_couplings(level, "encode")
            split = ChannelMixing(state, (skip, down))
            add(f"level{level}_split", split, halves, (f"skip{level}", "down"))
            add(f"level{level}_down", Downsampling(down, dims), ("down",), halves)

        add_couplings(bottom, "encode")
        half = self.channels[bottom] // 2
        add("bottom_mix", ChannelMixing((half,) * 2, (half,) * 2, shuffled=False), halves, halves)
        add_couplings(bottom, "decode")

        for level in reversed(range(bottom)):
            state, (skip, down) = pieces(level)
            add(f"level{level}_up", Downsampling(down, dims, transposed=True), halves, ("up",))
            name = f"skip{level}"
            if level >= bottom - attention_levels:
                attention = InvertibleAttention(skip, dims)
                add(f"level{level}_attention", attention, (name,), (name,))
            merge = ChannelMixing((skip, down), state, transposed=True)
            add(f"level{level}_merge", merge, (name, "up"), halves)  # eq. (2)
            add_couplings(level, "decode")

    @property
    def multiple(self) -> int:
        """What each side of a volume must be a multiple of (`pad_to_multiple`)."""
        return 2 ** (len(self.channels) - 1)

    def _check_input(self, x: Tensor, channels: int) -> None:
        if x.ndim != 2 + self.dims or x.shape[1] != channels:
            raise ValueError(
                f"expected (batch, {channels}, {self.dims} spatial axes), got {tuple(x.shape)}"
            )
        if any(size % self.multiple for size in x.shape[2:]):
            raise ValueError(
                f"{len(self.channels)} levels halve each axis {len(self.channels) - 1} times, so "
                f"sizes must be multiples of {self.multiple} (see pad_to_multiple); "
                f"got {tuple(x.shape[2:])}"
            )


def _one_a_sample(name: str, value: Any, x: Tensor) -> Tensor:
    """(B,) of what may be one for all: a number, or a tensor of no axis or of one entry."""
    value = torch.as_tensor(value, device=x.device)
    if value.shape in ((), (1,)):
        value = value.expand(len(x))
    if value.shape != x.shape[:1]:
        raise ValueError(
            f"{name}: expected a number, or one for each of {len(x)} samples; "
            f"got {tuple(value.shape)}"
        )
    return value


def _middle(kernels: Tensor) -> Tensor:
    """The middle tap of 3×3×3 kernels, as a view."""
    taps = kernels.flatten(2)
    return taps[:, :, taps.shape[2] // 2]


def _check_widths(channels: Sequence[int], dims: int) -> None:
    if dims not in CONVOLUTIONS:
        raise ValueError(f"dims must be 2 or 3, got {dims}")
    if not channels or any(width < 2 or width % 2 for width in channels):
        raise ValueError(f"every level needs an even number of channels, got {tuple(channels)}")
    for width, deeper in itertools.pairwise(channels):
        if deeper % 2**dims or not 0 < deeper // 2**dims < width:
            raise ValueError(
                f"a level of {width} channels sends {deeper}/{2**dims} of them down to become "
                f"{deeper}: that must be a whole number between 1 and {width - 1}"
            )
