"""The gate: what it lets pass, what it stops, and what it refuses to judge."""

import csv
import sys
from pathlib import Path

import pytest
import torch

from bench import cli
from bench.methods import METHODS, Method
from bench.predict import check, predict_method
from bench.records.folder import Run
from bench.records.rows import Record

KEY = ("small", "idm-stored")


def peak_of(method):
    work = method.workload("small")
    summary = check.summarise(predict_method(method, work, device="cpu", count_forward=False))
    return check.make_peak(("small", "idm-stored"), work, summary)


@pytest.fixture(scope="module")
def peak():
    return peak_of(METHODS["idm-stored"])


@pytest.fixture
def baseline(tmp_path, peak):
    path = tmp_path / "baseline.csv"
    check.write_baseline(path, [peak])
    return path


@pytest.fixture
def gate(capsys, monkeypatch):
    """The command, as people type it: its status, what it printed, its error."""

    def run(*arguments):
        typed = ["bench", "check", "--models", "idm-stored", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", typed)
        status = cli.main()
        return status, *capsys.readouterr()

    return run


def hoarding(**options):
    """A network one of whose blocks keeps an activation more: a copy of its input, to square."""
    network = METHODS["idm-stored"].builder(**options)
    block = network.body["level0_encode0"].function
    forward = block.forward

    def forward_and_hoard(x, *side):
        copy = x.clone()
        return forward(x, *side) + 0 * (copy * copy).sum()

    block.forward = forward_and_hoard
    return network


def test_one_activation_more_fails_with_its_layer(peak):
    grown = check.compare(
        peak, peak_of(Method("idm-stored", hoarding, METHODS["idm-stored"].published))
    )
    extra = 2 * 16 * 32**3 * 4  # batch × half of 32 channels × 32³ voxels × fp32

    assert grown.grown == extra
    assert f"activation +{extra:,} bytes" in grown.explanation
    assert "in body.level0_encode0.function (" in grown.explanation


def test_an_unchanged_method_passes(gate, baseline):
    status, out, _ = gate("--baseline", baseline)
    assert status == 0
    assert "1 peaks compared, 0 grew" in out


def edit(path, **values):
    """Change cells of the only row; a function gets the old value."""
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    for name, value in values.items():
        row[name] = value(row[name]) if callable(value) else value
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)


def less(nbytes):
    return lambda value: str(int(value) - nbytes)


def test_a_byte_more_than_the_baseline_is_exit_status_1(gate, baseline):
    edit(
        baseline,
        peak_memory_bytes=less(1),
        parameter_bytes=less(1),
        layers=lambda text: _with_layer(text, "parameter project.convolution ", -1),
    )
    status, out, _ = gate("--baseline", baseline)
    assert status == 1
    (line,) = [line for line in out.splitlines() if line.startswith("GREW")]
    assert "idm-stored at small: +1 bytes" in line
    assert "parameter +1 bytes, most in project.convolution (+1)" in line


def test_a_byte_less_passes_and_is_pointed_out(gate, baseline):
    edit(
        baseline,
        peak_memory_bytes=less(-1),
        parameter_bytes=less(-1),
        layers=lambda text: _with_layer(text, "parameter project.convolution ", 1),
    )
    status, out, _ = gate("--baseline", baseline)
    assert status == 0
    assert "shrank idm-stored at small: -1 bytes" in out


def _with_layer(text, prefix, by):
    lines = text.splitlines()
    (index,) = [i for i, line in enumerate(lines) if line.startswith(prefix)]
    lines[index] = f"{prefix}{int(lines[index].removeprefix(prefix)) + by}"
    return "\n".join(lines)


def test_another_torch_with_the_same_bytes_is_compared_and_said(gate, baseline):
    """It was refused, whatever its bytes: the gate worked with one version only."""
    edit(baseline, torch="2.12.0")
    status, out, _ = gate("--baseline", baseline)
    assert status == 0
    assert "is of torch 2.12.0, this is torch" in out
    assert "the bytes are the same" in out


