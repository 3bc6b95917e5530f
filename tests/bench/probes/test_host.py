"""What the machine around a trial does: the setting of its speed."""

from collections import namedtuple

import psutil
import pytest
import torch

from bench.harness.environment import describe_environment
from bench.probes import host

Battery = namedtuple("Battery", "percent secsleft power_plugged")  # as psutil's
Frequency = namedtuple("Frequency", "current min max")


@pytest.fixture
def laptop(monkeypatch, tmp_path):
    """A laptop: `laptop(plugged, governor, mhz)` sets it."""
    governor_file = tmp_path / "scaling_governor"
    monkeypatch.setattr(host, "GOVERNOR", governor_file)

    def be(plugged: bool, governor: str = "performance", mhz: float = 3600.0) -> None:
        governor_file.write_text(governor + "\n")
        battery = Battery(80, 3600, plugged)
        monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
        frequency = Frequency(800.0, 400.0, mhz)
        monkeypatch.setattr(psutil, "cpu_freq", lambda: frequency, raising=False)

    return be


def warnings_of_a_window(change) -> tuple[str, ...]:
    probe = host.HostProbe(torch.device("cpu"))
    probe.start()
    change()
    return probe.stop().warnings


def test_the_setting_is_in_the_environment(laptop):
    laptop(plugged=False, governor="powersave")
    hardware = describe_environment(["run_bench.py"], [])["hardware"]
    assert hardware["power_supply"] == "battery"
    assert hardware["governor"] == "powersave"
    assert hardware["cpu_max_mhz"] == 3600


def test_a_change_in_the_window_is_warned_of(laptop):
    laptop(plugged=True)
    assert warnings_of_a_window(lambda: laptop(False, "powersave", 1200.0)) == (
        "power supply changed in the window: mains → battery",
        "governor changed in the window: performance → powersave",
        "cpu max mhz changed in the window: 3600.0 → 1200.0",
    )


def test_a_battery_is_warned_of_and_mains_are_not(laptop):
    laptop(plugged=False)
    (line,) = warnings_of_a_window(lambda: None)
    assert "runs on its battery" in line
    laptop(plugged=True)
    assert warnings_of_a_window(lambda: None) == ()


def test_a_machine_that_tells_neither(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "GOVERNOR", tmp_path / "none")
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    monkeypatch.setattr(psutil, "cpu_freq", lambda: None, raising=False)
    assert host.speed_setting() == dict.fromkeys(("power_supply", "governor", "cpu_max_mhz"))
    assert warnings_of_a_window(lambda: None) == ()
