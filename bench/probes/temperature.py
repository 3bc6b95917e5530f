"""Temperature of the device under test: `nvml` for a card, `psutil` for a CPU."""

from collections.abc import Callable

import psutil
import torch

from bench.probes import Columns
from bench.probes.nvml import Card

# Linux drivers that report a processor's own temperature, not a disk's or the board's.
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "acpitz")


class TemperatureProbe:
    """Start, peak and mean over the window, in degrees Celsius."""

    def __init__(self, read: Callable[[], float | None], source: str) -> None:
        self.read = read
        self.source = source

    def start(self) -> None:
        self._start = self.read()
        self._readings = [] if self._start is None else [self._start]

    def sample(self) -> Columns:
        reading = self.read()
        if reading is not None:
            self._readings.append(reading)
        return {"temperature_c": reading}

    def stop(self) -> Columns:
        self.sample()
        if not self._readings:
            return {}
        return {
            "temperature_start_c": self._start,
            "temperature_peak_c": max(self._readings),
            "temperature_mean_c": sum(self._readings) / len(self._readings),
            "temperature_source": self.source,
        }


def open_thermometer(device: torch.device, card: Card | None = None) -> TemperatureProbe | None:
    """A probe for `device`, or None where it has no sensor."""
    if device.type == "cuda":
        if card is None or card.temperature_c() is None:
            return None
        return TemperatureProbe(card.temperature_c, "nvml")
    if cpu_temperature_c() is None:
        return None
    return TemperatureProbe(cpu_temperature_c, "psutil")


def cpu_temperature_c() -> float | None:
    """The hottest reading of the CPU's own sensor; None where there is none."""
    if not hasattr(psutil, "sensors_temperatures"):  # only Linux and FreeBSD have it
        return None
    sensors = psutil.sensors_temperatures()
    for name in _CPU_SENSORS:
        if sensors.get(name):
            return max(reading.current for reading in sensors[name])
    return None
