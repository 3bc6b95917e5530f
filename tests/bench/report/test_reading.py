"""What is read together, what is kept apart, and what is said of damage."""

import json
import subprocess
import sys
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest

from bench.errors import UserError
from bench.presets import PRESETS
from bench.records.rows import Record, Setting, Work
from bench.report.claims import judge
from bench.report.reading import SETTINGS, read_evidence
from bench.report.write import write_reports
from tests.bench.report.runs import (
    ENVIRONMENT,
    METHODS,
    full_run,
    predicted,
    record,
    window,
    write_run,
)

ROOT = Path(__file__).parents[3]


def test_one_run_is_one_group_without_complaint(paper_run):
    evidence = read_evidence([paper_run.folder])
    assert evidence.problems == []
    (group,) = evidence.groups
    assert group.name == "paper, measured on NVIDIA RTX A5000"
    assert group.costs.own_setting
    assert len(group.samples) == 25 * len(group.records)


def test_methods_stand_in_the_order_of_the_plan_whatever_was_made_good_last(tmp_path: Path):
    """A trial that a resumed run repeats is its last row: ratios were to another method, then."""
    trials = [{"method": name, "repeat": 1} for name in ("unet", "idm", "checkpoint")]
    run = write_run(
        tmp_path / "run",
        [record("idm"), record("unet")],
        environment={**ENVIRONMENT, "trials": trials},
    )
    evidence = read_evidence([run.folder])
    assert evidence.groups[0].methods == ["unet", "idm"]
    (missing,) = evidence.problems
    assert "checkpoint, repeat 1, is planned but not recorded" in missing


def test_predicted_and_measured_are_kept_apart(paper_run, tmp_path: Path):
    other = write_run(tmp_path / "predicted", [predicted(method) for method in METHODS])
    groups = read_evidence([paper_run.folder, other.folder]).groups
    assert [group.kind for group in groups] == ["measured", "predicted"]


def test_runs_of_the_same_machine_and_versions_count_together_and_say_so(tmp_path: Path):
    first = full_run(tmp_path / "a" / "run", repeats=1)
    second = full_run(tmp_path / "b" / "run", repeats=1)
    evidence = read_evidence([first.folder, second.folder])
    (group,) = evidence.groups
    assert group.runs == ["run", "run (2)"]
    assert len(group.records) == 2 * len(METHODS)
    assert len(group.samples) == 2 * 25 * len(METHODS)
    assert "are counted together" in evidence.problems[0]


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("versions", "torch"), "2.9.0", "torch (2.13.0 and 2.9.0)"),
        (("hardware", "gpu_driver"), "535", "driver"),
        (("git", "commit"), "fedcba", "commit"),
    ],
)
def test_runs_of_different_versions_are_not_mixed_silently(tmp_path: Path, path, value, word):
    environment = deepcopy(ENVIRONMENT)
    environment[path[0]][path[1]] = value
    runs = [
        write_run(tmp_path / name, [record("idm"), record("patchddm")], environment=each)
        for name, each in (("a", ENVIRONMENT), ("b", environment))
    ]
    evidence = read_evidence([run.folder for run in runs])
    assert len(evidence.groups) == 2
    assert any(
        "not counted together: a and b" in line and word in line for line in evidence.problems
    )


def test_runs_on_different_cards_or_workloads_are_not_mixed_silently(tmp_path: Path):
    one = write_run(tmp_path / "a", [record("idm")])
    card = write_run(tmp_path / "b", [record("idm", device_name="NVIDIA H100")])
    batch = write_run(tmp_path / "c", [record("idm", batch_size=8)])
    evidence = read_evidence([run.folder for run in (one, card, batch)])
    assert len(evidence.groups) == 3
    assert any("device (NVIDIA RTX A5000 and NVIDIA H100)" in line for line in evidence.problems)
    assert any("a and c" in line and "batch_size (4 and 8)" in line for line in evidence.problems)
    assert not evidence.groups[2].costs.own_setting


