"""How good a denoiser and its samples are: every number of Table 1, defined.

Volumes are float32 (B, C, D, H, W) with intensities in [0, 1], or slices (B, C, D, H), of which a
window of 11³ voxels is one of 11²; noise has the shape of the volumes
and a standard deviation of 1. What compares two batches gives a number a sample, (B,), the mean
over channels and voxels; take one channel, `volumes[:, :1]`, for one modality.

Nothing here clamps. The volumes that `bench.quality.scoring` hands over were brought to [0, 1] by
`Diffusion.scale_out`, which does.
"""

import math
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from monai.metrics.regression import compute_ms_ssim, compute_ssim_and_cs
from scipy.stats import wasserstein_distance
from torch import Tensor

DATA_RANGE = 1.0
"""Of the volumes, which PSNR and SSIM are relative to."""
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
"""Voxels of the Gaussian window, and its standard deviation; Wang et al. 2004, §III.C."""
MS_SSIM_WINDOW = 7
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the scales, finest first; Wang, Simoncelli & Bovik 2003, §4."""
FOREGROUND = 0.05
"""Voxels above this intensity are foreground: the skull-stripped background is 0, and what a
sampler leaves there is near 0 but not equal to it."""
LEVELS = 32
"""Of the intensities, which `TissueByIntensity` tells apart."""


def mae(eps_hat: Tensor, eps: Tensor) -> Tensor:
    """Mean absolute error of the noise, mean |eps_hat − eps|; in standard deviations of the noise.

    0 is perfect; √(2/π) = 0.798 is what "there is no noise" (eps_hat = 0) gets.
    """
    return (eps_hat - eps).abs().flatten(1).mean(1)


def mse(eps_hat: Tensor, eps: Tensor) -> Tensor:
    """Mean squared error, mean (eps_hat − eps)²: the first term of eq. (8). eps_hat = 0 gets 1."""
    return (eps_hat - eps).square().flatten(1).mean(1)


def psnr(volumes: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10 log₁₀(1 / mean (volumes − reference)²).

    The peak is the data range, 1, not the brightest voxel. Equal volumes have an infinite ratio.
    """
    return 10 * torch.log10(DATA_RANGE**2 / mse(volumes, reference))


