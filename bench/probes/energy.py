"""Energy of the device under test over the window, from the best source that it has.

| source | what it is |
|---|---|
| `nvml-counter` | the card's own energy counter |
| `nvml-power` | the card's power, sampled and integrated |
| `rapl` | the CPU packages' energy counters (Linux powercap) |
| `tdp-estimate` | CodeCarbon's guess from the CPU's model and load: an estimate, always named so |

Resolution and known error of each: docs/measurement.md.
"""

import bisect
import difflib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..errors import UserError
from ..records.rows import Energy, Reading
from . import Span
from .nvml import Card

POWERCAP = Path("/sys/class/powercap")
_MOST_W = 10_000  # no device here draws more: a larger step of a counter is no measurement
_TICK_POLL_S = 1e-4
# A counter in another unit is wrong a thousandfold. Few readings of power may all have met the same
# phase of it, and a second's mean lags: those give a counter the benefit of a card's whole range.
_MOST_RATIO, _MOST_RATIO_OF_FEW = 2.0, 100.0
_MANY, _LONG_S = 10, 2.0


class Meter(Protocol):
    """A source of energy: a counter, power, or both; a reading that fails is None."""

    counter_source: str | None
    """Name of the source where `energy_j` counts; None where it does not."""
    power_source: str | None
    """Name of the source where power has to be integrated; None where it cannot be."""
    counter_span_j: float
    """The counter starts at 0 again after so many joules."""
    longest_tick_s: float
    """The counter moves at least this often; 0 where it moves at every reading."""
    warnings: list[str]

    def energy_j(self) -> float | None:
        """The counter, in joules from an arbitrary zero."""
        ...

    def power_w(self) -> float | None: ...


