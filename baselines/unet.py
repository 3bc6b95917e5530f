"""The standard 3D DDPM U-Net, trained the ordinary way: what the other methods are held against.

MONAI's `DiffusionModelUNet`: the network of Ho et al. 2020 (arXiv:2006.11239) in 3D, with
concatenated skips, two residual blocks a level, and no attention, or one in the middle.
"""

import math
from typing import Any

from torch import nn

# No paper prescribes this network. Its widths give it what IDM has, within 5 %: the parameters, so
# that the two differ in how they train, or the FLOPs of a step, so that they compute as much. IDM's
# are those of the paper, and those of the preset `small`; in 2D, both networks are of images.
MATCHED = {
    "parameters": {
        "paper": (96, 192, 384, 768), "small": (12, 24, 48, 96),
        "paper 2D": (88, 176, 352, 704), "small 2D": (12, 24, 48, 88),
    },
    "flops": {
        "paper": (24, 56, 112, 224), "small": (16, 32, 48, 96),
        "paper 2D": (32, 64, 128, 256), "small 2D": (16, 32, 48, 88),
    },
}  # fmt: skip
# The volumes are those that IDM's paper trains on.
PUBLISHED: dict[str, Any] = {
    "volume": 64,
    "batch_size": 4,
    "channels": MATCHED["parameters"]["paper"],
    "precision": "fp32",
}


def build(
    *,
    in_channels: int,
    channels: tuple[int, ...],
    out_channels: int | None = None,
    num_class_embeds: int | None = None,
    dims: int = 3,
    attention: bool = False,
    **_: Any,
) -> nn.Module:
    """The network `eps = network(x, t)`, (B, C, D, H, W) and (B,) int64 to (B, C, D, H, W).

    Args:
        in_channels: image channels, then those of a condition.
        out_channels: image channels, of the output; None: all input channels are.
        num_class_embeds: classes, of which `network(x, t, class_labels=labels)` tells the network.
        dims: 2 for images (B, C, H, W).
        channels: the width of each level, finest first. Each side of a volume must be a multiple
            of 2 to the number of levels but one.
        attention: whether the coarsest voxels attend to each other (`unet-attention`).
    """
    # MONAI takes seconds to import; listing the methods, or training another, does not need it.
    from monai.networks.nets import DiffusionModelUNet

    network = DiffusionModelUNet(
        spatial_dims=dims,
        in_channels=in_channels,
        out_channels=out_channels or in_channels,
        num_class_embeds=num_class_embeds,
        channels=channels,
        num_res_blocks=2,
        attention_levels=(False,) * len(channels),
        # 32 groups as in Wu & He 2018 (arXiv:1803.08494), or the most that divides every width
        norm_num_groups=math.gcd(32, *channels),
        # Of 32 channels, as PyTorch's kernels that never hold the matrix like them.
        num_head_channels=math.gcd(32, channels[-1]),
        use_flash_attention=True,
    )
    # MONAI attends in the middle whatever `attention_levels` says. A whole 256³ volume has 32³
    # tokens there: to write the matrix down would outweigh everything that is compared.
    if not attention:
        network.middle_block.attention = nn.Identity()
    return network
