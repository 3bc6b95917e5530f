"""Shapes: typed, read, trained on, and written as `64` or `160x192x160` everywhere."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from bench import cli
from bench.commands import ScaleCommand
from bench.data import load, open_source, prepare
from bench.ddpm.step import Training
from bench.errors import UserError
from bench.harness.console import describe_work
from bench.methods import METHODS, preset_changes
from bench.predict import predict
from bench.predict.fit import Question, answer, what_fits_instead
from bench.predict.scale import sweep
from bench.presets import Overrides
from bench.records.files import from_json, read_table, to_json, write_rows
from bench.records.folder import Run
from bench.records.rows import Record, setting_columns
from bench.run.plan import TrialPlan
from bench.sizes import Shape, show_volume
from tests.bench.trials import tiny_plan

BOX = "16x24x16"
NARROW = Overrides(channels=(8, 16), batch_size=1)


def test_a_cube_is_its_side():
    assert Shape(64) == Shape("64") == Shape((64, 64, 64)) == Shape("64x64x64") == 64
    assert hash(Shape("64x64x64")) == hash(64)
    assert (str(Shape(64)), str(Shape((160, 192, 160)))) == ("64", "160x192x160")
    assert Shape("16x24x16") != 16
    assert Shape("16x24x16") != Shape("24x16x16")


@pytest.mark.parametrize(
    "text",
    ["", "64x", "64x64", "x64", "64X64X64", "64x64x64x64", "64 x 64 x 64", "-64", "+64", "6.4",
     "1e2", "٦٤", "64\n", "0x40", "9" * 20],
)  # fmt: skip
def test_what_is_no_shape(text):
    with pytest.raises(ValueError, match="not a shape"):
        Shape(text)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--volume", "0"), "--volume 0: at least 1, at most 1048576"),
        (("--volume", "16x0x16"), "--volume 16x0x16: at least 1"),
        (("--patch", "9999999999"), "--patch 9999999999: at least 1"),
        (("--volume", "30x24x16"), "--volume 30x24x16: idm halves the sides 3 times, so it can "
         "train on multiples of 8 (the nearest: 24x24x16, 32x24x16); --pad goes up to the next"),
        (("--volume", "7x24x16"), "--volume 7x24x16: idm halves the sides 3 times, so it can "
         "train on multiples of 8 (the nearest: 8x24x16); --pad"),
        (("--models", "patchddm", "--volume", BOX, "--patch", "8x32x8"),
         "--patch 8x32x8: larger than the volume (16x24x16); give --patch 16x24x16 or less"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_refused_in_one_line(monkeypatch, capsys, flags, said):
    typed = ["bench", "predict", "--preset", "small", "--models", "idm", *flags]
    monkeypatch.setattr(sys, "argv", typed)
    assert cli.main() == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {said}")
    assert line.count("\n") == 1


def test_what_is_no_shape_is_refused_by_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "predict", "--volume", "16x24"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "16x24: not a shape; give 64 (a cube) or" in " ".join(capsys.readouterr().err.split())


def test_the_command_line_takes_a_shape_and_the_table_has_it(monkeypatch, tmp_path):
    """`predict`, to the CSV and back; a cube is written as it always was."""
    for typed, written in ((BOX, BOX), ("16x16x16", "16")):
        argv = ["bench", "predict", "--preset", "small", "--models", "idm", "patchddm", "--volume"]
        channels = ["--channels", "8", "16", "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", [*argv, typed, *channels])
        assert cli.main() == 0
        text = (tmp_path / "runs.csv").read_text(encoding="utf-8")
        assert f",fp32,{written},{written}," in text
        records = read_table(tmp_path / "runs.csv", Record).set_index("method")
        assert records.loc["idm", "volume"] == Shape(typed)
        half = Shape(side // 2 for side in Shape(typed))
        assert records.loc["patchddm", "patch"] == half


def test_a_table_with_what_is_no_shape_is_refused(tmp_path):
    write_rows(tmp_path / "runs.csv", Record, [Record(method="idm", repeat=1, volume=Shape(8))])
    text = (tmp_path / "runs.csv").read_text(encoding="utf-8").replace(",8,", ",8x,")
    (tmp_path / "runs.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="column volume holds what is not a shape"):
        Run(tmp_path).records()


def test_plans_travel_as_json(tmp_path):
    work = METHODS["patchddm"].workload("small", replace(NARROW, volume=Shape(BOX)))
    plan = replace(tiny_plan(tmp_path), work=work)
    value = json.loads(json.dumps(to_json(plan)))
    assert (value["work"]["volume"], value["work"]["patch"]) == (BOX, "8x12x8")
    assert from_json(TrialPlan, value) == plan
    value["work"] |= {"volume": 16, "patch": 8}  # as every version before wrote it
    assert from_json(TrialPlan, value).work.patch == 8
    for wrong in ("16x24", 0, "0x8x8", 16.5, [16, 24, 16], None):
        value["work"]["volume"] = wrong
        with pytest.raises(ValueError, match="volume"):
            from_json(TrialPlan, value)


def test_padding_goes_up_to_the_next_multiple_and_is_recorded():
    flags = Overrides(volume=Shape("155x192x150"), pad=True)
    idm, unet = (METHODS[name].workload("paper", flags) for name in ("idm", "unet"))
    assert (idm.volume, unet.volume) == (Shape("160x192x160"), Shape("160x192x152"))
    assert idm.padded_from == unet.padded_from == Shape("155x192x150")
    assert setting_columns(idm)["padded_from"] == Shape("155x192x150")
    changes = preset_changes(METHODS["idm"], "paper", flags, idm, Training())
    assert changes == "volume 160x192x160, patch 160x192x160, padded_from 155x192x150"
    fits_already = METHODS["idm"].workload("paper", Overrides(volume=64, pad=True))
    assert (fits_already.volume, fits_already.padded_from) == (64, None)


def test_the_rim_of_a_padded_volume_is_zero(tmp_path):
    inner = open_source("phantom", volume=Shape("12x16x10"), subjects=2)
    padded = open_source("phantom", volume=Shape(16), content=Shape("12x16x10"), subjects=2)
    assert padded.shape == (1, 16, 16, 16)
    path = prepare(padded, tmp_path)
    volumes = load(path)
    assert np.array_equal(volumes[:, :, 2:14, :, 3:13], np.stack([inner[0], inner[1]]))
    assert volumes.sum() == pytest.approx(float(np.stack([inner[0], inner[1]]).sum()), rel=1e-5)
    assert prepare(open_source("phantom", volume=16, subjects=2), tmp_path) != path


def test_heads_fill_a_box_without_being_squashed():
    """The same heads as in a cube, and as long for their width; in a voxel or two."""

    def lengths(shape: str) -> np.ndarray:
        brains = open_source("phantom", volume=Shape(shape), subjects=4)
        assert brains[0].shape == (1, *Shape(shape))
        return np.mean([np.ptp(np.argwhere(brain[0] > 0), axis=0) + 1 for brain in brains], axis=0)

    cube = lengths("48")
    for shape in ("40x48x40", "48x48x32", "24x48x48"):
        box = lengths(shape)
        assert box / box[1] == pytest.approx(cube / cube[1], abs=0.06), shape
        assert max(box / list(Shape(shape))) > 0.85  # it fills one side


def test_predictions_of_boxes_depend_on_voxels_alone():
    """As many voxels, as many bytes, whichever side is the long one."""
    flags = {"preset": "small", "channels": (8, 16), "batch_size": 1}
    one, turned, cube = (
        predict("unet", volume=Shape(shape), **flags) for shape in ("8x16x32", "32x8x16", "16")
    )
    assert one.peak_memory_bytes == turned.peak_memory_bytes == cube.peak_memory_bytes
    assert one.flops_step == turned.flops_step == cube.flops_step


@pytest.mark.thorough
def test_fit_scales_the_shape_that_was_asked_for():
    flags = replace(NARROW, volume=Shape("16x24x16"))
    fit = answer(Question("idm", "small", flags, 256 * 2**20))
    assert fit.volume == Shape("16x24x16")
    d, h, w = fit.largest_volume
    assert d == w
    assert h > d > 16
    assert abs(h / d - 1.5) < 0.1
    assert "16 × 24 × 16: one volume needs" in what_fits_instead([replace(fit, batch_size=0)])[0]


def test_scale_keeps_the_proportions():
    command = ScaleCommand(overrides=Overrides(volume=Shape("32x64x32"), channels=(8, 16)))
    works = dict(sweep("idm", "volume", command))
    assert {value: str(work.volume) for value, work in works.items()} == {
        32: "16x32x16", 64: "32x64x32", 96: "48x96x48", 128: "64x128x64"
    }  # fmt: skip


def test_people_read_shapes_in_their_own_way():
    work = METHODS["patchddm"].workload("small", replace(NARROW, volume=Shape(BOX)))
    assert describe_work(work) == "8 × 12 × 8, batch 1, fp32, patches of 16 × 24 × 16"
    assert show_volume(Shape(256), Shape(128)) == "128³ of 256³"
