"""What runs in the process that loads the stand-in: windows measured on scripted cards.

In `window`, time stands still between two lines and moves when they say so; every figure is exact
and nobody waits.
"""

import ctypes
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any
from unittest.mock import patch

import pynvml

from bench.harness.environment import describe_environment
from bench.harness.planning import choose_device, default_preset
from bench.probes import Span
from bench.probes.energy import EnergyProbe, NvmlMeter
from bench.probes.nvml import Card, CardProbe, CardUnavailable
from bench.probes.polling import polling
from bench.probes.temperature import open_thermometer
from bench.records.rows import Measurement, Record


class ScriptedTime:
    """The clock of the stand-in, in seconds."""

    def __init__(self, now: float) -> None:
        self._library = ctypes.CDLL("libnvidia-ml.so.1")
        self._library.standin_time.argtypes = [ctypes.c_double]
        self._library.standin_now.restype = ctypes.c_double
        self.move_to(now)

    def __call__(self) -> float:
        return self._library.standin_now()

    @property
    def now(self) -> float:
        return self()

    def sleep(self, seconds: float) -> None:
        self.move_to(self.now + seconds)

    def move_to(self, now: float) -> None:
        self._library.standin_time(now)

    def back_to_the_clock(self) -> None:
        self._library.standin_time(-1.0)


def open_card(script: str, index: int = 0, visible: str | None = None) -> Card:
    Path(os.environ["NVML_SCRIPT"]).write_text(script)
    return Card.open(index, visible)


def open_probes(card: Card, time: ScriptedTime | None = None) -> list[Any]:
    """Those that a trial opens for a card; on the real clock if there is no other."""
    import torch

    clock = time or perf_counter
    thermometer = open_thermometer(torch.device("cuda"), card, clock)
    probes: list[Any] = [CardProbe(card, clock), *([thermometer] if thermometer else [])]
    meter = NvmlMeter(card)
    if meter.counter_source or meter.power_source:
        probes.append(EnergyProbe(meter, clock, time.sleep if time else sleep))
    return probes


def columns(measurements: list[Measurement]) -> dict[str, Any]:
    row = Record(method="idm", repeat=1)
    for measurement in measurements:
        row.take(measurement.columns())
    found = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(row).items()}
    return {name: value for name, value in found.items() if value is not None}


def window(script: str, start: float, seconds: float, hertz: float = 10.0) -> dict[str, Any]:
    """Columns of one window on the first card; `begin` is when it began.

    Readings that take longer than a period follow each other, as they do in `polling`.
    """
    time = ScriptedTime(start)
    probes = open_probes(open_card(script), time)
    for probe in probes:
        probe.start()
    begin, samples, periods = time.now, [], 0
    end = begin + seconds
    while periods / hertz < seconds and time.now < end:
        time.move_to(max(time.now, begin + periods / hertz))
        readings = [asdict(probe.sample()) for probe in reversed(probes)]
        samples.append({n: v for reading in readings for n, v in reading.items() if v is not None})
        periods += 1
    time.move_to(max(time.now, end))
    found = columns([probe.stop(Span(begin, end)) for probe in reversed(probes)])
    return found | {"begin": begin, "samples": samples}


def polled(script: str, seconds: float, hertz: float = 10.0) -> dict[str, Any]:
    """Columns of a window of real time on the first card, read by `polling`, and its length."""
    ScriptedTime(0.0).back_to_the_clock()
    samples: list[dict[str, Any]] = []
    probes = open_probes(open_card(f"epoch {monotonic()}\n{script}"))
    with polling(probes, hertz, lambda _, **row: samples.append(row)) as found:
        begin = perf_counter()
        sleep(seconds)
        took = perf_counter() - begin
    return columns(found) | {"seconds": took, "samples": samples}


def hanging(script: str, seconds: float, patience: float) -> dict[str, Any]:
    """As `polled`, beside a probe that works; `patience` with calls that do not come back."""
    with patch("bench.probes.polling._PATIENCE_S", patience):
        return polled(script, seconds)


def unanswered(script: str, patience: float, after: float = 0.0) -> dict[str, Any]:
    """What the benchmark's own process has of a driver that hangs, before its trials and between.

    The script's time begins when the card is open; it is read `after` so many seconds.
    """
    ScriptedTime(0.0).back_to_the_clock()
    with patch("bench.probes.nvml.PATIENCE_S", patience):
        card = open_card(f"epoch {monotonic()}\n{script}")
        card.patient = True
        sleep(after)
        readings = [card.name(), card.power_w(), card.temperature_c(), *card.processes()]
        gpus = hardware(f"epoch {monotonic() - after}\n{script}", 2)
        return {"readings": readings, "warnings": card.warnings, "gpus": gpus}


def which(script: str, index: int = 0, visible: str | None = None) -> tuple[str | None, list[str]]:
    """UUID of the card that `Card.open` finds, and its warnings; None and why where it cannot."""
    try:
        card = open_card(script, index, visible)
    except CardUnavailable as why:
        return None, [str(why)]
    return pynvml.nvmlDeviceGetUUID(card._handle), card.warnings


def hardware(script: str, cards: int) -> list[dict[str, Any]]:
    """The cards in environment.json, where PyTorch sees so many and must not be asked for more."""
    import torch

    def context() -> None:
        raise AssertionError("the benchmark's own process takes a context on the card")

    Path(os.environ["NVML_SCRIPT"]).write_text(script)
    sees = {"is_available": lambda: True, "device_count": lambda: cards, "_lazy_init": context}
    with patch.multiple(torch.cuda, **sees):
        assert default_preset(choose_device("auto")) == "paper"
        return describe_environment(["run_bench.py"], [])["hardware"]["gpus"]


def processes(script: str) -> set[int]:
    """Those on the first card that are not ours; OWN, PARENT, CHILD in the script are."""
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)  # as a trial is started
    try:
        ids = {"OWN": os.getpid(), "PARENT": os.getppid(), "CHILD": child.pid}
        for word, pid in ids.items():
            script = script.replace(word, str(pid))
        return open_card(script).processes()
    finally:
        child.kill()
        child.wait()
