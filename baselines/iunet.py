"""iUNets: the published invertible U-Net, whose backward pass MemCNN carries out.

Etmann et al., "iUNets: Fully Invertible U-Nets with Learnable Up- and Downsampling", 2020,
arXiv:2005.05220; the packages `iunets` and `memcnn` (van de Leemput et al. 2019) as they are. Each
module keeps its output only; the backward pass inverts it, and computes it again with gradients.

Their network takes no diffusion step. Here t, and a class label, enter once, added to what the
first convolution gives, since each of their modules takes one tensor. It is trained in float32:
MemCNN casts what comes in.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .patchddm import sinusoidal_embedding

# No paper trains it to denoise: the setting is that of IDM's.
PUBLISHED: dict[str, Any] = {
    "volume": 64,
    "batch_size": 4,
    "channels": (64, 128, 256, 512, 1024, 2048),
    "precision": "fp32",
}
REQUIRES = ("iunets", "memcnn")
"""Packages of the extra `peers`."""
ONLY_FP32 = "MemCNN computes again in the backward pass, where autocast is off"


def build(
    *,
    in_channels: int,
    channels: tuple[int, ...],
    couplings: int = 2,
    out_channels: int | None = None,
    num_class_embeds: int | None = None,
    dims: int = 3,
    **_: Any,
) -> "IUNet":
    """The network, with `couplings` of two convolutions each a level and branch."""
    out_channels = out_channels or in_channels
    return IUNet(in_channels, channels, couplings, out_channels, num_class_embeds, dims)


class IUNet(nn.Module):
    """Their U-Net between a convolution to its channels and one back."""

    def __init__(
        self,
        in_channels: int,
        channels: tuple[int, ...],
        couplings: int,
        out_channels: int,
        num_class_embeds: int | None = None,
        dims: int = 3,
    ) -> None:
        with warnings.catch_warnings(action="ignore"):
            import iunets
        # What PyTorch has to say on code of that age, at each step.
        warnings.filterwarnings("ignore", r"torch\.lu|TypedStorage is deprecated")

        super().__init__()
        width, *_ = channels
        convolution = nn.Conv3d if dims == 3 else nn.Conv2d
        self.embedding_channels = width
        self.time_embedding = nn.Sequential(
            nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
        )
        self.classes = nn.Embedding(num_class_embeds, width) if num_class_embeds else None
        self.lift = convolution(in_channels, width, 3, padding=1)
        self.body = iunets.iUNet(
            in_channels=width, architecture=(couplings,) * len(channels), dim=dims,
            verbose=0, module_kwargs={"block_depth": 2},
        )  # fmt: skip
        if self.body.channels != list(channels):
            doubled = " ".join(map(str, self.body.channels))
            raise ValueError(f"each level of iUNets has twice the channels: {doubled}")
        self.inverted = [
            each for each in self.body.modules() if getattr(each, "disable", 1) is False
        ]
        self.project = convolution(width, out_channels, 3, padding=1)

    def forward(self, x: Tensor, timesteps: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """(B, in_channels, D, H, W), t and labels (B,) int64, to ε, (B, out_channels, D, H, W)."""
        for module in self.inverted:  # fvcore cannot trace MemCNN's function
            module.disable = torch.jit.is_tracing()
        seen = sinusoidal_embedding(timesteps, self.embedding_channels).to(x.dtype)
        time = self.time_embedding(seen)
        if self.classes is not None:
            time = time + self.classes(class_labels)
        # A tensor that nobody else has: its memory is given up.
        return self.project(self.body(self.lift(x) + time.view(*time.shape, *(1,) * (x.ndim - 2))))
