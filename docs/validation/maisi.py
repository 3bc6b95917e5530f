"""MAISI: a latent diffusion model of CT volumes up to 512 × 512 × 768.

Networks, configuration and training loop: github.com/NVIDIA-Medtech/NV-Generate-CTMR, whose
docs/performance.md has the figures. The networks themselves are MONAI's.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from baselines import maisi
from baselines.techniques import latent

from .setup import Setup, scaled

LATENT_CHANNELS, LABEL_BITS = latent.CHANNELS, 8
_UNET = {
    "spatial_dims": 3, "in_channels": LATENT_CHANNELS, "num_res_blocks": 2,
    "attention_levels": (False, False, True, True), "num_head_channels": (0, 0, 32, 32),
}  # fmt: skip
_WIDTHS = maisi.PUBLISHED["channels"]
_Sides = tuple[int, int, int]


def unet() -> nn.Module:
    return maisi.build(
        in_channels=LATENT_CHANNELS, channels=_WIDTHS, num_class_embeds=128,
        include_spacing_input=True,
    )  # fmt: skip


def autoencoder(splits: int, widths: tuple[int, ...] = _WIDTHS[:-1], **options: Any) -> Any:
    """Four latents for 4³ voxels; each convolution is computed in so many parts."""
    return latent.autoencoder(1, widths, num_splits=splits, **{"norm_float16": True} | options)


def train(*latent: int) -> Setup:
    """A step of rectified flow on one latent of these sides (a quarter of the image's)."""
    batch = (torch.empty(1, LATENT_CHANNELS, *latent), torch.empty(1, 3), torch.ones(1).long())
    return Setup(unet, batch, partial(torch.optim.Adam, lr=1e-5), _rectified_flow)


def _rectified_flow(network: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    latents, spacing, modality = batch
    with torch.autocast("cuda", dtype=torch.float16):
        noise = torch.randn_like(latents)
        t = torch.rand(latents.shape[:1], device=latents.device)
        share = t.view(-1, 1, 1, 1, 1)
        noisy = (1 - share) * latents + share * noise
        output = network(x=noisy, timesteps=t, spacing_tensor=spacing, class_labels=modality)
        return scaled(F.l1_loss(output.float(), (latents - noise).float()))


class Sampling(nn.Module):
    """A step of denoising and the decoder, as `scripts/inference.py` runs them.

    It loads five networks, whose checkpoints stay referenced (`torch.load` puts them where they
    were saved from: on a card), and does all in one autocast, whose 16-bit copies of the weights
    live until its end.
    """

    def __init__(self, splits: int) -> None:
        super().__init__()
        self.autoencoder = autoencoder(splits)
        self.unet = unet()
        self.controlnet = ControlNetMaisi(
            **_UNET, num_channels=_WIDTHS, resblock_updown=True, include_fc=True,
            num_class_embeds=128, conditioning_embedding_in_channels=LABEL_BITS,
            conditioning_embedding_num_channels=(8, 32, 64), use_flash_attention=True,
        )  # fmt: skip
        self.mask_autoencoder = latent.autoencoder(
            8, (32, 64, 128), num_splits=splits, norm_float16=True, out_channels=125,
            num_res_blocks=(1, 2, 2), use_checkpointing=True, use_convtranspose=True,
        )  # fmt: skip
        self.mask_unet = DiffusionModelUNet(
            **_UNET, out_channels=LATENT_CHANNELS, channels=_WIDTHS, with_conditioning=True,
            upcast_attention=True, cross_attention_dim=10, use_flash_attention=True,
        )  # fmt: skip
        for index, weights in enumerate([*self.state_dict().values()]):
            self.register_buffer(f"loaded_{index}", torch.empty_like(weights))

    def forward(
        self, latents: Tensor, label: Tensor, spacing: Tensor, modality: Tensor, window: _Sides
    ) -> Tensor:
        """The first window of the latents, decoded; the volume is put together on the host."""
        condition = _bits(label).half()
        time = torch.ones_like(modality).float()
        with torch.autocast("cuda", dtype=torch.float16):
            skips, middle = self.controlnet(
                x=latents, timesteps=time, controlnet_cond=condition, class_labels=modality
            )
            velocity = self.unet(
                x=latents, timesteps=time, spacing_tensor=spacing, class_labels=modality,
                down_block_additional_residuals=skips, mid_block_additional_residual=middle,
            )  # fmt: skip
            latents = latents + velocity / 30
            del skips, middle, velocity
            piece = latents[:, :, : window[0], : window[1], : window[2]]
            return self.autoencoder.decode_stage_2_outputs(piece / 1.0)


def _bits(label: Tensor) -> Tensor:
    """(B, 1, D, H, W) of whole numbers as (B, 8, D, H, W) of their bits."""
    powers = 2 ** torch.arange(LABEL_BITS, device=label.device)
    return label.unsqueeze(-1).bitwise_and(powers).ne(0).byte().squeeze(1).permute(0, 4, 1, 2, 3)


def sample(latent: _Sides, window: _Sides, splits: int) -> Setup:
    """A volume of these latent sides; a window that is at least as large is all of it."""

    def batch() -> tuple[Tensor, Tensor, Tensor, Tensor, _Sides]:
        latents = torch.empty(1, LATENT_CHANNELS, *latent, dtype=torch.float16)
        label = torch.empty(1, 1, *(4 * side for side in latent), dtype=torch.long)
        return latents, label, torch.empty(1, 3), torch.ones(1).long(), window

    return Setup(lambda: Sampling(splits).eval(), batch)
