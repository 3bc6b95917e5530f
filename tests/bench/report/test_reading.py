"""What is read together, what is kept apart, and what is said of damage."""

import json
from copy import deepcopy
from pathlib import Path

import pytest

from bench.errors import UserError
from bench.report import write_reports
from bench.report.reading import read_evidence
from tests.bench.report.runs import (
    ENVIRONMENT,
    METHODS,
    full_run,
    predicted,
    record,
    window,
    write_run,
)


def test_one_run_is_one_group_without_complaint(paper_run):
    evidence = read_evidence([paper_run.folder])
    assert evidence.problems == []
    (group,) = evidence.groups
    assert group.name == "paper, measured on NVIDIA RTX A5000"
    assert group.own_setting
    assert len(group.samples) == 25 * len(group.records)


def test_predicted_and_measured_are_kept_apart(paper_run, tmp_path: Path):
    other = write_run(tmp_path / "predicted", [predicted(method) for method in METHODS])
    groups = read_evidence([paper_run.folder, other.folder]).groups
    assert [group.kind for group in groups] == ["measured", "predicted"]


def test_runs_of_the_same_machine_and_versions_count_together_and_say_so(tmp_path: Path):
    first = full_run(tmp_path / "a" / "run", repeats=1)
    second = full_run(tmp_path / "b" / "run", repeats=1)
    evidence = read_evidence([first.folder, second.folder])
    (group,) = evidence.groups
    assert group.runs == ("run", "run (2)")
    assert len(group.records) == 2 * len(METHODS)
    assert len(group.samples) == 2 * 25 * len(METHODS)
    assert "counted together" in evidence.problems[0]


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
    assert any("not mixed: a and b" in line and word in line for line in evidence.problems)


def test_runs_on_different_cards_or_workloads_are_not_mixed_silently(tmp_path: Path):
    one = write_run(tmp_path / "a", [record("idm")])
    card = write_run(tmp_path / "b", [record("idm", device_name="NVIDIA H100")])
    batch = write_run(tmp_path / "c", [record("idm", batch_size=8)])
    evidence = read_evidence([run.folder for run in (one, card, batch)])
    assert len(evidence.groups) == 3
    assert any("device (NVIDIA RTX A5000 and NVIDIA H100)" in line for line in evidence.problems)
    assert any("a and c" in line and "workload" in line for line in evidence.problems)
    assert not evidence.groups[2].own_setting


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
    path.write_text(path.read_text()[:-40])
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
    assert f"run: {file} cannot be read; it is left out" in evidence.problems


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
    page = (tmp_path / "out" / "report.html").read_text()
    assert "No trial in these runs was ok" in page
    assert "no trial was recorded" in page


def test_a_run_where_all_failed_says_why_everywhere(tmp_path: Path):
    failed = {"status": "oom", "error": "CUDA out of memory"}
    empty = dict.fromkeys(
        ("peak_memory_bytes", "peak_memory_source", "step_time_median_s", "flops_step"), None
    )
    run = write_run(tmp_path / "run", [record(m, **failed, **empty) for m in ("idm", "unet")])
    write_reports([run.folder], tmp_path / "out")
    assert "idm, repeat 1: oom (CUDA out of memory)" in (tmp_path / "out" / "table2.md").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "0 of 1" in page
    assert "CUDA out of memory" in page
    claims = (tmp_path / "out" / "claims.md").read_text()
    assert "| holds |" not in claims
    assert "not measurable on this machine" in claims


def test_files_of_several_groups_do_not_overwrite_each_other(two_groups: Path):
    names = {path.name for path in two_groups.iterdir()}
    for figure in ("peak_memory", "energy_per_parameter", "temperature", "frontier"):
        for preset in ("paper", "equal"):
            assert {f"{figure}-{preset}.png", f"{figure}-{preset}.pdf"} <= names
