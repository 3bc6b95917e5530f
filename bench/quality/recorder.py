"""One training's record. The process itself writes its learning curve and its scores."""

from dataclasses import replace
from typing import Any

from ..harness.console import describe_work
from ..harness.runner import Display, Recorder
from ..probes.energy import carbon
from ..records.folder import QualityRun
from ..records.rows import Trained
from ..sizes import show_size
from .plan import TrainingPlan


class TrainingRecorder(Recorder[TrainingPlan, Trained]):
    """A row of `trained.csv`."""

    module = "quality.trainer"
    interrupted = (
        "Interrupted: the training ends after this step, with a checkpoint. Again to stop at once."
    )

    def __init__(self, run: QualityRun, plan: TrainingPlan, display: Display) -> None:
        plan = replace(plan, folder=str(run.folder))
        super().__init__(run, plan, Trained(method=plan.method, seed=plan.seed), display)
        self.validated = ""

    @property
    def title(self) -> str:
        return name_training(self.plan)

    @property
    def description(self) -> str:
        plan = self.plan
        return (
            f"{describe_work(plan.work)}, channels {' '.join(map(str, plan.work.channels))}, "
            f"{len(plan.train)} training and {len(plan.val)} validation volumes"
        )

    def progress(self, kind: str, event: dict[str, Any]) -> None:
        if kind == "step":
            rate = event["step"] / event["elapsed_s"]
            figures = f"step {event['step']}, {rate:.2f} steps/s, loss {event['loss']:.4f}"
            self.display.advance(event["fraction"], figures + self.validated)
        elif kind == "validated":
            self.validated = f", validation {event['val_mse_ema']:.4f}"

    def finish(self) -> None:
        self.row.take(carbon(self.row.energy_j, self.plan.country))

    def summary(self) -> str:
        record = self.row
        text = str(record.status)
        if record.steps and record.elapsed_s is not None:
            text += f" after {record.steps} steps, {record.elapsed_s:.0f} s"
        if record.autoencoder_steps and record.autoencoder_s is not None:
            seconds = f"{record.autoencoder_s:.0f} s"
            text += f" (the autoencoder {record.autoencoder_steps} of them, {seconds})"
        if record.status != "ok":
            return f"{text}: {record.error or 'kept; --resume goes on with it'}"
        if record.peak_memory_bytes is not None:
            text += f", peak {show_size(record.peak_memory_bytes)}"
        if record.val_mse is not None:
            text += f", validation {record.val_mse:.4f} (averaged weights {record.val_mse_ema:.4f})"
        return text


def name_training(plan: TrainingPlan) -> str:
    return f"{plan.method}, seed {plan.seed}"
