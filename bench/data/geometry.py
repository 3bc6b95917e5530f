"""From a scan to a volume in [0, 1]: its background, its intensities, the grid of the volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter, label

from ..sizes import Shape

RANGE = (
    0.5,
    99.5,
)  # percentiles of the foreground that become 0 and 1: a few bright voxels else rule
TOLERANCES = (
    1e-6,
    1e-3,
)  # of the intensity range: rounding of a constant, ringing of an interpolation
SPECK = 0.01  # of the largest part of the foreground; what is smaller and apart is none of the head

_SHIFTED = np.eye(4)
_SHIFTED[:3, 3] = -1


class Foreground(NamedTuple):
    """What of a scan is no background."""

    mask: np.ndarray
    """(D, H, W) bool."""
    constant: bool
    """Whether the rest has one intensity, as where the skull was stripped; otherwise it is air."""

    @property
    def fills_the_view(self) -> bool:
        return bool(self.mask.any()) and box_of(self.mask) == [(0, n) for n in self.mask.shape]


def find_foreground(image: np.ndarray) -> Foreground:
    """The head, or the brain, of a scan (D, H, W).

    The background is the intensity that most of the border has, within a tolerance, if at least
    half of it does: 0, but also the -0.00028 of a stored slope, or the mean of a z-scored image.
    Otherwise the air is noisy and Otsu's threshold parts it from the head. Specks are dropped,
    holes are filled. The mask is empty where all voxels are alike.
    """
    border = np.concatenate([np.take(image, [0, -1], axis).ravel() for axis in range(image.ndim)])
    low, high = np.percentile(image[::2, ::2, ::2], (0.1, 99.9))
    if not high > low:
        low, high = float(image.min()), float(image.max())
    for tolerance in (float(high - low) * each for each in TOLERANCES):
        background = _mode(border, tolerance)
        if np.mean(np.abs(border - background) <= tolerance) >= 0.5:
            return Foreground(_solid(np.abs(image - background) > tolerance), constant=True)
    return Foreground(_solid(image > _otsu(image)), constant=False)


def _mode(values: np.ndarray, width: float) -> float:
    """The most frequent of `values`, rounded to `width`; the median of those that are as near."""
    if width == 0:
        return float(values[0])
    values = values.astype(np.float64)
    rounded, counts = np.unique(np.round((values - values.min()) / width), return_counts=True)
    centre = rounded[np.argmax(counts)] * width + values.min()
    return float(np.median(values[np.abs(values - centre) <= width]))


def _otsu(image: np.ndarray) -> float:
    """The threshold with the largest variance between both sides (Otsu 1979)."""
    counts, edges = np.histogram(image, bins=256)
    centres = (edges[1:] + edges[:-1]) / 2
    below, moment = np.cumsum(counts), np.cumsum(counts * centres)
    with np.errstate(all="ignore"):
        between = (moment[-1] * below / below[-1] - moment) ** 2 / (below * (below[-1] - below))
    return float(edges[1:][np.nanargmax(between)])


def _solid(mask: np.ndarray) -> np.ndarray:
    """Without parts that are small beside the largest one, and without holes."""
    parts, count = label(mask)
    if not count:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    kept = (sizes >= SPECK * sizes.max())[parts]
    outside, _ = label(~kept)
    border = [np.take(outside, [0, -1], axis).ravel() for axis in range(mask.ndim)]
    touching = np.unique(np.concatenate(border))
    return ~np.isin(outside, touching[touching > 0])


def box_of(mask: np.ndarray) -> list[tuple[int, int]]:
    """First voxel and the one after the last, of each axis, of the smallest box around `mask`."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(i for i in range(mask.ndim) if i != axis)
        inside = np.flatnonzero(mask.any(axis=others))
        box.append((int(inside[0]), int(inside[-1]) + 1))
    return box


def scale_intensity(image: np.ndarray, found: Foreground) -> np.ndarray:
    """Clips to the foreground's percentiles and scales to [0, 1]; a constant background is 0.

    Raises:
        ValueError: the foreground has one intensity only.
    """
    values = image[found.mask].astype(np.float64)  # float32 overflows where a file holds 1e38
    low, high = np.percentile(values, RANGE)
    if not high > low:
        raise ValueError("all voxels of the head have the same intensity")
    scaled = window_intensity(image, float(low), float(high))
    return np.where(found.mask, scaled, np.float32(0)) if found.constant else scaled


