"""The standard 3D DDPM U-Net, trained the ordinary way: what the other methods are held against.

MONAI's `DiffusionModelUNet`: the network of Ho et al. 2020 (arXiv:2006.11239) in 3D, with
concatenated skips, two residual blocks a level, and no attention.
"""

import math
from typing import Any

from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

# No paper prescribes this network. The volumes are those that IDM's paper trains on, and the
# widths give it IDM's 343.6 M parameters within 5 %, so that the two differ in how they train.
PUBLISHED: dict[str, Any] = {
    "volume": 64,
    "batch_size": 4,
    "channels": (96, 192, 384, 768),
    "precision": "fp32",
}


def build(*, in_channels: int, channels: tuple[int, ...], **_: Any) -> "UNet":
    """The network for `in_channels` image channels; `channels` are its widths, finest first."""
    return UNet(in_channels, channels)


def divisor(channels: tuple[int, ...]) -> int:
    """What each side of a volume must be a multiple of."""
    return 2 ** (len(channels) - 1)


class UNet(DiffusionModelUNet):
    """MONAI's network, called as `net(x, t)`.

    Args:
        in_channels: image channels of the input, and channels of the output.
        channels: the width of each level, finest first.
    """

    def __init__(self, in_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=in_channels,
            channels=channels,
            num_res_blocks=2,
            attention_levels=(False,) * len(channels),
            # 32 groups as in Wu & He 2018 (arXiv:1803.08494), or the most that divides every width
            norm_num_groups=math.gcd(32, *channels),
        )
        # MONAI attends in the middle whatever `attention_levels` says. A whole 256³ volume has
        # 32³ tokens there: the attention matrix alone would outweigh all that is compared.
        self.middle_block.attention = nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        """Predict the noise ε in `x`.

        Args:
            x: noisy volumes, (B, C, D, H, W).
            t: diffusion steps, (B,) int64.

        Returns:
            ε, (B, C, D, H, W).
        """
        return super().forward(x, t)
