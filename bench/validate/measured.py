"""What the process that measures one method does (`bench/harness/worker.py`)."""

import os
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # an optimizer would load it, in the midst of a step

from ..data.batches import moved
from ..ddpm.step import Batch, TrainingStep, random_batch
from ..harness.worker import Events, serve
from ..methods import METHODS
from ..probes.cost import StepProbe
from ..probes.host import device_name
from ..probes.memory import tensors_in
from ..probes.nvml import Card, CardUnavailable, driver_version
from .agreement import events_of_step
from .allocator_log import AllocatorLog, LogEntry, LoggedProbe, replay, save_log, scratch_of
from .plan import DevicePlan

_ROOT = Path(__file__).parents[2]
_TIMED_STEPS, _TIMED_S = 5, 10.0
"""At most so many, and no more after so many seconds."""


def run(plan: DevicePlan, events: Events, should_stop: Callable[[], bool] = lambda: False) -> None:
    """Carry out a plan. Raises what the training raises."""
    device = torch.device(plan.device)
    on_card = device.type == "cuda"
    if on_card:
        plan.backends.apply()
    used_before = _used_bytes(device) if on_card else None
    log = AllocatorLog(device) if on_card else None
    events.found(device_name=device_name(device), **_versions(device))

    events.stage("two steps")
    torch.manual_seed(plan.training.seed)
    with device:
        network = METHODS[plan.method].build(plan.work)
    step = TrainingStep(network, plan.work, plan.training, device)
    batch = moved(step.cut(*random_batch(plan.work, network)), device)
    step(batch)
    step(batch)
    if on_card:
        events.found(**_after_two_steps(device))

    events.stage("one step, followed")
    entries = follow_step(step, batch, log, events)
    if entries:
        save_log(Path(plan.folder) / f"allocator-{plan.method}.csv.gz", entries)
    if should_stop():
        return

    events.stage("one step, its waits")
    if on_card:
        waits = count_waits(lambda: step(batch))
        places = ", ".join(f"{count} × {place}" for place, count in waits.most_common(6))
        events.found(waits=waits.total(), waits_at=places or None)

    events.stage("timed steps")
    times: list[float] = []
    while len(times) < _TIMED_STEPS and sum(times) < _TIMED_S:
        times.append(_seconds(step, batch))
    events.found(step_time_s=statistics.median(times))
    if used_before is not None and (used := _used_bytes(device)) is not None:
        context = used - used_before - torch.cuda.memory_reserved(device)
        events.found(context_bytes=context)


def follow_step(
    step: TrainingStep, batch: Batch, log: AllocatorLog | None, events: Events
) -> list[LogEntry]:
    """One step with its tensors, its operators and, on a card, the allocator's log followed.

    Returns that log, from the first tensor of the process on; it ends here.
    """
    watched = step.network, step.optimizer, step.device, tensors_in(step.held(batch))
    probe = LoggedProbe(log, *watched) if log is not None else StepProbe(*watched)
    probe.start()
    live, allocated = probe.live_bytes(), _allocated(step.device)
    step(batch)
    cost = probe.stop()
    events.found(
        measured_live_bytes=cost.peak_memory_bytes,
        measured_flops_step=cost.flops_step,
        measured_changes=len(events_of_step(probe.changes)),
    )
    events.send("sequence", events=events_of_step(probe.changes))
    if log is None or not isinstance(probe, LoggedProbe):
        return []
    entries = log.close()
    scratch, played = scratch_of(probe, entries), replay(entries)
    events.found(
        rest_bytes=allocated - live,
        scratch_bytes=scratch.most,
        scratch="; ".join(scratch.found) or None,
        replayed_reserved_bytes=played.reserved,
        replayed_differences=played.differences,
        replayed_first=played.first,
    )
    return entries


def count_waits(step: Callable[[], Any]) -> Counter[str]:
    """Where PyTorch says that a step waits for the card: file and line -> how often."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Counter(
        f"{_short(each.filename)}:{each.lineno}"
        for each in seen
        if "synchroniz" in str(each.message)
    )


def _short(filename: str) -> str:
    """From the root of our package, or of the installed one."""
    path = Path(filename)
    if path.is_relative_to(_ROOT) and "site-packages" not in path.parts:
        return str(path.relative_to(_ROOT))
    return filename.rpartition("site-packages/")[2]


def _seconds(step: TrainingStep, batch: Batch) -> float:
    begin = time.perf_counter()
    step(batch)
    if step.device.type == "cuda":
        torch.cuda.synchronize(step.device)
    return time.perf_counter() - begin


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _after_two_steps(device: torch.device) -> dict[str, int]:
    stats = torch.cuda.memory_stats(device)
    return {
        "measured_allocated_bytes": torch.cuda.max_memory_allocated(device),
        "measured_requested_bytes": stats["requested_bytes.all.peak"],
        "measured_reserved_bytes": torch.cuda.max_memory_reserved(device),
    }


def _used_bytes(device: torch.device) -> int | None:
    """Of the whole card, by NVML, which needs no context."""
    try:
        return Card.open(device.index or 0).used_bytes()
    except CardUnavailable:
        return None


def _versions(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {}
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": driver_version(),
        "alloc_conf": os.environ.get("PYTORCH_ALLOC_CONF"),
    }


if __name__ == "__main__":
    sys.exit(serve(DevicePlan, run))
