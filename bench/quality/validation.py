"""Validation: the mean square error of ε, on inputs that are the same for every method.

Each volume is shown at timesteps of its own, with noise of its own. Neither is drawn while it
trains: both follow from the seed and from where the volume stands, so that methods, seeds and
steps are compared on the very same tensors.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.batches import labels_of, whole
from ..ddpm.diffusion import Denoiser, Diffusion, split_channels
from ..ddpm.samplers import Conditions, given

LEAST_PAIRS = 24
"""Pairs of volume and timestep. The error falls from 1 to a few percent over the timesteps: fewer
would follow that curve too coarsely for a mean."""


class Validation:
    """The ε-MSE of a denoiser over fixed pairs of volume and timestep.

    The timesteps are the middles of equal strata of [0, T), one stratum a pair. Each volume has
    them spread over the whole range: volume i of n has strata i, i + n, i + 2n, …

    Args:
        volumes: (N, C + K, D, H, W) float32 in [0, 1], as `bench.data.load` gives them.
        members: which of them validate.
        seed: of the noise.
        batch_size: how many the denoiser is given at a time; the result does not depend on it
            beyond rounding.
        image_channels: C; the others are the condition. None: there is none.
        labels: a class label for each of `volumes`; empty: they have none.
    """

    def __init__(
        self,
        volumes: np.ndarray,
        members: Sequence[int],
        seed: int,
        batch_size: int,
        device: torch.device,
        image_channels: int | None = None,
        labels: Sequence[int] = (),
    ) -> None:
        self.volumes, self.members, self.labels = volumes, members, labels
        self.image_channels = image_channels or volumes.shape[1]
        self.seed, self.batch_size, self.device = seed, batch_size, device
        self.diffusion = Diffusion(device=device)
        self.pairs = len(members) * math.ceil(LEAST_PAIRS / len(members))
        stratum = self.diffusion.timesteps / self.pairs
        self.timesteps = [int((index + 0.5) * stratum) for index in range(self.pairs)]

    def __call__(self, denoise: Denoiser, progress: Callable[[float], None] | None = None) -> float:
        """The mean over all pairs and voxels; 1 for a denoiser that always says 0.

        Args:
            progress: told the share that is done, 0 to 1, after every batch.
        """
        errors: list[float] = []
        for first in range(0, self.pairs, self.batch_size):
            batch = range(first, min(first + self.batch_size, self.pairs))
            errors += self._errors(batch, denoise)
            if progress is not None:
                progress(batch.stop / self.pairs)
        return math.fsum(errors) / self.pairs

    def noise(self, pair: int) -> Tensor:
        """ε of a pair, (C, D, H, W). Drawn on the CPU, so that it is the same on every device."""
        rng = np.random.default_rng([self.seed, pair])
        shape = (self.image_channels, *self.volumes.shape[2:])
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))

    def _errors(self, pairs: range, denoise: Denoiser) -> list[float]:
        members = [self.members[index % len(self.members)] for index in pairs]
        volumes = self.diffusion.scale_in(whole(self.volumes, members).to(self.device))
        x_0, condition = split_channels(volumes, self.image_channels)
        eps = torch.stack([self.noise(pair) for pair in pairs]).to(self.device)
        t = torch.tensor([self.timesteps[pair] for pair in pairs], device=self.device)
        x_t = self.diffusion.q_sample(x_0, t, eps)
        conditions = Conditions(condition, labels_of(self.labels, members, self.device))
        predicted = given(denoise, conditions)(x_t, t)
        squares: list[float] = (predicted - eps).square().flatten(1).mean(dim=1).tolist()
        return squares
