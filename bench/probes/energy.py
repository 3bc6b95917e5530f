"""Energy of the device under test over the window, from the best source that it has.

| source | what it is |
|---|---|
| `nvml-counter` | the card's own energy counter |
| `nvml-power` | the card's power, sampled and integrated |
| `rapl` | the CPU packages' energy counters (Linux powercap) |
| `tdp-estimate` | CodeCarbon's guess from the CPU's model and load: an estimate, always named so |

Resolution and known error of each: docs/measurement.md.
"""

import difflib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from ..errors import UserError
from ..records.rows import Energy, Reading
from .nvml import Card

POWERCAP = Path("/sys/class/powercap")
_MOST_W = 10_000  # no device here draws more: a larger step of a counter is no measurement
_TICK_POLL_S = 1e-4


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
    """Joules since `start`: the counter's where there is one, else power integrated over time.

    A counter that moves only every tenth of a second would be wrong by that much at both ends of
    a window. So the window begins at a tick, and its end is the tick after, less what was drawn in
    between.

    Args:
        clock: seconds, from an arbitrary zero.
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
        self._counted, self._integral = _Count(self.meter.counter_span_j), _Integral()
        self._next_tick()
        self._begin = self.clock()
        self._read()

    def sample(self) -> Reading:
        before, then = self._counted.joules, self._counted.time
        watts = self._read()
        if self.meter.counter_source is None:
            return Reading(power_w=watts, energy_j=self._integral.value())
        if self.meter.power_source is None and self._counted.time > then:
            watts = (self._counted.joules - before) / (self._counted.time - then)  # its mean
        return Reading(power_w=watts, energy_j=self._counted.value())

    def stop(self) -> Energy:
        """The energy is left out where the last reading failed: what was missed is unknown."""
        self._read()
        end = self.clock()
        energy, source, warnings = self._integral.value(), self.meter.power_source, []
        if self.meter.counter_source is not None:
            self._finish_count()
            counted = self._counted.value()
            if counted is None:
                warnings.append("the energy counter broke off in the window")
            elif counted == 0 and energy is not None:
                warnings.append("the energy counter did not move in the window")
            if self._counted.resets:
                warnings.append(
                    f"the energy counter was reset {self._counted.resets} times: "
                    "energy in between is integrated power"
                )
            if energy is None or (counted is not None and counted > 0):
                energy, source = counted, self.meter.counter_source
            else:
                warnings.append("energy is integrated power")
        if energy is None:
            warnings.append("energy of the whole window is unknown; samples.csv has its beginning")
        found = Energy(energy_source=source, warnings=(*warnings, *self.meter.warnings))
        if energy is not None:
            found.energy_j = energy
            found.mean_power_w = energy / (end - self._begin) if end > self._begin else None
        return found

    def _read(self) -> float | None:
        watts = self.meter.power_w()
        self._integral.add(self.clock(), watts)
        count = self.meter.energy_j()
        self._counted.add(self.clock(), count, self._integral.joules)
        return watts

    def _finish_count(self) -> None:
        """Count to the next tick, and take off what was drawn since the end of the window."""
        overrun = _Integral()
        overrun.add(self.clock(), self.meter.power_w())
        count = self._next_tick(lambda: overrun.add(self.clock(), self.meter.power_w()))
        moved = self._counted.add(self.clock(), count, self._integral.joules)
        if moved:  # without a tick in its time, the counter has no finer answer than it gave
            self._counted.joules -= overrun.joules

    def _next_tick(self, at_poll: Callable[[], object] = lambda: None) -> float | None:
        """The counter at the moment when it moves, or when it should have."""
        count = later = self.meter.energy_j()
        give_up = self.clock() + self.meter.longest_tick_s
        while later is not None and later == count and self.clock() < give_up:
            self.sleep(_TICK_POLL_S)
            later = self.meter.energy_j()
            at_poll()
        return later


class _Integral:
    """Power over time, a trapezoid from each reading to the next, also across one that failed."""

    def __init__(self) -> None:
        self.joules = 0.0
        self._last: tuple[float, float] | None = None
        self._whole = True

    def add(self, now: float, watts: float | None) -> None:
        first = self._last is None
        if watts is None:
            self._whole = False
            return
        if self._last is not None:
            then, before = self._last
            self.joules += (watts + before) / 2 * (now - then)
        self._whole = self._whole or not first  # what came before the first is not known
        self._last = now, watts

    def value(self) -> float | None:
        """Joules up to the last reading; None if that failed."""
        return self.joules if self._whole else None


class _Count:
    """What a counter has counted since the first reading, across its wraps and resets."""

    def __init__(self, span_j: float) -> None:
        self.joules = 0.0
        self.time = 0.0
        self.resets = 0
        self._span_j = span_j
        self._last: float | None = None
        self._integrated = 0.0
        self._whole = True

    def add(self, now: float, count: float | None, integrated_j: float) -> float:
        """Returns by how much it moved. `integrated_j` is power integrated, for a counter reset."""
        if count is None:
            self._whole = False
            return 0.0
        moved = 0.0
        if self._last is not None:
            moved = self._moved(count - self._last, now - self.time, integrated_j)
        self._whole = self._whole or self._last is not None
        self.joules += moved
        self.time, self._last, self._integrated = now, count, integrated_j
        return moved

    def value(self) -> float | None:
        """Joules up to the last reading; None if that failed."""
        return self.joules if self._whole else None

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
        # `intel-rapl:0` is a package, `intel-rapl:0:1` a domain inside that it counts already; so
        # does `psys`, the whole board, for its packages.
        self._packages = [
            folder
            for folder in sorted(powercap.glob("*rapl:*"))
            if (folder / "name").read_text().startswith("package")
        ]
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


def _microjoules(path: Path) -> int:
    return int(path.read_text())
