"""A `pynvml` that is old, broken or not there: no card, a line that mends it, and no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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

READ = """
from bench.probes.nvml import Card, CardUnavailable, driver_version
from bench.probes import energy, temperature
from bench.run import trial, sensors
print(driver_version())
try:
    card = Card.open(visible={visible!r})
except CardUnavailable as why:
    print(why)
else:
    print(card.name(), card.power_w(), card.temperature_c(), card.clock_mhz())
    print(card.throttle_reasons(), card.energy_j(), card.utilization_percent(), card.processes())
    print(*card.warnings, sep="\\n")
"""


def read_with(pynvml: str, folder: Path, visible: str = "0") -> list[str]:
    """Lines that `READ` prints where `import pynvml` finds this text."""
    (folder / "pynvml.py").write_text(pynvml)
    process = subprocess.run(
        [sys.executable, "-c", READ.format(visible=visible)],
        cwd=ROOT, text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


@pytest.mark.parametrize("visible", ["0", "GPU-11"])
def test_version_11_reads_what_it_can(tmp_path, visible):
    version, figures, more, *warnings = read_with(VERSION_11, tmp_path, visible)
    assert version == "470.57"
    assert figures == "Tesla V100 250.0 50 1380"
    assert more == "['hardware thermal slowdown'] None None set()"
    assert len(warnings) == 2
    for line, reading in zip(warnings, ("energy counter", "utilisation"), strict=True):
        assert line.startswith(f"NVML {reading}: ")
        assert MEND in line


def test_a_mig_instance_that_version_11_does_not_know(tmp_path):
    _, why = read_with(VERSION_11, tmp_path, "MIG-1")
    assert why.startswith("NVML, card MIG-1: ")
    assert MEND in why


@pytest.mark.parametrize(
    "text",
    ["raise ImportError('No module named pynvml')", "__version__ = '0'"],
    ids=["none", "another module"],
)
def test_without_a_pynvml_there_is_no_card(tmp_path, text):
    version, why = read_with(text, tmp_path)
    assert version == "None"
    assert why.startswith("NVML: ")
    assert MEND in why
