"""From a scan to a volume in [0, 1]: intensity range, crop, resampling."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from ..sizes import Shape

RANGE = (0.5, 99.5)  # percentiles of the brain that become 0 and 1: a few bright voxels else rule


def scale_intensity(image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Clips to the brain's percentiles and scales to [0, 1]; outside the brain exactly 0.

    Args:
        image: (D, H, W), any unit.
        brain: (D, H, W) bool, at least one voxel.

    Raises:
        ValueError: the brain has one intensity only.
    """
    values = image[brain].astype(np.float64)  # float32 overflows where a file holds 1e38
    low, high = np.percentile(values, RANGE)
    if not high > low:
        raise ValueError("all voxels of the brain have the same intensity")
    scaled = np.zeros(image.shape, dtype=np.float32)
    scaled[brain] = np.clip((values - low) / (high - low), 0, 1)
    return scaled


def bounding_box(mask: np.ndarray, shape: Shape) -> tuple[list[int], list[int]]:
    """First corner and sides, in voxels, of the smallest box of these proportions around `mask`.

    It is centred on the mask and may reach beyond the array: a head is longer than 155 slices are
    high.
    """
    low, high = [], []
    for axis in range(mask.ndim):
        others = tuple(i for i in range(mask.ndim) if i != axis)
        inside = np.flatnonzero(mask.any(axis=others))
        low.append(int(inside[0]))
        high.append(int(inside[-1]) + 1)
    scale = max((b - a) / side for a, b, side in zip(low, high, shape, strict=True))
    sides = [round(scale * side) for side in shape]
    return [(a + b - n) // 2 for a, b, n in zip(low, high, sides, strict=True)], sides


def cut(image: np.ndarray, corner: list[int], sides: list[int]) -> np.ndarray:
    """The box of `bounding_box`, zero where it reaches beyond the image."""
    box = np.zeros(sides, dtype=image.dtype)
    there = [
        slice(max(a, 0), min(a + side, n))
        for a, side, n in zip(corner, sides, image.shape, strict=True)
    ]
    here = [slice(s.start - a, s.stop - a) for a, s in zip(corner, there, strict=True)]
    box[tuple(here)] = image[tuple(there)]
    return box


def resize(box: np.ndarray, shape: Shape | int) -> np.ndarray:
    """Resamples (D, H, W) to `shape`, linearly; float32, range kept.

    When shrinking, a Gaussian first takes out what the coarser grid cannot show.
    """
    factors = [old / new for old, new in zip(box.shape, Shape(shape), strict=True)]
    image = box.astype(np.float32)
    if set(factors) == {1}:
        return image
    if max(factors) > 1:
        sigma = [max(0, factor - 1) / 2 for factor in factors]
        image = gaussian_filter(image, sigma=sigma, mode="nearest")
    resized = zoom(image, [1 / f for f in factors], order=1, mode="nearest", grid_mode=True)
    assert resized.shape == Shape(shape).sides
    return np.clip(resized, 0, 1)
