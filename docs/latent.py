"""What latent diffusion costs, stage by stage: the table of docs/latent.md.

    python -m docs.latent    # a minute on two cores

MAISI's autoencoder and U-Net, as MONAI has them, in the setting of their authors
(docs/validation/maisi.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.data.utils import dense_patch_slices
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn

from bench.methods import METHODS
from bench.predict import Prediction, predict, predict_method
from bench.presets import Overrides
from bench.report.grid import Cell, Grid, markdown
from bench.sizes import GIB

from .validation import maisi
from .validation.setup import scaled

PAGE = Path(__file__).with_suffix(".md")
BEGIN, END = "<!-- table -->", "<!-- end of the table -->"

SIDE, PATCH = 256, 64
"""Of a volume, and of what of it the autoencoder trains on (config_maisi_vae_train.json)."""
LATENT = SIDE // 4
KL_WEIGHT, ADVERSARIAL_WEIGHT = 1e-7, 0.1
WINDOWS = ((64, 1), (64, 4), (64, 8), (48, 4), (32, 1), (32, 4))
"""Sides of the latents that are decoded at a time, and the parts of each convolution."""
OVERLAP = 0.25
"""Of windows (config_infer_24g_256x256x256.json)."""


class Adversarial(nn.Module):
    """The autoencoder and its discriminator.

    MAISI adds a perceptual term, of a network that has to be downloaded; it is left out.
    """

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.discriminator = PatchDiscriminator(
            spatial_dims=3, num_layers_d=3, channels=32, in_channels=1, out_channels=1,
            norm="INSTANCE",
        )  # fmt: skip

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What comes back of x, and the autoencoder's loss."""
        back, mean, sigma = self.autoencoder(x)
        kl = mean.square() + sigma.square() - sigma.square().log() - 1
        loss = F.l1_loss(back.float(), x.float()) + KL_WEIGHT * 0.5 * kl.float().sum() / len(x)
        return back, loss + ADVERSARIAL_WEIGHT * self._judged(back, 1.0)

    def tell_apart(self, real: Tensor, back: Tensor) -> Tensor:
        """The discriminator's loss."""
        return (self._judged(back.detach(), 0.0) + self._judged(real, 1.0)) / 2

    def _judged(self, x: Tensor, wanted: float) -> Tensor:
        judged = self.discriminator(x)[-1].float()
        return F.mse_loss(judged, torch.full_like(judged, wanted))


def optimizers(networks: Adversarial) -> list[torch.optim.Optimizer]:
    parts = networks.autoencoder, networks.discriminator
    return [torch.optim.Adam(part.parameters(), lr=1e-4) for part in parts]


def adversarial_step(
    networks: Adversarial, x: Tensor, optimizers: list[torch.optim.Optimizer]
) -> None:
    """One step of both, in turn."""
    for_both, for_discriminator = optimizers
    kind = x.device.type
    autocast = partial(torch.autocast, kind, torch.float16, enabled=kind != "cpu")
    for_both.zero_grad(set_to_none=True)
    with autocast():
        back, loss = networks.reconstruct(x)
    scaled(loss).backward()
    for_both.step()
    for_discriminator.zero_grad(set_to_none=True)
    with autocast():
        loss = networks.tell_apart(x, back)
    scaled(loss).backward()
    for_discriminator.step()


def decode(autoencoder: Any, z: Tensor) -> Tensor:
    with torch.autocast(z.device.type, torch.float16, enabled=z.device.type != "cpu"):
        return autoencoder.decode_stage_2_outputs(z)


@dataclass(frozen=True)
class Stage:
    name: str
    per: str
    """What of a volume it sees at a time."""
    prediction: Prediction
    times: int = 1
    """How often, for a whole volume."""


def stages() -> Iterator[Stage]:
    patch = torch.empty(1, 1, PATCH, PATCH, PATCH)
    networks = Adversarial(maisi.autoencoder(splits=1))
    training = predict(networks, patch, optimizers(networks), step=adversarial_step)
    yield Stage("autoencoder, training", f"{PATCH}³ patch", training)
    yield Stage("U-Net, training", f"4 × {LATENT}³ latents", maisi.train(*[LATENT] * 3).predict())
    for side, splits in WINDOWS:
        z = torch.empty(1, maisi.LATENT_CHANNELS, side, side, side)
        found = predict(maisi.autoencoder(splits).eval(), z, loss=decode)
        windows = len(dense_patch_slices((LATENT,) * 3, (side,) * 3, (step(side),) * 3))
        name = f"decoding, convolutions in {splits} part{'s' * (splits > 1)}"
        yield Stage(name, f"{side}³ latents", found, windows)
    for name in ("wdm", "idm-lean", "unet+checkpoint+bf16"):
        work = METHODS[name].workload("full-volume", Overrides())
        whole = predict_method(METHODS[name], work, count_forward=False)
        yield Stage(f"{name}, training", f"{SIDE}³", whole)


def step(side: int) -> int:
    """From a window to the next."""
    return side if side == LATENT else int(side * (1 - OVERLAP))


def grid() -> Grid:
    rows = []
    for stage in stages():
        found = stage.prediction
        cells = (
            stage.name, stage.per, f"{found.parameters / 1e6:.1f}",
            f"{found.peak_memory_bytes / GIB:.3g}",
            f"{found.cuda_pool_with_workspaces.reserved / GIB:.3g}",
            str(stage.times), f"{stage.times * found.flops_step / 1e12:.1f}",
        )  # fmt: skip
        rows.append(tuple(map(Cell, cells)))
    columns = ("stage", "sees", "parameters (M)", "peak (GiB)", "CUDA pool (GiB)", "times a volume",
               "TFLOP")  # fmt: skip
    caption = (
        f"A step of each stage for a volume of {SIDE}³, predicted for a card. The pool is with the "
        "workspaces that cuDNN is expected to take"
    )
    return Grid("Latent diffusion", caption, columns, tuple(rows))


def page(text: str) -> str:
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{markdown(grid())}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
