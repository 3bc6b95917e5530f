"""What runs in the process that loads the stand-in: windows measured on scripted cards.

Time stands still between two lines of these functions and moves when they say so; every figure
is exact and nobody waits.
"""

import ctypes
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pynvml

from bench.probes.energy import EnergyProbe, NvmlMeter
from bench.probes.nvml import Card, CardProbe, CardUnavailable
from bench.probes.temperature import open_thermometer
from bench.records.rows import Record


class ScriptedTime:
    """The clock of the stand-in, in seconds."""

    def __init__(self, now: float) -> None:
        self._library = ctypes.CDLL("libnvidia-ml.so.1")
        self._library.standin_time.argtypes = [ctypes.c_double]
        self.move_to(now)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.move_to(self.now + seconds)

    def move_to(self, now: float) -> None:
        self.now = now
        self._library.standin_time(now)


def open_card(script: str, index: int = 0, visible: str | None = None) -> Card:
    Path(os.environ["NVML_SCRIPT"]).write_text(script)
    return Card.open(index, visible)


def window(script: str, start: float, seconds: float, hertz: float = 10.0) -> dict[str, Any]:
    """Columns of one window on the first card; `begin` is when it really began."""
    import torch

    time = ScriptedTime(start)
    card = open_card(script)
    thermometer = open_thermometer(torch.device("cuda"), card)
    probes = [CardProbe(card), *([thermometer] if thermometer else [])]
    meter = NvmlMeter(card)
    if meter.counter_source or meter.power_source:
        probes.append(EnergyProbe(meter, time, time.sleep))
    for probe in probes:
        probe.start()
    begin, samples, periods = time.now, [], 0
    while periods / hertz < seconds:
        time.move_to(begin + periods / hertz)
        readings = [asdict(probe.sample()) for probe in probes]
        samples.append({n: v for reading in readings for n, v in reading.items() if v is not None})
        periods += 1
    time.move_to(begin + seconds)
    row = Record(method="idm", repeat=1)
    for probe in reversed(probes):
        row.take(probe.stop().columns())
    columns = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(row).items()}
    found = {name: value for name, value in columns.items() if value is not None}
    return found | {"begin": begin, "samples": samples}


def which(script: str, index: int = 0, visible: str | None = None) -> tuple[str | None, list[str]]:
    """UUID of the card that `Card.open` finds, and its warnings; None and why where it cannot."""
    try:
        card = open_card(script, index, visible)
    except CardUnavailable as why:
        return None, [str(why)]
    return pynvml.nvmlDeviceGetUUID(card._handle), card.warnings


def without_driver() -> list[str]:
    """What `Card.open` says; for a process that has no NVML to load."""
    try:
        Card.open()
    except CardUnavailable as why:
        return [str(why)]
    return []