class EnergyProbe:
    """Joules of the window: the counter's where there is one, else power integrated over time.

    No reading is exactly at an end of the window, and none is instant: it is taken to be of the
    middle of its call. What was counted outside of the window is taken off again, by the power read
    there or, of a source without power, by a straight line between the readings on both sides.

    A counter that moves only every tenth of a second would be wrong by that much at both ends of
    a window. So counting begins at a tick, and ends at the tick after the window.

    Args:
        clock: seconds, that of the window.
        sleep: waits for so many of them.
    """

    def __init__(
        self,
        meter: Meter,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.meter = meter
        self.clock = clock
        self.sleep = sleep

    def start(self) -> None:
        self._counted, self._power = _Count(self.meter.counter_span_j), _Power()
        self._power.add(*self._at(self.meter.power_w))
        self._counted.add(*self._next_tick(), self._power.joules)  # last: next to the window
        self._begin = self.clock()

    def sample(self) -> Reading:
        before, then = self._counted.joules, self._counted.time
        watts = self._read()
        if self.meter.counter_source is None:
            return Reading(power_w=watts, energy_j=self._power.value())
        if self.meter.power_source is None and self._counted.time > then:
            watts = (self._counted.joules - before) / (self._counted.time - then)  # its mean
        return Reading(power_w=watts, energy_j=self._counted.value())

    def stop(self, window: Span | None = None) -> Energy:
        """The energy is left out where the last reading failed: what was missed is unknown."""
        window = window if window is not None else Span(self._begin, self.clock())
        if self._counted.time < window.end or self._power.time < window.end:
            self._read()
        energy, source, warnings = self._power.value(), self.meter.power_source, []
        if energy is not None:
            energy = self._power.over(window)
        outside_s = _outside_s(self._power.times, window)
        if self.meter.counter_source is not None:
            counted = self._counted.value()
            counted_outside_s = _outside_s(self._counted.times, window)
            if counted is not None:
                counted = self._counted_over(window)
            wrong = self._wrong_counter(counted, energy, window)
            if self._counted.resets:
                warnings.append(
                    f"the energy counter was reset {self._counted.resets} times: "
                    "energy in between is integrated power"
                )
            if wrong is not None:
                warnings.append(wrong)
            if energy is None or wrong is None:
                energy, source, outside_s = counted, self.meter.counter_source, counted_outside_s
            else:
                warnings.append("energy is integrated power")
        if energy is None:
            warnings.append("energy of the whole window is unknown; samples.csv has its beginning")
        elif outside_s > window.near_s and window.seconds > 0:
            warnings.append(
                f"energy was read {outside_s:.2g} s outside of the window, "
                f"{outside_s / window.seconds:.0%} of it: taken off by the power around it"
            )
        found = Energy(energy_source=source, warnings=(*warnings, *self.meter.warnings))
        if energy is not None:
            found.energy_j = energy
            found.mean_power_w = energy / window.seconds if window.seconds > 0 else None
        return found

    def _at(self, read: Callable[[], float | None]) -> tuple[float, float | None]:
        """A reading, and when it was: half-way, as no driver says when in its call."""
        before = self.clock()
        value = read()
        return (before + self.clock()) / 2, value

    def _read(self) -> float | None:
        now, watts = self._at(self.meter.power_w)
        self._power.add(now, watts)
        self._counted.add(*self._at(self.meter.energy_j), self._power.joules)
        return watts

    def _counted_over(self, window: Span) -> float:
        """Joules of the window by the counter."""
        soon = self.clock() - window.end < self.meter.longest_tick_s
        ticked = soon and self._finish_count()
        times, joules = self._counted.times, self._counted.at
        if self._power.value() is None:
            begin, end = np.interp([window.begin, window.end], times, joules)
            return float(end - begin)
        first = max(0, bisect.bisect_right(times, window.begin) - 1)
        last = (
            len(times) - 1 if ticked else min(len(times) - 1, bisect.bisect_left(times, window.end))
        )
        before = self._power.between(times[first], window.begin, Span(end=window.begin))
        after = self._power.between(window.end, times[last], Span(begin=window.end))
        return joules[last] - joules[first] - before - after

    def _finish_count(self) -> bool:
        """Count to the next tick; whether there was one in its time."""
        found: list[tuple[float, float | None]] = []
        now, count = self._next_tick(lambda: found.append(self._at(self.meter.power_w)))
        for at, watts in found:
            if watts is not None:
                self._power.add(at, watts)
        return self._counted.add(now, count, self._power.joules) > 0

    def _next_tick(
        self, at_poll: Callable[[], object] = lambda: None
    ) -> tuple[float, float | None]:
        """The counter at the moment when it moves, or when it should have."""
        now, count = self._at(self.meter.energy_j)
        later = count
        give_up = self.clock() + self.meter.longest_tick_s
        while later is not None and later == count and self.clock() < give_up:
            self.sleep(_TICK_POLL_S)
            now, later = self._at(self.meter.energy_j)
            at_poll()
        return now, later

    def _wrong_counter(
        self, counted: float | None, integrated: float | None, window: Span
    ) -> str | None:
        """Why the counter is not to be believed; None where it is."""
        if counted is None:
            return "the energy counter broke off in the window"
        if integrated is None:
            return None
        if self._counted.joules == 0 or counted <= 0:
            return "the energy counter did not move in the window"
        inside = sum(window.begin <= time <= window.end for time in self._power.times)
        many = inside >= _MANY and window.seconds >= _LONG_S
        most = _MOST_RATIO if many else _MOST_RATIO_OF_FEW
        if integrated > 0 and not 1 / most <= counted / integrated <= most:
            return (
                f"the energy counter counted {counted:.3g} J where power gives {integrated:.3g} J: "
                "it may be in another unit"
            )
        return None


def _outside_s(times: Sequence[float], window: Span) -> float:
    """Seconds from the ends of the window to the readings just outside of it, or else just inside.

    So much of what was metered is not of the window, or of the window was not metered.
    """
    if not times:
        return 0.0
    first = max(0, bisect.bisect_right(times, window.begin) - 1)
    last = min(len(times) - 1, bisect.bisect_left(times, window.end))
    return abs(window.begin - times[first]) + abs(times[last] - window.end)


class _Power:
    """Power over time, a trapezoid from each reading to the next, also across one that failed."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.watts: list[float] = []
        self.time = -math.inf
        """Of the last reading, also of one that failed."""
        self.joules = 0.0
        """Up to the last reading."""
        self._failed = False

    def add(self, now: float, watts: float | None) -> None:
        self.time, self._failed = now, watts is None
        if watts is None:
            return
        if self.times:
            self.joules += (watts + self.watts[-1]) / 2 * (now - self.times[-1])
        self.times.append(now)
        self.watts.append(watts)

    def value(self) -> float | None:
        """Joules up to the last reading; None if that failed."""
        return None if self._failed else self.joules

    def over(self, window: Span) -> float:
        """Joules of the window.

        With readings enough in it, those alone: the power before and after is another.
        """
        return self.between(window.begin, window.end, window)

    def between(self, begin: float, end: float, known: Span) -> float:
        """Joules from `begin` to `end` by the readings in `known`, or by all if that has too few.

        The first and the last of them hold to the ends.
        """
        times, watts = self.times, self.watts
        inside = slice(
            bisect.bisect_left(times, known.begin), bisect.bisect_right(times, known.end)
        )
        fewest = 2 if math.isfinite(known.seconds) else 1
        if len(times[inside]) >= fewest:
            times, watts = times[inside], watts[inside]
        grid = [begin, *(time for time in times if begin < time < end), end]
        power = np.interp(grid, times, watts)
        return float(((power[1:] + power[:-1]) / 2 * np.diff(grid)).sum())


class _Count:
    """What a counter has counted since the first reading, across its wraps and resets."""

    def __init__(self, span_j: float) -> None:
        self.times: list[float] = []
        self.at: list[float] = []
        """Joules counted at each of those times."""
        self.joules = 0.0
        self.time = -math.inf
        """Of the last reading, also of one that failed."""
        self.resets = 0
        self._span_j = span_j
        self._last: float | None = None
        self._integrated = 0.0
        self._failed = False

    def add(self, now: float, count: float | None, integrated_j: float) -> float:
        """Returns by how much it moved. `integrated_j` is power integrated, for a counter reset."""
        self.time, self._failed = now, count is None
        if count is None:
            return 0.0
        moved = 0.0
        if self._last is not None:
            moved = self._moved(count - self._last, now - self.times[-1], integrated_j)
        self.joules += moved
        self._last, self._integrated = count, integrated_j
        self.times.append(now)
        self.at.append(self.joules)
        return moved

    def value(self) -> float | None:
        """Joules up to the last reading; None if that failed."""
        return None if self._failed else self.joules

    def _moved(self, difference: float, seconds: float, integrated_j: float) -> float:
        if difference >= 0:
            return difference
        if difference + self._span_j <= _MOST_W * max(seconds, 1.0):
            return difference + self._span_j  # wrapped
        self.resets += 1
        return integrated_j - self._integrated


class NvmlMeter:
    """A card: its counter if it has one, its power otherwise.

    Boards that count in 32 bits of millijoules wrap after 4.3 MJ, four hours at 300 W.
    """

    counter_span_j = 2**32 / 1000
    longest_tick_s = 0.2  # boards update every 20 to 100 ms

    def __init__(self, card: Card) -> None:
        self._card = card
        self.counter_source = "nvml-counter" if card.energy_j() is not None else None
        self.power_source = "nvml-power" if card.power_w() is not None else None
        self.warnings: list[str] = []  # the card keeps them

    def energy_j(self) -> float | None:
        return self._card.energy_j() if self.counter_source else None

    def power_w(self) -> float | None:
        return self._card.power_w() if self.power_source else None


class RaplMeter:
    """The CPU packages' energy counters, as far as the kernel lets us read them.

    Raises OSError where there is none, or where only root may read it.
    """

    counter_source: str | None = "rapl"
    power_source: str | None = None
    counter_span_j = 0.0  # wraps are undone here, for each package by itself
    longest_tick_s = 0.0  # it moves every millisecond

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._packages = _packages(powercap)
        if not self._packages:
            raise FileNotFoundError(f"no RAPL package in {powercap}")
        self._spans = [_microjoules(package / "max_energy_range_uj") for package in self._packages]
        self._counts = self._read()
        self._total_uj = 0
        self.warnings: list[str] = []

    def energy_j(self) -> float | None:
        try:
            counts = self._read()
        except (OSError, ValueError) as error:
            self.warnings[:] = [f"RAPL: {error}"]
            return None
        for new, old, span in zip(counts, self._counts, self._spans, strict=True):
            self._total_uj += new - old if new >= old else new - old + span
        self._counts = counts
        return self._total_uj / 1e6

    def power_w(self) -> float | None:
        return None

    def _read(self) -> list[int]:
        return [_microjoules(package / "energy_uj") for package in self._packages]


class TdpMeter:
    """CodeCarbon's estimate of the CPU's power, from its thermal design power and its load."""

    counter_source: str | None = "tdp-estimate"
    power_source: str | None = None
    counter_span_j = 0.0
    longest_tick_s = 0.0

    def __init__(self) -> None:
        from codecarbon.core.cpu import TDP
        from codecarbon.external.hardware import CPU

        self.warnings: list[str] = []
        with _quiet_codecarbon():
            tdp = TDP()
            self._cpu = CPU.from_utils(output_dir="", mode="cpu_load", model=tdp.model, tdp=tdp.tdp)
        self._cpu.start()
        self._time = time.perf_counter()
        self._joules = 0.0

    def energy_j(self) -> float:
        # CodeCarbon gives the mean power since it was last asked: a rectangle, not a trapezoid.
        now = time.perf_counter()
        self._joules += self._cpu.total_power().W * (now - self._time)
        self._time = now
        return self._joules

    def power_w(self) -> float | None:
        return None


def open_meter(device: torch.device, card: Card | None = None) -> Meter | None:
    """The best meter of `card`, or of the CPU if that is the device; None where it has none."""
    if card is not None:
        meter = NvmlMeter(card)
        return meter if meter.counter_source or meter.power_source else None
    if device.type != "cpu":
        return None
    try:
        return RaplMeter()
    except (OSError, ValueError):
        pass
    try:
        return TdpMeter()
    except Exception:  # CodeCarbon's many ways of not knowing a machine; then there is no number
        return None


def check_country(code: str) -> None:
    """UserError for a country whose grid CodeCarbon does not know."""
    from codecarbon.input import DataSource

    known = DataSource().get_global_energy_mix_data()
    if code not in known:
        near = difflib.get_close_matches(code.upper(), known, n=3)
        hint = f" (near: {', '.join(near)})" if near else ""
        raise UserError(f"--country {code}: give an ISO 3166-1 alpha-3 code such as CHE{hint}")


def carbon(energy_j: float | None, country: str | None = None) -> dict[str, Any]:
    """Columns of the CO₂ of this energy; none where the energy is unknown."""
    if energy_j is None:
        return {}
    source = f"codecarbon:{country or 'world'}"
    return {"co2_kg": co2_kg(energy_j, country), "co2_source": source}


def co2_kg(energy_j: float, country: str | None = None) -> float:
    """CO₂ of this energy at the mean intensity of a grid, through CodeCarbon, offline.

    Args:
        energy_j: joules.
        country: ISO 3166-1 alpha-3 code, such as USA or CHE; None: the world's mean.
    """
    from codecarbon.core.emissions import Emissions
    from codecarbon.core.units import Energy
    from codecarbon.external.geography import GeoMetadata
    from codecarbon.input import DataSource

    energy = Energy.from_energy(energy_j / 3.6e6)  # kWh
    # CodeCarbon takes the world's mean for a code that it does not know.
    place = GeoMetadata(country_iso_code=country or "WORLD", country_name=country or "World")
    with _quiet_codecarbon():
        return Emissions(DataSource()).get_country_emissions(energy, place)


@contextmanager
def _quiet_codecarbon() -> Iterator[None]:
    """Its warnings (no RAPL, an unknown CPU) are what the column `energy_source` says."""
    logger = logging.getLogger("codecarbon")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def locked_counters(powercap: Path = POWERCAP) -> list[Path]:
    """Files of the CPU packages' energy counters that are there and that we may not read."""
    locked = []
    try:
        for package in _packages(powercap):
            try:
                _microjoules(package / "energy_uj")
            except PermissionError:
                locked.append(package / "energy_uj")
    except (OSError, ValueError):  # no counter, which no permission mends
        return []
    return locked


def _packages(powercap: Path) -> list[Path]:
    # `intel-rapl:0` is a package, `intel-rapl:0:1` a domain inside that it counts already; so
    # does `psys`, the whole board, for its packages.
    return [
        folder
        for folder in sorted(powercap.glob("*rapl:*"))
        if (folder / "name").read_text(encoding="utf-8").startswith("package")
    ]


def _microjoules(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))
