"""Every metric against a closed form, and against an implementation that is not ours."""

import math

import numpy as np
import pytest
import torch
from monai.metrics.fid import compute_frechet_distance
from scipy.ndimage import correlate1d
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from bench.data import open_source
from bench.quality import metrics

C1, C2 = 0.01**2, 0.03**2


@pytest.fixture(scope="module")
def brains() -> Tensor:
    """(4, 1, 32, 32, 32)"""
    source = open_source("phantom", volume=32, subjects=4)
    return torch.from_numpy(np.stack([source[index] for index in range(4)]))


@pytest.fixture(scope="module")
def noisy(brains: Tensor) -> Tensor:
    noise = torch.randn(brains.shape, generator=torch.Generator().manual_seed(0))
    return (brains + 0.1 * noise).clamp(0, 1)


def constant(value: float, side: int = 32) -> Tensor:
    return torch.full((1, 1, side, side, side), value)


def test_the_errors_of_eps_are_those_of_a_known_offset():
    eps = torch.randn(2, 1, 8, 8, 8)
    off = torch.tensor([0.5, -2.0]).view(2, 1, 1, 1, 1)
    assert metrics.mae(eps + off, eps).tolist() == pytest.approx([0.5, 2.0], rel=1e-5)
    assert metrics.mse(eps + off, eps).tolist() == pytest.approx([0.25, 4.0], rel=1e-5)


