"""`--dims 2`: trained on random axial slices, validated on and drawn as middle ones."""

import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics.regression import SSIMMetric

from bench import cli
from bench.data import load, load_affines, open_source
from bench.data.batches import as_drawn
from bench.data.nifti import read_nifti, write_nifti
from bench.quality import from_run, metrics
from bench.records.folder import QualityRun
from bench.report.figure2 import figure2
from bench.sizes import Shape
from tests.bench.quality.trainings import WORK

SLICES = replace(WORK, dims=2, volume=Shape((12, 16, 10)), patch=Shape((12, 16, 1)))


def middle_slices(count: int) -> torch.Tensor:
    """Of embedded brains, (N, 1, 12, 16)."""
    source = open_source("phantom", volume=SLICES.volume, subjects=count)
    return torch.from_numpy(as_drawn(np.stack([source[i] for i in range(count)]), SLICES))


def test_what_is_drawn_is_the_middle_axial_slice():
    volumes = np.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    assert np.array_equal(as_drawn(volumes, SLICES), volumes[..., 3])
    assert as_drawn(volumes, WORK) is volumes


def test_similarities_of_slices_are_those_of_images():
    one, other = middle_slices(2).split(1)
    expected = SSIMMetric(2, win_size=11, kernel_sigma=1.5)(one, other)
    assert metrics.ssim(one, other).item() == pytest.approx(expected.item())
    assert metrics.ms_ssim(one, one).item() == pytest.approx(1)
    assert 0 < metrics.ms_ssim(one, other).item() < 1


def test_a_slice_is_a_file_of_one_voxel_in_the_third_axis(tmp_path):
    slices = middle_slices(2)
    files = write_nifti(tmp_path / "a.nii.gz", slices, np.diag([2.0, 2, 3, 1]))
    assert [nib.load(file).shape for file in files] == [(12, 16, 1)] * 2
    assert np.allclose(nib.load(files[0]).header.get_zooms(), (2, 2, 3))
    assert np.array_equal(read_nifti(tmp_path / "a.nii.gz", 1), slices)


def test_figure_2_shows_slices_once():
    slices = middle_slices(2).numpy()
    picture = figure2(slices, {"idm": slices})
    axes = picture.figure.axes
    assert [each.get_label() for each in axes] == [
        f"{name}, {number}, axial" for name in ("real", "idm") for number in (1, 2)
    ]
    assert np.array_equal(axes[0].images[0].get_array(), slices[0, 0].T[::-1, ::-1])
    assert picture.title == "Figure 2. Real and generated slices"


@pytest.mark.slow
def test_slices_from_masks_lie_where_those_do(tmp_path, monkeypatch):
    """Trained and drawn by commands, and used in one's own code."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def command(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        assert cli.main() == 0

    drawing = ("--sampler", "ddim", "--sampler-steps", 2)
    command("quality", "--dims", 2, "--models", "revunet", "--volume", "16x24x13", "--subjects", 12,
            "--condition", "seg", "--channels", 8, 16, "--steps", 4, "--validations", 2,
            "--samples", 1, *drawing, "--out", tmp_path)  # fmt: skip
    (folder,) = tmp_path.glob("*-quality-small")
    run = QualityRun(folder)
    (row,) = run.trained().to_dict("records")
    assert (row["status"], row["dims"], str(row["patch"])) == ("ok", 2, "16x24x1")
    assert row["preset_changes"].startswith("volume 16x24x13, patch 16x24x1, channels 8 16, dims 2")
    assert run.learning()["val_mse"].notna().all()

    command("sample", folder, "--samples", 2, "--condition-from", "test", *drawing,
            "--out", tmp_path / "drawn")  # fmt: skip
    plan = from_run(folder).plan
    (member,) = set(range(12)) - {*plan.train, *plan.val}
    cache = Path(plan.volumes)
    volumes, affines = load(cache), load_affines(cache)
    for index in range(2):
        image, mask = (
            nib.load(tmp_path / "drawn" / f"revunet-0_{each}{index}.nii.gz")
            for each in ("", "mask_")
        )
        assert image.shape == mask.shape == (16, 24, 1)
        assert np.array_equal(image.affine, mask.affine)
        there = nib.affines.apply_affine(image.affine, (3, 5, 0))
        assert np.allclose(there, nib.affines.apply_affine(affines[member], (3, 5, 6)))
        labels = volumes[member, 1:, :, :, 6]
        wanted = np.where(labels.any(axis=0), labels.argmax(axis=0) + 1, 0)
        assert np.array_equal(np.asarray(mask.dataobj)[..., 0], wanted)
        assert wanted.any()
    for picture in (folder / "figure2.png", tmp_path / "drawn" / "figure2.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
