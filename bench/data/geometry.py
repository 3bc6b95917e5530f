"""From a scan to a cube in [0, 1]: intensity range, crop, resampling."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

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


def bounding_cube(mask: np.ndarray) -> tuple[list[int], int]:
    """First corner and side, in voxels, of the smallest cube around `mask`, centred on its box.

    The cube may reach beyond the array: a head is longer than 155 slices are high.
    """
    low, high = [], []
    for axis in range(mask.ndim):
        others = tuple(i for i in range(mask.ndim) if i != axis)
        inside = np.flatnonzero(mask.any(axis=others))
        low.append(int(inside[0]))
        high.append(int(inside[-1]) + 1)
    side = max(b - a for a, b in zip(low, high, strict=True))
    return [(a + b - side) // 2 for a, b in zip(low, high, strict=True)], side


def cut(image: np.ndarray, corner: list[int], side: int) -> np.ndarray:
    """The cube of `bounding_cube`, zero where it reaches beyond the image."""
    cube = np.zeros((side,) * image.ndim, dtype=image.dtype)
    there = [slice(max(a, 0), min(a + side, n)) for a, n in zip(corner, image.shape, strict=True)]
    here = [slice(s.start - a, s.stop - a) for a, s in zip(corner, there, strict=True)]
    cube[tuple(here)] = image[tuple(there)]
    return cube


def resize(cube: np.ndarray, side: int) -> np.ndarray:
    """Resamples (S, S, S) to (side, side, side), linearly; float32, range kept.

    When shrinking, a Gaussian first takes out what the coarser grid cannot show.
    """
    factor = cube.shape[0] / side
    if factor == 1:
        return cube.astype(np.float32)
    image = cube.astype(np.float32)
    if factor > 1:
        image = gaussian_filter(image, sigma=(factor - 1) / 2, mode="nearest")
    resized = zoom(image, 1 / factor, order=1, mode="nearest", grid_mode=True)
    assert resized.shape == (side,) * 3
    return np.clip(resized, 0, 1)
