"""The command from outside: what it leaves, and what becomes of it when it is cut short."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bench import cli
from bench.data.split import patient
from bench.methods import METHODS
from bench.predict import predict_method
from bench.presets import Overrides
from bench.records.folder import QualityRun

ROOT = Path(__file__).parents[3]
EXACT = ["method", "seed", "step", "loss_train", "val_mse", "val_mse_ema", "learning_rate"]
TINY = ("--subjects", "12", "--volume", "16", "--channels", "8", "16")
FEW_SAMPLES = ("--samples", "1", "--sampler", "ddim", "--sampler-steps", "2")


def quality(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench", "quality", *arguments],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
    )  # fmt: skip


def the_run(out: Path) -> QualityRun:
    (folder,) = out.glob("*-quality-small")
    return QualityRun(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(run, status, output) of two methods that trained for four steps."""
    folder = tmp_path_factory.mktemp("quality")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        arguments = ["--models", "idm", "patchddm", "--steps", "4", "--validations", "2", *TINY]
        arguments += ["--samples", "2", "--sampler-steps", "4"]
        arguments += ["--out", str(folder / "out")]
        patch.setattr(sys, "argv", ["bench", "quality", *arguments])
        status = cli.main()
    return the_run(folder / "out"), status


def test_the_learning_curve(finished):
    run, status = finished
    assert status == 0
    header = (run.folder / "learning.csv").read_text().splitlines()[0]
    assert header == (
        "method,seed,step,elapsed_s,energy_j,energy_source,"
        "loss_train,val_mse,val_of,val_mse_ema,learning_rate"
    )
    curve = run.learning()
    assert curve["method"].tolist() == ["idm"] * 3 + ["patchddm"] * 3
    for _, one in curve.groupby("method"):
        assert one["step"].tolist() == [0, 2, 4]
        assert one["elapsed_s"].iloc[0] == 0
        assert one["elapsed_s"].is_monotonic_increasing
        assert one["loss_train"].isna().tolist() == [True, False, False]
        assert np.allclose(one["learning_rate"], [2e-4, 1e-4, 0])
        assert one["val_mse"].iloc[0] == one["val_mse_ema"].iloc[0]
        assert one["val_mse"].between(0.1, 1.1).all()  # zero for an answer would be 1
        assert one["val_mse"].is_monotonic_decreasing
        if one["energy_j"].notna().all():  # this machine has a meter
            assert one["energy_j"].is_monotonic_increasing
            assert one["energy_source"].iloc[1:].notna().all()


def test_the_records(finished):
    run, _ = finished
    records = run.trained().set_index("method")
    assert (records["status"] == "ok").all()
    assert (records["steps"] == 4).all()
    assert (records["subjects_train"] == 10).all()
    assert (records["subjects_val"] == 1).all()
    assert records.loc["patchddm", "patch"] == 8
    last = run.learning().groupby("method").last()
    for column in ("val_mse", "val_mse_ema", "elapsed_s"):
        assert (records[column] == last[column]).all()
    for method in ("idm", "patchddm"):
        work = METHODS[method].workload("small", Overrides(volume=16, channels=(8, 16)))
        predicted = predict_method(METHODS[method], work, device="cpu", count_forward=False)
        assert records.loc[method, "peak_memory_bytes"] == predicted.peak_memory_bytes
        assert records.loc[method, "parameters"] == predicted.parameters


def test_the_split(finished):
    run, _ = finished
    split = json.loads((run.folder / "split.json").read_text())
    (parts,) = split["splits"]
    people = [patient(each) for part in ("train", "val", "test") for each in parts[part]]
    assert len(set(people)) == len(people) == 12
    environment = run.environment()
    assert environment["split"] == "split.json"
    names = [f"phantom-{index:04d}" for index in range(12)]
    for trial in environment["trials"]:
        assert [names[index] for index in trial["train"]] == parts["train"]
        assert [names[index] for index in trial["val"]] == parts["val"]


