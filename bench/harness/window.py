"""The fixed stretch of training that a trial measures, on the harness's own clock."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..presets import Count, Seconds


@dataclass(frozen=True)
class StepTime:
    """One step of a window."""

    step: int
    """Counted from 1."""
    elapsed_s: float
    """From the start of the window to the end of this step, in seconds."""
    step_time_s: float
    """Fetching the batch, and the step, until the device has finished, in seconds."""
    batch_time_s: float
    """Of it, until the batch is on the device."""
    loss: float
    """Eq. (8)."""


@dataclass(frozen=True)
class Window:
    """The fixed stretch of training that a trial measures: so many seconds, or so many steps."""

    seconds: Seconds | None = None
    steps: Count | None = None

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.steps is None):
            raise ValueError("a window is measured in seconds or in steps, one of the two")

    def fraction(self, step: int, elapsed_s: float) -> float:
        """How much of the window is over, 0 to 1."""
        whole = self.steps if self.steps is not None else self.seconds
        assert whole is not None
        return min(1.0, (step if self.steps is not None else elapsed_s) / whole)

    def train(
        self,
        step: Callable[[Any], Tensor],
        batches: Iterator[Any],
        device: torch.device,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[StepTime]:
        """Repeat `step` until the window is over, yielding each as it ends.

        It begins when the device has finished what it was given before.

        Raises FloatingPointError at a loss that is not finite: what follows would not be training.
        """
        synchronize(device)
        started = time.perf_counter()
        count = 0
        while True:
            begin = time.perf_counter()
            batch = next(batches)
            synchronize(device)
            fetched = time.perf_counter()
            loss = step(batch)
            synchronize(device)
            end = time.perf_counter()
            del batch  # or it would be there beside the next one
            count += 1
            done = StepTime(count, end - started, end - begin, fetched - begin, loss.item())
            yield done
            if not math.isfinite(done.loss):
                raise FloatingPointError(f"the loss of step {count} is {done.loss}")
            if self.fraction(count, done.elapsed_s) >= 1 or should_stop():
                return


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
