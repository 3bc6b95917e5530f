"""One trial: its plan, what its process does (`bench/worker.py`), its record."""

import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # an optimizer would load it, when the person already waits
from torch import Tensor

from bench.data import load
from bench.methods import METHODS
from bench.presets import Workload
from bench.probes import Columns, Probe, SampledProbe, add_columns
from bench.probes.energy import EnergyProbe, co2_kg, open_meter
from bench.probes.flops import FlopProbe, forward_flops
from bench.probes.host import HostProbe, device_name
from bench.probes.memory import AllocatorProbe
from bench.probes.nvml import Card, CardProbe, CardUnavailable
from bench.probes.sampling import percentile_95, sampling
from bench.probes.step import StepProbe
from bench.probes.temperature import open_thermometer
from bench.probes.timeline import instants
from bench.process import limit_memory
from bench.training import StepTime, Training, TrainingStep, Window
from bench.worker import Events, serve

PROBES = ("memory", "flops", "energy", "temperature", "host")


@dataclass(frozen=True)
class Plan:
    """All that a trial needs to know."""

    method: str
    repeat: int
    preset: str
    work: Workload
    training: Training
    window: Window
    device: str
    data: str
    """Name of the data source, for the record."""
    volumes: str
    """The prepared volumes, an .npy of shape (N, C, D, H, W)."""
    probes: tuple[str, ...] = PROBES
    sample_hz: float = 10.0
    country: str | None = None
    """ISO 3166-1 alpha-3 code of the grid for CO₂; None: the world's mean."""
    memory_limit: int | None = None
    """Bytes of memory of its own that the trial's process may have; None: no limit."""
    card: str | None = None
    """NVIDIA card to measure, by NVML's index, UUID or MIG id; None: the one that is `device`."""


def run(plan: Plan, events: Events, should_stop: Any = lambda: False) -> None:
    """Carry out a plan. Raises what the training raises."""
    if plan.memory_limit is not None:
        limit_memory(plan.memory_limit)
    device = torch.device(plan.device)
    events.columns(planned_columns(plan) | {"device_name": device_name(device)})
    events.stage("building the network")
    torch.manual_seed(plan.training.seed)
    with device:
        network = METHODS[plan.method].build(plan.work)
    step = TrainingStep(network, plan.work, plan.training, device)
    events.columns({"parameters": sum(p.numel() for p in network.parameters())})
    batches = iterate_batches(load(Path(plan.volumes)), plan.work, plan.training.seed, device)

    events.stage("warm-up")
    step(next(batches))
    if should_stop():
        return
    events.stage("measuring one step")
    measure_step(step, next(batches), plan.probes, events)
    if should_stop():
        return

    events.stage("window")
    measure_window(step, batches, plan, events, should_stop)


def planned_columns(plan: Plan) -> Columns:
    """What of a record is known before anything has run."""
    return {
        "preset": plan.preset,
        "data": plan.data,
        "device": plan.device,
        **plan.work.columns(),
        "seed": plan.training.seed,
    }


def iterate_batches(
    volumes: np.ndarray, work: Workload, seed: int, device: torch.device
) -> Iterator[Tensor]:
    """Batches (B, C, D, H, W) float32 for ever: all volumes in a new random order each epoch."""
    for chosen in iterate_order(len(volumes), work.batch_size, seed):
        yield torch.from_numpy(np.stack([volumes[i] for i in chosen])).to(device)


