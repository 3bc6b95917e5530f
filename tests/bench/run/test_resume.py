"""The benchmark itself killed, interrupted, and taken up again: no row lost, none twice.

BENCH_KILLS=50 repeats the kill as often, for docs/measurement.md.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from bench.cli import execute
from bench.commands import RunCommand
from bench.errors import UserError
from bench.harness.window import Window
from bench.records.folder import TABLES, Run
from bench.records.rows import Record, Sample, Step
from tests.bench.trials import new_run, tiny_plan

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
KILLS = int(os.environ.get("BENCH_KILLS", "1"))


def start_to_resume(run: Run) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "run_bench.py", "--resume", str(run.folder)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition() and process.poll() is None:
        time.sleep(0.01)


def resume_here(run: Run | Path, **flags) -> tuple[int, str]:
    """The command in this process, which has PyTorch loaded: status and output."""
    output = StringIO()
    folder = run.folder if isinstance(run, Run) else run
    status = execute(RunCommand(resume=folder, **flags), Console(file=output))
    return status, output.getvalue()


def trials(run: Run) -> list[tuple[str, int]]:
    return list(run.records()[["method", "repeat"]].itertuples(index=False, name=None))


@pytest.fixture(scope="module")
def survivor(tmp_path_factory: pytest.TempPathFactory):
    """A run interrupted once, killed `KILLS` times, completed: (run, plans, what it left before).

    One trial has failed and is on record before that, and one row is half written.
    """
    tmp = tmp_path_factory.mktemp("resume")
    window = Window(steps=25)
    plans = [tiny_plan(tmp, repeat=i, window=window) for i in range(1, 3 + KILLS)]
    plans.insert(1, replace(plans[0], method="idm-stored"))
    run = new_run(tmp, plans, subjects=2, cache_dir=str(tmp / "cache"))
    run.append(Step(method="idm", repeat=1, step=1, elapsed_s=1, step_time_s=1, loss=1))
    run.append(Record(method="idm", repeat=1, status="failed", error="it rained"))
    (run.folder / "timeline.csv").unlink()  # a run that an older version began
    first_row = (run.folder / "runs.csv").read_bytes()
    for name in ("samples.csv", "steps.csv"):  # of a trial that was cut short
        with (run.folder / name).open("a") as file:
            file.write("idm-stored,1,0.1,2.5\r\nidm-sto" if name == "samples.csv"
                       else "idm-stored,1,1,0.5,0.5,0.9\r\nidm-stored,1,2,0.")  # fmt: skip

    left: list[list[int]] = []  # ids of workers that outlived a killed benchmark

    process = start_to_resume(run)
    wait_for(lambda: "idm-stored,1" in (run.folder / "steps.csv").read_text()
             and len(run.steps()) > 3 and bool(_children(process)), process)  # fmt: skip
    process.send_signal(signal.SIGINT)
    interrupted = process.communicate()[0], process.returncode

    for _ in range(KILLS):
        before = len(run.records())
        process = start_to_resume(run)
        # Not before a trial runs: else a slow machine would see nothing but imports killed.
        wait_for(lambda p=process: bool(_children(p)), process)
        time.sleep(random.uniform(0, 4))
        children = _children(process)
        process.kill()
        process.communicate()
        _, alive = psutil.wait_procs(children, timeout=10)
        left.append([child.pid for child in alive])
        assert len(run.records()) >= before  # readable as it stands
        run.steps(), run.samples(), run.timeline()

    for path in (tmp / "cache").iterdir():  # what a person may clear at any time
        path.unlink()
    process = start_to_resume(run)
    output = process.communicate()[0]
    return run, plans, first_row, left, interrupted, (output, process.returncode)


def _children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return [
            c for c in psutil.Process(process.pid).children() if "bench.run.trial" in c.cmdline()
        ]
    except psutil.Error:
        return []


def test_every_trial_is_there_once(survivor):
    run, plans, *_ = survivor
    assert sorted(trials(run)) == sorted((plan.method, plan.repeat) for plan in plans)


def test_what_was_there_is_not_run_again(survivor):
    run, _, first_row, *_ = survivor
    assert (run.folder / "runs.csv").read_bytes().startswith(first_row)
    assert run.records().iloc[0]["error"] == "it rained"


def test_no_step_is_there_twice_and_none_of_a_trial_cut_short(survivor):
    run, plans, *_ = survivor
    records = run.records().set_index(["method", "repeat"])
    for trial, steps in run.steps().groupby(["method", "repeat"]):
        assert steps["step"].tolist() == list(range(1, len(steps) + 1))
        if records.loc[trial, "status"] == "ok":
            assert len(steps) == 25
        if records.loc[trial, "error"] != "it rained":
            assert len(steps) == records.loc[trial, "steps"]
    assert set(records["status"]) == {"ok", "failed", "interrupted"}
    assert (records["status"] == "ok").sum() == len(plans) - 2
    assert run.samples().empty or set(run.samples()["elapsed_s"]) != {0.1}


def test_an_interrupted_trial_is_kept_as_such(survivor):
    run, _, _, _, (output, status), _ = survivor
    assert status == 1
    assert "Interrupted: the trial ends after this step and is kept" in output
    assert "Traceback" not in output
    record = run.records().iloc[1]
    assert record["status"] == "interrupted"
    assert 3 < record["steps"] <= 25


def test_no_worker_outlives_a_killed_benchmark(survivor):
    left = survivor[3]
    assert len(left) == KILLS
    assert not any(left)


def test_the_last_resumption_prepares_the_data_again_and_reports(survivor):
    run, _, _, _, _, (output, status) = survivor
    assert status == 1  # one had failed, one was interrupted
    assert "trials are finished" in output
    assert (run.folder / "table2.md").is_file()
    assert len(run.environment()["resumed"]) >= 1


def test_nothing_missing_runs_nothing(survivor):
    run = survivor[0]
    before = [(run.folder / name).read_bytes() for name in TABLES]
    status, output = resume_here(run)
    assert status == 1
    assert ", 0 to run." in output
    after = [(run.folder / name).read_bytes() for name in TABLES]
    assert after == before


# ---- what cannot be resumed ----------------------------------------------------------------------


@pytest.fixture
def run(tmp_path) -> Run:
    run = new_run(tmp_path, [tiny_plan(tmp_path)])
    run.append(Record(method="idm", repeat=1, status="ok"))
    return run


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(UserError, match=r"is .* the folder of a run"):
        resume_here(tmp_path / "nowhere")


def test_flags_that_a_run_already_has(run):
    with pytest.raises(UserError, match="--repeats: the run has its own"):
        resume_here(run, repeats=3)


def test_a_run_that_still_runs(run):
    with run.locked(), pytest.raises(UserError, match="another benchmark is writing there"):
        resume_here(run)


@pytest.mark.parametrize(
    "change",
    [
        {"trials": None},
        {"trials": []},
        {"trials": [{}]},
        {"trials": "__import__('os')"},
        {"configuration": None},
        {"configuration": {"models": ["idm"], "surprise": 1}},
        {"configuration": {"repeats": "many"}},
        {"idle": {"idle_power_w": "low"}},
        {"resumed": 7},
    ],
)
def test_an_environment_that_was_tampered_with(run, change):
    run.write_environment(run.environment() | change)
    with pytest.raises(
        UserError, match=r"environment\.json: not that of a benchmark run \("
    ) as refusal:
        resume_here(run)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "bogus"), ("repeat", True), ("repeat", 1.5), ("device", 0), ("sample_hz", -1),
        ("probes", "all"), ("window", {"steps": 1, "seconds": 1}), ("window", {}),
        ("work", {"volume": 8}), ("volumes", ["a"]), ("extra", 1),
    ],
)  # fmt: skip
def test_a_plan_that_was_tampered_with(run, name, value):
    environment = run.environment()
    environment["trials"][0][name] = value
    run.write_environment(environment)
    with pytest.raises(UserError, match=r"environment\.json: not that of a benchmark run \("):
        resume_here(run)


# ---- a folder that turned read-only --------------------------------------------------------------


@pytest.fixture
def read_only(run):
    """The run's folder, read-only also for root where that can be had."""
    folder = str(run.folder)
    mounts = [["mount", "--bind", folder, folder], ["mount", "-o", "remount,ro,bind", folder]]
    if os.geteuid() == 0:
        try:
            for mount in mounts:
                subprocess.run(mount, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            subprocess.run(["umount", "-l", folder], check=False, capture_output=True)
            pytest.skip("permissions do not bind root, and it may not mount here")
        yield run
        subprocess.run(["umount", "-l", folder], check=True)
    else:
        for path in [*run.folder.iterdir(), run.folder]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield run
        run.folder.chmod(0o755)


def test_a_read_only_folder(read_only):
    run = read_only
    before = (run.folder / "runs.csv").read_bytes()
    rows = (
        Record(method="idm", repeat=2),
        Step(method="idm", repeat=2, step=1, elapsed_s=1, step_time_s=1, loss=1),
        Sample(method="idm", repeat=2, elapsed_s=1),
    )
    for row in rows:
        with pytest.raises(UserError, match="cannot be written"):
            run.append(row)
    with pytest.raises(UserError, match="cannot be written"):
        run.write_environment({})
    with pytest.raises(UserError, match=r"cannot be written \((Read-only|Permission)"):
        resume_here(run)
    assert (run.folder / "runs.csv").read_bytes() == before
    assert json.loads((run.folder / "environment.json").read_text())["trials"]
