"""A `pynvml` that is old, broken or not there: no card, a line that mends it, and no traceback."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bench.probes.nvml import Card, CardUnavailable, driver_version

ROOT = Path(__file__).parents[3]
MEND = "pip install --upgrade nvidia-ml-py"

# The names of pynvml 11.0 that matter here; it returned bytes.
VERSION_11 = """
class NVMLError(Exception):
    def __init__(self, value):
        self.value = value

    def __str__(self):
        return f"error {self.value}"

NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_NOT_FOUND, NVML_ERROR_FUNCTION_NOT_FOUND = 3, 6, 13
NVML_TEMPERATURE_GPU, NVML_CLOCK_SM = 0, 1
nvmlClocksThrottleReasonSwPowerCap = 4
nvmlClocksThrottleReasonHwThermalSlowdown = 64

def nvmlInit(): pass
def nvmlSystemGetDriverVersion(): return b"470.57"
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(index): return "card"
def nvmlDeviceGetHandleByUUID(uuid): return "card"
def nvmlDeviceGetUUID(handle): return b"GPU-1111"
def nvmlDeviceGetName(handle): return b"Tesla V100"
def nvmlDeviceGetPowerUsage(handle): return 250000
def nvmlDeviceGetTemperature(handle, sensor): return 50
def nvmlDeviceGetClockInfo(handle, kind): return 1380
def nvmlDeviceGetCurrentClocksThrottleReasons(handle): return 64
def nvmlDeviceGetComputeRunningProcesses(handle): return []
"""


def found(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """From here on, `import pynvml` finds a module of this text."""
    module = ModuleType("pynvml")
    exec(text, vars(module))
    monkeypatch.setitem(sys.modules, "pynvml", module)


@pytest.mark.parametrize("visible", ["0", "GPU-11"])
def test_version_11_reads_what_it_can(monkeypatch, visible):
    found(monkeypatch, VERSION_11)
    assert driver_version() == "470.57"
    card = Card.open(visible=visible)
    figures = card.name(), card.power_w(), card.temperature_c(), card.clock_mhz()
    assert figures == ("Tesla V100", 250.0, 50, 1380)
    assert card.throttle_reasons() == ["hardware thermal slowdown"]
    assert (card.energy_j(), card.utilization_percent(), card.processes()) == (None, None, set())
    for line, reading in zip(card.warnings, ("energy counter", "utilisation"), strict=True):
        assert line.startswith(f"NVML {reading}: ")
        assert MEND in line


def test_a_mig_instance_that_version_11_does_not_know(monkeypatch):
    found(monkeypatch, VERSION_11)
    with pytest.raises(CardUnavailable, match=f"^NVML, card MIG-1: .*{MEND}"):
        Card.open(visible="MIG-1")


def test_another_module_of_that_name_is_no_card(monkeypatch):
    found(monkeypatch, "__version__ = '0'")
    assert driver_version() is None
    with pytest.raises(CardUnavailable, match=f"^NVML: .*{MEND}"):
        Card.open(visible="0")


READ = """
from bench.probes.nvml import Card, CardUnavailable, driver_version
from bench.probes import energy, temperature
from bench.run import trial, sensors
print(driver_version())
try:
    Card.open(visible="0")
except CardUnavailable as why:
    print(why)
"""


def test_nothing_needs_a_pynvml_before_a_card_is_asked_for(tmp_path):
    """In a process of its own, where loading it fails."""
    (tmp_path / "pynvml.py").write_text("raise ImportError('No module named pynvml')")
    process = subprocess.run(
        [sys.executable, "-c", READ], cwd=ROOT, text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    version, why = process.stdout.splitlines()
    assert version == "None"
    assert why.startswith("NVML: ")
    assert MEND in why
