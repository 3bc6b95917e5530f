"""The network works on latents of an autoencoder: four channels at a quarter of the sides.

Rombach et al. 2022, arXiv:2112.10752; in 3D, and in these sizes, Guo et al. 2024 (MAISI),
arXiv:2409.11169. An autoencoder is trained first, on patches; then it makes latents of whole
volumes, once; then the network trains on these. So a step of the network neither runs the
autoencoder nor has it on the device: what both, and decoding, cost is in docs/latent.md.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

KIND = "another task"
DIMS = (3,)
HALVINGS = 2
SHRINK, CHANNELS = 2**HALVINGS, 4
"""Of the latents: by how much their sides are smaller, and their channels."""
EXCLUDES = {
    "wavelet": "each changes what the network sees of a volume",
    "patch": "latents are of whole volumes",
}
ASSUMED = OUTSIDE = (
    "latent: a step is that of the network on latents; the training of the autoencoder, encoding "
    "and decoding come on top (docs/latent.md)"
)
WINDOW, OVERLAP = 128, 0.25
"""Voxels a side that are encoded, or decoded, at a time, and the share that two windows share."""


def build(
    network: Callable[..., nn.Module],
    *,
    in_channels: int,
    channels: tuple[int, ...],
    **options: Any,
) -> nn.Module:
    if "out_channels" in options:
        raise ValueError("its autoencoder makes latents of images, and of no condition")
    built = network(in_channels=CHANNELS, channels=channels, **options)
    # As wide as the network's first levels, which is MAISI's where the network is MAISI's. Not a
    # module of the network: it is not trained, moved, nor counted with it.
    widths = (*channels, channels[-1], channels[-1])[:3]
    built.latents = Latents(in_channels, widths)  # type: ignore[assignment]
    return built


class Latents:
    """The way from volumes (…, C, D, H, W) to latents (…, 4, D/4, H/4, W/4), and back.

    Latents are scaled to [0, 1], as volumes are: so the diffusion and its samplers, which clamp
    what they take for x_0, need to know nothing of them.
    """

    def __init__(self, image_channels: int, widths: tuple[int, ...]) -> None:
        self.image_channels, self.widths = image_channels, widths

    @cached_property
    def autoencoder(self) -> nn.Module:
        """On the CPU, with random weights; made when it is first asked for.

        Its buffers `low` and `high`, (4, 1, 1, 1), are the latents that are 0 and 1.
        """
        with torch.device("cpu"):
            built = autoencoder(self.image_channels, self.widths, save_mem=False)
            for name in ("low", "high"):
                built.register_buffer(name, torch.zeros(CHANNELS, 1, 1, 1))
        return built

    @staticmethod
    def shape(volumes: tuple[int, ...]) -> tuple[int, ...]:
        """Of the latents of volumes of this shape."""
        *batch, _, depth, height, width = volumes
        return (*batch, CHANNELS, *(side // SHRINK for side in (depth, height, width)))

    @torch.no_grad()
    def encode(
        self,
        volumes: Sequence[np.ndarray] | np.ndarray,
        device: torch.device,
        dtype: torch.dtype | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> np.ndarray:
        """Latents (N, 4, D/4, H/4, W/4) of volumes (N, C, D, H, W) in [0, 1], on the host.

        Volume by volume, in windows; without the noise of the autoencoder's posterior. The range of
        the first volumes that are encoded becomes [0, 1], by channel.

        Args:
            device: that the autoencoder runs on meanwhile.
            dtype: 16-bit type of autocast, or None.
            progress: told the share that is done, 0 to 1, after every volume.
        """
        network: Any = self.autoencoder
        latents: list[Tensor] = []
        with self._running_on(device):
            for volume in volumes:
                whole = torch.from_numpy(np.array(volume))[None]
                latents += self._in_windows(
                    lambda window: network.encode(window)[0], WINDOW, whole, device, dtype
                )
                if progress is not None:
                    progress(len(latents) / len(volumes))
        found = torch.stack(latents)
        if torch.equal(network.low, network.high):
            network.low.copy_(found.amin((0, 2, 3, 4), keepdim=True)[0])
            network.high.copy_(found.amax((0, 2, 3, 4), keepdim=True)[0])
        scaled: np.ndarray = ((found - network.low) / (network.high - network.low)).numpy()
        return scaled

    @torch.no_grad()
    def decode(
        self, latents: Tensor, device: torch.device, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Volumes (N, C, D, H, W) in [0, 1] of latents as `encode` makes them, where those are."""
        network: Any = self.autoencoder
        z = network.low + latents.cpu() * (network.high - network.low)
        with self._running_on(device):
            found = [
                self._in_windows(network.decode, WINDOW // SHRINK, each[None], device, dtype)
                for each in z
            ]
        return torch.cat(found).clamp(0, 1).to(latents.device)

    @contextmanager
    def _running_on(self, device: torch.device) -> Iterator[None]:
        """The autoencoder there for as long, and on the CPU afterwards."""
        self.autoencoder.to(device).eval()
        try:
            yield
        finally:
            self.autoencoder.cpu()

    def _in_windows(
        self,
        function: Callable[[Tensor], Tensor],
        side: int,
        whole: Tensor,
        device: torch.device,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """A function of the autoencoder, of one volume or its latents, on the CPU."""
        from monai.inferers import sliding_window_inference

        def of_window(window: Tensor) -> Tensor:
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                return function(window).float()

        found: Any = sliding_window_inference(
            whole, [min(side, length) for length in whole.shape[2:]], 1, of_window, OVERLAP,
            mode="gaussian", sw_device=device, device=torch.device("cpu"),
        )  # fmt: skip
        return found  # type: ignore[no-any-return]


def autoencoder(image_channels: int, widths: tuple[int, ...], **options: Any) -> Any:
    """MAISI's: four latents for 4³ voxels. `num_splits` computes each convolution in parts."""
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

    settings: dict[str, Any] = {
        "out_channels": image_channels, "num_res_blocks": (2,) * len(widths), "num_splits": 1,
        "dim_split": 1, "norm_num_groups": math.gcd(32, *widths),
    }  # fmt: skip
    return AutoencoderKlMaisi(
        spatial_dims=3, in_channels=image_channels, num_channels=widths, latent_channels=CHANNELS,
        attention_levels=(False,) * len(widths), **settings | options,
    )  # fmt: skip
