"""The embedded brains: what must hold of every one of them."""

import runpy
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
from matplotlib.image import imread

from bench.data import open_source, phantom
from bench.data.phantom import ASSET, MASKS, Phantom, brain
from bench.errors import UserError
from docs.figures import make_asset


@pytest.fixture(scope="module")
def pairs() -> np.ndarray:
    """16 people, (16, 2, 48, 48, 48), T1 and T2."""
    source = open_source("phantom", None, ("t1", "t2"), volume=48, seed=0, subjects=16)
    return np.stack([source[i] for i in range(len(source))])


def test_a_volume_is_a_float32_cube_in_0_1(pairs):
    assert pairs.shape == (16, 2, 48, 48, 48)
    assert pairs.dtype == np.float32
    assert pairs.min() == 0
    assert pairs.max() == 1


@pytest.mark.parametrize("side", [8, 17, 32, 64])
def test_any_side(side):
    source = open_source("phantom", None, ("t1",), volume=side, seed=1, subjects=1)
    assert source[0].shape == source.shape == (1, side, side, side)


def test_the_background_is_exactly_0_and_the_head_lies_inside(pairs):
    brain_share = (pairs[:, 0] > 0).mean(axis=(1, 2, 3))
    assert (brain_share > 0.15).all()
    assert (brain_share < 0.45).all()
    assert (pairs[:, :, [0, -1], :, :] == 0).all()
    assert (pairs[..., [0, -1]] == 0).all()


def test_both_modalities_show_one_anatomy(pairs):
    outlines = pairs > 0
    agreement = (outlines[:, 0] == outlines[:, 1]).mean(axis=(1, 2, 3))
    assert (agreement > 0.99).all()


def test_contrast_fluid_is_dark_in_t1_and_bright_in_t2(pairs):
    for t1, t2 in pairs:
        inside = t1 > 0
        fluid = inside & (t2 > 0.9)
        white = inside & (t1 > 0.85)
        assert t1[fluid].mean() < 0.5 < 0.8 < t1[white].mean()
        assert t2[white].mean() < 0.5
        assert np.corrcoef(t1[inside], t2[inside])[0, 1] < -0.3


def test_alone_or_beside_the_other_a_modality_is_the_same(pairs):
    assert np.array_equal(brain(0, 3, 48, ("t1",))[0], pairs[3, 0])
    assert np.array_equal(brain(0, 3, 48, ("t2", "t1")), pairs[3, ::-1])


def test_every_index_and_every_seed_is_someone_else(pairs):
    flat = [volume[0].ravel() for volume in pairs] + [brain(1, 0, 48, ("t1",)).ravel()]
    likeness = np.corrcoef(flat) - np.eye(len(flat))
    assert likeness.max() < 0.97
    assert likeness[np.triu_indices(len(flat), 1)].min() > 0.5  # and all are brains


def test_the_same_seed_gives_the_same_bytes_in_another_process(pairs):
    code = (
        "import zlib, torch; from bench.data import open_source; torch.set_num_threads(1);"
        "source = open_source('phantom', None, ('t1', 't2'), 48, 0, 16);"
        "print(zlib.crc32(source[5].tobytes()))"
    )
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(shown) == zlib.crc32(pairs[5].tobytes())


def test_about_one_in_three_has_a_lesion(monkeypatch):
    drawn = []
    original = phantom._Lesion.draw
    monkeypatch.setattr(phantom._Lesion, "draw", lambda rng: drawn.append(1) or original(rng))
    for index in range(90):
        brain(0, index, 8, ("t1",))
    assert abs(len(drawn) / 90 - 1 / 3) < 0.12


def test_a_lesion_is_dark_in_t1_and_bright_in_t2(pairs, monkeypatch):
    monkeypatch.setattr(phantom, "LESION_SHARE", 1.0)
    ill = np.stack([brain(0, i, 48, ("t1", "t2")) for i in range(6)])
    monkeypatch.setattr(phantom, "LESION_SHARE", 0.0)
    well = np.stack([brain(0, i, 48, ("t1", "t2")) for i in range(6)])

    def abnormal(pair: np.ndarray) -> int:
        t1, t2 = pair
        return int(((t1 > 0.3) & (t1 < 0.75) & (t2 > 0.68)).sum())

    assert sum(map(abnormal, ill)) > 1.5 * sum(map(abnormal, well))