def test_what_they_are_worth(finished):
    """Scores of both methods on the validation set, their samples, Figure 2 and the page."""
    run, _ = finished
    scores = run.scores()
    for method in ("idm", "patchddm"):
        of_method = scores[scores["method"] == method]
        drawn = of_method[of_method["protocol"] == "ddpm-clipped-4"]
        assert {"ms_ssim", "histogram_distance", "sampling_peak_memory_bytes"} <= set(
            drawn["column"]
        )
        noise = of_method[of_method["column"] == "mse"]
        assert set(noise["timestep"]) == {20, 200, 500, 1000, 1500}
        # After so few steps IDM takes x_t for ε, an error of 1 + mean x₀² < 2 where t is near 0.
        assert noise["value"].between(0.01, 2).all()
        assert noise.loc[noise["timestep"] > 20, "value"].lt(1.5).all()
        for index in range(2):
            image = nib.load(run.folder / "samples" / f"{method}-0_{index}.nii.gz")
            voxels = image.get_fdata()
            assert image.shape == (16, 16, 16)
            assert voxels.min() >= 0
            assert voxels.max() <= 1
            assert voxels.std() > 0
    for name in ("figure2", "learning_curve"):
        assert (run.folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (run.folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert "patchddm, T1" in (run.folder / "table1.md").read_text()
    page = (run.folder / "report.html").read_text()
    assert "Figure 2. Real and generated volumes, drawn by ddpm-clipped-4, " in page


def test_nothing_that_is_finished_is_trained_again(finished, monkeypatch, capsys):
    run, _ = finished
    files = ("learning.csv", "trained.csv", "checkpoints/idm-0.safetensors")
    before = [(run.folder / name).read_bytes() for name in files]
    monkeypatch.setattr(sys, "argv", ["bench", "quality", "--resume", str(run.folder)])
    assert cli.main() == 0
    assert "2 of 2 trainings are finished, 0 to run" in capsys.readouterr().out
    assert [(run.folder / name).read_bytes() for name in files] == before


# ---- cut short -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_killed_and_interrupted_has_the_curve_of_one_that_was_not(tmp_path):
    """The command itself gets SIGKILL, then, resumed, SIGINT, then runs to its end."""
    arguments = ("--models", "idm-lean", "--steps", "12", "--validations", "6", *TINY)
    arguments += ("--checkpoint-minutes", "0.005", *FEW_SAMPLES)
    whole = quality(tmp_path, *arguments, "--out", str(tmp_path / "whole"))
    assert whole.wait() == 0

    process = quality(tmp_path, *arguments, "--out", str(tmp_path / "cut"))
    wait_for(lambda: rows(tmp_path / "cut") > 3, process)
    process.kill()
    process.communicate()
    run = the_run(tmp_path / "cut")
    assert run.trained().empty

    before = rows(tmp_path / "cut")
    process = quality(tmp_path, "--resume", str(run.folder))
    wait_for(lambda: rows(tmp_path / "cut") > before + 1, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "with a checkpoint" in output
    assert "Traceback" not in output
    assert run.trained()["status"].tolist()[-1] == "interrupted"

    for path in (tmp_path / "cache").glob("**/*.npy"):  # what a person may clear at any time
        path.unlink()
    process = quality(tmp_path, "--resume", str(run.folder))
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert run.trained()["status"].tolist() == ["ok"]
    curves = [each.learning()[EXACT] for each in (the_run(tmp_path / "whole"), run)]
    pd.testing.assert_frame_equal(*curves, check_exact=True)
    assert len(run.environment()["resumed"]) == 2


def rows(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") - 1 for path in out.glob("*/learning.csv"))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition() and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[0]


@pytest.mark.thorough
def test_idm_learns(tmp_path):
    """60 steps at 16³ leave less than 0.3 of what predicting zero leaves."""
    process = quality(tmp_path, "--models", "idm", "--volume", "16", "--batch-size", "4",
                      "--channels", "16", "32", "64", "--steps", "60", "--validations", "1",
                      "--samples", "0", "--out", str(tmp_path / "out"))  # fmt: skip
    output, _ = process.communicate()
    assert process.returncode == 0, output
    curve = the_run(tmp_path / "out").learning()
    assert 0.5 < curve["val_mse_ema"].iloc[0] < 0.7  # the identity takes all of x_t for noise
    assert curve["val_mse"].iloc[-1] < 0.3
    assert curve["val_mse_ema"].iloc[-1] < 0.3
