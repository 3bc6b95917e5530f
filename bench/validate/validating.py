"""The command `validate`: what was predicted, beside what this device says."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console

from ..commands import ValidateCommand
from ..ddpm.step import Training
from ..errors import UserError
from ..harness.console import ConsoleDisplay, describe_work, say
from ..harness.environment import describe_environment
from ..harness.output import outlive_the_terminal
from ..harness.planning import choose_device, choose_workloads, default_preset
from ..harness.process import refuse_without_posix
from ..harness.runner import Recorder, run_all
from ..methods import METHODS, preset_changes
from ..predict.alloc_conf import alloc_conf_text, parse_alloc_conf
from ..predict.attention import CAPABILITY, of_capability
from ..predict.parallel import side_by_side
from ..predict.prediction import predict_method
from ..probes.nvml import Card, CardUnavailable
from ..records.files import read_table, write_rows
from ..records.folder import Run
from ..records.rows import Cooling, Validated
from ..report.grid import for_terminal
from ..report.validated import memory_grid, write_validation
from .agreement import Event, events_of_step, first_difference
from .cooling import measure_cooling
from .plan import DevicePlan


class ValidationRun(Run):
    """The folder of a validation."""

    tables: ClassVar = {"validation.csv": Validated, "cooling.csv": Cooling}
    durable: ClassVar = ("validation.csv",)
    command = "validate"


@dataclass(frozen=True)
class Predicted:
    """What is compared of a prediction; small enough to be sent between processes."""

    live: int
    allocated: int | None
    reserved: int | None
    flops: int
    capability: tuple[int, int] | None
    events: list[Event]

    def columns(self) -> dict[str, Any]:
        return {
            "predicted_live_bytes": self.live,
            "predicted_allocated_bytes": self.allocated,
            "predicted_reserved_bytes": self.reserved,
            "predicted_flops_step": self.flops,
            "predicted_changes": len(self.events),
            "capability": self.capability and ".".join(map(str, self.capability)),
        }


class DeviceRecorder(Recorder[DevicePlan, Validated]):
    """A row of `validation.csv`."""

    module = "validate.measured"
    interrupted = "Interrupted: the method ends after this step and is kept. Again to stop at once."

    def __init__(
        self, run: Run, plan: DevicePlan, predicted: Predicted, display: ConsoleDisplay
    ) -> None:
        plan = replace(plan, folder=str(run.folder))
        row = Validated(method=plan.method, preset=plan.preset, device=plan.device, torch="")
        super().__init__(run, plan, row, display)
        self.predicted = predicted
        row.take(predicted.columns())

    @property
    def title(self) -> str:
        return self.plan.method

    @property
    def description(self) -> str:
        return describe_work(self.plan.work)

    def progress(self, kind: str, event: dict[str, Any]) -> None:
        if kind == "sequence":
            measured = [Event(*each) for each in event["events"]]
            self.row.first_difference = first_difference(self.predicted.events, measured)

    def finish(self) -> None:
        """Nothing follows from the rest."""

    def summary(self) -> str:
        row = self.row
        if row.status != "ok":
            return f"{row.status}: {row.error}"
        same = "as predicted, to the end" if row.first_difference is None else "not as predicted"
        text = f"{row.measured_changes} allocations and releases {same}"
        if row.measured_reserved_bytes and row.predicted_reserved_bytes:
            off = row.measured_reserved_bytes / row.predicted_reserved_bytes - 1
            text += f"; reserved {100 * off:+.2f} % of the prediction"
        return text


def run_validate(command: ValidateCommand, console: Console) -> int:
    """Exit status 0 where every method was measured, 1 where some was not."""
    refuse_without_posix("validate")
    outlive_the_terminal()
    plans = make_plans(command)
    card = card_to_cool(command, plans[0].device)
    parse_alloc_conf(alloc_conf_text(None))
    predicted = side_by_side(predict_plan, plans, console, "Predicting")
    run = ValidationRun.create(command.out, plans[0].preset)
    with run.locked():
        run.write_environment(describe_environment(sys.argv, plans))
        say(console, f"Run folder: {run.folder}")
        with ConsoleDisplay(console) as display:
            recorders = [
                DeviceRecorder(run, plan, each, display)
                for plan, each in zip(plans, predicted, strict=True)
            ]
            run_all(recorders, display, command.timeout)
        if card is not None:
            with console.status(f"Heating and cooling the card for {command.cooling:g} s"):
                measure_cooling(run, plans[0].device, command.cooling, card)
        rows = [recorder.row for recorder in recorders if recorder.row.status is not None]
        table = read_table(run.folder / "validation.csv", Validated)
        cooled = read_table(run.folder / "cooling.csv", Cooling)
        console.print(for_terminal(memory_grid(table)))
        for path in (
            *write_validation(table, cooled, run.environment(), run.folder),
            send(rows, run.folder),
        ):
            say(console, f"  {path}")
    done = len(rows) == len(plans) and all(row.status == "ok" for row in rows)
    return 0 if done else 1


def make_plans(command: ValidateCommand) -> list[DevicePlan]:
    """One for each method; UserError for a wrong flag."""
    device = choose_device(command.device)
    command.backends.check(str(device))
    preset = command.preset or default_preset(device)
    return [
        DevicePlan(
            method=method.name,
            preset=preset,
            preset_changes=preset_changes(method, preset, command.overrides, work, Training()),
            work=work,
            training=Training(),
            device=str(device),
            backends=command.backends,
        )
        for method, work in choose_workloads(command.models, preset, command.overrides)
    ]


def card_to_cool(command: ValidateCommand, device: str) -> Card | None:
    """None where that was not asked for; UserError where there is no card that can be read."""
    if not command.cooling:
        return None
    if not device.startswith("cuda"):
        raise UserError(f"--cooling: heats a card, and the device is {device}; leave it out")
    try:
        return Card.open(torch.device(device).index or 0)
    except CardUnavailable as why:
        raise UserError(f"--cooling: {why}") from None


def predict_plan(plan: DevicePlan) -> Predicted:
    """The same step on fake tensors."""
    kind: Any = torch.device(plan.device).type
    method, capability = METHODS[plan.method], _capability(plan.device)
    with of_capability(capability or CAPABILITY.get()):
        found = predict_method(method, plan.work, plan.training, device=kind, count_forward=False)
    conf = parse_alloc_conf(alloc_conf_text(None))
    pool = found.cuda_pool_with(conf) if plan.device != "cpu" else None
    return Predicted(
        live=found.peak_memory_bytes,
        allocated=pool.peak_allocated if pool is not None else None,
        reserved=pool.reserved if pool is not None else None,
        flops=found.flops_step,
        capability=capability,
        events=events_of_step(found.changes),
    )


def _capability(device: str) -> tuple[int, int] | None:
    """None for a CPU, and where NVML does not tell; PyTorch might take a context to tell it."""
    if not device.startswith("cuda"):
        return None
    try:
        return Card.open(torch.device(device).index or 0).capability()
    except CardUnavailable:
        return None


def send(rows: Sequence[Validated], folder: Path) -> Path:
    """The same rows under the name of the card and of PyTorch, to be sent to us: no machine, no
    user and no path is in them.
    """
    name = next((row.device_name for row in rows if row.device_name), "unknown")
    version = rows[0].torch if rows else ""
    path = folder / f"{slug(name)}-{slug(version)}.csv"
    write_rows(path, Validated, [replace(row, error=None, warnings=()) for row in rows])
    return path


def slug(text: str) -> str:
    """As the name of a file: "NVIDIA H100 80GB HBM3" is nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-") or "unknown"
