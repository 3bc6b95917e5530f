"""`predict` and `scale`, as people type them."""

import sys

import pandas as pd
import pytest
import torch
from PIL import Image

from bench import cli
from bench.predict import predict
from bench.probes.instants import instants
from bench.probes.memory import Part
from bench.records.files import column_names, read_table
from bench.records.folder import Run
from bench.records.rows import Fit, Instant, Record


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
    # Without the build, which a package's metadata may leave out ("2.11.0+cu130").
    recorded, running = made_with["versions"]["torch"], torch.__version__
    assert recorded.partition("+")[0] == running.partition("+")[0]
    assert made_with["command"][:3] == ["bench", "predict", "--models"]
    timeline = read_table(tmp_path / "timeline.csv", Instant)
    assert set(timeline["source"]) == {"predicted"}
    alive = timeline[parts].sum(axis=1).groupby(timeline["method"]).max()
    assert (alive == rows.set_index("method")["peak_memory_bytes"]).all()
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


@pytest.mark.parametrize("pieces", [1, 20, 10**6])
def test_the_timeline_is_the_prediction(pieces):
    """Thinned it is shorter; the peak and where phases begin stay."""
    prediction = predict("idm", preset="small", volume=16)
    rows = pd.DataFrame(
        instants(prediction.operators, prediction.changes, prediction.phases, pieces)
    )
    total = rows[[f"{part}_bytes" for part in Part]].sum(axis=1)

    assert total.max() == prediction.peak_memory_bytes
    at_peak = rows.loc[total.idxmax()]
    for part, nbytes in prediction.parts.items():
        assert at_peak[f"{part}_bytes"] == nbytes
    assert (at_peak["layer"], at_peak["operator"]) == (
        prediction.peak.layer, prediction.peak.operator
    )  # fmt: skip
    assert at_peak["phase"] == prediction.peak.phase == "backward"
    assert rows["position"].is_monotonic_increasing
    assert rows["position"].iloc[0] == 0
    assert 0.99 < rows["position"].iloc[-1] <= 1
    phases = rows["phase"].drop_duplicates().tolist()
    assert phases[:2] == ["forward", "backward"]
    if pieces < 100:
        assert len(rows) <= 2 * pieces + len(phases) + 1
    # What is there before the step is there at once.
    assert rows["parameter_bytes"].nunique() == rows["optimizer_bytes"].nunique() == 1


@pytest.mark.slow
def test_scale_fits_slopes_to_its_own_points(bench, tmp_path):
    models = ("--models", "idm", f"{__name__}:build")
    status, _, _ = bench("scale", *models, "--channels", "16", "32", "--out", tmp_path)
    points, slopes = (
        table[table["method"] == "idm"]
        for table in (pd.read_csv(tmp_path / name) for name in ("scale.csv", "scale_slopes.csv"))
    )
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


def test_drawing_is_predicted_on_whole_volumes(bench, tmp_path):
    flags = "--models", "patchddm", "--preset", "small", "--volume", 32, "--sampling"
    status, out, _ = bench("predict", *flags, "--device", "cpu", "--out", tmp_path)
    (row,) = read_table(tmp_path / "runs.csv", Record).itertuples()

    assert status == 0
    assert "step of drawing volumes" in out
    assert row.sampling
    assert row.volume == row.patch == 32
    assert row.gradient_bytes == row.optimizer_bytes == 0
    assert row.peak_memory_bytes == row.parameter_bytes + row.activation_bytes + row.other_bytes


class Theirs(torch.nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.first = torch.nn.Conv3d(channels, width, 3, padding=1)
        self.last = torch.nn.Conv3d(width, channels, 3, padding=1)

    def forward(self, x, t):
        return self.last(self.first(x).relu())


def build(*, in_channels, channels, **_):
    """A network of `--models module:build`, without published widths."""
    return Theirs(in_channels, channels[0])


def test_every_command_takes_a_network_of_others(bench, tmp_path):
    theirs = ("--models", f"{__name__}:build")
    wide = (*theirs, "--channels", 8, 16, "--out", tmp_path)
    status, out, _ = bench("predict", *wide, "--batch-size", 1)
    (row,) = read_table(tmp_path / "runs.csv", Record).to_dict("records")
    assert (status, row["preset_changes"]) == (0, "batch_size 1")
    assert row["activation_bytes"] >= 2 * 8 * 64**3 * 4  # before and after the ReLU
    assert "memory in MiB" in out
    assert bench("fit", *wide, "--memory", "2GiB")[0] == 0
    (fit,) = read_table(tmp_path / "fit.csv", Fit).to_dict("records")
    assert fit["batch_size"] > 4

    gate = ("check", *theirs, "--presets", "small", "--baseline", tmp_path / "baseline.csv")
    assert bench(*gate, "--update")[0] == 0
    assert bench(*gate)[0] == 0
    status, _, error = bench("check", *theirs, "--update", "--baseline", tmp_path / "other.csv")
    assert status == 2
    assert "PUBLISHED" in error


@pytest.mark.parametrize(("volume", "said"), [(16, True), (8, False)])
def test_attention_that_takes_most_of_the_flops_is_said(bench, tmp_path, volume, said):
    """It looks over all voxels of a volume here."""
    _, out, _ = bench(
        "predict", "--models", "idm", "--preset", "small", "--volume", volume,
        "--batch-size", "1", "--channels", "8", "16", "--out", tmp_path,
    )  # fmt: skip
    assert ("of its FLOPs are attention's" in " ".join(out.split())) == said
