"""`python -m bench compare A B`: what changed, how surely, and in which environment."""

import io
import json
from copy import deepcopy
from pathlib import Path

import pytest
from rich.console import Console

from bench.commands import CompareCommand
from bench.report.compare import differences, environment_changes, run_compare
from bench.report.reading import read_evidence
from tests.bench.report.runs import ENVIRONMENT, GIB, full_run, predicted, record, write_run


def output(a: Path, b: Path) -> str:
    text = io.StringIO()
    assert run_compare(CompareCommand(a, b), Console(file=text, width=160)) == 0
    return text.getvalue()


@pytest.fixture
def slower(tmp_path: Path) -> Path:
    """`full_run`, but idm takes twice the time and a GiB more, on a newer torch."""
    environment = deepcopy(ENVIRONMENT)
    environment["versions"]["torch"] = "2.14.0"
    rows = [
        record("idm", r, step_time_median_s=1.8 * (1 + 0.01 * r), peak_memory_bytes=7 * GIB)
        for r in (1, 2, 3)
    ]
    rows += [record("patchddm", r) for r in (1, 2, 3)]
    return write_run(tmp_path / "slower", rows, environment=environment).folder


def test_differences_have_ratio_interval_and_whether_they_are_apart(paper_run, slower: Path):
    (a,), (b,) = read_evidence([paper_run.folder]).groups, read_evidence([slower]).groups
    table = differences(a, b).set_index(["method", "column"])
    time = table.loc["idm", "step_time_median_s"]
    assert time["ratio"] == pytest.approx(1.836 / 0.909)
    assert time["apart"]
    assert time["a_low"] < time["a_high"] < time["b_low"]
    assert table.loc["idm", "peak_memory_bytes"]["difference"] == GIB
    assert table.loc["patchddm", "step_time_median_s"]["apart"] == False  # noqa: E712 or None
    assert (
        table.loc["unet", "step_time_median_s"]["b"] != table.loc["unet", "step_time_median_s"]["b"]
    )


def test_it_says_what_changed_in_numbers_and_in_the_environment(paper_run, slower: Path):
    text = output(paper_run.folder, slower)
    assert "2.020×" in text
    assert "1.167×" in text
    assert "only in A" in text
    assert "versions.torch: 2.13.0 → 2.14.0" in text
    assert "numbers are the same to the last digit" in text


def test_a_run_is_the_same_as_itself(paper_run):
    text = output(paper_run.folder, paper_run.folder)
    assert "45 of 45 numbers are the same to the last digit." in text
    assert "The environments are the same." in text


def test_measured_against_predicted_and_another_workload_are_said(tmp_path: Path):
    a = write_run(tmp_path / "a", [record("idm")]).folder
    b = write_run(tmp_path / "b", [predicted("idm", batch_size=8)]).folder
    text = output(a, b)
    assert "A is measured, B is predicted." in text
    assert "idm does not train on the same: batch_size 4 → 8." in text


def test_runs_without_a_common_preset_are_not_compared(tmp_path: Path):
    a = write_run(tmp_path / "a", [record("idm")]).folder
    b = write_run(tmp_path / "b", [record("idm", preset="small")]).folder
    assert "nothing can be compared" in output(a, b)


def test_environments_may_hold_anything():
    a = {"x": {"y": [1]}, "trials": [1], "\x1b[31m": None}
    lines = list(environment_changes(a, json.loads('{"x": 5, "z": {}}')))
    assert "x.y: [1] → not recorded" in lines
    assert not any("\x1b" in line for line in lines)
    assert not any("trials" in line for line in lines)


def test_no_name_reaches_the_terminal_as_an_escape(tmp_path: Path):
    evil = "\x1b]0;owned\x07[red]idm[/red]"
    a = write_run(tmp_path / "a", [record(evil)]).folder
    b = write_run(tmp_path / "b", [record(evil, peak_memory_bytes=GIB)]).folder
    text = output(a, b)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]" in text


def test_full_runs_of_one_seed_compare_method_by_method(tmp_path: Path):
    a, b = full_run(tmp_path / "a", 1).folder, full_run(tmp_path / "b", 1, "small").folder
    assert "nothing can be compared" in output(a, b)
