"""Temperature of the device under test: `nvml` for a card, `psutil` for a CPU."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import psutil
import torch

from ..records.rows import Reading, Temperature
from . import Span
from .nvml import Card

# Linux drivers that report a processor's own temperature, not a disk's or the board's.
_CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "acpitz")

COLDEST_C, HOTTEST_C = 0.0, 130.0
"""A chip that runs is between these: a sensor that cannot tell gives 0 or 255."""
JUMP_C = {"nvml": 25.0, "psutil": 40.0}
"""No chip comes so much nearer or farther and back within a second; a bare core can do more."""
_JUMP_S = 1.0


class TemperatureProbe:
    """Start, peak and mean over the window, in degrees Celsius; what no chip has is left out.

    Args:
        sensor: in degrees Celsius; None where a reading fails.
        source: `nvml` or `psutil`.
        clock: seconds.
    """

    def __init__(
        self,
        sensor: Callable[[], float | None],
        source: str,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.sensor = sensor
        self.source = source
        self.clock = clock
        self._left_out: Counter[float] = Counter()

    def start(self) -> None:
        self._readings: list[tuple[float, float]] = []  # seconds, degrees
        self._left_out.clear()
        self._taken = 0
        self.sample()

    def read(self) -> float | None:
        """The temperature now; None where it cannot be read, or is not that of a running chip."""
        self._answered = (celsius := self.sensor()) is not None
        if celsius is None or COLDEST_C < celsius < HOTTEST_C:
            return celsius
        self._left_out[celsius] += 1
        return None

    def sample(self) -> Reading:
        before = self.clock()
        celsius = self.read()
        self._taken += self._answered
        self._read_at = (before + self.clock()) / 2
        if celsius is not None:
            self._readings.append((self._read_at, celsius))
        return Reading(temperature_c=celsius)

    def stop(self, window: Span | None = None) -> Temperature:
        if window is None or self._read_at < window.end:
            self.sample()
        found = Temperature(temperature_source=self.source)
        warnings = [] if self._answered else [f"{self.source}: temperature broke off in the window"]
        spikes = _spikes(self._readings, JUMP_C[self.source])
        left_out = self._left_out + Counter(self._readings[index][1] for index in spikes)
        if left_out:
            which = ", ".join(f"{celsius:g}" for celsius in sorted(left_out)[:5])
            warnings.append(
                f"{self.source}: {left_out.total()} of {self._taken} temperature readings are left "
                f"out, because no running chip has or jumps to them: {which} °C"
            )
        readings = [pair for index, pair in enumerate(self._readings) if index not in spikes]
        if readings:
            inside = [pair for pair in readings if window is None or window.has(pair[0])]
            if not inside:
                warnings.append(f"{self.source}: temperature was read around the window, not in it")
            found.temperature_start_c = readings[0][1]
            found.temperature_peak_c = max(celsius for _, celsius in inside or readings)
            found.temperature_mean_c = _mean(inside or readings, window)
        found.warnings = tuple(warnings)
        return found


def _spikes(readings: Sequence[tuple[float, float]], jump_c: float) -> set[int]:
    """Indices of readings far from the one before, where the temperature comes back in a second."""
    spikes: set[int] = set()
    last = 0
    for index in range(1, len(readings)):
        then, before = readings[last]
        if abs(readings[index][1] - before) <= jump_c:
            last = index
            continue
        soon = itertools.takewhile(
            lambda pair: pair[0] - then < _JUMP_S,  # noqa: B023
            itertools.islice(readings, index, None),
        )
        if any(abs(celsius - before) <= jump_c for _, celsius in soon):
            spikes.add(index)
        else:
            last = index
    return spikes


def _mean(readings: Sequence[tuple[float, float]], window: Span | None) -> float:
    """Over time: a trapezoid from each reading to the next; the first and last hold to the ends."""
    times, degrees = np.transpose(readings)
    begin, end = (window.begin, window.end) if window is not None else (times[0], times[-1])
    if end <= begin:
        return float(degrees.mean())
    grid = np.unique([begin, *times[(times > begin) & (times < end)], end])
    values = np.interp(grid, times, degrees)
    return float(((values[1:] + values[:-1]) / 2 * np.diff(grid)).sum() / (end - begin))


def open_thermometer(
    device: torch.device,
    card: Card | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> TemperatureProbe | None:
    """A probe for `card`, or for the CPU if that is the device; None where it has no sensor."""
    if card is not None:
        has_sensor = card.temperature_c() is not None
        return TemperatureProbe(card.temperature_c, "nvml", clock) if has_sensor else None
    if device.type != "cpu" or cpu_temperature_c() is None:
        return None
    return TemperatureProbe(cpu_temperature_c, "psutil", clock)


def cpu_temperature_c() -> float | None:
    """The hottest reading of the CPU's own sensor; None where there is none."""
    if not hasattr(psutil, "sensors_temperatures"):  # only Linux and FreeBSD have it
        return None
    sensors = psutil.sensors_temperatures()
    for name in _CPU_SENSORS:
        if sensors.get(name):
            return max(reading.current for reading in sensors[name])
    return None
