"""Trials that end badly, each for real: what was measured before stays, and the next one runs.

BENCH_KILLS=200 repeats the kill of a worker as often, for docs/measurement.md.
"""

import math
import os
import random
import resource
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from bench.ddpm.step import Training
from bench.errors import UserError
from bench.presets import Workload
from bench.records.folder import Run
from bench.records.rows import Record, Step
from bench.run.command import _memory_limit as choose_memory_limit
from tests.bench.trials import (
    FOREVER,
    Watcher,
    new_run,
    run_trials,
    small_disk_of,
    tiny_plan,
    volumes,
    workers,
)

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("BENCH_KILLS", "3"))
LATEST_S = 5.0
"""By then a worker has loaded PyTorch and is in its window, also on a busy machine."""


def kept_steps(run: Run, repeat: int = 1) -> list[int]:
    steps = run.steps()
    return steps[steps["repeat"] == repeat]["step"].tolist()


def test_workers_killed_at_random_moments(tmp_path):
    """Half of the moments are drawn from the start of the worker, half from its window."""
    moments = random.Random(os.urandom(8))
    plans = [tiny_plan(tmp_path, repeat=i + 1, window=FOREVER) for i in range(KILLS)]
    run = new_run(tmp_path, plans)
    killed: list[int] = []

    def kill(pid: int, after_s: float) -> None:
        time.sleep(after_s)
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    class Killer(Watcher):
        def begin(self, title, what):
            number = int(title[1 : title.index("/")])  # "[3/60] idm (repeat 3)"
            if number % 2:
                threading.Thread(target=self.kill_new_worker).start()

        def kill_new_worker(self):
            while not (found := workers()):
                time.sleep(0.001)
            kill(found[0].pid, moments.uniform(0, LATEST_S))

        def step(self, step):
            super().step(step)
            if step.repeat % 2 == 0 and step.step == 1:
                delay = moments.uniform(0, 0.5)
                threading.Thread(target=kill, args=(workers()[0].pid, delay)).start()

    watcher = Killer()
    run_trials(run, plans, watcher)

    assert len(killed) == KILLS
    records = run.records()
    assert records["repeat"].tolist() == [plan.repeat for plan in plans]
    assert set(records["status"]) == {"failed"}
    assert records["error"].str.contains("SIGKILL").all()
    for record in records.itertuples():
        seen = [step.step for step in watcher.steps if step.repeat == record.repeat]
        assert kept_steps(run, record.repeat) == seen == list(range(1, len(seen) + 1))
        if seen:
            assert record.steps == len(seen)
    assert not workers()


@pytest.fixture(scope="module")
def bad_endings(tmp_path_factory: pytest.TempPathFactory):
    """One run: a worker that hangs, one out of memory, and one that diverges."""
    tmp = tmp_path_factory.mktemp("endings")
    plans = [
        tiny_plan(tmp, repeat=1, window=FOREVER),
        tiny_plan(
            tmp, repeat=2, method="idm-stored", memory_limit=10**9, volumes=str(volumes(tmp, 32)),
            work=Workload(32, 32, 64, (64, 128), 1, "fp32"),
        ),
        tiny_plan(tmp, repeat=3, window=FOREVER, training=Training(learning_rate=1e30)),
    ]  # fmt: skip
    run = new_run(tmp, plans)

    def stop_third_step(step):
        if step.repeat == 1 and step.step == 3:
            workers()[0].send_signal(signal.SIGSTOP)

    watcher = Watcher(stop_third_step)
    run_trials(run, plans[:1], watcher, timeout=10)
    run_trials(run, plans[1:], watcher)
    return run, watcher


def test_every_ending_has_its_row(bad_endings):
    run, watcher = bad_endings
    assert run.records()["status"].tolist() == ["timeout", "oom", "failed"]
    assert [record.status for record in watcher.records] == ["timeout", "oom", "failed"]


def test_a_worker_that_hangs(bad_endings):
    run, _ = bad_endings
    record = run.records().iloc[0]
    assert record["error"] == "no step finished for 10 s (--timeout)"
    assert len(kept_steps(run, 1)) == record["steps"] >= 3


