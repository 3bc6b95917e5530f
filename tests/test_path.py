"""The path of a lab: a flat folder of scans and masks, by commands, to samples over their masks."""

import json
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nibabel.processing import resample_from_to

from bench import cli
from docs.figures.make_asset import read_template

MM = np.array([2, 2, 4])
FIRST_VOXEL = np.array([-98, -134, -72])  # of nilearn's maps, in mm
SUBJECTS = 10


def make_folder(path: Path) -> Path:
    """nilearn's real brain, each time moved, mirrored or brighter, 99 × 117 × 48 voxels of
    2 × 2 × 4 mm, stored right to left and front to back; masks of grey, 1, and white matter, 2.
    """
    step = tuple(slice(None, None, mm) for mm in MM)
    t1, wm, gm = (read_template(name)[step] for name in ("t1", "wm", "gm"))
    labels = np.where(wm > 0.5, 2, gm > 0.5) * (t1 > 0)
    last = FIRST_VOXEL + MM * (np.array(t1.shape) - 1)
    affine = nib.affines.from_matvec(np.diag(MM * (-1, -1, 1)), (*last[:2], FIRST_VOXEL[2]))
    for number in range(SUBJECTS):
        for name, voxels in (("T1w", 1000 * t1 * (1 + number / 10)), ("seg", labels)):
            moved = np.roll(voxels[:: (-1) ** number], number, axis=1)[::-1, ::-1]
            image = nib.Nifti1Image(np.round(moved).astype(np.int16), affine)
            nib.save(image, path / f"sub-{number:02d}_{name}.nii.gz")
    return path


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    assert cli.main() == 0


@pytest.mark.slow
def test_from_a_folder_of_masks_to_samples_that_lie_over_them(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "scans").mkdir()
    scans = make_folder(tmp_path / "scans")
    shape = ("--volume", "21x27x21", "--pad", "--channels", 8, 16, "--models", "idm")
    with monkeypatch.context() as patch:  # one core: the predictions stay in this process
        patch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
        patch.setattr(os, "cpu_count", lambda: 1)
        command(patch, "recommend", "--gpu", "rtx4090", *shape, "--condition", "grey", "white",
                "--margin", "23.62GiB", "--out", tmp_path / "recommended")  # fmt: skip
    first, *_ = pd.read_csv(tmp_path / "recommended" / "recommend.csv").to_dict("records")
    assert (first["method"], first["kind"], first["fits"]) == ("idm", "exact", True)
    assert (first["volume"], first["padded_from"]) == ("22x28x22", "21x27x21")

    data = (
        "--data", "nifti", "--data-dir", scans, "--modality", "t1=*_T1w.nii.gz",
        "--condition", "seg=*_seg.nii.gz", *shape, "--out", tmp_path,
    )  # fmt: skip
    command(monkeypatch, "run", *data, "--steps", 2)
    command(monkeypatch, "quality", *data, "--steps", 4, "--validations", 1, "--samples", 0)
    (cost,) = tmp_path.glob("*Z-small")
    (trained,) = tmp_path.glob("*-quality-small")
    row = pd.read_csv(cost / "runs.csv").iloc[0]
    assert (row["status"], row["condition"]) == ("ok", "seg:1 seg:2")
    assert row["volume"] == first["volume"]
    assert row["parameters"] == first["parameters"]  # of as many channels

    drawn = tmp_path / "drawn"
    command(monkeypatch, "sample", trained, "--condition-from", "test", "--samples", 1,
            "--sampler", "ddim", "--sampler-steps", 3, "--out", drawn)  # fmt: skip
    (split,) = json.loads((trained / "split.json").read_text())["splits"]
    held_out = split["test"][0]
    sample, mask = (nib.load(drawn / f"idm-0_{each}0.nii.gz") for each in ("", "mask_"))
    assert sample.shape == mask.shape
    assert np.array_equal(sample.affine, mask.affine)
    assert np.ptp(sample.header.get_zooms()) < 1e-4  # voxels of equal sides, although the scans'
    assert set(np.unique(mask.dataobj)) == {0, 1, 2}

    # In place: what the lab's own mask says of the sample's voxels.
    own = resample_from_to(nib.load(scans / f"{held_out}_seg.nii.gz"), sample, order=0)
    brain, of_lab = np.asarray(mask.dataobj) > 0, np.asarray(own.dataobj) > 0
    assert dice(brain, of_lab) > 0.93
    assert dice(np.roll(brain, 1, axis=1), of_lab) < 0.9  # a voxel off would be seen


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())