def ssim(volumes: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity in 3D, −1 to 1, by MONAI.

    Wang et al. 2004, eq. (13), with K₁ = 0.01, K₂ = 0.03, a data range of 1 and a Gaussian window
    of 11³ voxels (σ = 1.5), averaged over the windows that lie whole within the volume. A volume
    of a side below 11 has a window of the largest odd number of voxels that fits.
    """
    similarity, _ = compute_ssim_and_cs(
        volumes, reference, volumes.ndim - 2, data_range=DATA_RANGE, kernel_type="gaussian",
        kernel_size=[_odd_at_most(min(SSIM_WINDOW, side)) for side in volumes.shape[2:]],
        kernel_sigma=[SSIM_SIGMA] * (volumes.ndim - 2),
    )  # fmt: skip
    return similarity.flatten(1).mean(1)


def ms_ssim(volumes: Tensor, reference: Tensor) -> Tensor:
    """Multi-scale structural similarity in 3D, 0 to 1, by MONAI.

    Wang, Simoncelli & Bovik 2003, eq. (7): contrast and structure at every scale, luminance at the
    coarsest, multiplied with exponents; each scale halves the sides by a mean of 2³ voxels. Their
    5 scales and window of 11 need a side of 161. Here the window is 7³ (σ = 1.5), and there are as
    many scales, up to 5, as leave a side of at least 7: 3 at 32³, 4 at 64³, 5 at 128³. Their
    exponents are the first of the published ones, scaled to a sum of 1. So values of different
    volume sizes must not be compared.

    Raises:
        ValueError: a side below 7.
    """
    weights = np.array(MS_SSIM_WEIGHTS[: ms_ssim_scales(min(volumes.shape[2:]))])
    similarity: Tensor = compute_ms_ssim(
        volumes, reference, volumes.ndim - 2, data_range=DATA_RANGE, kernel_type="gaussian",
        kernel_size=MS_SSIM_WINDOW, kernel_sigma=SSIM_SIGMA,
        weights=(weights / weights.sum()).tolist(),
    )  # fmt: skip
    return similarity.flatten()


def ms_ssim_scales(side: int) -> int:
    """Scales of `ms_ssim` for volumes of this side; ValueError below 7 voxels."""
    if side < MS_SSIM_WINDOW:
        raise ValueError(f"MS-SSIM needs a side of at least {MS_SSIM_WINDOW} voxels, not {side}")
    # The coarsest scale has side / 2ⁿ⁻¹ voxels; MONAI asks for 7 (n − 1)², so 63 for 4 scales.
    return max(
        n
        for n in range(1, len(MS_SSIM_WEIGHTS) + 1)
        if side // max(2 ** (n - 1), (n - 1) ** 2) >= MS_SSIM_WINDOW
    )


def pairwise_ms_ssim(volumes: Tensor, most: int = 8) -> Tensor:
    """`ms_ssim` of every pair among the first `most` volumes, (pairs,): high where all look alike.

    A sampler that always draws the same head has 1. One volume has no pairs: the result is empty.
    """
    chosen = volumes[:most]
    pairs = list(combinations(range(len(chosen)), 2))
    return torch.cat([chosen.new_empty(0), *(ms_ssim(chosen[[i]], chosen[[j]]) for i, j in pairs)])


def histogram_distance(volumes: Tensor, reference: Tensor) -> float:
    """1-Wasserstein distance of the intensities of the foreground, in units of intensity, 0 to 1.

    ∫ |F(x) − G(x)| dx, F and G the cumulative distributions of the voxels brighter than 0.05
    among all of `volumes` and all of `reference`, which need not be as many. It knows nothing of
    where a voxel lies. nan where either has no foreground.
    """
    bright = [intensities[intensities > FOREGROUND].cpu() for intensities in (volumes, reference)]
    if any(len(intensities) == 0 for intensities in bright):
        return float("nan")
    return float(wasserstein_distance(*bright))


def frechet_distance(volumes: Tensor, reference: Tensor) -> float:
    """Distance of two sets in what a random network sees, a normal distribution fitted to each.

    Fréchet's distance, as in Heusel et al. 2017 (arXiv:1706.08500, eq. 6), of `random_features` in
    place of Inception's, divided by the variance of the reference's features: 0 for equal sets. Few
    volumes raise it, so it compares sets of equal size only. nan where a set has fewer than two.
    """
    sets = [random_features(each).double() for each in (volumes, reference)]
    if min(map(len, sets)) < 2:
        return float("nan")
    centred = [(each - each.mean(0)) / math.sqrt(len(each) - 1) for each in sets]
    apart = (sets[0].mean(0) - sets[1].mean(0)).square().sum()
    # The trace of the root of the product of both covariances, without forming either.
    shared = torch.linalg.matrix_norm(centred[0] @ centred[1].mT, "nuc")
    variances = [each.square().sum() for each in centred]
    return float((apart + sum(variances) - 2 * shared) / variances[1])


def random_features(volumes: Tensor) -> Tensor:
    """(N, 32) of (N, 1, …): means over the volume of an untrained network's channels.

    Three convolutions of stride 2 and weights from seed 0 (He et al. 2015), each before a
    LeakyReLU: the same for all volumes, whatever was trained on.
    """
    dims, generator = volumes.ndim - 2, torch.Generator().manual_seed(0)
    convolve = {2: F.conv2d, 3: F.conv3d}[dims]
    x = volumes.cpu() * 2 - 1
    for width in (8, 16, 32):
        weight = torch.randn(width, x.shape[1], *(3,) * dims, generator=generator)
        x = convolve(x, weight * math.sqrt(2 / weight[0].numel()), stride=2, padding=1)
        x = F.leaky_relu(x, 0.2)
    return x.flatten(2).mean(2)


class TissueByIntensity:
    """Which label a voxel has, by its intensity alone: the most frequent one in real volumes.

    Args:
        volumes: one modality, (N, D, H, W) in [0, 1].
        masks: (N, K, D, H, W), a channel of 0 and 1 for each label.
    """

    def __init__(self, volumes: Tensor, masks: Tensor) -> None:
        labels = masks.shape[1] + 1
        pairs = self._level(volumes) * labels + label_map(masks)
        counts = torch.bincount(pairs.flatten(), minlength=LEVELS * labels).view(LEVELS, labels)
        seen = counts.sum(1).nonzero().flatten()
        nearest = seen[(torch.arange(LEVELS)[:, None] - seen).abs().argmin(1)]
        self.label_of = counts[nearest].argmax(1)

    def dice(self, volumes: Tensor, masks: Tensor) -> tuple[float, list[float]]:
        """Dice of the labels that the intensities of volumes say with those of masks, 0 to 1.

        The generalised Dice coefficient, each voxel of one weight (Crum, Camara & Hill 2006,
        doi:10.1109/TMI.2006.880587), and that of each label; nan for what is nowhere.
        """
        found, wanted = self.label_of[self._level(volumes)], label_map(masks)
        shared = torch.where(found == wanted, found, 0)
        both, one, other = (
            torch.bincount(each.flatten(), minlength=masks.shape[1] + 1)[1:].double()
            for each in (shared, found, wanted)
        )
        return float(2 * both.sum() / (one + other).sum()), (2 * both / (one + other)).tolist()

    @staticmethod
    def _level(volumes: Tensor) -> Tensor:
        return (volumes * LEVELS).long().clamp(0, LEVELS - 1)


def label_map(masks: Tensor) -> Tensor:
    """(N, K, D, H, W), a channel of 0 and 1 for each label, to (N, D, H, W) from 0, none, to K."""
    return torch.where(masks.amax(1) > 0.5, masks.argmax(1) + 1, 0)


def _odd_at_most(side: int) -> int:
    return side if side % 2 else side - 1
