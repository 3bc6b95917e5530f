"""Random patches with coordinates, for any network.

Bieder et al. 2023, arXiv:2303.15288, whose own network is `baselines.patchddm`: a step sees a
patch, and three more channels say where in the volume it lies. A sampler shows the whole volume.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..patchddm import PatchDDM, grid

KIND = "another task"
DIMS = (3,)
WORK = {"patches": True}


def build(
    network: Callable[..., nn.Module], *, in_channels: int, **options: Any
) -> "WithCoordinates":
    image = options.get("out_channels", in_channels)
    return WithCoordinates(network(in_channels=in_channels + 3, **options), image)


class WithCoordinates(nn.Module):
    """ε of the image channels; what `network` says of the coordinates is left out.

    Args:
        network: of three channels more than are shown.
        image_channels: which come first.
    """

    crop = staticmethod(PatchDDM.crop)

    def __init__(self, network: nn.Module, image_channels: int) -> None:
        super().__init__()
        self.network, self.image_channels = network, image_channels

    def forward(
        self, x: Tensor, timesteps: Tensor, coordinates: Tensor | None = None, **given: Any
    ) -> Tensor:
        """As `PatchDDM.forward`: without coordinates, `x` (B, C, D, H, W) is the whole volume."""
        if coordinates is None:
            axes = [torch.linspace(-1, 1, side, device=x.device) for side in x.shape[2:]]
            coordinates = grid(axes).expand(x.shape[0], -1, -1, -1, -1)
        shown = torch.cat([x, coordinates.to(x.dtype)], dim=1)
        return self.network(shown, timesteps, **given)[:, : self.image_channels]
