"""Scans of any hospital, as real NIfTI files: what becomes of them, and what is said of them."""

import gzip
import json
import os
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bench.data import load, load_affines, load_typical_affine, open_source, prepare
from bench.data.nifti import read_image, write_nifti
from bench.data.split import patient, split
from bench.errors import UserError
from docs.figures.make_asset import read_template

RAS = np.diag([4.0, 4, 4, 1])
LPS = np.diag([-4.0, -4, 4, 1])
FLAGS = {"volume": 24, "seed": 0}


@cache
def _template(name: str) -> np.ndarray:
    return read_template(name)[::4, ::4, ::4]


def brain() -> np.ndarray:
    """The real average T1 at 4 mm, 0 around, (50, 59, 48); 24 to 1,000 and more inside."""
    return np.round(_template("t1") * 1000).astype(np.float32)


def mask() -> np.ndarray:
    """1 grey, 2 white matter."""
    wm, gm = (_template(name) for name in ("wm", "gm"))
    return np.where(wm > 0.5, 2, np.where(gm > 0.5, 1, 0)).astype(np.uint8)


def save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = RAS, **header) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    for name, value in header.items():
        image.header[name] = value
    content = image.to_bytes()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


@pytest.fixture
def flat(tmp_path) -> Path:
    """Three subjects beside each other, T1, T2 and a mask each."""
    for number in (1, 2, 3):
        save(tmp_path / f"sub-{number:02d}_T1w.nii.gz", brain() * number)
        save(tmp_path / f"sub-{number:02d}_T2w.nii.gz", np.where(brain() > 0, 1200 - brain(), 0))
        save(tmp_path / f"sub-{number:02d}_seg.nii.gz", mask())
    return tmp_path


def opened(folder: Path, *modality: str, condition: tuple[str, ...] = (), **options):
    return open_source(
        "nifti", folder, modality or ("t1=*_T1w.nii.gz",), condition=condition, **FLAGS | options
    )