def iterate_order(count: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Which of `count` volumes each batch has, for ever."""
    rng = random.Random(seed)
    queue: list[int] = []
    while True:
        while len(queue) < batch_size:
            queue += rng.sample(range(count), count)
        chosen, queue = queue[:batch_size], queue[batch_size:]
        yield chosen


def measure_step(
    step: TrainingStep, batch: Tensor, probes: tuple[str, ...], events: Events
) -> None:
    """One whole step in steady state under the step probes; tells what they found."""
    # The step begins with this anyway; done before, because the allocator's log does not show the
    # release of what was there when it was opened.
    step.optimizer.zero_grad(set_to_none=True)
    memory = StepProbe(step.network, step.optimizer, step.device, [batch])
    watching: list[Probe] = []
    if "memory" in probes:
        watching.append(memory)
        if step.device.type == "cpu":
            watching.append(AllocatorProbe(memory.live_bytes))
    elif "flops" in probes:
        watching.append(FlopProbe())
    for probe in watching:
        probe.start()
    step(batch)
    columns: Columns = {}
    for probe in reversed(watching):
        columns |= probe.stop()
    if "flops" in probes:  # fvcore's tracer bears no other watcher beside it
        x_t, t, _, keywords = step.noised(batch)
        columns["flops_forward"] = forward_flops(step.network, x_t, t, **keywords)
    else:
        columns.pop("flops_step", None)
    events.columns(columns)
    if "memory" in probes:
        source = columns["peak_memory_source"]
        for instant in instants(memory.trace, memory.changes, memory.phases()):
            events.send("instant", **instant, source=source)


def measure_window(
    step: TrainingStep, batches: Iterator[Tensor], plan: Plan, events: Events, should_stop: Any
) -> None:
    """The window under the window probes; its steps and samples are sent as they come."""
    columns: Columns = {}
    probes = open_probes(plan, columns)
    steps: list[StepTime] = []
    try:
        with sampling(probes, plan.sample_hz, events.send, columns):
            for done in plan.window.train(step, batches, step.device, should_stop):
                steps.append(done)
                events.send("step", **asdict(done))
    finally:  # also of a window that broke off
        if steps:
            columns |= window_columns(steps, plan.work.batch_size)
            columns |= energy_columns(columns, step.network, plan)
        events.columns(columns)


def open_probes(plan: Plan, columns: Columns) -> list[SampledProbe]:
    """What can be measured here during a window; what cannot is warned of in `columns`.

    Energy comes last: it starts last and stops first, so that it sees the window and no more.
    """
    device = torch.device(plan.device)
    card = None
    try:
        card = open_card(plan)
    except CardUnavailable as why:
        add_columns(columns, {"warnings": [str(why)]})
        device = torch.device("cuda")  # the CPU's energy is not what was asked for
    probes: list[SampledProbe] = []
    if "host" in plan.probes:
        probes.append(HostProbe(torch.device(plan.device)))
    if card is not None:
        probes.append(CardProbe(card))
        if device.type == "cpu":
            note = f"energy and temperature are those of the card {card.name()} (--card)"
            add_columns(columns, {"warnings": [note]})
    if "temperature" in plan.probes and (thermometer := open_thermometer(device, card)):
        probes.append(thermometer)
    if "energy" in plan.probes and (meter := open_meter(device, card)):
        probes.append(EnergyProbe(meter))
    return probes


def open_card(plan: Plan) -> Card | None:
    """The card to measure, if it is one; raises CardUnavailable where it cannot be read."""
    device = torch.device(plan.device)
    if plan.card is not None:
        return Card.open(visible=plan.card)
    return Card.open(device.index or 0) if device.type == "cuda" else None


def window_columns(steps: Sequence[StepTime], batch_size: int) -> Columns:
    """What follows from the steps of a window; `window_s` ends with the last of them."""
    times = [done.step_time_s for done in steps]
    window_s = steps[-1].elapsed_s
    return {
        "steps": len(steps),
        "window_s": window_s,
        "step_time_median_s": statistics.median(times),
        "step_time_p95_s": percentile_95(times),
        "volumes_per_s": len(steps) * batch_size / window_s,
        "loss_first": steps[0].loss,
        "loss_last": steps[-1].loss,
    }


def energy_columns(columns: Columns, network: torch.nn.Module, plan: Plan) -> Columns:
    """What follows from the energy of the window."""
    if columns.get("energy_j") is None:
        return {}
    energy = columns["energy_j"]
    parameters = sum(p.numel() for p in network.parameters())
    return {
        "energy_per_parameter_j": energy / parameters,
        "energy_per_volume_j": energy / (columns["steps"] * plan.work.batch_size),
        "co2_kg": co2_kg(energy, plan.country),
        "co2_source": f"codecarbon:{plan.country or 'world'}",
    }


if __name__ == "__main__":
    sys.exit(serve(Plan, run))
