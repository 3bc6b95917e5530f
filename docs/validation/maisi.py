"""MAISI: a latent diffusion model of CT volumes up to 512 × 512 × 768.

Networks, configuration and training loop: github.com/NVIDIA-Medtech/NV-Generate-CTMR, whose
docs/performance.md has the figures. The networks themselves are MONAI's.
"""

import torch
import torch.nn.functional as F
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from .setup import Setup, scaled

LATENT_CHANNELS = 4
_UNET = {
    "spatial_dims": 3, "in_channels": LATENT_CHANNELS, "num_res_blocks": 2,
    "attention_levels": (False, False, True, True), "num_head_channels": (0, 0, 32, 32),
}  # fmt: skip
_WIDTHS = (64, 128, 256, 512)


def unet() -> nn.Module:
    network = DiffusionModelUNetMaisi(
        **_UNET, out_channels=LATENT_CHANNELS, num_channels=_WIDTHS, resblock_updown=True,
        include_fc=True, num_class_embeds=128, include_spacing_input=True,
    )  # fmt: skip
    return with_flash_attention(network)


def with_flash_attention(network: nn.Module) -> nn.Module:
    """As `use_flash_attention=True` makes it, which MONAI refuses where there is no card."""
    for module in network.modules():
        if hasattr(module, "use_flash_attention"):
            module.use_flash_attention = True
    return network


def train(*latent: int) -> Setup:
    """A step of rectified flow on one latent of these sides (a quarter of the image's)."""
    network = unet()
    batch = (torch.empty(1, LATENT_CHANNELS, *latent), torch.empty(1, 3), torch.ones(1).long())
    return Setup(network, batch, torch.optim.Adam(network.parameters(), lr=1e-5), _rectified_flow)


def _rectified_flow(network: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    latents, spacing, modality = batch
    with torch.autocast("cuda", dtype=torch.float16):
        noise = torch.randn_like(latents)
        t = torch.rand(latents.shape[:1], device=latents.device)
        share = t.view(-1, 1, 1, 1, 1)
        noisy = (1 - share) * latents + share * noise
        output = network(x=noisy, timesteps=t, spacing_tensor=spacing, class_labels=modality)
        return scaled(F.l1_loss(output.float(), (latents - noise).float()))


class Decoding(nn.Module):
    """The decoder at work, while all five networks of the pipeline lie on the card."""

    def __init__(self, splits: int) -> None:
        super().__init__()
        shared = {
            "spatial_dims": 3, "latent_channels": LATENT_CHANNELS, "norm_num_groups": 32,
            "attention_levels": (False,) * 3, "norm_float16": True, "dim_split": 1,
        }  # fmt: skip
        self.autoencoder = AutoencoderKlMaisi(
            **shared, in_channels=1, out_channels=1, num_channels=(64, 128, 256),
            num_res_blocks=(2, 2, 2), num_splits=splits,
        )  # fmt: skip
        self.unet = unet()
        self.controlnet = ControlNetMaisi(
            **_UNET, num_channels=_WIDTHS, resblock_updown=True, include_fc=True,
            num_class_embeds=128, conditioning_embedding_in_channels=8,
            conditioning_embedding_num_channels=(8, 32, 64),
        )  # fmt: skip
        self.mask_autoencoder = AutoencoderKlMaisi(
            **shared, in_channels=8, out_channels=125, num_channels=(32, 64, 128),
            num_res_blocks=(1, 2, 2), num_splits=8, use_checkpointing=True, use_convtranspose=True,
        )  # fmt: skip
        self.mask_unet = DiffusionModelUNet(
            **_UNET, out_channels=LATENT_CHANNELS, channels=_WIDTHS, with_conditioning=True,
            upcast_attention=True, cross_attention_dim=10,
        )  # fmt: skip
        with_flash_attention(self)

    def forward(self, latents: Tensor, window: tuple[int, int, int]) -> Tensor:
        """The first window of `latents`; the volume is put together on the host."""
        with torch.autocast("cuda", dtype=torch.float16):
            piece = latents[:, :, : window[0], : window[1], : window[2]]
            return self.autoencoder.decode_stage_2_outputs(piece / 1.0)


def decode(latent: tuple[int, int, int], window: tuple[int, int, int], splits: int) -> Setup:
    """A window of a volume of these latent sides; one that is at least as large: all of it."""
    latents = torch.empty(1, LATENT_CHANNELS, *latent, dtype=torch.float16)
    return Setup(Decoding(splits).eval(), (latents, window))
