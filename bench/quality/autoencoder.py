"""The autoencoder of a network of latents, which is trained before it."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ddpm.step import Shown, Training, TrainingStep
from ..presets import Workload

SHARE = 1 / 3
"""Of the whole training, before the network's."""
PATCH = 64
"""Voxels a side that a step sees, of larger volumes; as MAISI's, and so is the weight."""
KL_WEIGHT = 1e-7
LEARNING_RATE = 1e-3
"""MAISI's is 1e-4, for days; in 500 steps, on brains of 16³, that finds little but their median."""


class AutoencoderStep(TrainingStep):
    """`step(volumes) -> loss`: L1 and a little KL; without MAISI's perceptual, adversarial terms.

    Of volumes (B, C, D, H, W) in [0, 1], whole or in random patches.
    """

    def __init__(
        self, autoencoder: nn.Module, work: Workload, training: Training, device: torch.device
    ) -> None:
        own = replace(training, learning_rate=LEARNING_RATE, lambda_r=0.0, lambda_l2=0.0)
        super().__init__(autoencoder.to(device).train(), work, own, device)

    def cut(self, volumes: Tensor, labels: Tensor | None = None) -> Tensor:
        for axis in (2, 3, 4):
            length = min(PATCH, volumes.shape[axis])
            start = self.rng.randrange(volumes.shape[axis] - length + 1)
            volumes = volumes.narrow(axis, start, length)
        return volumes.contiguous()

    def noised(self, batch: Any) -> Shown:
        return batch, batch.new_zeros(len(batch)), batch, {}

    def _loss(self, x: Tensor, t: Tensor, wanted: Tensor, keywords: dict[str, Tensor]) -> Tensor:
        back, mean, sigma = (part.float() for part in self.network(x))
        kl = mean.square() + sigma.square() - sigma.square().log() - 1
        return F.l1_loss(back, wanted) + KL_WEIGHT * 0.5 * kl.sum() / len(x)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters, lr=self.training.learning_rate, fused=True)
