"""Brains that look like T1 and T2 MRI, drawn from the ICBM152 average anatomy.

Each index is a person of its own: head size and pose, a smooth deformation, individual folds,
more or less fluid, and in one of three a glioma that pushes the tissue around it away. T1 and T2
show the same anatomy; scanner, bias field and noise are each image's own. As in BraTS, all but
the brain is exactly 0.

The same seed and index give the same bytes on one machine, and the same brain, up to rounding, on
any other.
"""

from __future__ import annotations

import itertools
import math
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import UserError
from ..sizes import Shape
from .source import Source

ASSET = Path(__file__).parent / "assets" / "icbm152.npz"
LESION_SHARE = 1 / 3
MASKS = ("seg_white", "seg_grey", "seg_fluid", "seg_lesion")
"""One of them is 1 in a voxel of the brain: what most of it is. Together they are `seg`."""

# Signal of (white, grey, fluid, edema, tumour core, necrosis) at 1.5 T and 3 T, by eye, white = 1
# in T1 and fluid = 1 in T2; `texture` is how deep grey matter departs from cortex.
SIGNAL = {
    "t1": np.array([1.00, 0.68, 0.20, 0.66, 0.50, 0.30], dtype=np.float32),
    "t2": np.array([0.30, 0.48, 1.00, 0.80, 0.68, 0.96], dtype=np.float32),
}
TEXTURE = {"t1": 1.0, "t2": -0.7}
ROOM = (1.03, 1.09)  # of a volume, to the average head: least and most


def default_count(volume: Shape) -> int:
    """How many brains unless told: as many as are made in well under a minute."""
    return 32 if volume.voxels <= 64**3 else 16 if volume.voxels <= 128**3 else 4


class Phantom(Source):
    """Embedded brains, no download: `channels` of `t1`, `t2`, drawn from `seed`.

    `condition`: the other contrast, or `seg`, which becomes `MASKS`.
    """

    name = "phantom"

    def __init__(
        self,
        modality: tuple[str, ...],
        volume: Shape,
        seed: int,
        subjects: int | None = None,
        condition: tuple[str, ...] = (),
    ) -> None:
        for flag, asked, known in (
            ("modality", modality, [*SIGNAL]), ("condition", condition, [*SIGNAL, "seg", *MASKS])
        ):  # fmt: skip
            for name in asked:
                if name not in known:
                    raise UserError(
                        f"--{flag} {name}: the embedded brains have {' and '.join(known)}"
                    )
        super().__init__()
        self.channels = modality
        expanded = (MASKS if name == "seg" else (name,) for name in condition)
        self.condition = tuple(itertools.chain.from_iterable(expanded))
        self.volume = self.content = Shape(volume)
        self.millimetres = float(2 * (atlas().extent / self.content.sides).max() * sum(ROOM) / 2)
        self.seed = seed
        count = default_count(volume) if subjects is None else subjects
        self.subjects = [f"phantom-{index:04d}" for index in range(count)]

    def read(self, index: int) -> np.ndarray:
        return brain(self.seed, index, self.content, (*self.channels, *self.condition))

    def fingerprint(self) -> dict[str, Any]:
        return {"seed": self.seed, "atlas": zlib.crc32(ASSET.read_bytes())}


@dataclass(frozen=True)
class Atlas:
    """The average anatomy.

    Attributes:
        maps: (1, 4, X, Y, Z), probabilities of white, grey and fluid, and texture: the T1 average
            minus what its tissues explain.
        extent: (3,) half the size of the maps in mm.
        white_matter: (N, 3) places in mm from the centre, deep in the hemispheres, where gliomas
            grow.
    """

    maps: torch.Tensor
    extent: np.ndarray
    white_matter: np.ndarray


@lru_cache(maxsize=1)
def atlas() -> Atlas:
    with np.load(ASSET, allow_pickle=False) as arrays:
        wm, gm, csf, t1 = (arrays[k].astype(np.float32) / 255 for k in ("wm", "gm", "csf", "t1"))
        spacing = float(arrays["spacing_mm"])
    # What the average T1 has in pure white, grey and fluid: least squares over the brain.
    tissues = np.stack([wm, gm, csf])
    inside = tissues.sum(0) > 0.9
    signal, *_ = np.linalg.lstsq(tissues[:, inside].T, t1[inside], rcond=None)
    texture = np.where(inside, t1 - np.tensordot(signal, tissues, 1), 0) / signal[0]
    extent = (np.array(wm.shape) - 1) * spacing / 2

    places = np.argwhere(wm > 0.8) * spacing - extent
    x, _, z = np.abs(places[:, 0]), places[:, 1], places[:, 2]
    hemispheres = (x > 18) & (x < 50) & (z > -5) & (z < 50)
    maps = torch.from_numpy(np.stack([wm, gm, csf, texture]).astype(np.float32))[None]
    return Atlas(maps, extent, places[hemispheres])


