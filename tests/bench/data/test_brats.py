"""A BraTS folder of real brains: what comes out, and what is refused."""

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bench.data import load, open_source, prepare
from bench.data.geometry import Foreground, find_foreground, resample, resize, scale_intensity
from bench.data.nifti import read_image
from bench.errors import UserError
from bench.sizes import Shape
from tests.volumes import BRATS_AFFINE, BRATS_SHAPE, make_brats_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_brats_folder(tmp_path_factory.mktemp("brats"), subjects=2)


def scan(folder: Path, modality: str = "t1", number: int = 1) -> Path:
    name = f"BraTS20_Training_{number:03d}"
    return folder / name / f"{name}_{modality}.nii.gz"


def refusal(*args, **kwargs) -> str:
    """The one line with which opening or preparing is refused."""

    def read_all() -> None:
        source = open_source(*args, **kwargs)
        for index in range(len(source)):
            source[index]

    with pytest.raises(UserError) as caught:
        read_all()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(path: Path, voxels: np.ndarray, affine: np.ndarray = BRATS_AFFINE) -> None:
    path.write_bytes(gzip.compress(nib.Nifti1Image(voxels, affine).to_bytes(), 1))


def test_the_fixture_has_the_official_names_shape_and_type(folder):
    image = nib.load(scan(folder, "t2"))
    assert image.shape == BRATS_SHAPE == (240, 240, 155)
    assert image.get_data_dtype() == np.int16
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")


def test_a_real_scan_becomes_a_cube_in_0_1(folder):
    source = open_source("brats", folder, ("t1", "t2"), volume=64, seed=0)
    assert source.subjects == ["BraTS20_Training_001", "BraTS20_Training_002"]
    t1, t2 = pair = source[0]
    assert pair.shape == (2, 64, 64, 64)
    assert pair.dtype == np.float32
    assert pair.min() == 0
    assert 0.95 < pair.max() <= 1
    assert np.corrcoef(t1[t1 > 0.05], t2[t1 > 0.05])[0, 1] < 0  # two contrasts of one head

    # Cut to the brain: it touches both ends of the longest axis (front to back), is centred on
    # the others, and is still 0 around.
    touched = t1 > 0.02
    assert touched[:, 0].any()
    assert touched[:, -1].any()
    left_to_right = np.flatnonzero(touched.any(axis=(1, 2)))
    assert abs(left_to_right[0] + left_to_right[-1] - 63) <= 2
    assert (t1[0] == 0).all()

    # Right way up: most of the fluid-bright ventricles lie above the cerebellum's level.
    assert touched[:, :, 40:].sum() > touched[:, :, :24].sum()


def test_the_resampled_scan_is_the_scan(folder):
    """Against an independent average over boxes: 184 voxels to 46 are four each."""
    image = read_image(scan(folder))
    found = find_foreground(image.voxels)
    assert found.constant
    assert not found.fills_the_view
    assert np.array_equal(found.mask[image.voxels != 0], np.ones((image.voxels != 0).sum(), bool))
    scaled = scale_intensity(image.voxels, found)[28:212, 28:212, :152]
    grid = image.affine @ np.diag([4.0, 4, 4, 1])
    grid[:3, 3] += 1.5  # the middle of the first four voxels
    small = resample(scaled, image.affine, grid, Shape((46, 46, 38)))
    boxes = scaled.reshape(46, 4, 46, 4, 38, 4).mean(axis=(1, 3, 5))
    assert np.corrcoef(small.ravel(), boxes.ravel())[0, 1] > 0.99
    assert abs(small.mean() - boxes.mean()) < 0.002


def test_shrinking_does_not_alias():
    # White noise is what a coarse grid cannot show. Reading it at points, even between eight
    # neighbours, leaves a spread of 0.10; averaging over the new voxel 0.29 / √64 = 0.036.
    noise = np.random.default_rng(0).random((64, 64, 64), dtype=np.float32)
    assert resize(noise, 16).std() < 0.05


@pytest.mark.parametrize("side", [8, 20, 33, 64, 96])
def test_resizing_keeps_a_constant_and_gives_the_side_asked_for(side):
    cube = resize(np.full((40, 40, 40), 0.5, dtype=np.float32), side)
    assert cube.shape == (side,) * 3
    assert np.allclose(cube, 0.5)


