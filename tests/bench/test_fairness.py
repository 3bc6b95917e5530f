"""The same rest, the same warmth, nobody else: found where it is not so, and written down."""

import os
import statistics
import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console

from bench.cli import execute
from bench.commands import RunCommand
from bench.errors import UserError
from bench.fairness import Referee, Rest, measure_rest
from bench.planning import make_plans
from bench.presets import Overrides
from bench.probes.host import SWAP_BYTES, swap_in_use
from bench.report.statistics import bootstrap_interval, differ
from bench.results import Record
from bench.runner import run_trials
from bench.training import Window
from tests.bench.trials import Watcher, new_run, tiny_plan


class CoolingDevice:
    """A device that loses `rate` degrees a second, and its clock."""

    def __init__(self, temperature: float | None, rate: float) -> None:
        self.temperature, self.rate, self.now = temperature, rate, 0.0

    def read(self) -> float | None:
        return None if self.temperature is None else self.temperature - self.rate * self.now

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def referee(self, cooldown_s: float) -> Referee:
        return Referee(
            Rest(temperature_c=40.0), self.read, cooldown_s, clock=self.clock, sleep=self.sleep
        )


def test_waiting_until_the_device_is_cool():
    device, told = CoolingDevice(70.0, rate=0.5), []
    assert device.referee(120).wait_until_cool(told.append) == []
    assert device.now == pytest.approx(56, abs=1)  # at 42 °C
    assert len(told) == 1


def test_no_wait_within_two_degrees():
    device = CoolingDevice(41.9, rate=0.1)
    assert device.referee(120).wait_until_cool() == []
    assert device.now == 0


def test_a_limit_after_which_it_goes_on_and_says_so():
    device = CoolingDevice(70.0, rate=0.1)
    (line,) = device.referee(60).wait_until_cool()
    assert device.now == pytest.approx(60, abs=1)
    assert line == (
        "started at 64 °C, 24 °C above the first trial's start, after a wait of 60 s (--cooldown)"
    )


def test_an_interrupt_ends_the_wait():
    device = CoolingDevice(70.0, rate=0.0)
    device.referee(600).wait_until_cool(should_stop=lambda: device.now > 5)
    assert device.now < 10


def test_a_sensor_that_is_lost_ends_the_wait():
    (line,) = CoolingDevice(None, rate=0.0).referee(600).wait_until_cool()
    assert "cannot be read" in line


def test_energy_above_idle():
    record = Record(
        method="idm", repeat=1, energy_j=3000.0, mean_power_w=150.0, energy_source="nvml-power"
    )
    Referee(Rest(30.0, "nvml-counter")).judge(record)
    assert record.idle_power_w == 30
    assert record.energy_above_idle_j == pytest.approx(3000 - 30 * 20)


def test_no_energy_above_what_another_source_calls_idle():
    record = Record(
        method="idm", repeat=1, energy_j=3000.0, mean_power_w=150.0, energy_source="rapl"
    )
    Referee(Rest(30.0, "tdp-estimate")).judge(record)
    assert record.energy_above_idle_j is None


@pytest.mark.parametrize("strict", [True, False])
def test_strict_marks_a_trial_that_had_company(strict):
    record = Record(method="idm", repeat=1, status="ok", contention="swap in use: 1.00 GiB")
    Referee(Rest(), strict=strict).judge(record)
    assert record.status == ("failed" if strict else "ok")
    assert record.error == ("--strict: swap in use: 1.00 GiB" if strict else None)


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
    _, contention = measure_rest(None, None, 0.5)
    (line,) = contention
    assert line.startswith("the CPU was busy with something else: ")


def test_strict_does_not_start_beside_others(tmp_path, busy_cpu):
    command = RunCommand(
        models=("idm",), steps=1, strict=True, out=tmp_path / "out", cache_dir=tmp_path / "cache",
        subjects=1, idle=0.5, overrides=Overrides(volume=8, batch_size=1, channels=(4, 8)),
    )  # fmt: skip
    output = StringIO()
    with pytest.raises(UserError, match="--strict: the CPU was busy with something else"):
        execute(command, Console(file=output))
    assert "Not alone: the CPU was busy" in output.getvalue()
    assert not (tmp_path / "out").exists()


def test_a_window_beside_others_and_two_runs_of_one_seed(tmp_path, busy_cpu):
    window = Window(steps=60)  # long enough for the clock ticks in which the kernel counts load
    plans = [
        tiny_plan(tmp_path, repeat=1, window=window, probes=("host",)),
        tiny_plan(tmp_path, repeat=2, window=window),
    ]
    run = new_run(tmp_path, plans)
    watcher = Watcher()
    run_trials(run, plans, watcher, referee=Referee(Rest(), strict=True))
    first, second = run.records().itertuples()

    assert "the CPU was busy with something else" in first.contention
    assert first.other_load_percent > 10
    assert first.status == "failed"
    assert first.error.startswith("--strict: ")
    assert second.status == "ok"  # nobody watched

    losses = run.steps().pivot_table(index="step", columns="repeat", values="loss")
    assert losses[1].tolist() == losses[2].tolist()
    assert losses[1].nunique() == 60


def test_repeats_take_turns_with_one_seed(tmp_path):
    from bench.methods import METHODS

    plan = tiny_plan(tmp_path)
    chosen = [(METHODS[name], plan.work) for name in ("idm", "unet", "patchddm")]

    class Source:
        name, channels = "phantom", ("t1",)

    plans = make_plans(chosen, {8: (Source(), tmp_path)}, plan, repeats=2)  # type: ignore[dict-item]
    assert [(p.method, p.repeat) for p in plans] == [
        ("idm", 1), ("unet", 1), ("patchddm", 1), ("idm", 2), ("unet", 2), ("patchddm", 2),
    ]  # fmt: skip
    assert len({p.training.seed for p in plans}) == 1


# ---- what repeats can say ------------------------------------------------------------------------


def test_the_interval_of_the_median():
    values = [1.0, 1.2, 0.9, 1.1, 1.05, 0.95, 1.3, 1.0, 1.15, 0.98]
    low, high = bootstrap_interval(values)
    assert min(values) <= low < statistics.median(values) < high <= max(values)
    assert bootstrap_interval(values) == (low, high)  # the same each time


def test_too_few_repeats_have_no_interval():
    assert bootstrap_interval([1.0, 2.0]) is None
    assert bootstrap_interval([1.0, 2.0, float("nan")]) is None
    assert differ([1.0, 1.0], [9.0, 9.0]) is None


def test_different_only_where_the_intervals_say_so():
    a = [1.00, 1.02, 0.98, 1.01, 0.99]
    assert differ(a, [1.20, 1.22, 1.18, 1.21, 1.19]) is True
    assert differ(a, [1.20, 0.97, 1.01, 1.00, 0.90]) is False
    assert differ(a, a) is False


def test_the_interval_covers_the_true_median():
    """Of 200 samples of 15 normal values, as many as it says, give or take three sigma."""
    import numpy as np

    draws = np.random.default_rng(1).normal(size=(200, 15))
    covered = 0
    for draw in draws:
        low, high = bootstrap_interval(draw.tolist())
        covered += low <= 0 <= high
    assert 180 <= covered <= 199