def test_flags_that_changed_the_preset_keep_it_from_its_claims(tmp_path: Path):
    rows = [predicted(method, couplings=6) for method in ("idm", "patchddm", "unet")]
    assert {row.preset_changes for row in rows} == {"couplings 6"}
    evidence = read_evidence([write_run(tmp_path / "run", rows).folder])
    assert not evidence.groups[0].costs.own_setting
    assert {one.verdict for one in judge(evidence)} == {"not measured"}
    plain = [predicted(method) for method in ("idm", "patchddm", "unet")]
    assert judge(read_evidence([write_run(tmp_path / "plain", plain).folder]))[0].verdict == (
        "holds at paper; nothing decides it at equal"
    )


def test_a_run_that_does_not_say_whether_flags_changed_the_preset_decides_no_claim(tmp_path: Path):
    rows = [predicted(method, preset_changes=None) for method in ("idm", "patchddm")]
    run = write_run(tmp_path / "run", rows)
    table = pd.read_csv(run.folder / "runs.csv")
    table.drop(columns=["preset_changes", "couplings"]).to_csv(run.folder / "runs.csv", index=False)
    evidence = read_evidence([run.folder])
    (problem,) = evidence.problems
    assert "did not record whether flags changed the preset" in problem
    assert {one.verdict for one in judge(evidence)} == {"not measured"}


@pytest.mark.parametrize("name", SETTINGS)
def test_trials_of_different_settings_are_never_counted_together(tmp_path: Path, name: str):
    kind = {f.name: f.type for f in fields(Record)}[name]
    values = ("1", "4") if str in get_args(kind) else (1, 4)
    runs = [
        write_run(tmp_path / str(value), [record("idm", **{name: value})]).folder
        for value in values
    ]
    evidence = read_evidence(runs)
    assert len(evidence.groups) == 2
    assert any(f"{name} (1" in line for line in evidence.problems)
    assert not any("are counted together" in line for line in evidence.problems)


def test_every_setting_of_a_trial_is_compared_or_left_out_by_name():
    left_out = {f.name for f in fields(Setting)} - set(SETTINGS)
    assert left_out == {
        "preset", "preset_changes", "match", "data", "device", "device_name", "seed", "started_at",
        "window_limit_s", "window_limit_steps",
    }  # fmt: skip
    assert {f.name for f in fields(Work)} - {"match"} <= set(SETTINGS)


def test_presets_and_methods_of_today_change_nothing_in_a_report(
    paper_run, report: Path, tmp_path: Path, monkeypatch
):
    changed = replace(PRESETS["paper"], common={"volume": 8, "batch_size": 1}, from_method=())
    monkeypatch.setattr("bench.presets.PRESETS", {"paper": changed})
    monkeypatch.setattr("bench.methods.METHODS", {})
    write_reports([paper_run.folder], tmp_path)
    assert "| holds at paper" in (tmp_path / "claims.md").read_text(encoding="utf-8")
    for path in report.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_the_report_imports_no_registry_and_no_torch():
    code = (
        "import sys, pkgutil, importlib, bench.report as room\n"
        "for module in pkgutil.iter_modules(room.__path__): "
        "importlib.import_module(f'bench.report.{module.name}')\n"
        "rooms = {name.split('.')[1] for name in sys.modules if name.startswith('bench.')}\n"
        "print(*sorted(rooms), 'torch' in sys.modules)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == ["errors", "records", "report", "sizes", "False"]


def test_a_run_that_is_not_finished_says_what_is_missing(tmp_path: Path):
    run = write_run(tmp_path / "run", [record("idm")])
    planned = [{"method": "idm", "repeat": 1}, {"method": "unet", "repeat": 1}]
    (run.folder / "environment.json").write_text(json.dumps({**ENVIRONMENT, "trials": planned}))
    assert any(
        "unet, repeat 1, is planned" in line for line in read_evidence([run.folder]).problems
    )


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path):
    run = write_run(tmp_path / "run", [record("idm"), record("unet")])
    path = run.folder / "runs.csv"
    path.write_text(path.read_text(encoding="utf-8")[:-40])
    evidence = read_evidence([run.folder])
    assert evidence.groups[0].methods == ["idm"]
    assert any("unet, repeat 1, is planned" in line for line in evidence.problems)


