"""How a card heats and cools: under load, idle with a CUDA context, and without one."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..harness.worker import Events, Interrupt, Worker, serve
from ..probes.nvml import Card
from ..records.folder import Run
from ..records.rows import Cooling

_EVERY_S = 0.5
_SIDE = 8192


@dataclass(frozen=True)
class HeatPlan:
    """Seconds of load, and of rest with the context still there."""

    device: str
    load_s: float
    rest_s: float


def heat(plan: HeatPlan, events: Events, should_stop: Callable[[], bool] = lambda: False) -> None:
    """Matrix products in bf16, which draw the most; then nothing."""
    matrix = torch.randn(_SIDE, _SIDE, device=plan.device, dtype=torch.bfloat16)
    for stage, seconds in (("load", plan.load_s), ("idle context", plan.rest_s)):
        events.stage(stage)
        end = time.monotonic() + seconds
        while time.monotonic() < end and not should_stop():
            if stage == "load":
                for _ in range(20):
                    matrix @ matrix
                torch.cuda.synchronize(plan.device)
            events.send("sample")
            time.sleep(0 if stage == "load" else _EVERY_S / 5)


def measure_cooling(run: Run, device: str, seconds: float, card: Card) -> None:
    """A third of the time under load, a third idle with a context, a third without one."""
    stage, begin = "start", time.monotonic()
    next_reading = begin

    def read() -> None:
        nonlocal next_reading
        if time.monotonic() < next_reading:
            return
        next_reading = time.monotonic() + _EVERY_S
        run.append(
            Cooling(
                stage=stage,
                elapsed_s=time.monotonic() - begin,
                temperature_c=card.temperature_c(),
                power_w=card.power_w(),
                clock_mhz=card.clock_mhz(),
            )
        )

    def handle(event: dict[str, Any]) -> None:
        nonlocal stage
        if event["event"] == "stage":
            stage = event["name"]
        read()

    with Interrupt(lambda count: None) as interrupt, Worker("validate.cooling") as worker:
        worker.give(HeatPlan(device, seconds / 3, seconds / 3), run.folder / "logs" / "heat.log")
        worker.follow(handle, interrupt, timeout=seconds)
        stage, end = "no context", time.monotonic() + seconds / 3
        while time.monotonic() < end and not interrupt.count:
            read()
            time.sleep(_EVERY_S / 5)


if __name__ == "__main__":
    sys.exit(serve(HeatPlan, heat))