def test_a_real_memory_limit(bad_endings):
    run, _ = bad_endings
    assert "can't allocate memory" in run.records().iloc[1]["error"]
    assert (run.folder / "logs" / "idm-stored-2.log").read_text().startswith("Traceback")


def test_memory_limits_as_people_type_them():
    assert choose_memory_limit(None) is None
    assert choose_memory_limit("1.5 gib") == 3 * 2**29
    for text in ("4096", "-1GiB", "0GiB", "much"):
        with pytest.raises(UserError, match=f"--memory-limit {text}: "):
            choose_memory_limit(text)


def test_a_loss_that_is_not_finite(bad_endings):
    run, _ = bad_endings
    record = run.records().iloc[2]
    assert record["error"].startswith("FloatingPointError: the loss of step")
    losses = run.steps()[run.steps()["repeat"] == 3]["loss"].tolist()
    assert not math.isfinite(losses[-1])
    assert all(math.isfinite(loss) for loss in losses[:-1])


@pytest.mark.parametrize("times", [1, 2])
def test_interrupts(tmp_path, times):
    plan = tiny_plan(tmp_path, window=FOREVER, probes=("host",), sample_hz=20.0)
    run = new_run(tmp_path, [plan])

    def interrupt(step):
        if step.elapsed_s > 1.0 and not watcher.notes:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    watcher = Watcher(interrupt)
    run_trials(run, [plan, replace(plan, repeat=2)], watcher)
    (record,) = run.records().itertuples()
    assert record.status == "interrupted"
    assert record.steps == len(kept_steps(run)) >= 1
    assert record.loss_last == run.steps()["loss"].iloc[-1]
    assert len(watcher.notes) == times
    assert len(run.samples()) == len(watcher.samples) > 10
    if times == 1:  # it ended in order: its probes have told all they know
        assert record.peak_rss_bytes > 2**26
        assert 0 < record.sample_rate_hz <= 21
        assert record.sample_late_p95_s >= 0
    else:
        assert record.error == "stopped by a second interrupt"
    assert not workers()


def test_an_interrupt_while_the_worker_starts(tmp_path):
    run = new_run(tmp_path, [tiny_plan(tmp_path)])

    class Impatient(Watcher):
        def begin(self, title, what):
            os.kill(os.getpid(), signal.SIGINT)

    run_trials(run, [tiny_plan(tmp_path, window=FOREVER)], Impatient())
    (record,) = run.records().itertuples()
    assert record.status == "interrupted"


def append_steps(run: Run) -> None:
    for i in range(1, 100):
        run.append(Step(method="idm", repeat=1, step=i, elapsed_s=i, step_time_s=1, loss=1))


def test_a_row_that_does_not_fit_leaves_the_others(tmp_path):
    """A limit on the size of files stands for the full disk, where no small disk can be had."""
    run = new_run(tmp_path, [tiny_plan(tmp_path)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match=r"steps\.csv: cannot be written .*--resume"):
            append_steps(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept = kept_steps(run)
    assert kept == list(range(1, len(kept) + 1))
    assert len(kept) > 10
    assert (run.folder / "steps.csv").read_bytes().endswith(b"\n")


@pytest.fixture
def small_disk(tmp_path):
    with small_disk_of(160, tmp_path / "disk") as disk:
        yield disk


def test_a_disk_that_fills_up_in_the_window(tmp_path, small_disk):
    plans = [tiny_plan(tmp_path, repeat=i, window=FOREVER) for i in (1, 2)]
    run = new_run(small_disk, plans)
    append_steps(run)
    run.append(Record(method="idm", repeat=1, status="ok"))
    before = (run.folder / "runs.csv").read_bytes()

    def fill(step):
        if step.step == 1:
            filler = small_disk / "filler"
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass

    watcher = Watcher(fill)
    with pytest.raises(UserError) as full:
        run_trials(run, plans[1:], watcher)
    assert "No space left on device" in str(full.value)
    assert "\n" not in str(full.value)
    assert (run.folder / "runs.csv").read_bytes() == before
    assert kept_steps(run, 1) == list(range(1, 100))
    assert kept_steps(run, 2) == [step.step for step in watcher.steps]
    assert not workers()