def test_a_trial_recorded_twice_counts_once(tmp_path: Path):
    run = write_run(tmp_path / "run", [record("idm"), record("idm")])
    evidence = read_evidence([run.folder])
    assert len(evidence.groups[0].records) == 1
    assert any("recorded twice" in line for line in evidence.problems)


def test_infinite_values_are_left_out_and_said(tmp_path: Path):
    run = write_run(tmp_path / "run", [record("idm", step_time_median_s=float("inf"))])
    evidence = read_evidence([run.folder])
    assert evidence.groups[0].records["step_time_median_s"].isna().all()
    assert any("step_time_median_s" in line for line in evidence.problems)


@pytest.mark.parametrize(
    "content", [None, "{", "[1]", "\0", '{"trials": 5, "git": [], "versions": 1}']
)
def test_a_damaged_environment_does_not_lose_the_numbers(tmp_path: Path, content):
    run = write_run(tmp_path / "run", [record("idm")], environment=None)
    if content is not None:
        (run.folder / "environment.json").write_text(content)
    evidence = read_evidence([run.folder])
    assert evidence.groups[0].methods == ["idm"]
    if content != '{"trials": 5, "git": [], "versions": 1}':
        assert any("environment.json" in line for line in evidence.problems)
    assert str(tmp_path) not in " ".join(evidence.problems)


@pytest.mark.parametrize("content", [None, "", "nonsense", "method,repeat\nidm,x\n"])
def test_damaged_samples_do_not_lose_the_numbers(tmp_path: Path, content):
    run = write_run(tmp_path / "run", [record("idm")], window("idm"))
    (run.folder / "samples.csv").unlink()
    if content is not None:
        (run.folder / "samples.csv").write_text(content)
    evidence = read_evidence([run.folder])
    assert evidence.groups[0].samples.empty
    assert any("samples.csv" in line for line in evidence.problems)


@pytest.mark.parametrize("file", ["scale.csv", "fit.csv", "quality.csv"])
@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "method,axis,value\nidm,couplings,many\n"])
def test_damaged_side_tables_are_left_out_and_said(tmp_path: Path, file, content):
    run = write_run(tmp_path / "run", [record("idm")])
    (run.folder / file).write_text(content)
    evidence = read_evidence([run.folder])
    assert evidence.side_tables == {}
    (problem,) = evidence.problems
    assert problem.startswith(f"run: {file}: ")
    assert problem.endswith("; it is left out")


@pytest.mark.parametrize("content", [None, "", "nonsense\n", "method\nidm\n"])
def test_a_folder_without_records_is_refused_in_a_line(tmp_path: Path, content):
    if content is not None:
        (tmp_path / "runs.csv").write_text(content)
    with pytest.raises(UserError, match=r"runs\.csv") as caught:
        read_evidence([tmp_path])
    assert "\n" not in str(caught.value)


def test_an_empty_run_has_a_report_that_says_so(tmp_path: Path):
    run = write_run(tmp_path / "run", [])
    write_reports([run.folder], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "No trial in these runs was ok" in page
    assert "no trial was recorded" in page


def test_a_run_where_all_failed_says_why_everywhere(tmp_path: Path):
    failed = {"status": "oom", "error": "CUDA out of memory"}
    empty = dict.fromkeys(
        ("peak_memory_bytes", "peak_memory_source", "step_time_median_s", "flops_step"), None
    )
    run = write_run(tmp_path / "run", [record(m, **failed, **empty) for m in ("idm", "unet")])
    write_reports([run.folder], tmp_path / "out")
    assert "idm, repeat 1: oom (CUDA out of memory)" in (tmp_path / "out" / "table2.md").read_text(
        encoding="utf-8"
    )
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "0 of 1" in page
    assert "CUDA out of memory" in page
    claims = (tmp_path / "out" / "claims.md").read_text(encoding="utf-8")
    assert "| holds |" not in claims
    assert "not measurable on this machine" in claims


def test_files_of_several_groups_do_not_overwrite_each_other(two_groups: Path):
    names = {path.name for path in two_groups.iterdir()}
    for figure in ("peak_memory", "energy_per_parameter", "temperature", "frontier"):
        for preset in ("paper", "equal"):
            assert {f"{figure}-{preset}.png", f"{figure}-{preset}.pdf"} <= names
