"""What makes trials comparable: the same temperature at the start, no other load.

It is watched from the benchmark's own process, between the trials. What happens inside a window,
the probes of the trial see (`bench/probes/host.py`, `bench/probes/nvml.py`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..probes.energy import EnergyProbe, Meter
from ..probes.host import OtherLoad, busy_with_others, swap_in_use
from ..probes.nvml import Card
from ..records.rows import Energy, Measurement, Record

NEAR_C = 2.0
"""Trials start within so many degrees Celsius of the first one's start."""
_LOOK_EVERY_S = 0.1
_LEAVES_IN_S = 2.0


@dataclass(frozen=True)
class Idle:
    """The device before the first trial: its idle power and its temperature."""

    idle_power_w: float | None = None
    """Mean over the time of rest, in watts."""
    idle_source: str | None = None
    """As in `energy_source`."""
    temperature_c: float | None = None


class EqualConditions:
    """Makes the trials of a run comparable, and says where they are not.

    Args:
        idle: of the device, before the first trial (`measure_idle`).
        temperature_c: reads the device's temperature; None where it has no sensor.
        cooldown_s: longest wait for the device to cool between two trials.
        card: whose processes to look at.
        strict: a trial that shared the machine is marked as failed.
        clock, sleep: seconds.
    """

    def __init__(
        self,
        idle: Idle,
        temperature_c: Callable[[], float | None] | None = None,
        cooldown_s: float = 0.0,
        card: Card | None = None,
        strict: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.idle = idle
        self.temperature_c = temperature_c
        self.cooldown_s = cooldown_s
        self.card = card
        self.strict = strict
        self.clock = clock
        self.sleep = sleep

    def before(self, tell: Callable[[str], None], stop: Callable[[], bool]) -> Measurement:
        """Wait for the device to cool, and look for other load."""
        warnings = self.wait_until_cool(tell, stop)
        return Measurement(warnings=tuple(warnings), contention=tuple(self.other_load()))

    def wait_until_cool(
        self,
        tell: Callable[[str], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[str]:
        """Wait until the device is as warm as before the first trial; a warning where it is not."""
        if self.idle.temperature_c is None or self.temperature_c is None or self.cooldown_s <= 0:
            return []
        target = self.idle.temperature_c
        give_up = self.clock() + self.cooldown_s
        told = False
        while True:
            now = self.temperature_c()
            if now is None:
                return ["temperature cannot be read: no wait for the device to cool"]
            if abs(now - target) <= NEAR_C:
                return []
            if self.clock() >= give_up or should_stop():
                warmer = "above" if now > target else "below"
                return [
                    f"started at {now:.0f} °C, {abs(now - target):.0f} °C {warmer} the first "
                    f"trial's start, after a wait of {self.cooldown_s:g} s (--cooldown)"
                ]
            if not told:
                told = True
                tell(
                    f"Waiting for the device to come from {now:.0f} °C back to {target:.0f} °C, "
                    f"at most {self.cooldown_s:g} s (--cooldown)."
                )
            self.sleep(1.0)

    def other_load(self) -> list[str]:
        """Other load of the machine right now, with no trial running."""
        contention = swap_in_use()
        if self.card is not None and (others := self._others_on(self.card)):
            names = ", ".join(map(str, sorted(others)))
            contention.append(f"another process on the card: {names}")
        return contention

    def _others_on(self, card: Card) -> set[int]:
        """Processes on the card that stay: the trial before may be in the driver's list yet."""
        give_up = self.clock() + _LEAVES_IN_S
        while (others := card.processes()) and self.clock() < give_up:
            self.sleep(_LOOK_EVERY_S)
        return others

    def judge(self, record: Record) -> None:
        """Add the energy above idle; with --strict, other load makes a trial `failed`."""
        record.idle_power_w = self.idle.idle_power_w
        if (
            record.energy_j is not None
            and record.mean_power_w
            and self.idle.idle_power_w is not None
            and _family(record.energy_source) == _family(self.idle.idle_source)
        ):
            seconds = record.energy_j / record.mean_power_w
            record.energy_above_idle_j = record.energy_j - self.idle.idle_power_w * seconds
        if self.strict and record.contention and record.status == "ok":
            record.status, record.error = "failed", f"--strict: {'; '.join(record.contention)}"


def measure_idle(
    meter: Meter | None,
    temperature_c: Callable[[], float | None] | None,
    seconds: float,
) -> tuple[Idle, list[str]]:
    """The idle device over `seconds`, and other load of the CPU meanwhile."""
    probe = EnergyProbe(meter) if meter is not None and seconds > 0 else None
    load = OtherLoad()
    if probe is not None:
        probe.start()
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(_LOOK_EVERY_S, left))
        if probe is not None:
            probe.sample()
    found = probe.stop() if probe is not None else Energy()
    source = found.energy_source if found.mean_power_w is not None else None
    celsius = temperature_c() if temperature_c is not None else None
    return Idle(found.mean_power_w, source, celsius), busy_with_others(load.percent())


def _family(source: str | None) -> str | None:
    """`nvml-counter` and `nvml-power` are the same board's power."""
    return "nvml" if source is not None and source.startswith("nvml-") else source