def test_predicting_no_noise_has_its_closed_form():
    eps = torch.randn(1, 1, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros_like(eps)
    assert metrics.mae(nothing, eps).item() == pytest.approx(math.sqrt(2 / math.pi), abs=0.005)
    assert metrics.mse(nothing, eps).item() == pytest.approx(1, abs=0.01)


def test_psnr_of_a_known_offset_and_scikit_images(brains, noisy):
    assert metrics.psnr(constant(0.6), constant(0.5)).item() == pytest.approx(20, abs=1e-4)
    assert metrics.psnr(constant(0.5), constant(0.5)).item() == math.inf
    theirs = [
        peak_signal_noise_ratio(b.numpy(), n.numpy(), data_range=1)
        for b, n in zip(brains, noisy, strict=True)
    ]
    assert metrics.psnr(noisy, brains).tolist() == pytest.approx(theirs, abs=1e-4)
    # The peak is the range, not the brightest voxel: half as bright is not 6 dB worse or better.
    assert metrics.psnr(0.5 * noisy, 0.5 * brains)[0] == pytest.approx(theirs[0] + 6.0206, abs=1e-3)


def test_ssim_is_scikit_images(brains, noisy):
    theirs = [
        structural_similarity(
            b[0].numpy().astype(float), n[0].numpy().astype(float), data_range=1.0,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
        for b, n in zip(brains, noisy, strict=True)
    ]  # fmt: skip
    assert metrics.ssim(noisy, brains).tolist() == pytest.approx(theirs, abs=1e-4)
    assert metrics.ssim(brains, brains).tolist() == pytest.approx([1] * 4, abs=1e-5)


@pytest.mark.parametrize("side", [8, 16, 32])
def test_ssim_of_two_constants_is_its_luminance(side):
    a, b = 0.3, 0.6
    expected = (2 * a * b + C1) / (a**2 + b**2 + C1)
    found = metrics.ssim(constant(a, side), constant(b, side)).item()
    assert found == pytest.approx(expected, abs=1e-3)


def test_ms_ssim_is_the_product_over_its_scales(brains, noisy):
    """The definition written in NumPy: 3 scales at 32³, a window of 7³."""
    reach = np.arange(-3, 4)
    window = np.exp(-(reach**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(x: np.ndarray) -> np.ndarray:
        for axis in range(3):
            x = correlate1d(x, window, axis)
        return x[3:-3, 3:-3, 3:-3]

    weights = np.array([0.0448, 0.2856, 0.3001])
    weights /= weights.sum()
    x, y = (v[0, 0].numpy().astype(float) for v in (noisy, brains))
    expected = 1.0
    for scale, weight in enumerate(weights):
        mx, my = blur(x), blur(y)
        contrast = (2 * (blur(x * y) - mx * my) + C2) / (
            blur(x * x) - mx**2 + blur(y * y) - my**2 + C2
        )
        luminance = (2 * mx * my + C1) / (mx**2 + my**2 + C1)
        last = scale == len(weights) - 1
        expected *= (contrast * luminance if last else contrast).mean() ** weight
        n = len(x) // 2
        x, y = (v.reshape(n, 2, n, 2, n, 2).mean(axis=(1, 3, 5)) for v in (x, y))
    assert metrics.ms_ssim(noisy[:1], brains[:1]).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("side", "scales"), [(7, 1), (13, 1), (14, 2), (28, 3), (32, 3), (56, 3), (64, 4), (128, 5)]
)
def test_ms_ssim_has_as_many_scales_as_fit(side, scales):
    assert metrics.ms_ssim_scales(side) == scales
    if side <= 64:
        x = torch.rand(1, 1, side, side, side)
        assert metrics.ms_ssim(x, x).item() == pytest.approx(1, abs=1e-4)


def test_a_volume_too_small_for_ms_ssim_is_refused():
    with pytest.raises(ValueError, match="at least 7"):
        metrics.ms_ssim(constant(0.5, 6), constant(0.5, 6))


def test_pairs_tell_copies_from_people(brains):
    copies = brains[:1].expand(4, -1, -1, -1, -1)
    assert metrics.pairwise_ms_ssim(copies).tolist() == pytest.approx([1] * 6, abs=1e-4)
    people = metrics.pairwise_ms_ssim(brains)
    assert len(people) == 6
    assert people.max() < 0.95
    assert len(metrics.pairwise_ms_ssim(brains, most=3)) == 3
    assert len(metrics.pairwise_ms_ssim(brains[:1])) == 0


def test_the_distance_of_histograms_is_the_work_to_move_one_onto_the_other():
    grid = torch.linspace(0.2, 0.6, 32**3).view(1, 1, 32, 32, 32)
    assert metrics.histogram_distance(grid + 0.1, grid) == pytest.approx(0.1, abs=1e-5)
    # Uniform on [0.2, 0.6] and on [0.2, 1.0]: quantiles differ by 0.4 u, 0.2 on average.
    assert metrics.histogram_distance(0.2 + 2 * (grid - 0.2), grid) == pytest.approx(0.2, abs=1e-5)
    assert metrics.histogram_distance(grid.flip(2), grid) == pytest.approx(0, abs=1e-6)


def test_frechets_distance_is_monais_of_the_same_features(brains):
    real, noisy = brains, (brains + 0.2 * torch.rand_like(brains)).clamp(0, 1)
    features = [metrics.random_features(each).double() for each in (noisy, real)]
    # Covariances of rank 3: a little of the identity, or MONAI has no root of their product.
    means = [each.mean(0) for each in features]
    spreads = [torch.cov(each.T) + 1e-12 * torch.eye(32).double() for each in features]
    pairs = zip(means, spreads, strict=True)
    expected = compute_frechet_distance(*(part for pair in pairs for part in pair))
    found = metrics.frechet_distance(noisy, real)
    assert found == pytest.approx(float(expected / spreads[1].trace()), rel=1e-3)

    assert metrics.frechet_distance(real, real.flip(0)) == pytest.approx(0, abs=1e-6)
    assert found > 10 * metrics.frechet_distance((real + 1e-3).clamp(0, 1), real)
    assert math.isnan(metrics.frechet_distance(real[:1], real))
    middle = slice(None), slice(None), slice(None), slice(None), 16
    assert metrics.frechet_distance(noisy[middle], real[middle]) > 0


def test_the_background_is_not_in_the_histogram():
    half = torch.zeros(1, 1, 8, 8, 8)
    half[..., :4] = 0.5
    few = torch.full_like(half, 0.04)
    few[..., :1] = 0.5
    assert metrics.histogram_distance(half, few) == 0
    assert math.isnan(metrics.histogram_distance(half, torch.zeros_like(half)))


def test_tissue_by_intensity_of_volumes_that_are_what_their_masks_say():
    """Fluid 0.2, grey 0.5 and white 0.8 on black: shifted by a voxel, only the rims disagree."""
    labels = torch.zeros(1, 8, 8, 8, dtype=torch.long)
    labels[:, 1:7, 1:7, 1:7] = 1
    labels[:, 2:6, 2:6, 2:6] = 3
    labels[:, 4, 4, 4] = 2
    masks = torch.stack([(labels == k).float() for k in (1, 2, 3)], dim=1)
    assert torch.equal(metrics.label_map(masks), labels)
    volumes = torch.tensor([0, 0.2, 0.5, 0.8])[labels]
    tissue = metrics.TissueByIntensity(volumes, masks)
    assert tissue.dice(volumes, masks) == (1, [1, 1, 1])
    assert tissue.dice(volumes + 0.05, masks) == (1, [1, 1, 1])  # no real voxel is so: the nearest
    assert tissue.dice(torch.zeros_like(volumes), masks) == (0, [0, 0, 0])

    found, wanted = labels.roll(1, dims=1), labels
    shared = [int(((found == k) & (wanted == k)).sum()) for k in (1, 2, 3)]
    whole, each = tissue.dice(volumes.roll(1, dims=1), masks)
    assert whole == sum(shared) / 6**3  # of both as many
    assert each == [shared[0] / (6**3 - 4**3), shared[1], shared[2] / (4**3 - 1)]


def test_a_label_that_no_intensity_tells_from_another_is_not_found(brains):
    """Of the embedded brains white and grey matter are, and fluid; lesions are grey as well."""
    source = open_source("phantom", volume=16, subjects=12, condition=("seg",))
    volumes = torch.from_numpy(np.stack([source[index] for index in range(12)]))
    image, masks = volumes[:, 0], volumes[:, 1:]
    whole, (white, grey, fluid, lesion) = metrics.TissueByIntensity(image, masks).dice(image, masks)
    assert min(whole, white, grey) > 0.85
    assert lesion < 0.2 < fluid
