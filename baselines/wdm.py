"""WDM: diffusion of Haar coefficients.

Friedrich et al., "WDM: 3D Wavelet Diffusion Models for High-Resolution Medical Image Synthesis",
2024, arXiv:2402.19043; github.com/pfriedri/wdm-3d (MIT). The transform is the technique `wavelet`:
eight coefficients a voxel at half the sides. This is their network, a U-Net whose skips are
averaged into the decoder, as PatchDDM-3D's are, with residual blocks from level to level.

What a row of `wdm` has of its authors, and what of this benchmark:

    authors     network and channels; that it predicts x_0; 128³ volumes, batch 10, fp32. For
                256³, batch 1, they take a level more:
                `--volume 256 --batch-size 1 --channels 64 128 128 256 256 256`
    benchmark   the diffusion, of coefficients that all have the volume's scale (theirs divides the
                lowest of the eight by 3, without the noise); rate and optimizer

Written from the paper and from the layout of the authors' network, which has 57,914,824 parameters
at these channels, and 83,158,728 with the sixth level.
"""

import math
from typing import Any

from .patchddm import AdditiveUNet

PUBLISHED: dict[str, Any] = {
    "volume": 128,
    "batch_size": 10,
    "channels": tuple(64 * width for width in (1, 2, 2, 4, 4)),
    "precision": "fp32",
    "target": "x0",
}


def build(
    *,
    in_channels: int,
    channels: tuple[int, ...],
    out_channels: int | None = None,
    num_class_embeds: int | None = None,
    **_: Any,
) -> AdditiveUNet:
    """The network of `in_channels` coefficients a voxel; of them `out_channels`, or all, out."""
    return AdditiveUNet(
        in_channels, channels, out_channels or in_channels, num_class_embeds,
        groups=math.gcd(32, *channels),  # the authors' 32, or the most that divides every width
        resampling_blocks=True,
    )  # fmt: skip