def test_intensity_range_is_the_brains_and_robust():
    image = np.zeros((20, 20, 20))
    image[5:15, 5:15, 5:15] = np.linspace(100, 200, 1000).reshape(10, 10, 10)
    image[10, 10, 10] = 1e6  # one hot voxel must not darken the rest
    scaled = scale_intensity(image, find_foreground(image))
    assert scaled[:5].max() == 0
    assert scaled.max() == 1
    assert abs(scaled[5:15, 5:15, 5:15].mean() - 0.5) < 0.02


def test_intensities_near_the_end_of_float32_do_not_overflow():
    image = np.linspace(-3e38, 3e38, 1000, dtype=np.float32).reshape(10, 10, 10)
    scaled = scale_intensity(image, Foreground(image != 0, constant=True))
    assert np.isfinite(scaled).all()
    assert abs(scaled.mean() - 0.5) < 0.01


@pytest.mark.parametrize(
    ("subject", "t1", "t2"),
    [
        ("BraTS20_Training_001", "_t1.nii", "_t2.nii"),
        ("BraTS2021_00000", "_t1.nii.gz", "_t2.nii.gz"),
        ("BraTS-GLI-00000-000", "-t1n.nii.gz", "-t2w.nii.gz"),
    ],
)
def test_names_of_all_years(small_folder, tmp_path, subject, t1, t2):
    renamed = tmp_path / "renamed"
    (renamed / subject).mkdir(parents=True)
    for modality, ending in (("t1", t1), ("t2", t2)):
        content = scan(small_folder, modality).read_bytes()
        if not ending.endswith(".gz"):
            content = gzip.decompress(content)
        (renamed / subject / f"{subject}{ending}").write_bytes(content)
    source = open_source("brats", renamed, ("t2", "t1"), volume=16, seed=0)
    again = open_source("brats", small_folder, ("t1", "t2"), volume=16, seed=0)
    assert source.subjects == [subject]
    assert np.array_equal(source[0], again[0][::-1])


def test_orientation_in_the_file_does_not_matter(small_folder):
    path = scan(small_folder)
    before = open_source("brats", small_folder, ("t1",), volume=16, seed=0)[0]
    turned = nib.load(path).as_reoriented([[2, 1], [0, -1], [1, 1]])
    assert nib.aff2axcodes(turned.affine) != ("L", "P", "S")
    path.write_bytes(gzip.compress(turned.to_bytes(), 1))
    after = open_source("brats", small_folder, ("t1",), volume=16, seed=0)[0]
    assert np.allclose(after, before, atol=1e-6)


def test_subjects_limits_and_a_subject_without_the_modality_is_skipped(small_folder):
    scan(small_folder, "t2", 1).unlink()
    source = open_source("brats", small_folder, ("t1", "t2"), volume=16, seed=0)
    assert source.subjects == ["BraTS20_Training_002"]
    assert source.left_out == {"lacks t2": ["BraTS20_Training_001"]}
    assert len(open_source("brats", small_folder, ("t1",), volume=16, seed=0, subjects=1)) == 1


def test_missing_file_empty_folder_and_wrong_level_are_refused(small_folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    flags = {"modality": ("t1",), "volume": 16, "seed": 0}
    assert "--data-dir" in refusal("brats", None, **flags)
    assert "no such folder" in refusal("brats", tmp_path / "nowhere", **flags)
    assert "not a folder" in refusal("brats", scan(small_folder), **flags)
    assert "empty" in refusal("brats", empty, **flags)
    assert str(small_folder) in refusal("brats", small_folder / "BraTS20_Training_001", **flags)
    assert "no subject with t1ce" in refusal("brats", small_folder, ("t1ce",), volume=16, seed=0)
    assert "flair" in refusal("brats", small_folder, ("pd",), volume=16, seed=0)


def damaged(path: Path, how: str) -> None:
    content = path.read_bytes()
    raw = bytearray(gzip.decompress(content))
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "truncated by 9 bytes":
        path.write_bytes(content[:-9])
    elif how == "bit rot":
        at = len(content) // 2
        path.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
    elif how == "text":
        path.write_text("<html>404 Not Found</html>")
    elif how == "zipped text":
        path.write_bytes(gzip.compress(b"not a scan " * 1000))
    elif how == "no bytes":
        path.write_bytes(b"")
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "a pipe":
        path.unlink()
        os.mkfifo(path)
    elif how == "fewer voxels":
        path.write_bytes(gzip.compress(bytes(raw[:-1000]), 1))
    elif how == "more voxels":
        path.write_bytes(gzip.compress(bytes(raw) + bytes(1000), 1))
    elif how == "terabytes":
        raw[40:56] = np.array([3, 32000, 32000, 32000, 1, 1, 1, 1], dtype="<i2").tobytes()
        path.write_bytes(gzip.compress(bytes(raw[:1000]), 1))
    elif how == "4D":
        write(path, np.ones((4, 4, 4, 5), dtype=np.int16))
    elif how == "2D":
        write(path, np.ones((40, 40), dtype=np.int16))
    elif how == "colours":
        write(path, np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]))
    elif how == "complex":
        write(path, np.ones((4, 4, 4), dtype=np.complex64))
    elif how == "NaN":
        write(path, np.full((8, 8, 8), np.nan, dtype=np.float32))
    elif how == "one NaN":
        voxels = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
        voxels[1, 2, 3] = np.inf
        write(path, voxels)
    elif how == "zeros":
        write(path, np.zeros((8, 8, 8), dtype=np.int16))
    elif how == "constant":
        write(path, np.full((8, 8, 8), 7, dtype=np.int16))
    else:
        raise AssertionError(how)


