"""One NVIDIA card through NVML: the only file that knows `pynvml`.

Every reading is a number or None: what a driver does not support or refuses is None, and the reason
is kept in `Card.warnings`, one line for each kind of reading, for the record.
"""

import os
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import pynvml

from ..records.rows import CardState, Reading

T = TypeVar("T")

POWER_CAP = "power cap"
# The reasons that mean "slower than asked": the others (idle, user's clock setting) do not.
_THROTTLE_REASONS = {
    POWER_CAP: pynvml.nvmlClocksEventReasonSwPowerCap,
    "hardware slowdown": pynvml.nvmlClocksEventReasonHwSlowdown,
    "software thermal slowdown": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    "hardware thermal slowdown": pynvml.nvmlClocksEventReasonHwThermalSlowdown,
    "power brake": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
}


class CardUnavailable(Exception):
    """Why there is no card to read, in a line: no driver, no permission, no such card."""


class Card:
    """A card as NVML knows it."""

    def __init__(self, handle: Any, *notes: str) -> None:
        self._handle = handle
        self._notes = list(notes)
        self._refusals: dict[str, str] = {}
        self._refused: Counter[str] = Counter()
        self._unsupported: set[str] = set()

    @classmethod
    def open(cls, index: int = 0, visible: str | None = None) -> "Card":
        """The card that PyTorch calls `cuda:index`; CardUnavailable where it cannot be read.

        Args:
            visible: stands for CUDA_VISIBLE_DEVICES: indices, UUIDs (or their beginnings), MIG ids.
                Indices are NVML's, those of nvidia-smi, which CUDA shares under
                CUDA_DEVICE_ORDER=PCI_BUS_ID (`bench.cli` sets it).
        """
        if visible is None:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            name = str(index)
        else:
            name = dict(enumerate(visible.split(","))).get(index, "").strip()
        try:
            pynvml.nvmlInit()
            return cls._find(name)
        except pynvml.NVMLError as error:
            which = f"card {name}" if name else "no visible card"
            raise CardUnavailable(f"NVML, {which}: {error}") from None

    @classmethod
    def _find(cls, name: str) -> "Card":
        if name.isdigit():
            return cls(pynvml.nvmlDeviceGetHandleByIndex(int(name)))
        if name.startswith("MIG-"):
            instance = pynvml.nvmlDeviceGetHandleByUUID(name)
            return cls(
                pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance),
                "MIG instance: power, energy and temperature are those of the whole card",
            )
        for candidate in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(candidate)
            if name and pynvml.nvmlDeviceGetUUID(handle).startswith(name):
                return cls(handle)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    @property
    def warnings(self) -> list[str]:
        """What could not be read, and how often, in a line each."""
        return self._notes + [
            f"NVML {what}: {error}"
            + ("" if what in self._unsupported else f" ({self._refused[what]} readings missed)")
            for what, error in self._refusals.items()
        ]

    def name(self) -> str | None:
        return self._read("name", pynvml.nvmlDeviceGetName)

    def energy_j(self) -> float | None:
        """Energy since the driver was loaded, in joules (counter of 1 mJ; Volta and later)."""
        return _scaled(self._read("energy counter", pynvml.nvmlDeviceGetTotalEnergyConsumption))

    def power_w(self) -> float | None:
        """Power drawn by the board, in watts; from Ampere on a mean over the last second."""
        return _scaled(self._read("power", pynvml.nvmlDeviceGetPowerUsage))

    def temperature_c(self) -> float | None:
        """Temperature of the chip, in whole degrees Celsius."""
        return self._read(
            "temperature",
            lambda handle: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        )

    def utilization_percent(self) -> float | None:
        """Share of the last sample period (1/6 to 1 s) in which a kernel ran."""
        rates = self._read("utilisation", pynvml.nvmlDeviceGetUtilizationRates)
        return None if rates is None else rates.gpu

    def clock_mhz(self) -> float | None:
        """Clock of the multiprocessors, in MHz."""
        return self._read(
            "clock", lambda handle: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
        )

    def throttle_reasons(self) -> list[str]:
        """Why the card is slower than asked at this moment; empty if it is not."""
        bits = self._read("throttle reasons", _throttle_bits)
        return [name for name, bit in _THROTTLE_REASONS.items() if bits is not None and bits & bit]

    def processes(self) -> set[int]:
        """Ids of the processes that compute on the card, as the driver knows them.

        Inside a container those are often not the ids that the container knows.
        """
        running = self._read("processes", pynvml.nvmlDeviceGetComputeRunningProcesses)
        return {process.pid for process in running or []}

    def _read(self, what: str, function: Callable[[Any], T]) -> T | None:
        if what in self._unsupported:
            return None
        try:
            return function(self._handle)
        except pynvml.NVMLError as error:
            if error.value in (pynvml.NVML_ERROR_NOT_SUPPORTED, _FUNCTION_NOT_FOUND):
                self._unsupported.add(what)
            self._refusals.setdefault(what, str(error))
            self._refused[what] += 1
            return None


class CardProbe:
    """Load, clock and throttling of the card over the window, and other processes on it."""

    def __init__(self, card: Card) -> None:
        self.card = card

    def start(self) -> None:
        self._readings = 0
        self._clocks: list[float] = []
        self._throttled: Counter[str] = Counter()
        # Ours are on the card by now. Whoever was there before the trial, the parent has seen.
        self._expected = self.card.processes()
        self._newcomers: set[int] = set()

    def sample(self) -> Reading:
        self._readings += 1
        self._throttled.update(self.card.throttle_reasons())
        self._newcomers |= self.card.processes() - self._expected
        if (clock := self.card.clock_mhz()) is not None:
            self._clocks.append(clock)
        return Reading(utilization_percent=self.card.utilization_percent())

    def stop(self) -> CardState:
        shares = {
            reason: f"{reason} in {count} of {self._readings} readings"
            for reason, count in self._throttled.items()
        }
        # A card under load often works at its power cap; that is its normal speed.
        contention = [f"throttled: {text}" for name, text in shares.items() if name != POWER_CAP]
        if self._newcomers:
            others = ", ".join(map(str, sorted(self._newcomers)))
            contention.append(f"another process came to the card: {others}")
        return CardState(
            clock_mean_mhz=sum(self._clocks) / len(self._clocks) if self._clocks else None,
            throttled=", ".join(shares.values()) or None,
            contention=tuple(contention),
            warnings=tuple(self.card.warnings),
        )


_FUNCTION_NOT_FOUND = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND


def _throttle_bits(handle: Any) -> int:
    try:
        return pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except pynvml.NVMLError as error:
        if error.value != _FUNCTION_NOT_FOUND:
            raise
        return pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)  # drivers before 535


def _scaled(milli: int | None) -> float | None:
    return None if milli is None else milli / 1000
