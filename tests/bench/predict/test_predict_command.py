"""`predict` and `scale`, as people type them."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from bench import cli
from bench.predict import predict
from bench.predict.timeline import Timeline
from bench.probes.memory import Part
from bench.probes.step import Phase
from bench.results import Record, Run, column_names, read_table


@pytest.fixture
def bench(capsys, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        return cli.main(), *capsys.readouterr()

    return run


def test_it_leaves_the_columns_of_a_run_and_a_picture(bench, tmp_path):
    status, out, _ = bench(
        "predict", "--models", "idm", "idm-stored", "--preset", "small", "--volume", "16",
        "--timeline", "--out", tmp_path,
    )  # fmt: skip
    rows = read_table(tmp_path / "runs.csv", Record)

    assert status == 0
    assert list(pd.read_csv(tmp_path / "runs.csv").columns) == column_names(Record)
    assert list(rows["method"]) == ["idm", "idm-stored"]
    assert set(rows["peak_memory_source"]) == {"predicted"}
    parts = [f"{part}_bytes" for part in Part]
    assert (rows[parts].sum(axis=1) == rows["peak_memory_bytes"]).all()
    assert (rows["peak_reserved_bytes"] >= rows["peak_allocated_bytes"]).all()
    assert (rows["peak_allocated_bytes"] >= rows["peak_memory_bytes"]).all()
    assert "idm: peak in the backward pass, at " in out
    assert "cuDNN" in out
    made_with = Run(tmp_path).environment()
    assert made_with["versions"]["torch"] == torch.__version__
    assert made_with["command"][:3] == ["bench", "predict", "--models"]
    assert (tmp_path / "timeline.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(tmp_path / "timeline.png") as picture:
        colours = {tuple(colour[:3]) for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert len(colours) > 5


def test_for_a_cpu_it_says_nothing_of_cuda(bench, tmp_path):
    status, out, _ = bench(
        "predict", "--models", "idm", "--preset", "small", "--volume", "16", "--device", "cpu",
        "--out", tmp_path,
    )  # fmt: skip
    rows = read_table(tmp_path / "runs.csv", Record)

    assert status == 0
    assert rows["peak_reserved_bytes"].isna().all()
    assert "CUDA" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--models", "abacus"), "unknown method"),
        (("--volume", "33"), "multiples of"),
        (("--out", "/dev/null/x"), "cannot be written"),
    ],
)
def test_a_mistake_is_one_line(bench, arguments, message):
    status, _, error = bench("predict", "--preset", "small", *arguments)
    assert status == 2
    assert message in error
    assert len(error.splitlines()) == 1


def test_the_timeline_is_the_prediction():
    prediction = predict("idm", preset="small", volume=16)
    timeline = Timeline.of("idm", prediction)

    assert timeline.total.max() == prediction.peak_memory_bytes
    assert timeline.total.argmax() == timeline.peak_at
    for part, nbytes in prediction.parts.items():
        assert timeline.parts[part][timeline.peak_at] == nbytes
    assert (np.diff(timeline.position) >= -1e-12).all()
    assert 0 < timeline.ends[Phase.FORWARD] < timeline.ends[Phase.BACKWARD]
    assert timeline.ends[Phase.OPTIMIZER] == pytest.approx(1)
    kept = timeline.thinned(20)
    assert len(kept) < len(timeline.position) / 10
    assert timeline.peak_at in kept


@pytest.mark.slow
def test_scale_fits_slopes_to_its_own_points(bench, tmp_path):
    status, _, _ = bench("scale", "--models", "idm", "--channels", "16", "32", "--out", tmp_path)
    points, slopes = (pd.read_csv(tmp_path / name) for name in ("scale.csv", "scale_slopes.csv"))
    depth = points[points["axis"] == "couplings"]
    weights = ["parameter_bytes", "gradient_bytes", "optimizer_bytes"]

    assert status == 0
    assert list(depth["value"]) == [1, 2, 4, 8]
    assert list(slopes["axis"]) == ["couplings", "volume", "batch_size"]
    assert len(set(depth["stored_bytes"])) == 1  # the paper's claim, for activations
    assert depth[weights].sum(axis=1).is_monotonic_increasing  # and what it leaves out
    grown = depth["peak_memory_bytes"].iloc[-1] - depth["peak_memory_bytes"].iloc[0]
    assert slopes["peak"].iloc[0] == pytest.approx(grown / 7, rel=0.2)
    assert (tmp_path / "scale.png").stat().st_size > 10_000
