"""What the process of one trial does (`bench/harness/worker.py`)."""

import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # an optimizer would load it, when the person already waits

from ..data import load
from ..data.batches import iterate_batches
from ..ddpm.step import Batch, TrainingStep, prepared
from ..harness.backends import known_problems
from ..harness.process import limit_memory
from ..harness.window import synchronize
from ..harness.worker import Events, serve
from ..methods import METHODS
from ..predict.alloc_conf import alloc_conf_text
from ..probes import Probe, SampledProbe, Span
from ..probes.cost import StepProbe
from ..probes.energy import EnergyProbe, open_meter
from ..probes.flops import forward_flops
from ..probes.host import HostProbe, device_name
from ..probes.instants import instants
from ..probes.memory import AllocatorProbe, tensors_in
from ..probes.nvml import CardProbe, CardUnavailable
from ..probes.polling import polling
from ..probes.temperature import TemperatureProbe, open_thermometer
from ..records.rows import Measurement, Times
from .cooldown import cool_down
from .plan import TrialPlan
from .sensors import open_card


def run(plan: TrialPlan, events: Events, should_stop: Any = lambda: False) -> None:
    """Carry out a plan. Raises what the training raises."""
    if plan.memory_limit is not None:
        limit_memory(plan.memory_limit)
    device = torch.device(plan.device)
    if device.type == "cuda":
        plan.backends.apply()
        cudnn = torch.backends.cudnn.version()
        events.found(warnings=known_problems(plan.work.precision, torch.__version__, cudnn))
        events.found(alloc_conf=alloc_conf_text(None) or None)
    events.found(device_name=device_name(device))
    events.stage("building the network")
    torch.manual_seed(plan.training.seed)
    with device:
        network = METHODS[plan.method].build(plan.work)
    step = TrainingStep(network, plan.work, plan.training, device)
    events.found(parameters=sum(p.numel() for p in network.parameters()))
    if device.type == "cpu":
        events.found(warnings=[each.on_cpu for each in step.techniques if each.on_cpu])
    events.found(warnings=[each.outside for each in step.techniques if each.outside])
    known = load(Path(plan.volumes))
    volumes = prepared(network, plan.work, known, device, events.progress("encoding"))
    batches = iterate_batches(volumes, plan.work, plan.training.seed, device, step.cut, plan.labels)

    events.stage("warm-up")
    step(next(batches))
    if should_stop():
        return
    events.stage("measuring one step")
    measure_step(step, next(batches), plan.probes, events)
    if should_stop():
        return
    if device.type == "cuda":
        events.stage("filling the pool anew")
        refill_pool(step, batches)
    if should_stop():
        return

    events.stage("window")
    measure_window(step, batches, plan, events, should_stop)


def measure_step(step: TrainingStep, batch: Batch, probes: tuple[str, ...], events: Events) -> None:
    """One whole step in steady state under the step probes; tells what they found."""
    # The step begins with this anyway; done before, because the allocator's log does not show the
    # release of what was there when it was opened.
    step.optimizer.zero_grad(set_to_none=True)
    cost = StepProbe(step.network, step.optimizer, step.device, tensors_in(step.held(batch)))
    watching: list[Probe] = [cost] if {"memory", "flops"} & set(probes) else []
    if "memory" in probes and step.device.type == "cpu":
        watching.append(AllocatorProbe(cost.live_bytes))
    for probe in watching:
        probe.start()
    step(batch)
    events.found(*(probe.stop() for probe in reversed(watching)))
    if "flops" in probes:  # fvcore's tracer works without another dispatch mode only
        x_t, t, _, keywords = step.noised(batch)
        events.found(flops_forward=forward_flops(step.network, x_t, t, **keywords))
    if "memory" in probes:
        for instant in instants(cost.trace, cost.changes, cost.phases()):
            events.send("instant", **instant, source="tensor-storages")


def refill_pool(step: TrainingStep, batches: Iterator[Batch]) -> None:
    """Leave CUDA's pool as training alone fills it, and the card with nothing to do.

    cuDNN's search, which is over with the warm-up, and the step under the probes ask for more than
    a step in steady state does. A pool is as it stays after two steps.
    """
    torch.cuda.empty_cache()
    for _ in range(2):
        step(next(batches))
    synchronize(step.device)


def measure_window(
    step: TrainingStep, batches: Iterator[Batch], plan: TrialPlan, events: Events, should_stop: Any
) -> None:
    """The window under the window probes; its steps and samples are sent as they come."""
    found: list[Measurement] = []
    on_their_way: list[float] = []
    probes, window = open_probes(plan, events), Span()
    thermometer = next((probe for probe in probes if isinstance(probe, TemperatureProbe)), None)
    if thermometer is not None and plan.start_c is not None and plan.cooldown_s > 0:
        read, target_c = thermometer.read, plan.start_c
        warnings = cool_down(read, target_c, plan.cooldown_s, events.stage, should_stop)
        events.found(Measurement(warnings=tuple(warnings)))
        events.stage("window")
    try:
        with polling(probes, plan.sample_hz, events.send, window) as found:
            window.begin = time.perf_counter()
            for done in plan.window.train(step, batches, step.device, should_stop):
                window.end = window.begin + done.elapsed_s
                row = asdict(done)
                on_their_way.append(row.pop("batch_time_s"))
                events.send("step", **row)
    finally:  # also of a window that broke off
        if on_their_way:
            found.append(Times(batch_time_median_s=statistics.median(on_their_way)))
        events.found(*found)


def open_probes(plan: TrialPlan, events: Events) -> list[SampledProbe]:
    """What can be measured here during a window; what cannot is told as a warning.

    Energy comes last: it starts last, and is read first at each moment and when the window ends.
    """
    device = torch.device(plan.device)
    card = None
    try:
        card = open_card(plan)
    except CardUnavailable as why:
        events.found(warnings=[str(why)])
        device = torch.device("cuda")  # the CPU's energy is not what was asked for
    probes: list[SampledProbe] = []
    if "host" in plan.probes:
        probes.append(HostProbe(torch.device(plan.device)))
    if card is not None:
        probes.append(CardProbe(card))
        if device.type == "cpu":
            note = f"energy and temperature are those of the card {card.name()} (--card)"
            events.found(warnings=[note])
    if "temperature" in plan.probes and (thermometer := open_thermometer(device, card)):
        probes.append(thermometer)
    if "energy" in plan.probes and (meter := open_meter(device, card)):
        probes.append(EnergyProbe(meter))
    return probes


if __name__ == "__main__":
    sys.exit(serve(TrialPlan, run))