def refusal(folder: Path, *modality: str, **options) -> str:
    with pytest.raises(UserError) as caught:
        list(opened(folder, *modality, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def filled(volume: np.ndarray) -> list[int]:
    """How many voxels of each axis hold something."""
    axes = range(volume.ndim)
    return [int(volume.any(axis=tuple({*axes} - {axis})).sum()) for axis in axes]


T1, T2, SEG = "t1=*_T1w.nii.gz", "t2=*_T2w.nii.gz", "seg=*_seg.nii.gz"


# ---- which file shows what -----------------------------------------------------------------------


def test_a_flat_folder_of_two_contrasts_and_a_mask(flat):
    source = opened(flat, T1, T2, condition=(SEG,))
    assert source.subjects == ["sub-01", "sub-02", "sub-03"]
    assert (source.channels, source.condition) == (("t1", "t2"), ("seg:1", "seg:2"))
    volume = source[0]
    assert volume.shape == source.shape == (4, 24, 24, 24)
    t1, t2, grey, white = volume
    assert set(np.unique(volume[2:])) == {0, 1}
    assert not (grey * white).any()
    assert t1[white == 1].mean() > t1[grey == 1].mean()
    assert t2[white == 1].mean() < t2[grey == 1].mean()
    assert source.name == "nifti"


@pytest.mark.parametrize(
    ("layout", "globs"),
    [
        ("{s}/{s}_{m}.nii.gz", ("t1=*/*_T1w.nii.gz", "t2=*/*_T2w.nii.gz")),
        ("{s}/anat/{s}_{m}.nii.gz", ("t1=*_T1w.nii.gz", "t2=**/*_T2w.nii.gz")),
        ("{m}/{s}.nii.gz", ("t1=T1w/*.nii.gz", "t2=T2w/*.nii.gz")),
        ("{s}/{m}.nii.gz", ("t1=T1w.nii.gz", "t2=T2w.nii.gz")),
    ],
)  # fmt: skip
def test_folders_of_all_kinds(flat, tmp_path_factory, layout, globs):
    folder = tmp_path_factory.mktemp("other")
    for file in flat.glob("*_T?w.nii.gz"):
        subject, _, ending = file.name.partition("_")
        target = folder / layout.format(s=subject, m=ending.removesuffix(".nii.gz"))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, target)
        (target.parent / f"._{target.name}").write_bytes(b"macOS")
    assert opened(folder, *globs).subjects == ["sub-01", "sub-02", "sub-03"]


def test_the_same_names_in_two_folders_are_two_subjects(tmp_path):
    for site in ("A", "B"):
        save(tmp_path / site / "001_T1w.nii.gz", brain())
    assert opened(tmp_path).subjects == ["A/001", "B/001"]


def test_a_mask_is_no_image_where_a_glob_takes_both(flat):
    for file in flat.glob("*_T?w*"):
        file.rename(file.with_name(file.name.replace("_T1w", "").replace("_T2w", "_x")))
    source = opened(flat, "t1=*.nii.gz", condition=(SEG, "x=*_x.nii.gz"))
    assert source.subjects == ["sub-01", "sub-02", "sub-03"]
    assert source.condition == ("seg:1", "seg:2", "x")


def test_globs_that_find_nothing_or_leave_the_folder(flat):
    assert "no scan below" in refusal(flat, "t1=*_T1W.nii.gz")
    assert "stays in it" in refusal(flat, "t1=../*_T1w.nii.gz")
    assert "Give a glob, --modality t1=*_t1.nii.gz" in refusal(flat, "t1")
    assert "t2: has no glob" in refusal(flat, T1, "t2")
    (flat / "masks").mkdir()
    save(flat / "masks" / "case7_mask.nii.gz", mask())
    said = refusal(flat, T1, condition=("seg=*_mask.nii.gz",))
    assert "t1: 3 (sub-01, …), seg: 1 (case7, …)" in said


def test_a_name_that_is_not_utf_8_is_refused_before_anything_is_prepared(flat):
    """environment.json could not hold it: a traceback, after the volumes had been prepared."""
    odd = os.fsdecode(b"sub-\xff_T1w.nii.gz")
    (flat / "sub-01_T1w.nii.gz").rename(flat / odd)
    assert "a name that is not UTF-8 (" in (said := refusal(flat))
    assert said.endswith(r"sub-\xff_T1w.nii.gz'); rename it")


def test_a_manifest_names_files_and_classes(flat):
    lines = ["subject,t1,seg,diagnosis,age"]
    for number, diagnosis in ((1, "healthy"), (2, "tumour"), (3, "healthy")):
        name = f"sub-{number:02d}"
        lines.append(f"{name},{name}_T1w.nii.gz,{name}_seg.nii.gz,{diagnosis},{60 + number}")
    manifest = flat / "subjects.csv"
    manifest.write_text("\n".join(lines), encoding="utf-8-sig")
    source = opened(manifest, "t1", condition=("seg", "diagnosis"))
    assert (source.labels, source.classes) == ((0, 1, 0), 2)
    assert source.condition == ("seg:1", "seg:2")
    assert np.array_equal(source[1], opened(flat, T1, condition=(SEG,))[1])

    manifest.write_text("\n".join([*lines, "sub-04,,,healthy,3"]).replace(",tumour", ","))
    source = opened(manifest, "t1", condition=("seg", "diagnosis"))
    assert source.left_out == {"lacks t1 and seg": ["sub-04"], "lacks diagnosis": ["sub-02"]}
    assert "what is there: seg, t1" in refusal(manifest, "flair")
    manifest.write_text("\n".join([*lines, lines[1]]))
    assert "line 5: sub-01 is there twice" in refusal(manifest, "t1")
    manifest.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal(manifest, "t1")


def test_a_dataset_json_of_the_decathlon(tmp_path):
    """Its contrasts are one 4D file, its labels have names."""
    voxels = np.stack([brain(), 2000 - brain()], axis=-1)
    save(tmp_path / "imagesTr" / "BRATS_001.nii.gz", voxels)
    save(tmp_path / "labelsTr" / "BRATS_001.nii.gz", mask())
    dataset = {
        "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"0": "background", "1": "edema", "2": "core"},
        "training": [
            {"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"}
        ],
        "test": ["./imagesTs/BRATS_002.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    source = opened(tmp_path, "T1w", "FLAIR", condition=("label",))
    assert source.condition == ("label:edema", "label:core")
    t1, flair, _, core = source[0]
    assert flair[core == 1].mean() > 0.5 > t1[core == 1].mean()
    assert np.array_equal(opened(tmp_path / "dataset.json", "T1w")[0][0], t1)
    (tmp_path / "dataset.json").write_text('{"training": [3]}')
    assert "not a dataset.json" in refusal(tmp_path, "T1w")


def test_a_dataset_json_of_monai(flat):
    """A list of files a case."""
    cases = [
        {"image": [f"sub-0{n}_T1w.nii.gz", f"sub-0{n}_T2w.nii.gz"], "label": f"sub-0{n}_seg.nii.gz",
         "fold": n} for n in (1, 2, 3)
    ]  # fmt: skip
    (flat / "datalist.json").write_text(json.dumps({"training": cases}))
    source = opened(flat / "datalist.json", "image1", condition=("label",))
    assert len(source) == 3
    assert np.array_equal(source[2], opened(flat, T2, condition=(SEG,))[2])


NNUNET = {
    "channel_names": {"0": "T2w", "1": "T1w"},
    "labels": {"background": 0, "grey": 1, "white": 2},
    "numTraining": 3,
    "file_ending": ".nii.gz",
}


@pytest.fixture
def of_nnunet(flat) -> Path:
    """The same subjects in nnU-Net's folders; its dataset.json lists no case."""
    for folder in ("imagesTr", "labelsTr"):
        (flat / folder).mkdir()
    for name, place in (("T2w", "imagesTr/{}_0000"), ("T1w", "imagesTr/{}_0001"),
                        ("seg", "labelsTr/{}")):  # fmt: skip
        for file in flat.glob(f"*_{name}.nii.gz"):
            file.rename(flat / f"{place.format(file.name.partition('_')[0])}.nii.gz")
    (flat / "dataset.json").write_text(json.dumps(NNUNET))
    return flat


def test_a_dataset_json_of_nnunet(of_nnunet):
    source = opened(of_nnunet, "T1w", "T2w", condition=("label",))
    assert source.subjects == ["sub-01", "sub-02", "sub-03"]
    assert source.condition == ("label:grey", "label:white")
    t1, t2, grey, white = source[0]
    assert t1[white == 1].mean() > t1[grey == 1].mean()
    assert t2[white == 1].mean() < t2[grey == 1].mean()

    # Regions, as of BraTS: the labels themselves are what the network is given.
    regions = {"background": 0, "tissue": [1, 2], "white": [2]}
    (of_nnunet / "dataset.json").write_text(json.dumps({**NNUNET, "labels": regions}))
    again = opened(of_nnunet / "dataset.json", "T1w", condition=("label",))
    assert again.condition == ("label:1", "label:2")
    assert np.array_equal(again[0], source[0][[0, 2, 3]])

    (of_nnunet / "imagesTr" / "sub-02_0000.nii.gz").unlink()
    (of_nnunet / "labelsTr" / "sub-03.nii.gz").unlink()
    source = opened(of_nnunet, "T2w", condition=("label",))
    assert source.left_out == {"lacks T2w": ["sub-02"], "lacks label": ["sub-03"]}


def test_a_dataset_json_of_the_first_nnunet(of_nnunet):
    """It lists cases, and not the files of their channels."""
    want = opened(of_nnunet, "T1w", "T2w", condition=("label",))
    cases = [
        {"image": f"./imagesTr/sub-0{n}.nii.gz", "label": f"./labelsTr/sub-0{n}.nii.gz"}
        for n in (1, 2, 3)
    ]
    dataset = {"modality": {"0": "T2w", "1": "T1w"}, "training": cases}
    dataset["labels"] = {"0": "background", "1": "grey", "2": "white"}
    (of_nnunet / "dataset.json").write_text(json.dumps(dataset))
    source = opened(of_nnunet, "T1w", "T2w", condition=("label",))
    assert source.subjects == want.subjects
    assert source.condition == ("label:grey", "label:white")
    assert np.array_equal(source[1], want[1])

    (of_nnunet / "imagesTr" / "sub-02_0001.nii.gz").unlink()
    assert "sub-02_0001.nii.gz" in refusal(of_nnunet, "T1w")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"file_ending": ".nrrd"}, "file_ending is '.nrrd'; only .nii.gz and .nii"),
        ({"file_ending": ".nii"}, "no file such as CASE_0000.nii"),
        ({"numTraining": 4}, "has 3 cases, numTraining in dataset.json is 4; correct one of them"),
        ({"channel_names": {"0": "MR", "1": "MR"}}, "--modality MR=imagesTr/*_0000.nii.gz"),
        ({"labels": {"0": "background"}}, "not a dataset.json as MONAI"),
        ({"labels": {"grey": float("inf")}}, "not a dataset.json as MONAI"),
        ({"labels": {"\ud800": 1, "white": 2}}, "not a dataset.json as MONAI"),
        ({}, "subjects with flair: 0, label: 3 (sub-01, …); what is there: T1w, T2w, label"),
    ],
)
def test_a_dataset_json_of_nnunet_that_does_not_fit_its_folder(of_nnunet, changed, said):
    (of_nnunet / "dataset.json").write_text(json.dumps(NNUNET | changed))
    columns = ("T1w",) if "labels" in changed else ("flair",)
    assert said in refusal(of_nnunet, *columns, condition=("label",))


