"""Energy of the device under test over the window, from the best source that it has (DESIGN §7).

| source | what it is |
|---|---|
| `nvml-counter` | the card's own energy counter |
| `nvml-power` | the card's power, sampled and integrated |
| `rapl` | the CPU packages' energy counters (Linux powercap) |
| `tdp-estimate` | CodeCarbon's guess from the CPU's model and load: an estimate, always named so |
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch

from bench.probes import Columns
from bench.probes.nvml import Card

POWERCAP = Path("/sys/class/powercap")


class Meter(Protocol):
    """A source of energy: watts, joules, or both; None where it cannot tell."""

    source: str

    def energy_j(self) -> float | None:
        """A counter in joules, from an arbitrary zero."""
        ...

    def power_w(self) -> float | None: ...


class EnergyProbe:
    """Joules since `start`: the counter's where there is one, else power integrated over time."""

    def __init__(self, meter: Meter, clock: Callable[[], float] = time.perf_counter) -> None:
        self.meter = meter
        self.clock = clock

    def start(self) -> None:
        self._begin = self._last_time = self.clock()
        self._integrated = 0.0
        self._last_power = self.meter.power_w()
        self._first_count = self.meter.energy_j()

    def sample(self) -> Columns:
        now, count, power = self.clock(), self.meter.energy_j(), self.meter.power_w()
        if power is not None and self._last_power is not None:  # trapezoid between two samples
            self._integrated += (power + self._last_power) / 2 * (now - self._last_time)
        self._last_time, self._last_power = now, power
        if count is not None and self._first_count is not None:
            return {"power_w": power, "energy_j": count - self._first_count}
        return {"power_w": power, "energy_j": self._integrated if power is not None else None}

    def stop(self) -> Columns:
        energy = self.sample()["energy_j"]
        if energy is None:
            return {}
        elapsed = self._last_time - self._begin
        return {
            "energy_j": energy,
            "energy_source": self.meter.source,
            "mean_power_w": energy / elapsed if elapsed > 0 else None,
        }


class NvmlMeter:
    """A card: its counter if it has one, its power otherwise."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._has_counter = card.energy_j() is not None
        self.source = "nvml-counter" if self._has_counter else "nvml-power"

    def energy_j(self) -> float | None:
        return self._card.energy_j() if self._has_counter else None

    def power_w(self) -> float | None:
        return self._card.power_w()


class RaplMeter:
    """The CPU packages' energy counters, as far as the kernel lets us read them."""

    source = "rapl"

    def __init__(self, powercap: Path = POWERCAP) -> None:
        # `intel-rapl:0` is a package; `intel-rapl:0:1` a domain inside, already counted by it.
        self._packages = [
            folder for folder in sorted(powercap.glob("*rapl:*")) if folder.name.count(":") == 1
        ]
        self._ranges = [_microjoules(p / "max_energy_range_uj") for p in self._packages]
        self._counts = self._read()  # raises PermissionError where only root may
        self._total_uj = 0
        if not self._packages:
            raise FileNotFoundError(f"no RAPL package in {powercap}")

    def energy_j(self) -> float:
        counts = self._read()
        for new, old, span in zip(counts, self._counts, self._ranges, strict=True):
            self._total_uj += (new - old) % (span + 1)  # a counter that wrapped starts at 0 again
        self._counts = counts
        return self._total_uj / 1e6

    def power_w(self) -> float | None:
        return None

    def _read(self) -> list[int]:
        return [_microjoules(package / "energy_uj") for package in self._packages]


class TdpMeter:
    """CodeCarbon's estimate of the CPU's power, from its thermal design power and its load."""

    source = "tdp-estimate"

    def __init__(self) -> None:
        from codecarbon.core.cpu import TDP
        from codecarbon.external.hardware import CPU

        with _quiet_codecarbon():
            tdp = TDP()
            self._cpu = CPU.from_utils(output_dir="", mode="cpu_load", model=tdp.model, tdp=tdp.tdp)
        self._cpu.start()
        self._time = time.perf_counter()
        self._power: float | None = None
        self._energy = 0.0

    def energy_j(self) -> float:
        # CodeCarbon gives the mean power since it was last asked: a rectangle, not a trapezoid.
        now = time.perf_counter()
        self._power = self._cpu.total_power().W
        self._energy += self._power * (now - self._time)
        self._time = now
        return self._energy

    def power_w(self) -> float | None:
        return self._power


def open_meter(device: torch.device, card: Card | None = None) -> Meter | None:
    """The best meter of `device`, or None where it has none."""
    if device.type == "cuda":
        if card is None:
            return None
        meter = NvmlMeter(card)
        return meter if meter.source == "nvml-counter" or meter.power_w() is not None else None
    try:
        return RaplMeter()
    except OSError:
        pass
    try:
        return TdpMeter()
    except Exception:  # CodeCarbon's many ways of not knowing a machine; then there is no number
        return None


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