def test_another_torch_with_other_bytes_gives_no_verdict(gate, baseline):
    edit(
        baseline,
        torch="2.12.0",
        peak_memory_bytes=less(-1),
        parameter_bytes=less(-1),
        layers=lambda text: _with_layer(text, "parameter project.convolution ", 1),
    )
    status, _, error = gate("--baseline", baseline)
    assert status == 2
    assert "differs by -1 bytes, but is of torch 2.12.0" in error
    assert "install that one, or" in error


DAMAGES = {
    "a cell that is no number": (
        {"peak_memory_bytes": "many"},
        "column peak_memory_bytes holds what is not a number",
    ),
    "an empty cell": ({"optimizer_bytes": ""}, "column optimizer_bytes has an empty cell"),
    "parts that do not add up": ({"peak_memory_bytes": less(1)}, "do not add up to the peak"),
    "a layer that is gone": (
        {"layers": lambda text: text.split("\n", 1)[1]},
        "do not add up to activation",
    ),
    "a method that is gone": ({"method": "gone"}, "does not exist any more"),
    "another workload": ({"workload": "64³"}, "the baseline trained on 64³"),
}


@pytest.mark.parametrize(("changes", "message"), DAMAGES.values(), ids=DAMAGES)
def test_what_cannot_be_judged_is_said_and_never_passes(gate, baseline, changes, message):
    edit(baseline, **changes)
    status, _, error = gate("--baseline", baseline)
    assert status == 2
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_missing_row_never_passes(gate, baseline):
    status, _, error = gate("--baseline", baseline, "--models", "idm")
    assert status == 2
    assert "lacks idm at small" in error


@pytest.mark.parametrize("content", [None, b"", b"preset,method\n", b"\xff\xfe\x00"])
def test_a_file_that_is_no_baseline_never_passes(gate, tmp_path, content):
    path = tmp_path / "baseline.csv"
    if content is not None:
        path.write_bytes(content)
    status, _, error = gate("--baseline", path)
    assert status == 2
    assert str(path) in error
    assert len(error.splitlines()) == 1


def test_update_writes_what_is_checked(gate, tmp_path):
    path = tmp_path / "new" / "baseline.csv"
    assert gate("--baseline", path, "--update", "--presets", "small")[0] == 0
    assert check.read_baseline(path)[KEY].torch == torch.__version__.partition("+")[0]
    status, out, _ = gate("--baseline", path)
    assert status == 0
    assert "1 peaks compared" in out


@pytest.mark.parametrize(
    ("growth", "tolerance", "status"),
    [(0.005, "1%", 0), (0.02, "1%", 1), (0.02, "0.03", 0), (0.005, "0%", 1)],
)
def test_a_measured_run_has_a_tolerance(gate, tmp_path, baseline, peak, growth, tolerance, status):
    run = Run.create(tmp_path, "small")
    more = int(peak.peak_memory_bytes * growth)
    parts = {f"{part}_bytes": nbytes for part, nbytes in peak.part_bytes().items()}
    parts["activation_bytes"] += more
    run.append(
        Record(method="idm-stored", repeat=1, status="ok", preset="small",
               peak_memory_bytes=peak.peak_memory_bytes + more, **parts)
    )  # fmt: skip
    found, out, _ = gate("--baseline", baseline, "--run", run.folder, "--tolerance", tolerance)
    assert found == status
    assert ("GREW" in out) == (status == 1)


def test_the_committed_baseline_covers_every_method():
    """Whether its numbers hold, the gate itself tells; here only that no row is missing."""
    committed = check.read_baseline(Path(__file__).parents[3] / "results" / "baseline.csv")
    expected = {(preset, name) for preset in check.GATED_PRESETS for name in METHODS.names}
    assert set(committed) == expected
