"""The command itself, on real volumes: what a run of all methods leaves behind."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from bench.records.files import column_names
from bench.records.folder import Run
from bench.records.rows import Record, Sample, Step
from bench.report.tables import significant
from tests.volumes import make_brats_folder

ROOT = Path(__file__).parents[3]
METHODS = ["unet", "checkpoint", "patchddm", "idm", "idm-lean"]
TINY = ["--volume", "16", "--batch-size", "1", "--channels", "32", "64", "--idle", "0.5"]
PARTS = ["parameter_bytes", "gradient_bytes", "optimizer_bytes", "activation_bytes", "other_bytes"]


def run_bench(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "run_bench.py", *arguments],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory):
    """Every method for three steps on a BraTS folder; (the process, its run)."""
    tmp = tmp_path_factory.mktemp("run")
    brats = make_brats_folder(tmp / "brats", subjects=2, modalities=("t1",))
    process = run_bench(
        "--models", *METHODS, "--steps", "3", *TINY,
        "--data", "brats", "--data-dir", str(brats), "--out", str(tmp / "out"),
        cache=tmp / "cache",
    )  # fmt: skip
    (folder,) = (tmp / "out").iterdir()
    return process, Run(folder)


@pytest.fixture(scope="module")
def records(finished) -> pd.DataFrame:
    return finished[1].records().set_index("method")


def test_it_ends_well_and_leaves_every_file(finished):
    process, run = finished
    assert process.returncode == 0, process.stdout + process.stderr
    expected = {"runs.csv", "samples.csv", "steps.csv", "timeline.csv", "environment.json", "logs"}
    expected |= {f"table2.{suffix}" for suffix in ("csv", "md", "tex")}
    for figure in ("peak_memory", "energy_per_parameter", "temperature", "timeline"):
        expected |= {f"{figure}.png", f"{figure}.pdf"}
    assert expected <= {path.name for path in run.folder.iterdir()}
    assert re.fullmatch(r"\d{8}T\d{6}Z-small", run.folder.name)


def test_the_columns_are_those_of_the_design(finished):
    _, run = finished
    for name, row_type in (("runs.csv", Record), ("samples.csv", Sample), ("steps.csv", Step)):
        assert list(pd.read_csv(run.folder / name, nrows=0)) == column_names(row_type)
    assert column_names(Record)[:4] == ["method", "repeat", "status", "error"]
    assert column_names(Sample) == [
        "method", "repeat", "elapsed_s", "power_w", "energy_j", "temperature_c", "memory_bytes",
        "utilization_percent",
    ]  # fmt: skip
    assert column_names(Step) == ["method", "repeat", "step", "elapsed_s", "step_time_s", "loss"]


def test_a_record_says_what_was_trained(records):
    assert list(records.index) == METHODS
    assert (records["status"] == "ok").all()
    assert records["error"].isna().all()
    assert (records["preset"] == "small").all()
    assert (records["data"] == "brats").all()
    assert (records["volume"] == 16).all()
    assert (records["batch_size"] == 1).all()
    assert (records["steps"] == 3).all()
    assert records.loc["patchddm", "patch"] == 8  # half the side, as published
    assert records.loc["unet", "parameters"] == records.loc["checkpoint", "parameters"]
    assert records.loc["idm", "parameters"] == records.loc["idm-lean", "parameters"]


def test_the_parts_add_up_to_the_peak(records):
    assert (records[PARTS].sum(axis=1) == records["peak_memory_bytes"]).all()
    assert (records["parameter_bytes"] == 4 * records["parameters"]).all()
    moments = records["optimizer_bytes"] / records["parameters"]  # AdamW keeps two
    assert (moments.drop("idm-lean") >= 8).all()
    assert 2 <= moments["idm-lean"] < 2.5  # a byte each, and a scale for every block


def test_the_timeline_has_the_peak_to_the_byte(finished, records):
    """And every part of it, in the phase that it is in."""
    rows = finished[1].timeline()
    assert list(dict.fromkeys(rows["method"])) == METHODS
    for method, of_method in rows.groupby("method"):
        assert of_method["position"].is_monotonic_increasing
        assert of_method["position"].between(0, 1).all()
        at_peak = of_method.loc[of_method[PARTS].sum(axis=1).idxmax()]
        assert (at_peak[PARTS] == records.loc[method, PARTS]).all()
        assert at_peak["phase"] in ("forward", "backward")
        assert at_peak["source"] == records.loc[method, "peak_memory_source"]
        assert at_peak["operator"].startswith("aten.")
        assert of_method["phase"].drop_duplicates().tolist()[:2] == ["forward", "backward"]


def test_the_allocator_gave_out_no_less_than_the_tensors(records):
    assert (records["peak_allocated_bytes"] >= records["peak_memory_bytes"]).all()


def test_memory_strategies_do_what_they_promise(records):
    peak, flops = records["peak_memory_bytes"], records["flops_step"]
    assert peak["idm-lean"] < peak["idm"]
    assert peak["checkpoint"] < peak["unet"]
    assert flops["checkpoint"] > flops["unet"]
    forward = records["flops_forward"]
    assert forward["checkpoint"] == forward["unet"]
    assert forward["idm"] == forward["idm-lean"]
    # Forward and twice that backward, a multiply-add as two; fvcore also counts the norms.
    assert 0.9 < flops["unet"] / (6 * forward["unet"]) <= 1.0


def test_the_same_network_has_the_same_losses_whatever_the_strategy(records):
    # The first step of the window is the third of the trial: idm-lean's bytes have rounded twice.
    for one, other, rel in (
        ("unet", "checkpoint", 1e-6),
        ("idm", "idm-lean", 1e-3),
    ):
        first = records.loc[other, "loss_first"]
        assert records.loc[one, "loss_first"] == pytest.approx(first, rel=rel)
        assert math.isfinite(records.loc[one, "loss_last"])


def test_time_adds_up(finished, records):
    steps = finished[1].steps()
    assert len(steps) == 3 * len(METHODS)
    for method, rows in steps.groupby("method"):
        assert list(rows["step"]) == [1, 2, 3]
        assert rows["elapsed_s"].is_monotonic_increasing
        assert rows["step_time_s"].sum() <= records.loc[method, "window_s"]
        assert records.loc[method, "step_time_median_s"] == rows["step_time_s"].median()
        assert list(rows["loss"])[-1] == records.loc[method, "loss_last"]
        assert np.isfinite(rows["loss"]).all()
    rate = records["steps"] * records["batch_size"] / records["window_s"]
    assert np.allclose(records["volumes_per_s"], rate)


def test_what_has_no_sensor_is_empty_and_what_is_guessed_is_named(records):
    for value, source in (
        ("peak_memory_bytes", "peak_memory_source"),
        ("energy_j", "energy_source"),
        ("temperature_peak_c", "temperature_source"),
        ("co2_kg", "co2_source"),
    ):
        assert (records[value].isna() == records[source].isna()).all()
    assert not (records[["energy_j", "temperature_peak_c"]] == 0).any().any()
    measured = records.dropna(subset=["energy_j"])
    assert np.allclose(
        measured["energy_per_parameter_j"],
        measured["energy_j"] / measured["parameters"].astype(float),
    )


def test_samples_follow_the_window(finished, records):
    samples = finished[1].samples()
    for method, rows in samples.groupby("method"):
        assert rows["elapsed_s"].is_monotonic_increasing
        assert rows["elapsed_s"].iloc[-1] >= records.loc[method, "window_s"] * 0.9
        assert (rows["memory_bytes"] > 0).all()
        energy = rows["energy_j"].dropna()
        assert energy.is_monotonic_increasing


def test_the_environment_is_enough_to_know_what_ran(finished):
    environment = finished[1].environment()
    assert environment["versions"]["torch"].startswith("2.")
    assert environment["hardware"]["cores"] == os.cpu_count()
    assert "--models" in environment["command"]
    assert set(environment["git"]) == {"commit", "dirty"}
    assert [trial["method"] for trial in environment["trials"]] == METHODS
    json.dumps(environment)


def test_table_2_holds_the_numbers_of_the_run_and_their_ratios(finished, records):
    table = pd.read_csv(finished[1].folder / "table2.csv")
    peaks = table[table["column"] == "peak_memory_bytes"].set_index("method")
    for method in METHODS:
        assert peaks.loc[method, "value"] == records.loc[method, "peak_memory_bytes"]
        ratio = records.loc[method, "peak_memory_bytes"] / records.loc["unet", "peak_memory_bytes"]
        assert peaks.loc[method, "ratio"] == pytest.approx(ratio)
    markdown = (finished[1].folder / "table2.md").read_text()
    latex = (finished[1].folder / "table2.tex").read_text()
    shown = significant(records.loc["idm", "peak_memory_bytes"] / 2**30)
    assert f"{shown} (" in markdown
    assert shown in latex
    assert r"\toprule" in latex
    assert "Peak memory, live (GiB)" in markdown


@pytest.mark.parametrize("name", ["peak_memory", "energy_per_parameter", "temperature"])
def test_the_figures_show_something(finished, name):
    image = matplotlib.image.imread(finished[1].folder / f"{name}.png")[..., :3]
    assert image.shape[1] > 800
    assert (image < 0.9).any(axis=2).mean() > 0.002  # ink on the paper
    assert (finished[1].folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_a_log_is_not_garbled(finished):
    output = finished[0].stdout
    assert "\x1b" not in output
    assert "\r" not in output
    for number, method in enumerate(METHODS, 1):
        assert re.search(
            rf"^\[{number}/{len(METHODS)}\] {method}: ok, 3 steps", output, re.MULTILINE
        )
    assert output.count("temperature sensor") <= 1  # said once, not for each trial


@pytest.mark.slow
def test_one_bad_trial_does_not_stop_the_others(tmp_path: Path, monkeypatch):
    (tmp_path / "bad.py").write_text(
        "from torch import nn\n\n"
        "class Bad(nn.Conv3d):\n"
        "    def forward(self, x, t):\n"
        "        raise ValueError('it is bad')\n\n"
        "def build(**options):\n"
        "    return Bad(1, 1, 1)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = run_bench(
        "--models", "bad:build", "idm", "--steps", "1", "--volume", "8", "--batch-size", "1",
        "--channels", "16", "24", "--out", str(tmp_path / "out"), "--subjects", "1",
        cache=tmp_path / "cache",
    )  # fmt: skip
    assert process.returncode == 1, process.stdout + process.stderr
    (folder,) = (tmp_path / "out").iterdir()
    records = Run(folder).records().set_index("method")
    assert records.loc["bad:build", "status"] == "failed"
    assert records.loc["bad:build", "error"] == "ValueError: it is bad"
    assert records.loc["idm", "status"] == "ok"
    (log,) = (folder / "logs").glob("bad*.log")
    assert "Traceback" in log.read_text()
    assert "Traceback" not in process.stdout + process.stderr
    assert "failed" in (folder / "table2.md").read_text()
