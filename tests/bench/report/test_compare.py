"""`python -m bench compare A B`: what changed, how surely, and in which environment."""

import io
import json
import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from bench.commands import CompareCommand
from bench.records.files import write_rows
from bench.records.rows import Learning, Score
from bench.report.compare import environment_changes, run_compare
from tests.bench.report.quality_runs import quality_run, scores
from tests.bench.report.runs import ENVIRONMENT, GIB, full_run, predicted, record, write_run


def output(a: Path, b: Path) -> str:
    text = io.StringIO()
    assert run_compare(CompareCommand(a, b), Console(file=text, width=160)) == 0
    return text.getvalue()


def lines_of(text: str) -> list[str]:
    return [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]


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


def test_it_says_what_changed_in_numbers_and_in_the_environment(paper_run, slower: Path):
    text = output(paper_run.folder, slower)
    lines = lines_of(text)
    assert "idm Step time, median (s) 0.909 [0.900, 0.918] 1.84 [1.82, 1.85] 2.020×" in lines
    assert "idm Peak memory, live (GiB) 6.00 7.00 1.167×" in lines
    assert not any(line.startswith("patchddm") for line in lines)  # the same to the last digit
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
    assert "idm has other settings: batch_size 4 → 8." in text


def test_runs_without_a_common_preset_are_not_compared(tmp_path: Path):
    a = write_run(tmp_path / "a", [record("idm")]).folder
    b = write_run(tmp_path / "b", [record("idm", preset="small")]).folder
    assert (
        "A is the benchmark run a (paper: idm); B is the benchmark run b (small: idm). "
        "They have nothing to compare."
    ) in output(a, b)


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
    assert "They have nothing to compare." in output(a, b)


def test_quality_runs_are_compared_at_equal_steps_and_minutes(tmp_path: Path):
    a, b = quality_run(tmp_path / "a", seeds=2), quality_run(tmp_path / "b", seeds=1)
    table = pd.read_csv(b / "learning.csv")
    table = table[table["step"] <= 200]  # b ends early, and takes half the time for a step
    table["elapsed_s"] /= 2
    table["val_mse_ema"] = 0.5
    table.to_csv(b / "learning.csv", index=False)
    lines = lines_of(output(a, b))
    # At 200 steps, where both were validated: seeds 0 and 1 of a have a floor of 0.1 and 0.11.
    falls = math.exp(-200 / 60)
    ends = [floor + (1 - floor) * falls for floor in (0.1, 0.11)]
    mean = sum(ends) / 2
    shown = f"{mean:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"
    assert f"idm 200 steps {shown} 0.500 {0.5 / mean:.3f}×" in lines
    # b ended after 200 s, where a, of 2 s a step, had done 100 steps.
    ends = [floor + (1 - floor) * math.exp(-100 / 60) for floor in (0.1, 0.11)]
    mean = sum(ends) / 2
    shown = f"{mean:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"
    assert f"idm 3.33 minutes {shown} 0.500 {0.5 / mean:.3f}×" in lines
    assert any(line.startswith("patchddm 200 steps") for line in lines)
    assert "nothing to compare" not in " ".join(lines)


def test_values_between_validations_are_interpolated(tmp_path: Path):
    a, b = quality_run(tmp_path / "a"), quality_run(tmp_path / "b")
    for folder, steps, values in ((a, (0, 100), (1.0, 0.2)), (b, (0, 75), (1.0, 0.8))):
        rows = [
            Learning(method="idm", seed=0, step=step, elapsed_s=step, val_mse=9.0, val_mse_ema=mse)
            for step, mse in zip(steps, values, strict=True)
        ]
        write_rows(folder / "learning.csv", Learning, rows)
    assert "idm 75 steps 0.400 0.800 2.000×" in lines_of(output(a, b))


def test_scores_and_settings_of_quality_runs_are_compared(tmp_path: Path):
    a = quality_run(tmp_path / "a", seeds=2)
    b = quality_run(tmp_path / "b", seeds=2, learning_rate=1e-3, ema=0.9, batch_size=8)
    rows = [
        row for method in ("idm", "patchddm") for seed in (0, 1) for row in scores(method, seed)
    ]
    better = [replace(row, value=row.value + (row.column == "psnr")) for row in rows]
    write_rows(b / "quality.csv", Score, better)
    text = output(a, b)
    lines = lines_of(text)
    assert (
        "idm, T1 PSNR (dB) validation, t = 500 20.25 [20.00, 20.50] 21.25 [21.00, 21.50] +1.00"
    ) in lines
    assert not any("SSIM" in line for line in lines)
    assert "92 of 112 scores are the same to the last digit." in lines
    assert "idm has other settings: learning_rate 0.0002 → 0.001, ema 0.995 → 0.9." in text
    assert "The environments are the same." in lines


def test_a_quality_run_is_the_same_as_itself(tmp_path: Path):
    run = quality_run(tmp_path / "run")
    text = output(run, run)
    assert "112 of 112 scores are the same to the last digit." in text
    assert text.count("1.000×") == 4  # two methods, at equal steps and at equal minutes
    assert "other settings" not in text


def test_runs_with_nothing_in_common_are_named(paper_run, tmp_path: Path):
    quality = quality_run(tmp_path / "trained")
    text = " ".join(output(paper_run.folder, quality).split())
    assert (
        "A is the benchmark run 20260101T000000Z-paper (paper: unet, checkpoint, patchddm, idm, "
        "idm-stored); B is the quality run trained (idm, patchddm). They have nothing to compare."
    ) in text
    other = quality_run(tmp_path / "other", methods=("patchddm",))
    only = quality_run(tmp_path / "only", methods=("idm",))
    text = output(other, only)
    assert "A is the quality run other (patchddm); B is the quality run only (idm)." in text
    assert "They have nothing to compare." in text