def brain(seed: int, index: int, shape: Shape | int, channels: tuple[str, ...]) -> np.ndarray:
    """Person `index` of population `seed`: float32 (C, *shape) in [0, 1], voxels cubic.

    A channel is a contrast of `SIGNAL` or one of `MASKS`.
    """
    sides = Shape(shape).sides
    # One stream for the anatomy and one a modality: T1 is the same with T2 beside it or without.
    rng = np.random.default_rng([seed, index])
    places = _pose(rng, sides)
    places += _smooth_field(rng, sides, knots=5, channels=3) * 3.5
    places += _smooth_field(rng, sides, knots=12, channels=3) * 1.6
    lesion = _Lesion.draw(rng) if rng.random() < LESION_SHARE else None
    if lesion is not None:
        places = lesion.displace(places)

    tissue, texture = _sample(places)
    cover = tissue.sum(0)  # how much of a voxel is brain: less than 1 on its rim
    tissue = _individual(rng, tissue)
    if lesion is not None:
        tissue = lesion.grow(rng, tissue, places)

    images = []
    for name in channels:
        if name in MASKS:
            images.append(_mask(tissue, cover, MASKS.index(name)))
            continue
        own = np.random.default_rng([seed, index, sorted(SIGNAL).index(name) + 1])
        images.append(_acquire(own, tissue, texture, cover, name))
    return np.stack(images)


def _mask(tissue: np.ndarray, cover: np.ndarray, which: int) -> np.ndarray:
    """1 where of white, grey, fluid and lesion there is most of this one, in the brain."""
    shares = np.concatenate([tissue[:3], tissue[3:].sum(0, keepdims=True)])
    return ((shares.argmax(0) == which) & (cover > 0.5)).astype(np.float32)


def _pose(rng: np.random.Generator, sides: tuple[int, ...]) -> np.ndarray:
    """Where each voxel lies in the average head: (3, *sides), mm from its centre."""
    # The axis along which the head fills the volume: BraTS volumes are cut to the brain.
    fullest = int(np.argmax(atlas().extent / sides))
    span = 2 * atlas().extent[fullest] * rng.uniform(*ROOM)
    stretch = np.diag(rng.uniform([0.93, 1.0, 0.93], [1.09, 1.0, 1.09]))
    shear = np.eye(3) + np.triu(rng.normal(0, 0.02, size=(3, 3)), 1)
    angles = rng.normal(0, 0.05, size=3)
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        rotation = turn @ rotation
    affine = (rotation @ shear @ stretch * span / sides[fullest]).astype(np.float32)
    shift = rng.normal(0, 1.5, size=3).astype(np.float32)

    lines = [np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2) for side in sides]
    # Sum of three outer terms, so that no (N, 3) grid is multiplied by a matrix.
    x = affine[:, 0, None, None, None] * lines[0][:, None, None]
    y = affine[:, 1, None, None, None] * lines[1][:, None]
    z = affine[:, 2, None, None, None] * lines[2]
    return x + y + z + shift[:, None, None, None]


@lru_cache(maxsize=32)
def _cubic_b_spline(side: int, knots: int) -> np.ndarray:
    """(side, knots + 3) weights of `knots + 3` control points, `knots` intervals to the side."""
    position = (np.arange(side) + 0.5) / side * knots
    cell = np.minimum(position.astype(int), knots - 1)
    u = position - cell
    weights = np.zeros((side, knots + 3), dtype=np.float32)
    pieces = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)
    for k, piece in enumerate(pieces):
        weights[np.arange(side), cell + k] = piece / 6
    return weights


def _smooth_field(
    rng: np.random.Generator, sides: tuple[int, ...], knots: int, channels: int = 1
) -> np.ndarray:
    """A random field (channels, *sides), about N(0, 1), as smooth as a B-spline of so many
    intervals to the longest side.
    """
    intervals = [max(1, round(knots * side / max(sides))) for side in sides]
    field = rng.standard_normal((channels, *(n + 3 for n in intervals)), dtype=np.float32)
    splines = [_cubic_b_spline(*pair) for pair in zip(sides, intervals, strict=True)]
    for weights in reversed(splines):  # along the last axis, which becomes the first of the three
        field = np.moveaxis(field @ weights.T, -1, 1)
    # A cubic B-spline averages its control points: the variance of the sum is Σ w², each axis.
    variance = math.prod(float((weights**2).sum(1).mean()) for weights in splines)
    return field / np.float32(math.sqrt(variance))


