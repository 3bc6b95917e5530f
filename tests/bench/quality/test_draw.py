"""`sample`: volumes drawn from what a quality run left, and what it refuses."""

import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bench import cli
from bench.records.folder import QualityRun

pytestmark = pytest.mark.slow

TINY = ("--subjects", "12", "--volume", "16", "--channels", "8", "16")


def type_(patch: pytest.MonkeyPatch, *arguments: object) -> int:
    patch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    return cli.main()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> QualityRun:
    """A run of two methods, two steps each, that drew two volumes of each by DDIM."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert type_(
            patch, "quality", "--models", "idm", "patchddm", "--steps", 2, "--validations", 1,
            "--samples", 2, "--sampler", "ddim", "--sampler-steps", 5, *TINY, "--out", folder,
        ) == 0  # fmt: skip
    (run,) = folder.glob("*-quality-small")
    return QualityRun(run)


@pytest.fixture
def sample(trained, monkeypatch, capsys):
    """Type the command about the run; its exit status and what it said."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(trained.folder.parent / "cache"))

    def run(*arguments: object, folder: Path = trained.folder) -> tuple[int, str]:
        status = type_(monkeypatch, "sample", folder, *arguments)
        captured = capsys.readouterr()
        return status, captured.err if status else captured.out

    return run


def voxels(folder: Path, method: str, index: int) -> np.ndarray:
    return nib.load(folder / f"{method}-0_{index}.nii.gz").get_fdata()


def test_it_draws_what_the_run_drew_and_goes_on(trained, sample, tmp_path):
    """The averaged weights, by the same noise: the first batch is the run's own, to the bit."""
    status, out = sample("--samples", 3, "--batch-size", 2, "--sampler", "ddim",
                         "--sampler-steps", 5, "--out", tmp_path)  # fmt: skip
    assert status == 0
    assert "patchddm, seed 0: 3 volumes" in out
    for method in ("idm", "patchddm"):
        for index in range(2):
            own = voxels(trained.folder / "samples", method, index)
            assert np.array_equal(voxels(tmp_path, method, index), own)
        third = voxels(tmp_path, method, 2)
        assert third.shape == (16, 16, 16)
        assert third.std() > 0
        assert not np.array_equal(third, voxels(tmp_path, method, 0))
    scores = pd.read_csv(tmp_path / "quality.csv")
    assert set(scores["method"]) == {"idm", "patchddm"}
    assert set(scores["protocol"]) == {"ddim-5"}
    assert {"ms_ssim", "histogram_distance"} <= set(scores["column"])
    assert (tmp_path / "figure2.png").read_bytes().startswith(b"\x89PNG")


def test_one_method_by_another_sampler_in_a_folder_of_the_run(trained, sample):
    status, _ = sample("--models", "idm", "--samples", 1, "--sampler", "ddpm-mean",
                       "--sampler-steps", 3, "--seed", 7)  # fmt: skip
    assert status == 0
    folder = trained.folder / "drawn-ddpm-mean-3-seed7"
    assert [path.name for path in folder.glob("*.nii.gz")] == ["idm-0_0.nii.gz"]
    starts = pd.read_csv(folder / "quality.csv").set_index("column")
    assert 0 <= starts.loc["sampling_start", "value"] < 2000


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--models", "unet"), "--models unet: "),
        (("--seeds", 3), "--seeds 3: "),
        (("--samples", 0), "--samples 0"),
        (("--batch-size", 0), "--batch-size 0"),
        (("--seed", -1), "--seed -1"),
        (("--sampler", "ddpm", "--sampler-steps", 9), "--sampler-steps 9: ddpm samples in 2000"),
        (("--device", "cuda:99"), "--device cuda:99"),
    ],
)
def test_what_cannot_be_drawn(sample, flags, said):
    status, error = sample(*flags)
    assert status == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


def test_runs_that_cannot_be_drawn_from(trained, sample, tmp_path):
    assert sample(folder=tmp_path)[0] == 2  # no run at all
    copy = shutil.copytree(trained.folder, tmp_path / "copy")
    checkpoint = copy / "checkpoints" / "idm-0.safetensors"
    shutil.copy(copy / "checkpoints" / "patchddm-0.safetensors", checkpoint)
    status, error = sample("--models", "idm", folder=copy)
    assert status == 2
    assert f"{checkpoint}: not a checkpoint of idm, seed 0" in error
    checkpoint.write_bytes(b"\xff" * 100)
    assert "not a checkpoint of idm" in sample("--models", "idm", folder=copy)[1]
    checkpoint.unlink()
    status, error = sample("--models", "idm", folder=copy)
    assert status == 2
    assert "train it first" in error
