"""What makes trials comparable: the same temperature at the start, no other load.

It is watched from the benchmark's own process, between the trials. What happens inside a window,
the probes of the trial see (`bench/probes/host.py`, `bench/probes/nvml.py`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..probes.energy import EnergyProbe, Meter
from ..probes.host import OtherLoad, busy_with_others, swap_in_use
from ..probes.nvml import Card
from ..records.rows import Energy, Measurement, Record
from .plan import TrialPlan

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
        start_c: temperature at the start of the first window; None where there was none yet.
        cooldown_s: longest wait of a trial for the device to come back to that.
        card: whose processes to look at.
        strict: a trial that shared the machine is marked as failed.
        clock, sleep: seconds.
    """

    def __init__(
        self,
        idle: Idle,
        start_c: float | None = None,
        cooldown_s: float = 0.0,
        card: Card | None = None,
        strict: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.idle = idle
        self.start_c = start_c
        self.cooldown_s = cooldown_s
        self.card = card
        self.strict = strict
        self.clock = clock
        self.sleep = sleep

    def before(self, tell: Callable[[str], None], stop: Callable[[], bool]) -> Measurement:
        """Look for other load."""
        return Measurement(contention=tuple(self.other_load()))

    def planned(self, plan: TrialPlan) -> TrialPlan:
        """The plan, with the temperature at which its window is to begin."""
        return replace(plan, start_c=self.start_c, cooldown_s=self.cooldown_s)

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
        if self.start_c is None:
            self.start_c = record.temperature_start_c
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