def window_intensity(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """`low` becomes 0 and `high` 1; what lies outside is clipped."""
    scaled = (image.astype(np.float64) - low) / (high - low)
    return np.clip(scaled, 0, 1).astype(np.float32)


def voxel_size(affine: np.ndarray) -> np.ndarray:
    """(3,) mm, of an affine (4, 4) from voxels to mm."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def centred_affine(millimetres: Sequence[float] | np.ndarray, shape: Shape) -> np.ndarray:
    """Of a volume with its middle at the origin: left → right, back → front, down → up."""
    affine = np.diag([*millimetres, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape.sides) - 1) / 2)
    return affine


def grid_around(
    box: Sequence[tuple[float, float]],
    affine: np.ndarray,
    shape: Shape,
    spacing: Sequence[float] | None,
) -> np.ndarray:
    """The affine of a volume of this shape in the middle of which the box of a scan lies.

    Args:
        box: of voxels of the scan, as `box_of` gives it.
        affine: of the scan.
        spacing: mm of a voxel of the volume; None: as many, the same along each axis, as let the
            box just fit, so that nothing is squashed.
    """
    ends = np.array(box, dtype=float)
    millimetres = (ends[:, 1] - ends[:, 0]) * voxel_size(affine)
    if spacing is None:
        spacing = [float((millimetres / shape.sides).max())] * 3
    grid = np.eye(4)
    grid[:3, :3] = affine[:3, :3] / voxel_size(affine) * np.array(spacing)
    middle = affine[:3, :3] @ ((ends.sum(axis=1) - 1) / 2) + affine[:3, 3]
    grid[:3, 3] = middle - grid[:3, :3] @ ((np.array(shape.sides) - 1) / 2)
    return grid


def resample(image: np.ndarray, affine: np.ndarray, grid: np.ndarray, shape: Shape) -> np.ndarray:
    """(D, H, W) in [0, 1] as it is on another grid, linearly; float32, 0 outside of the image.

    Before shrinking, a Gaussian takes out what the coarser grid cannot show.
    """
    import torch
    from monai.data import MetaTensor
    from monai.transforms import SpatialResample

    if image.shape == shape.sides and np.allclose(affine, grid, atol=1e-6):
        return image.astype(np.float32)
    # mm that a step along each axis of the grid goes, as voxels of the image
    steps = np.abs(np.linalg.inv(affine[:3, :3]) @ grid[:3, :3]).max(axis=1)
    sigma = np.clip((steps - 1) / 2, 0, image.shape)  # wider than the image, it is all one
    smooth = gaussian_filter(image.astype(np.float32), sigma=sigma, mode="nearest")
    # Half a voxel beyond the middle of the last one there is still that voxel.
    smooth, affine = np.pad(smooth, 1, mode="edge"), affine @ _SHIFTED
    moved = SpatialResample(mode="bilinear", padding_mode="zeros", dtype=np.float32)(
        MetaTensor(smooth[None], affine=torch.from_numpy(affine)),
        dst_affine=torch.from_numpy(grid),
        spatial_size=shape.sides,
    )
    return np.clip(np.asarray(moved[0]), 0, 1)


def resize(image: np.ndarray, shape: Shape | int) -> np.ndarray:
    """(D, H, W) in [0, 1], as large as fits into `shape`, in the middle of it."""
    box = [(0, n) for n in image.shape]
    grid = grid_around(box, np.eye(4), Shape(shape), None)
    return resample(image, np.eye(4), grid, Shape(shape))


def one_hot(
    mask: np.ndarray, labels: Sequence[int], affine: np.ndarray, grid: np.ndarray, shape: Shape
) -> np.ndarray:
    """(labels, D, H, W) of 0 and 1: of each voxel of the grid the label that most of it has."""
    shares = np.stack([resample(mask == each, affine, grid, shape) for each in labels])
    chosen = np.concatenate([1 - shares.sum(axis=0, keepdims=True), shares]).argmax(axis=0)
    return (chosen == np.arange(1, len(labels) + 1)[:, None, None, None]).astype(np.float32)
