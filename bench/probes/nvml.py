"""One NVIDIA card through NVML: the only file that knows `pynvml`.

Every reading is a number or None: what a driver does not support or refuses is None, and the first
reason is kept in `warnings`, once for each reading, for the record.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import pynvml

T = TypeVar("T")

# The reasons that mean "slower than asked": the others (idle, user's clock setting) do not.
_THROTTLE_REASONS = {
    "power cap": pynvml.nvmlClocksEventReasonSwPowerCap,
    "hardware slowdown": pynvml.nvmlClocksEventReasonHwSlowdown,
    "software thermal slowdown": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    "hardware thermal slowdown": pynvml.nvmlClocksEventReasonHwThermalSlowdown,
    "power brake": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
}


class Card:
    """The card that PyTorch calls `cuda:index`, under whatever CUDA_VISIBLE_DEVICES says."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.warnings: list[str] = []
        self._refused: set[str] = set()

    @classmethod
    def open(cls, index: int = 0, visible: str | None = None) -> "Card | None":
        """The card, or None where NVML, its driver or the card is missing.

        `visible` stands for CUDA_VISIBLE_DEVICES: indices, UUIDs (or their beginnings), MIG ids.
        """
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
        try:
            pynvml.nvmlInit()
            return cls(_handle(index, visible))
        except (pynvml.NVMLError, LookupError):
            return None

    def energy_j(self) -> float | None:
        """Energy since the driver was loaded, in joules (counter of 1 mJ)."""
        return _scaled(self._read("energy counter", pynvml.nvmlDeviceGetTotalEnergyConsumption))

    def power_w(self) -> float | None:
        """Power drawn by the board, in watts."""
        return _scaled(self._read("power", pynvml.nvmlDeviceGetPowerUsage))

    def temperature_c(self) -> float | None:
        """Temperature of the chip, in degrees Celsius."""
        return self._read(
            "temperature",
            lambda handle: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        )

    def utilization_percent(self) -> float | None:
        """Share of the last sample period in which a kernel ran."""
        rates = self._read("utilisation", pynvml.nvmlDeviceGetUtilizationRates)
        return None if rates is None else rates.gpu

    def throttle_reasons(self) -> list[str]:
        """Why the card is slower than asked at this moment; empty if it is not."""
        bits = self._read("throttle reasons", pynvml.nvmlDeviceGetCurrentClocksEventReasons)
        return [name for name, bit in _THROTTLE_REASONS.items() if bits is not None and bits & bit]

    def other_processes(self) -> list[int]:
        """Process ids, other than ours, that compute on the card."""
        running = self._read("processes", pynvml.nvmlDeviceGetComputeRunningProcesses)
        return [p.pid for p in running or [] if p.pid != os.getpid()]

    def _read(self, what: str, function: Callable[[Any], T]) -> T | None:
        try:
            return function(self._handle)
        except pynvml.NVMLError as error:
            if what not in self._refused:
                self._refused.add(what)
                self.warnings.append(f"NVML {what}: {error}")
            return None


def _handle(index: int, visible: str | None) -> Any:
    if visible is None or not visible.strip():
        return pynvml.nvmlDeviceGetHandleByIndex(index)
    name = visible.split(",")[index].strip()
    if name.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    for candidate in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(candidate)
        if pynvml.nvmlDeviceGetUUID(handle).startswith(name):
            return handle
    # A MIG instance: what NVML can tell of power and temperature belongs to the whole card.
    return pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
        pynvml.nvmlDeviceGetHandleByUUID(name)
    )


def _scaled(milli: int | None) -> float | None:
    return None if milli is None else milli / 1000
