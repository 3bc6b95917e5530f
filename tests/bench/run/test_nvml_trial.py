"""Whole trials beside a scripted card (`--card`): what happens to the card is in the record."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.harness.window import Window
from bench.records.folder import Run
from tests.bench.trials import Watcher, new_run, run_trials, tiny_plan

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
PROBES = ("energy", "temperature", "host")
CARD = """epoch {epoch}
card GPU-11111111-0000
power constant 250
temperature 50 0
counter 0.02 64 1000
clock 1410
utilization 99
"""


@pytest.fixture
def card(nvml, tmp_path, monkeypatch):
    """Writes the script that the trials' processes will load."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml))
    monkeypatch.setenv("NVML_SCRIPT", str(tmp_path / "script"))

    def write(*lines: str) -> None:
        text = CARD.format(epoch=time.monotonic()) + "\n".join(lines) + "\n"
        (tmp_path / "script").write_text(text)

    return write


def test_a_card_lost_in_mid_window_and_no_driver_after(card, tmp_path, monkeypatch):
    card(f"lost {tmp_path / 'lost'}")
    plan = tiny_plan(tmp_path, card="0", probes=PROBES, window=Window(seconds=1.5), sample_hz=20.0)
    run = new_run(tmp_path, [plan])
    watcher = Watcher(lambda step: (tmp_path / "lost").touch() if step.elapsed_s > 0.7 else None)
    run_trials(run, [plan], watcher)
    monkeypatch.delenv("LD_LIBRARY_PATH")
    no_driver = tiny_plan(tmp_path, repeat=2, card="0", probes=PROBES)
    run_trials(run, [no_driver], Watcher())

    lost, without = run.records().itertuples()
    assert lost.status == without.status == "ok"
    assert lost.energy_source == "nvml-counter"
    assert lost.energy_j != lost.energy_j  # empty: that of the whole window is not known
    assert "GPU is lost" in lost.warnings
    assert "samples.csv has its beginning" in lost.warnings
    assert lost.temperature_peak_c == 50
    samples = run.samples()[run.samples()["repeat"] == 1]
    before = samples.dropna(subset=["energy_j"])
    assert 3 < len(before) < len(samples)
    assert before["energy_j"].iloc[-1] == pytest.approx(250 * before["elapsed_s"].iloc[-1], rel=0.1)
    assert "NVML, card 0:" in without.warnings
    assert str(without.energy_source) in ("<NA>", "nan", "None")


def test_a_trial_waits_for_the_temperature_of_the_first_one(card, tmp_path):
    """Warmed up, before its window; no longer than the card cools."""
    plan = tiny_plan(tmp_path, card="0", probes=PROBES, window=Window(seconds=0.5))
    plans = [replace(plan, repeat=number, start_c=50.0, cooldown_s=60.0) for number in (1, 2)]
    run = new_run(tmp_path, plans)
    for line, each in zip(("temperature 90 -4", "temperature 90 0"), plans, strict=True):
        card(line)
        run_trials(run, [each], Watcher())
    cooled, stuck = run.records().itertuples()
    assert cooled.status == stuck.status == "ok"
    assert 45 <= cooled.temperature_start_c <= 52
    assert "first trial's start" not in str(cooled.warnings)
    assert stuck.temperature_start_c == 90
    assert "started at 90 °C, 40 °C above the first trial's start, after a wait of 2" in (
        stuck.warnings
    )


@pytest.mark.parametrize(
    "refused",
    [pytest.param(None, marks=pytest.mark.thorough), "nvmlDeviceGetTotalEnergyConsumption"],
)
def test_calls_that_take_long_are_not_part_of_the_window(card, tmp_path, refused):
    card("delay 0.3", f"fail {refused} 3 0 1e9" if refused else "")
    plan = tiny_plan(tmp_path, card="0", probes=PROBES, window=Window(seconds=6.0))
    run = new_run(tmp_path, [plan])
    run_trials(run, [plan], Watcher())
    (record,) = run.records().itertuples()
    assert record.status == "ok"
    assert record.energy_source == ("nvml-power" if refused else "nvml-counter")
    assert record.energy_j == pytest.approx(250 * record.window_s, rel=0.01)
    assert record.mean_power_w == pytest.approx(250, rel=0.01)
    assert record.temperature_mean_c == 50
    assert "s outside of the window" in record.warnings
    assert "a reading of CardProbe takes" in record.warnings


def test_the_command_with_a_throttled_card_that_someone_else_uses(card, tmp_path):
    card("throttle 64 0 1e9", "process 4711 0 1e9")
    process = subprocess.run(
        [
            sys.executable, "run_bench.py", "--models", "idm", "--steps", "20", "--volume", "8",
            "--batch-size", "1", "--channels", "4", "8", "--card", "GPU-1111", "--idle", "0.3",
            "--country", "CHE", "--subjects", "1", "--out", str(tmp_path / "out"),
            "--cache-dir", str(tmp_path / "cache"),
        ],
        cwd=ROOT, text=True, capture_output=True, env=dict(os.environ),
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    run = Run(next((tmp_path / "out").iterdir()))
    (record,) = run.records().itertuples()
    assert record.energy_source == "nvml-counter"
    assert record.mean_power_w == pytest.approx(250, rel=0.05)  # real time: not to the script's ms
    assert record.idle_power_w == pytest.approx(250, rel=0.05)
    assert abs(record.energy_above_idle_j) < 0.1 * record.energy_j
    assert record.co2_source == "codecarbon:CHE"
    assert record.temperature_source == "nvml"
    assert "hardware thermal slowdown" in record.throttled
    assert "throttled: hardware thermal slowdown" in record.contention
    assert "another process on the card: 4711" in record.contention
    assert "are those of the card Scripted Card (--card)" in record.warnings
    shown = process.stdout
    assert "Warning: other load on this machine: another process on the card: 4711" in shown
    assert "throttled: hardware thermal slowdown" in shown
    idle = run.environment()["idle"]
    assert idle["idle_source"] == "nvml-counter"
    assert idle["temperature_c"] == 50
