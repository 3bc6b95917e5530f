"""One trial's record: its steps and samples as they come, and what follows from them."""

import statistics
from typing import Any

from ..harness.console import describe_work
from ..harness.runner import Display, Recorder
from ..probes.energy import carbon
from ..probes.polling import percentile_95
from ..records.folder import Run
from ..records.rows import Instant, Record, Sample, Step, Times
from ..sizes import show_size
from .plan import TrialPlan


class TrialRecorder(Recorder[TrialPlan, Record]):
    """Rows of `runs.csv`, `steps.csv`, `samples.csv` and `timeline.csv`."""

    module = "run.trial"
    interrupted = "Interrupted: the trial ends after this step and is kept. Again to stop at once."

    def __init__(self, run: Run, plan: TrialPlan, display: Display) -> None:
        super().__init__(run, plan, Record(method=plan.method, repeat=plan.repeat), display)
        self.steps: list[Step] = []
        self.memory_bytes: int | None = None

    @property
    def title(self) -> str:
        repeat = f" (repeat {self.plan.repeat})" if self.plan.repeat > 1 else ""
        return f"{self.plan.method}{repeat}"

    @property
    def description(self) -> str:
        return describe_work(self.plan.work)

    def progress(self, kind: str, event: dict[str, Any]) -> None:
        which: dict[str, Any] = {"method": self.plan.method, "repeat": self.plan.repeat}
        if kind == "step":
            step = Step(**which, **event)
            self.steps.append(step)
            self.run.append(step)
            figures = f"{step.step / step.elapsed_s:.2f} steps/s, loss {step.loss:.4f}"
            if self.memory_bytes is not None:
                figures += f", memory in use {show_size(self.memory_bytes)}"
            self.display.advance(self.plan.window.fraction(step.step, step.elapsed_s), figures)
        elif kind == "sample":
            sample = Sample(**which, **event)
            self.run.append(sample)
            self.memory_bytes = sample.memory_bytes
        elif kind == "instant":
            self.run.append(Instant(**which, **event))

    def finish(self) -> None:
        self.row.take(carbon(self.row.energy_j, self.plan.country))
        if not self.steps:
            return
        record, batch_size = self.row, self.plan.work.batch_size
        record.take(window_times(self.steps, batch_size).columns())
        if record.energy_j is not None:
            record.energy_per_volume_j = record.energy_j / (len(self.steps) * batch_size)
            if record.parameters:
                record.energy_per_parameter_j = record.energy_j / record.parameters

    def summary(self) -> str:
        record = self.row
        if record.status != "ok":
            steps = f" after {record.steps} steps" if record.steps else ""
            return f"{record.status}{steps}: {record.error or 'kept what was measured'}"
        text = f"ok, {record.steps} steps of {record.step_time_median_s:.2f} s"
        if record.peak_memory_bytes is not None:
            text += f", peak {show_size(record.peak_memory_bytes)}"
        return f"{text}, loss {record.loss_first:.3f} → {record.loss_last:.3f}"


def window_times(steps: list[Step], batch_size: int) -> Times:
    """What follows from the steps of a window, which ends with the last of them."""
    times = [step.step_time_s for step in steps]
    window_s = steps[-1].elapsed_s
    return Times(
        steps=len(steps),
        window_s=window_s,
        step_time_median_s=statistics.median(times),
        step_time_p95_s=percentile_95(times),
        volumes_per_s=len(steps) * batch_size / window_s,
        loss_first=steps[0].loss,
        loss_last=steps[-1].loss,
    )