def test_how_many_there_are_by_default():
    assert len(open_source("phantom", None, ("t1",), 32, 0)) == 32
    assert len(open_source("phantom", None, ("t1",), 64, 0)) == 32
    assert len(open_source("phantom", None, ("t1",), 256, 0)) < 16
    assert open_source("phantom", None, ("t1",), 32, 0, 2).subjects == [
        "phantom-0000",
        "phantom-0001",
    ]


def test_iterating_ends():
    source: Phantom = open_source("phantom", None, ("t1",), 8, 0, 3)  # type: ignore[assignment]
    assert len(list(source)) == 3
    with pytest.raises(IndexError):
        source[3]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"name": "phantm"}, "phantom"),
        ({"modality": ("flair",)}, "flair"),
        ({"modality": ()}, "modality"),
        ({"modality": ("t1", "t1")}, "t1"),
        ({"volume": 0}, "--volume 0"),
        ({"volume": 100_000}, "--volume"),
        ({"subjects": 0}, "--subjects 0"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_a_flag_that_cannot_be_is_refused_in_one_line(changed, named):
    flags = {"name": "phantom", "modality": ("t1",), "volume": 16, "seed": 0} | changed
    with pytest.raises(UserError, match=named) as refusal:
        open_source(**flags)
    assert "\n" not in str(refusal.value)


def test_the_asset_is_what_its_script_makes_and_under_1_mb(tmp_path):
    make_asset.write(tmp_path / "again.npz")
    assert ASSET.stat().st_size <= 1_000_000
    with zipfile.ZipFile(ASSET) as committed, zipfile.ZipFile(tmp_path / "again.npz") as again:
        assert committed.namelist() == again.namelist()
        for name in committed.namelist():  # the packing may differ between versions of zlib
            assert committed.read(name) == again.read(name)


def test_the_command_draws_a_contact_sheet_with_heads(tmp_path, monkeypatch):
    path = tmp_path / "docs" / "sheet.png"
    monkeypatch.setattr(sys, "argv", ["contact_sheet", str(path)])
    runpy.run_module("docs.figures.contact_sheet", run_name="__main__")
    picture = imread(path)[..., :3].mean(-1)
    assert picture.shape[1] > 1000
    assert 0.1 < (picture > 0.2).mean() < 0.9


def test_masks_and_contrasts_of_the_same_people_are_conditions():
    source = open_source("phantom", None, ("t1",), 16, seed=3, subjects=4, condition=("seg", "t2"))
    assert source.channels == ("t1",)
    assert source.condition == (*MASKS, "t2")
    assert source.shape == (6, 16, 16, 16)
    both = open_source("phantom", None, ("t1", "t2"), 16, seed=3, subjects=4)
    for volume, images in zip(source, both, strict=True):
        masks, brain = volume[1:5], volume[0] > 0
        assert np.array_equal(volume[[0, 5]], images)
        assert set(np.unique(masks)) <= {0, 1}
        assert (masks.sum(0) <= 1).all()
        assert (masks.sum(0)[brain] == 1).mean() > 0.95
    white, grey, fluid, _ = (volume[0][mask == 1].mean() for mask in masks)
    assert white > grey > fluid
    again = open_source(
        "phantom", None, ("t1",), 16, seed=3, subjects=4, condition=source.condition
    )
    assert np.array_equal(again[3], source[3])


@pytest.mark.parametrize(
    ("condition", "said"), [(("t1",), "name it once"), (("flair",), "have t1 and")]
)
def test_conditions_that_there_are_not(condition, said):
    with pytest.raises(UserError, match=f"--condition {condition[0]}: .*{said}"):
        open_source("phantom", None, ("t1",), 16, condition=condition)
