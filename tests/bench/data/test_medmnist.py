"""SynapseMNIST3D, in its two editions."""

from pathlib import Path

import numpy as np
import pytest

from bench.data import load, open_source, prepare
from bench.errors import UserError


def write(path: Path, side: int, counts=(4, 2, 3), trailing: bool = False, **extra) -> Path:
    rng = np.random.default_rng(side)
    arrays = {}
    for part, count in zip(("train", "val", "test"), counts, strict=True):
        shape = (count, side, side, side) + ((1,) if trailing else ())
        arrays[f"{part}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{part}_labels"] = np.zeros((count, 1), dtype=np.uint8)
    np.savez_compressed(path, **(arrays | extra))
    return path


@pytest.mark.parametrize("trailing", [False, True])
def test_all_parts_in_order(tmp_path, trailing):
    path = write(tmp_path / "synapsemnist3d.npz", 28, trailing=trailing)
    source = open_source("synapse", path, ("t1",), volume=28, seed=0)
    assert len(source) == 9
    assert source.subjects[:5] == [*(f"train-{i:04d}" for i in range(4)), "val-0000"]
    with np.load(path) as arrays:
        expected = arrays["val_images"].reshape(-1, 28, 28, 28)[1] / np.float32(255)
    assert source[5].dtype == np.float32
    assert np.array_equal(source[5], expected[None])


@pytest.mark.parametrize(("volume", "edition"), [(28, 28), (16, 28), (32, 64), (64, 64)])
def test_of_a_folder_the_edition_that_serves(tmp_path, volume, edition):
    write(tmp_path / "synapsemnist3d.npz", 28)
    write(tmp_path / "synapsemnist3d_64.npz", 64)
    source = open_source("synapse", tmp_path, ("t1", "t2"), volume=volume, seed=0)
    assert source.shape == source[0].shape == (1, volume, volume, volume)
    assert source.parts[0].side == edition


def test_subjects_limits(tmp_path):
    path = write(tmp_path / "synapsemnist3d.npz", 28)
    source = open_source("synapse", path, ("t1",), volume=8, seed=0, subjects=5)
    assert len(source) == 5
    assert load(prepare(source, tmp_path / "cache")).shape == (5, 1, 8, 8, 8)


def test_what_is_missing_is_said_in_one_line(tmp_path):
    def line(data_dir) -> str:
        with pytest.raises(UserError) as refusal:
            open_source("synapse", data_dir, ("t1",), volume=28, seed=0)
        return str(refusal.value)

    assert "--data-dir" in line(None)
    assert "no such file" in line(tmp_path / "nowhere.npz")
    assert "synapsemnist3d.npz" in line(tmp_path)
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    assert "has no train_images" in line(tmp_path / "other.npz")
    mixed = write(tmp_path / "mixed.npz", 28, val_images=np.zeros((1, 16, 16, 16), np.uint8))
    assert "differ in size" in line(mixed)
