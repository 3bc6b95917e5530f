"""IDM with the least memory: the same network, trained by every trick that keeps it exact.

- The top level runs sample by sample. Its tensors are the largest and its weights the smallest:
  whatever it holds shrinks by the batch size, while nothing is computed twice.
- The way down at the top level is recomputed from the image, a sample at a time, so the largest
  skip need not be kept between its rebuilding on the way up and its use on the way down.
- F runs in slices of its hidden channels where these are large: whole groups of the GroupNorm, so
  that the sum is exactly F.
- Gradients are applied as they appear, by an AdamW with a byte per moment (`optimizer.py`).

What each saves and costs is measured in the README.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import PUBLISHED as PUBLISHED
from .coupling import ConvolutionBlock
from .network import IDM
from .optimizer import AdamWInBackward, make_optimizer
from .reversible import Mode, left_to_eager

HALVES = ("x1", "x2")


class LeanIDM(IDM):
    """IDM whose `forward` streams the top level and which brings its own optimizer.

    Gradients and parameters are those of `IDM`. Further arguments:

    Args:
        stream_bytes: run the top level sample by sample, its way down twice, where the state of a
            sample takes more than this (None: never). Below it, there is little to be saved, and
            a CPU's convolution of a single small sample is five times as slow.
        slice_bytes: F is sliced so that a hidden tensor takes about this much (None: never).
        eight_bit: optimizer moments as bytes (see `AdamWInBackward`).
        half_precision: run F in bfloat16; states, weights and gradients stay float32. Not exact.
    """

    def __init__(
        self,
        *args: Any,
        stream_bytes: int | None = 16 * 2**20,
        slice_bytes: int | None = 256 * 2**20,
        eight_bit: bool = True,
        half_precision: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.eight_bit = eight_bit
        self.stream_bytes = stream_bytes if len(self.channels) > 1 else None
        for block in self.modules():
            if isinstance(block, ConvolutionBlock):
                block.slice_bytes = slice_bytes
                block.half_precision = half_precision
        names = [wire.layer for wire in self.wiring]
        if self.stream_bytes is not None:
            down, up = names.index("level0_down") + 1, names.index("level0_up")
            self.way_down, self.middle = self.wiring[:down], self.wiring[down:up]
            self.way_up = self.wiring[up:]

    def forward(
        self, x: Tensor, timesteps: Any, context: None = None, class_labels: Any = None
    ) -> Tensor:
        if not self._streams(x):
            return super().forward(x, timesteps, context, class_labels)
        return self._stream(x, self._prepare(x, timesteps, context, class_labels))

    @left_to_eager
    def _stream(self, x: Tensor, embedding: Tensor) -> Tensor:
        samples = list(zip(x.split(1), embedding.split(1), strict=True))
        skips, deeper = [], []
        for sample in samples:
            skip, *halves = self._descend_twice(*sample)
            skips.append(skip)
            deeper.append(halves)
        state = {
            name: torch.cat(half)
            for name, half in zip(HALVES, zip(*deeper, strict=True), strict=True)
        }
        del skip, halves, deeper
        state = self._run(self.middle, state, embedding)
        first, second = (state.pop(name).split(1) for name in HALVES)
        result = []
        for index, (_, sample_embedding) in enumerate(samples):
            own = {"skip0": skips.pop(0), "x1": first[index], "x2": second[index]}
            own = self._run(self.way_up, own, sample_embedding)
            result.append(self.project(own.pop("x1"), own.pop("x2")))
        return torch.cat(result)

    def make_optimizer(self, learning_rate: float, lambda_l2: float = 0.0) -> AdamWInBackward:
        """An optimizer that works in backward() and adds the λ_L2 term of eq. (8) itself."""
        return cast(
            AdamWInBackward,
            make_optimizer(
                self, learning_rate=learning_rate, lambda_l2=lambda_l2, eight_bit=self.eight_bit,
                in_backward=True,
            ),
        )  # fmt: skip

    def accumulate_at_once(self) -> None:
        # The top level's gradients are sums over the samples, and ready after the last one.
        self._accumulate_at_once(self.wiring if self.stream_bytes is None else self.middle)

    def _streams(self, x: Tensor) -> bool:
        if self.stream_bytes is None or len(x) == 1:  # one sample gains nothing from its own turn
            return False
        state_bytes = x.nbytes // (len(x) * self.in_channels) * self.channels[0]
        return state_bytes > self.stream_bytes

    def _descend_twice(self, *sample: Tensor) -> tuple[Tensor, ...]:
        if not torch.is_grad_enabled() or torch.jit.is_tracing():
            return self._descend(*sample)
        layers = [self.lift, *(self.body[wire.layer] for wire in self.way_down)]
        mode = Mode(layers, sample[0].device, self.preserve_rng_state)
        return checkpoint(
            self._descend,
            *sample,
            use_reentrant=False,
            preserve_rng_state=False,  # `mode` does it
            context_fn=lambda: (mode.record(), mode.replay()),
        )

    def _descend(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The top level's way down for one sample: its skip, and the state of the next level."""
        # No name for the lifted halves: it would keep them alive while the body runs.
        state = dict(zip(HALVES, self.lift(x, embedding), strict=True))
        out = self._run(self.way_down, state, embedding)
        return out["skip0"], out["x1"], out["x2"]


def build(
    *,
    in_channels: int = 1,
    channels: Sequence[int],
    couplings: int = 2,
    dims: int = 3,
    **options: Any,
) -> LeanIDM:
    """A `LeanIDM` by keywords, for registries."""
    return LeanIDM(in_channels, channels, couplings, dims=dims, **options)
