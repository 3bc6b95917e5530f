"""Real volumes for the tests: a BraTS folder made of the brain that ships in nilearn's wheel."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np

from docs.figures.make_asset import read_template

BRATS_SHAPE = (240, 240, 155)
BRATS_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])  # left, posterior, superior, as the challenge's
CORNER = (47, 28, 0)  # where the 1 mm template is put in the scan

# Signal of white, grey and fluid in the modalities that nilearn has no picture of.
TISSUE_SIGNAL = {"t2": (300, 480, 1000), "t1ce": (900, 620, 150), "flair": (420, 600, 80)}


def make_brats_folder(
    path: Path, subjects: int = 2, modalities: Sequence[str] = ("t1", "t2")
) -> Path:
    """Writes `BraTS20_Training_001/BraTS20_Training_001_t1.nii.gz`, … below `path`; returns it.

    Each file is int16, 240 x 240 x 155, 1 mm. T1 is the real average brain; the others are made
    of its real tissue maps. Subjects differ in position, mirroring and gain.
    """
    for number in range(1, subjects + 1):
        name = f"BraTS20_Training_{number:03d}"
        folder = path / name
        folder.mkdir(parents=True, exist_ok=True)
        for modality in modalities:
            (folder / f"{name}_{modality}.nii.gz").write_bytes(_scan(number, modality))
    return path


@cache
def _scan(number: int, modality: str) -> bytes:
    """A zipped NIfTI file."""
    image = _template(modality) * (1 + 0.1 * number)
    if number % 2 == 0:
        image = image[::-1]
    image = np.roll(image, (3 * number, -2 * number), axis=(0, 1))
    scan = nib.Nifti1Image(image[::-1, ::-1].astype(np.int16), BRATS_AFFINE)
    return gzip.compress(scan.to_bytes(), compresslevel=1)


@cache
def _template(modality: str) -> np.ndarray:
    """float32, BRATS_SHAPE, left → right, posterior → anterior, inferior → superior."""
    t1 = read_template("t1")
    if modality == "t1":
        image = t1 * 1000
    else:
        wm, gm = read_template("wm"), read_template("gm")
        csf = np.clip(1 - wm - gm, 0, 1)
        white, grey, fluid = TISSUE_SIGNAL[modality]
        image = (white * wm + grey * gm + fluid * csf) * (t1 > 0)
    low = [24, 25, 0]  # all of the brain, and no more slices than BraTS has
    brain = image[low[0] : low[0] + 149, low[1] : low[1] + 186, : BRATS_SHAPE[2]]
    scan = np.zeros(BRATS_SHAPE, dtype=np.float32)
    scan[tuple(slice(c, c + n) for c, n in zip(CORNER, brain.shape, strict=True))] = brain
    return scan