def _sample(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(white, grey, fluid) as (3, …) and texture as (…) of the average head at `places` in mm."""
    head = atlas()
    unit = places / head.extent.astype(np.float32)[:, None, None, None]
    # grid_sample wants the last axis of the volume first.
    grid = torch.from_numpy(unit[::-1].copy()).permute(1, 2, 3, 0)[None]
    sampled = F.grid_sample(head.maps, grid, mode="bilinear", align_corners=True)[0].numpy()
    return sampled[:3], sampled[3]


def _individual(rng: np.random.Generator, tissue: np.ndarray) -> np.ndarray:
    """Gives a person folds of their own.

    Where the average is blurred, people differ: noise on the log-probabilities decides there for
    one tissue and leaves alone what is certain.
    """
    sides = tissue.shape[1:]
    weight = np.maximum(tissue, 0.004) ** 1.6
    tilt = _smooth_field(rng, sides, knots=26, channels=3)
    tilt *= np.float32(0.45)
    tilt[2] += np.float32(rng.normal(0.0, 0.35))  # fluid: age widens ventricles and sulci
    weight *= np.exp(tilt)
    return weight / weight.sum(0)


@dataclass
class _Lesion:
    """A glioma: necrosis in a core in an edema. Lengths in mm of the average head."""

    centre: np.ndarray
    radius: float
    axes: np.ndarray
    edema: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Lesion:
        where = atlas().white_matter
        centre = where[rng.integers(len(where))].astype(np.float32)
        axes = rng.uniform(0.8, 1.25, size=3).astype(np.float32)
        return cls(centre, rng.uniform(9, 19), axes, rng.uniform(1.5, 2.1))

    def displace(self, places: np.ndarray) -> np.ndarray:
        """Mass effect: tissue that was at the centre is found further out."""
        offset = places - self.centre[:, None, None, None]
        near = np.exp(-(offset**2).sum(0) / np.float32(2 * (1.6 * self.radius) ** 2))
        return places - offset * (np.float32(0.3) * near)

    def grow(self, rng: np.random.Generator, tissue: np.ndarray, places: np.ndarray) -> np.ndarray:
        """(white, grey, fluid) -> (white, grey, fluid, edema, core, necrosis)."""
        sides = tissue.shape[1:]
        offset = (places - self.centre[:, None, None, None]) * self.axes[:, None, None, None]
        distance = np.sqrt((offset**2).sum(0)) / np.float32(self.radius)
        distance += np.float32(0.16) * _smooth_field(rng, sides, knots=14)[0]
        fingers = np.float32(0.22) * _smooth_field(rng, sides, knots=10)[0]

        core = _inside(distance, 1.0, 0.06)
        necrosis = core * _inside(distance - fingers, 0.6, 0.08)
        # Edema follows white matter and stops at the cortex and the ventricles.
        edema = _inside(distance + fingers, self.edema, 0.12) * (tissue[0] + 0.25 * tissue[1])
        edema *= 1 - core
        core -= necrosis
        healthy = tissue * (1 - edema - core - necrosis)
        return np.concatenate([healthy, np.stack([edema, core, necrosis])])


def _inside(distance: np.ndarray, radius: float, softness: float) -> np.ndarray:
    """1 well inside `radius`, 0 well outside."""
    return 1 / (1 + np.exp(np.clip((distance - np.float32(radius)) / softness, -30, 30)))


def _acquire(
    rng: np.random.Generator,
    tissue: np.ndarray,
    texture: np.ndarray,
    cover: np.ndarray,
    modality: str,
) -> np.ndarray:
    """One image of the anatomy: signal, texture, coil sensitivity, Rician noise, [0, 1]."""
    sides = tissue.shape[1:]
    signal = SIGNAL[modality] * rng.uniform(0.94, 1.06, size=6).astype(np.float32)
    image = np.zeros(tissue.shape[1:], dtype=np.float32)
    for value, share in zip(signal, tissue, strict=False):  # without a lesion only three
        image += value * share
    image += np.float32(TEXTURE[modality]) * texture * tissue[:2].sum(0)
    image *= np.minimum(cover, 1)
    image *= np.exp(np.float32(0.07) * _smooth_field(rng, sides, knots=2)[0])
    sigma = np.float32(rng.uniform(0.01, 0.025))
    noise = rng.standard_normal((2, *image.shape), dtype=np.float32) * sigma
    image = np.hypot(image + noise[0], noise[1])  # the magnitude of a complex signal
    # Zero signal stays 0; the brightest 0.5 % are clipped as they are in BraTS scans.
    inside = cover > 0.5
    return np.where(inside, np.minimum(image / np.percentile(image[inside], 99.5), 1), 0).astype(
        np.float32
    )