# Which word the one line must contain.
DAMAGE = {
    "truncated": "truncated",
    "truncated by 9 bytes": "truncated",
    "bit rot": "damaged",
    "text": "not a NIfTI",
    "zipped text": "not a NIfTI",
    "no bytes": "not a NIfTI",
    "a folder": "a folder with 0 scans",
    "a pipe": "not a regular file",
    "fewer voxels": "truncated",
    "more voxels": "longer",
    "terabytes": "32000 x 32000 x 32000",
    "4D": "4 dimensions",
    "2D": "2 dimensions",
    "colours": "real numbers",
    "complex": "real numbers",
    "NaN": "NaN",
    "one NaN": "NaN",
    "zeros": "every voxel is 0",
    "constant": "every voxel is 7",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_scan_is_refused_by_name(small_folder, how):
    damaged(scan(small_folder), how)
    line = refusal("brats", small_folder, ("t1",), volume=16, seed=0)
    assert scan(small_folder).name in line
    assert DAMAGE[how] in line


@pytest.mark.parametrize("how", ["truncated", "text", "terabytes", "4D", "more voxels"])
def test_headers_and_lengths_are_refused_before_any_scan_is_decoded(small_folder, how):
    damaged(scan(small_folder, number=2), how)
    with pytest.raises(UserError, match=scan(small_folder, number=2).name):
        open_source("brats", small_folder, ("t1",), volume=16, seed=0)


def test_a_scan_zipped_in_several_members_is_read(small_folder):
    path = scan(small_folder)
    raw = gzip.decompress(path.read_bytes())
    before = open_source("brats", small_folder, ("t1",), volume=16, seed=0)[0]
    path.write_bytes(gzip.compress(raw[:7000], 1) + gzip.compress(raw[7000:], 1))
    assert np.array_equal(open_source("brats", small_folder, ("t1",), volume=16, seed=0)[0], before)


def test_modalities_of_different_shape_are_refused(small_folder):
    write(scan(small_folder, "t2"), np.random.default_rng(0).random((9, 8, 8)).astype(np.float32))
    assert "% of what" in refusal("brats", small_folder, ("t1", "t2"), volume=16, seed=0)


def test_modalities_stay_aligned_where_one_shows_less_of_the_brain(small_folder):
    left = np.zeros((24, 24, 24), dtype=np.float32)
    left[2:6, 2:22, 2:22] = np.random.default_rng(0).uniform(1, 2, size=(4, 20, 20))
    whole = left.copy()
    whole[6:22, 2:22, 2:22] = np.random.default_rng(1).uniform(1, 2, size=(16, 20, 20))
    write(scan(small_folder, "t1"), left, np.eye(4))
    write(scan(small_folder, "t2"), whole, np.eye(4))
    t1, t2 = open_source("brats", small_folder, ("t1", "t2"), volume=20, seed=0)[0]
    assert np.flatnonzero(t1.any(axis=(1, 2))).tolist() == [0, 1, 2, 3]
    assert np.flatnonzero(t2.any(axis=(1, 2))).tolist() == list(range(20))


def test_from_folder_to_memory_map(folder, tmp_path):
    source = open_source("brats", folder, ("t1", "t2"), volume=24, seed=0)
    volumes = load(prepare(source, tmp_path))
    assert isinstance(volumes, np.memmap)
    assert volumes.shape == (2, 2, 24, 24, 24)
    assert np.array_equal(volumes[1], source[1])
