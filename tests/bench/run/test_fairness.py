"""Idle power, cooling, other load: measured, waited for, and written down."""

import os
import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console

from bench.cli import execute
from bench.commands import RunCommand
from bench.errors import UserError
from bench.harness.window import Window
from bench.presets import Overrides
from bench.probes.host import SWAP_BYTES, swap_in_use
from bench.records.rows import Record
from bench.run.command import Benchmark
from bench.run.fairness import EqualConditions, Idle, measure_idle
from tests.bench.trials import Watcher, new_run, run_trials, tiny_plan


def test_energy_above_idle():
    record = Record(
        method="idm", repeat=1, energy_j=3000.0, mean_power_w=150.0, energy_source="nvml-power"
    )
    EqualConditions(Idle(30.0, "nvml-counter")).judge(record)
    assert record.idle_power_w == 30
    assert record.energy_above_idle_j == pytest.approx(3000 - 30 * 20)


def test_no_energy_above_what_another_source_calls_idle():
    record = Record(
        method="idm", repeat=1, energy_j=3000.0, mean_power_w=150.0, energy_source="rapl"
    )
    EqualConditions(Idle(30.0, "tdp-estimate")).judge(record)
    assert record.energy_above_idle_j is None


def test_the_first_window_says_how_warm_the_others_begin(tmp_path):
    conditions = EqualConditions(Idle(temperature_c=31.0), cooldown_s=90.0)
    first = conditions.planned(tiny_plan(tmp_path))
    assert first.start_c is None  # not the 31 °C of a card without a context
    conditions.judge(Record(method="unet", repeat=1, status="oom"))
    conditions.judge(Record(method="idm", repeat=1, status="ok", temperature_start_c=44.0))
    conditions.judge(Record(method="idm", repeat=2, status="ok", temperature_start_c=46.0))
    second = conditions.planned(tiny_plan(tmp_path))
    assert (second.start_c, second.cooldown_s) == (44.0, 90.0)


@pytest.mark.parametrize("strict", [True, False])
def test_strict_marks_a_trial_that_shared_the_machine(strict):
    record = Record(method="idm", repeat=1, status="ok", contention=("swap in use: 1.00 GiB",))
    EqualConditions(Idle(), strict=strict).judge(record)
    assert record.status == ("failed" if strict else "ok")
    assert record.error == ("--strict: swap in use: 1.00 GiB" if strict else None)


class Listed:
    """A card whose list of processes names a stranger until `gone`."""

    def __init__(self, gone: float) -> None:
        self.now, self.gone = 0.0, gone

    def processes(self) -> set[int]:
        return {4711} if self.now < self.gone else set()

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("gone", [0.0, 0.5, 60.0])
def test_a_trial_that_has_just_ended_may_be_listed_for_a_moment(gone):
    card = Listed(gone)
    conditions = EqualConditions(Idle(), card=card, clock=card.clock, sleep=card.sleep)
    found = [line for line in conditions.other_load() if "card" in line]
    assert found == (["another process on the card: 4711"] if gone > 10 else [])
    assert card.now == pytest.approx(min(gone, 2.0), abs=0.15)


def test_swap_in_use():
    assert swap_in_use(SWAP_BYTES) == []
    assert swap_in_use(3 * 2**29) == ["swap in use: 1.50 GiB"]


@pytest.fixture(scope="module")
def busy_cpu():
    """Processes on half of the cores that do nothing but compute."""
    burners = max(1, (os.cpu_count() or 1) // 2)
    processes = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(burners)
    ]
    yield
    for process in processes:
        process.kill()
        process.wait()


def test_a_cpu_that_is_busy_with_something_else(busy_cpu):
    _, contention = measure_idle(None, None, 0.5)
    (line,) = contention
    assert line.startswith("other processes took ")


def test_strict_does_not_start_beside_others(tmp_path, busy_cpu):
    command = RunCommand(
        models=("idm",), steps=1, strict=True, out=tmp_path / "out", cache_dir=tmp_path / "cache",
        subjects=1, idle=0.5, overrides=Overrides(volume=8, batch_size=1, channels=(4, 8)),
    )  # fmt: skip
    output = StringIO()
    with pytest.raises(UserError, match="--strict: other processes took"):
        execute(command, Console(file=output))
    assert "Warning: other load on this machine: other processes took" in output.getvalue()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_window_beside_others_and_two_runs_of_one_seed(tmp_path, busy_cpu):
    window = Window(steps=60)  # long enough for the clock ticks in which the kernel counts load
    plans = [
        tiny_plan(tmp_path, repeat=1, window=window, probes=("host",)),
        tiny_plan(tmp_path, repeat=2, window=window),
    ]
    run = new_run(tmp_path, plans)
    watcher = Watcher()
    run_trials(run, plans, watcher, conditions=EqualConditions(Idle(), strict=True))
    first, second = run.records().itertuples()

    assert "other processes took" in first.contention
    assert first.other_load_percent > 10
    assert first.status == "failed"
    assert first.error.startswith("--strict: ")
    assert second.status == "ok"  # nobody watched

    losses = run.steps().pivot_table(index="step", columns="repeat", values="loss")
    assert losses[1].tolist() == losses[2].tolist()
    assert losses[1].nunique() == 60


def test_repeats_take_turns_with_one_seed(tmp_path):
    command = RunCommand(
        models=("idm", "unet", "patchddm"), steps=1, repeats=2, seed=7, subjects=1,
        cache_dir=tmp_path, overrides=Overrides(volume=16, batch_size=1, channels=(4, 8)),
    )  # fmt: skip
    plans = Benchmark(command, Console(file=StringIO())).plan()
    assert [plan.key for plan in plans] == [
        ("idm", 1), ("unet", 1), ("patchddm", 1), ("idm", 2), ("unet", 2), ("patchddm", 2),
    ]  # fmt: skip
    assert {plan.training.seed for plan in plans} == {7}