def test_visits_of_a_person_are_in_one_part():
    assert patient("sub-01_ses-2") == patient("sub-01/ses-1") == "sub-01"
    assert patient("BraTS-GLI-00012-001") == "BraTS-GLI-00012"
    assert patient("sub-01") == "sub-01"
    parts = split([f"sub-{n:02d}_ses-{k}" for n in range(20) for k in (1, 2)], 0)
    for names in parts.values():
        assert all(name.replace("ses-1", "ses-2") in names for name in names)


# ---- 1. what is left out is said -----------------------------------------------------------------


def test_subjects_that_lack_something_are_named(flat):
    (flat / "sub-02_T2w.nii.gz").unlink()
    (flat / "sub-03_seg.nii.gz").unlink()
    source = opened(flat, T1, T2, condition=(SEG,))
    assert source.subjects == ["sub-01"]
    assert source.left_out == {"lacks t2": ["sub-02"], "lacks seg": ["sub-03"]}


# ---- 2. the background is found ------------------------------------------------------------------


def with_background(how: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    inside, head = brain() > 0, brain()
    if how == "0":
        return head
    if how == "a constant that is not 0":
        return np.where(inside, head, -0.00028).astype(np.float32)
    if how == "rounding of an interpolation":
        return np.where(inside, head, rng.normal(0, 1e-12, head.shape)).astype(np.float32)
    if how == "a stray voxel":
        head[0, 0, 0], head[-1, -1, -1] = 900, 700
        return head
    if how == "z-scored, 0 around":
        return np.where(inside, (head - head[inside].mean()) / head[inside].std(), 0)
    if how == "z-scored as a whole":
        return (head - head.mean()) / head.std()
    if how == "-1024 around":
        return np.where(inside, head, -1024).astype(np.int16)
    if how == "air":
        return head + np.abs(rng.normal(0, 15, head.shape)).astype(np.float32)
    raise AssertionError(how)


@pytest.mark.parametrize(
    "how",
    [
        "a constant that is not 0", "rounding of an interpolation", "a stray voxel",
        "z-scored, 0 around", "z-scored as a whole", "-1024 around", "air",
    ],
)  # fmt: skip
def test_the_background_is_no_brain(tmp_path, how):
    """Each gave the whole field of view, with a grey background, and no line."""
    save(tmp_path / "a_T1w.nii.gz", with_background("0"))
    save(tmp_path / "b_T1w.nii.gz", with_background(how).astype(np.float32))
    source = opened(tmp_path)
    plain, other = source[0][0], source[1][0]
    assert np.allclose(source.affine(0), source.affine(1), atol=4 if how == "air" else 1e-3)
    assert np.abs(plain - other).mean() < (0.05 if how == "air" else 0.004)
    assert bool(source.remarks) == (how == "air")
    if how != "air":
        assert (other[0] == 0).all()


def test_a_slope_that_moves_the_background_off_0(tmp_path):
    """-0.00028 came out of nibabel's slope and intercept for a stored 0."""
    path = save(tmp_path / "a_T1w.nii.gz", brain().astype(np.int16))
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[112:120] = np.array([0.5, -0.00028], dtype="<f4").tobytes()
    path.write_bytes(gzip.compress(bytes(raw), 1))
    assert read_image(path).voxels[0, 0, 0] == np.float32(-0.00028)
    save(tmp_path / "b_T1w.nii.gz", brain())
    source = opened(tmp_path)
    assert np.allclose(source[0], source[1], atol=1e-4)


def test_a_head_that_fills_the_view_is_said(tmp_path):
    cut = brain()[14:36, 16:44, 14:34]
    save(tmp_path / "a_T1w.nii.gz", cut)
    source = opened(tmp_path)
    assert source[0].any()
    assert any("fills" in what or "whole view" in what for what in source.remarks)


def test_a_ct_has_a_window(tmp_path):
    voxels = np.full((20, 24, 16), -1000, dtype=np.int16)
    voxels[5:15, 5:15, 4:12] = 40
    voxels[8:10, 8:10, 6:8] = 3000
    save(tmp_path / "a_ct.nii.gz", voxels)
    volume = opened(tmp_path, "ct=*_ct.nii.gz", window=(-1000.0, 1000.0))[0][0]
    assert volume.min() == 0
    assert volume.max() > 0.9
    assert np.isclose(volume, 1040 / 2000, atol=1e-3).any()
    assert "the second has to be larger" in refusal(
        tmp_path, "ct=*_ct.nii.gz", window=(1000.0, -1000.0)
    )


# ---- 3. where the scans of a subject lie ---------------------------------------------------------


def test_a_scan_whose_header_does_not_say_where_it_lies_is_refused(tmp_path):
    """T2 saved with an identity matrix came out mirrored against T1."""
    save(tmp_path / "a_T1w.nii.gz", brain(), LPS)
    path = save(tmp_path / "a_T2w.nii.gz", brain(), np.eye(4))
    assert str(path) in (said := refusal(tmp_path, T1, T2))
    assert "does not say where" in said
    save(path, brain(), None)
    assert "does not say where" in refusal(tmp_path, T1, T2)
    save(tmp_path / "a_T1w.nii.gz", brain(), np.eye(4))
    save(path, brain(), np.eye(4))
    assert len(opened(tmp_path, T1, T2)) == 1  # both do not, and they agree


@pytest.mark.parametrize("how", ["turned", "other voxels", "20 mm off", "a smaller view"])
def test_scans_are_brought_to_the_grid_of_the_first(tmp_path, how):
    save(tmp_path / "a_T1w.nii.gz", brain(), RAS)
    there = nib.Nifti1Image(brain(), RAS)
    if how == "turned":
        there = there.as_reoriented([[2, 1], [0, -1], [1, 1]])
    elif how == "other voxels":
        affine = RAS @ np.diag([1.0, 1, 2, 1])
        affine[2, 3] += 2  # the middle of two slices
        there = nib.Nifti1Image(brain().reshape(50, 59, 24, 2).mean(axis=-1), affine)
    elif how == "20 mm off":
        voxels = np.zeros_like(brain())
        voxels[5:] = brain()[:-5]
        affine = RAS.copy()
        affine[0, 3] -= 20  # five voxels, which the voxels are off the other way
        there = nib.Nifti1Image(voxels, affine)
    else:
        affine = RAS.copy()
        affine[:3, 3] = 2 * 4
        there = nib.Nifti1Image(brain()[2:-2, 2:-2, 2:-2], affine)
    nib.save(there, tmp_path / "a_T2w.nii.gz")
    source = opened(tmp_path, T1, T2)
    t1, t2 = source[0]
    assert np.abs(t1 - t2).mean() < (0.02 if how == "other voxels" else 0.005)
    said = source.remarks.get("t2 lies on another grid than t1: resampled to it")
    assert said == ["a"]


def test_headers_that_differ_by_rounding_are_the_same(tmp_path):
    save(tmp_path / "a_T1w.nii.gz", brain(), RAS)
    save(tmp_path / "a_T2w.nii.gz", brain(), RAS + np.float32(1e-4))
    source = opened(tmp_path, T1, T2)
    t1, t2 = source[0]
    assert not source.remarks
    assert np.allclose(t1, t2, atol=1e-3)


def test_scans_that_show_different_places_are_refused(tmp_path):
    save(tmp_path / "a_T1w.nii.gz", brain(), RAS)
    affine = RAS.copy()
    affine[0, 3] = 150
    path = save(tmp_path / "a_T2w.nii.gz", brain(), affine)
    assert f"{path}: shows" in refusal(tmp_path, T1, T2)


def test_a_mask_that_lies_elsewhere_is_refused_too(tmp_path):
    save(tmp_path / "a_T1w.nii.gz", brain(), LPS)
    path = save(tmp_path / "a_seg.nii.gz", mask(), np.eye(4))
    assert str(path) in refusal(tmp_path, T1, condition=(SEG,))


# ---- 4. millimetres ------------------------------------------------------------------------------


def ball(voxel_mm: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """60 mm across, in a view of 120 mm; and its affine."""
    sides = [round(120 / mm) for mm in voxel_mm]
    axes = [(np.arange(n) + 0.5) * mm - 60 for n, mm in zip(sides, voxel_mm, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    return np.where(radius < 30, 1000 - 10 * radius, 0).astype(np.float32), np.diag([*voxel_mm, 1])


def test_a_ball_stays_a_ball(tmp_path):
    """Voxels of 1 x 1 x 4 mm squashed it to 32 x 32 x 10."""
    save(tmp_path / "a_T1w.nii.gz", *ball((1, 1, 4)))
    source = opened(tmp_path, volume=32)
    sides = filled(source[0][0])
    assert max(sides) - min(sides) <= 2
    assert np.allclose(np.linalg.norm(source.affine(0)[:3, :3], axis=0), 62 / 32, atol=0.15)


def test_spacing_is_what_was_asked_for(tmp_path):
    save(tmp_path / "a_T1w.nii.gz", *ball((1, 1, 4)))
    source = opened(tmp_path, volume=(48, 48, 24), spacing=(2.0, 2.0, 3.0))
    x, y, z = filled(source[0][0])
    assert abs(x - 30) <= 2
    assert abs(y - 30) <= 2
    assert abs(z - 20) <= 2
    assert not source.remarks
    small = opened(tmp_path, volume=16, spacing=(2.0, 2.0, 2.0))
    assert small[0].all()  # the middle of the ball
    assert small.remarks == {"larger than 16 voxels at --spacing; the rim is cut": ["a"]}


def test_units_of_a_header_are_read(tmp_path):
    voxels, affine = ball((2, 2, 2))
    save(tmp_path / "a_T1w.nii.gz", voxels, affine)
    save(tmp_path / "b_T1w.nii.gz", voxels, affine / 1000, xyzt_units=1)  # metres
    source = opened(tmp_path)
    assert np.allclose(source[0], source[1], atol=1e-5)
    assert np.allclose(source.affine(0), source.affine(1), atol=1e-4)


def test_a_volume_lies_where_its_scan_did(flat, tmp_path):
    """What is written with its affine lies over the scan, whatever the shape and the padding."""
    save(flat / "sub-01_T1w.nii.gz", brain()[::-1, ::-1], LPS)
    (flat / "sub-01_T2w.nii.gz").unlink()
    (flat / "sub-01_seg.nii.gz").unlink()
    source = opened(flat, volume=(40, 48, 44), content=(36, 48, 40))
    path = prepare(source, tmp_path / "cache")
    (written,) = write_nifti(tmp_path / "again.nii.gz", load(path)[:1], load_affines(path)[:1])
    original, again = nib.load(flat / "sub-01_T1w.nii.gz"), nib.load(written)
    inside = np.argwhere(original.get_fdata() > 0)
    middle = nib.affines.apply_affine(original.affine, inside).mean(axis=0)
    found = np.argwhere(again.get_fdata() > 0.02)
    assert np.allclose(nib.affines.apply_affine(again.affine, found).mean(axis=0), middle, atol=1.5)
    assert np.allclose(load_typical_affine(path, [0, 1])[:3, :3], np.diag(
        np.diag(load_affines(path)[:2].mean(axis=0))[:3]
    ), atol=1e-3)  # fmt: skip
    # A sound cache tells the same of the scans, without reading them again.
    again = opened(flat, volume=(40, 48, 44), content=(36, 48, 40))
    assert prepare(again, tmp_path / "cache") == path
    assert again.remarks == source.remarks


# ---- advice that was wrong -----------------------------------------------------------------------


def test_hgg_and_lgg_are_read_together(small_folder, tmp_path):
    for number, site in ((1, "HGG"), (2, "LGG")):
        (tmp_path / "both" / site).mkdir(parents=True)
        name = f"BraTS20_Training_{number:03d}"
        (small_folder / name).rename(tmp_path / "both" / site / name)
    source = open_source("brats", tmp_path / "both", ("t1", "t2"), **FLAGS)
    assert source.subjects == ["BraTS20_Training_001", "BraTS20_Training_002"]


def test_the_four_contrasts_and_the_mask_of_brats(small_folder):
    for file in small_folder.rglob("*_t2.nii.gz"):
        for ending in ("_t1ce", "_flair"):
            os.link(file, file.with_name(file.name.replace("_t2", ending)))
        voxels = np.asarray(nib.load(file).dataobj)
        save(file.with_name(file.name.replace("_t2", "_seg")), voxels // 300, nib.load(file).affine)
    source = open_source("brats", small_folder, ("t1ce", "flair"), condition=("seg", "t1"), **FLAGS)
    assert source.condition == ("seg:1", "seg:2", "seg:3", "t1")
    assert source[0].shape == (6, 24, 24, 24)


def test_an_axis_of_one_is_dropped_and_nifti_2_is_read(tmp_path):
    save(tmp_path / "a_T1w.nii.gz", brain())
    save(tmp_path / "b_T1w.nii.gz", brain()[..., None])
    save(tmp_path / "c_T1w.nii.gz", brain()[..., None, None])
    nib.save(nib.Nifti2Image(brain(), RAS), tmp_path / "d_T1w.nii.gz")
    save(tmp_path / "e_T1w.nii" / "scan_of_e.nii", brain())  # a folder called like a scan
    source = opened(tmp_path, "t1=*_T1w.nii*")
    assert len(source) == 5
    for index in range(1, 5):
        assert np.array_equal(source[index], source[0])


def test_a_link_without_its_content_says_how_to_get_it(tmp_path, small_folder):
    os.symlink(".git/annex/objects/x/MD5E-s3--0.nii.gz", tmp_path / "a_T1w.nii.gz")
    said = refusal(tmp_path)
    assert "git annex get" in said
    scan = next(small_folder.rglob("*_t1.nii.gz"))
    scan.unlink()
    os.symlink("gone.nii.gz", scan)
    with pytest.raises(UserError, match="git annex get"):
        open_source("brats", small_folder, ("t1",), **FLAGS)


def test_what_is_no_mask_and_labels_that_are_not_there(flat, tmp_path):
    assert opened(flat, T1, condition=("other=*_T2w.nii.gz",)).condition == ("other",)
    save(flat / "sub-02_seg.nii.gz", brain() / 7)
    assert "sub-02_seg.nii.gz: not a mask" in refusal(flat, T1, condition=(SEG,))
    for number in (1, 2, 3):
        save(flat / f"sub-{number:02d}_seg.nii.gz", (mask() > 0).astype(np.float32))
    assert opened(flat, T1, condition=(SEG,)).condition == ("seg",)
    for number in (1, 2, 3):
        save(flat / f"sub-{number:02d}_seg.nii.gz", mask() * 0)
    assert "has a label other than 0" in refusal(flat, T1, condition=(SEG,))
