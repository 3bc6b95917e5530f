"""Temperature of the device under test: `nvml` for a card, `psutil` for a CPU."""

from collections.abc import Callable

import psutil
import torch

from ..records.rows import Reading, Temperature
from .nvml import Card

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

    def sample(self) -> Reading:
        reading = self.read()
        if reading is not None:
            self._readings.append(reading)
        return Reading(temperature_c=reading)

    def stop(self) -> Temperature:
        found = Temperature(temperature_source=self.source)
        if self.sample().temperature_c is None:
            found.warnings = (f"{self.source}: temperature broke off in the window",)
        if self._readings:
            found.temperature_start_c = self._start
            found.temperature_peak_c = max(self._readings)
            found.temperature_mean_c = sum(self._readings) / len(self._readings)
        return found


def open_thermometer(device: torch.device, card: Card | None = None) -> TemperatureProbe | None:
    """A probe for `card`, or for the CPU if that is the device; None where it has no sensor."""
    if card is not None:
        has_sensor = card.temperature_c() is not None
        return TemperatureProbe(card.temperature_c, "nvml") if has_sensor else None
    if device.type != "cpu" or cpu_temperature_c() is None:
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
