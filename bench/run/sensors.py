"""What the benchmark's own process can read of the device under test."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..probes.energy import Meter, locked_counters, open_meter
from ..probes.nvml import Card, CardUnavailable
from ..probes.temperature import TemperatureProbe, open_thermometer
from .plan import TrialPlan


@dataclass
class Sensors:
    """A card, a meter and a thermometer, as far as there are any."""

    card: Card | None = None
    meter: Meter | None = None
    thermometer: TemperatureProbe | None = None
    missing: list[str] = field(default_factory=list)
    """What cannot be read, in a line each, to be said once."""

    @property
    def read_temperature(self) -> Callable[[], float | None] | None:
        return self.thermometer.read if self.thermometer is not None else None

    @classmethod
    def open(cls, plan: TrialPlan) -> "Sensors":
        device = torch.device(plan.device)
        try:
            card = open_card(plan)
        except CardUnavailable as why:
            return cls(missing=[f"{why}: no energy, no temperature."])
        if card is not None:
            card.patient = True
        of = "the card" if card is not None else str(device)
        sensors = cls(card, open_meter(device, card), open_thermometer(device, card))
        if sensors.meter is None:
            line = f"No energy source for {of} on this machine: those cells stay empty."
            sensors.missing.append(line)
        elif sensors.meter.counter_source == "tdp-estimate":
            sensors.missing.append(
                "No energy counter that can be read on this machine: energy is CodeCarbon's "
                "estimate from the CPU's thermal design power (tdp-estimate)."
            )
        source = sensors.meter.counter_source if sensors.meter is not None else None
        if card is None and source != "rapl" and (locked := locked_counters()):
            sensors.missing.append(
                "This machine has an energy counter (RAPL) that only root may read. To open it "
                f"until the next boot: sudo chmod a+r {' '.join(map(str, locked))}"
            )
        if sensors.thermometer is None:
            line = f"No temperature sensor for {of} on this machine: those cells stay empty."
            sensors.missing.append(line)
        return sensors


def open_card(plan: TrialPlan) -> Card | None:
    """The card to measure, if it is one; raises CardUnavailable where it cannot be read."""
    device = torch.device(plan.device)
    if plan.card is not None:
        return Card.open(visible=plan.card)
    return Card.open(device.index or 0) if device.type == "cuda" else None
