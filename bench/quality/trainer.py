"""What the process of one training does (`bench/harness/worker.py`).

The process writes its own points of the learning curve and its own checkpoints, so that a point is
on the disk before the checkpoint that counts it as over.
"""

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from ..data import load
from ..data.batches import as_drawn, iterate_order, labels_of, moved, pinned, whole
from ..ddpm.samplers import denoiser
from ..ddpm.step import Batch, Training, TrainingStep
from ..harness.backends import known_problems
from ..harness.window import synchronize
from ..harness.worker import Events, serve
from ..methods import METHODS
from ..probes import SampledProbe
from ..probes.energy import EnergyProbe, open_meter
from ..probes.host import device_name
from ..probes.memory import MemoryProbe, tensors_in
from ..probes.nvml import Card, CardUnavailable
from ..probes.polling import polling
from ..records.folder import QualityRun
from ..records.rows import Energy, Learning, Measurement
from .checkpoint import Checkpoint, Progress
from .ema import Ema
from .evaluation import Stopped, evaluate
from .plan import TrainingPlan
from .tensorboard_log import CurveLog
from .validation import Validation

_SAMPLE_HZ = 2.0  # of power, where energy is integrated; a counter is read at both ends anyway
_MEASURED_STEP = 2  # the first in steady state: the optimizer has its state


def run(
    plan: TrainingPlan, events: Events, should_stop: Callable[[], bool] = lambda: False
) -> None:
    """Carry out a plan, from its checkpoint if there is one. Raises what the training raises."""
    device = torch.device(plan.device)
    if device.type == "cuda":
        plan.backends.apply()
        cudnn = torch.backends.cudnn.version()
        events.found(warnings=known_problems(plan.work.precision, torch.__version__, cudnn))
    events.found(device_name=device_name(device))
    events.stage("building the network")
    trainer = Trainer(plan, device, events)
    trainer.train(should_stop)
    if trainer.is_over:
        with trainer.ema.applied(), suppress(Stopped):
            evaluate(plan, trainer.network, trainer.denoise, trainer.drawn, events, should_stop)


def learning_rate(training: Training, fraction: float) -> float:
    """The cosine annealing of the paper's §5.2 over the whole training, which it does not time.

    A fraction of steps where the training is measured in steps, so that the same step always has
    the same rate; of seconds where it is measured in minutes, since the number of steps that
    fit into them is not known before.
    """
    return training.learning_rate * (1 + math.cos(math.pi * fraction)) / 2


class Trainer:
    """A training in progress."""

    def __init__(self, plan: TrainingPlan, device: torch.device, events: Events) -> None:
        self.plan, self.device, self.events = plan, device, events
        self.run = QualityRun(Path(plan.folder))
        self.volumes = load(Path(plan.volumes))
        self.drawn = as_drawn(self.volumes, plan.work)
        torch.manual_seed(plan.seed)
        with device:
            self.network = METHODS[plan.method].build(plan.work)
        self.step = TrainingStep(self.network, plan.work, plan.training, device)
        self.ema = Ema(self.network, plan.ema)
        self.denoise = denoiser(self.network, plan.work, device)
        self.validation = Validation(
            self.drawn, plan.val, plan.split_seed, plan.work.batch_size, device,
            len(plan.work.modality), plan.labels,
        )  # fmt: skip
        self.probes = self._open_energy()
        self._restore()
        order = iterate_order(len(plan.train), plan.work.batch_size, plan.seed)
        self.order = itertools.islice(order, self.progress.step, None)
        self.curve_log = None
        if plan.tensorboard:
            folder = self.run.folder / "tensorboard" / f"{plan.method}-{plan.seed}"
            self.curve_log = CurveLog(folder, self._kept)

    @property
    def fraction(self) -> float:
        """How much of the training is over, 0 to 1."""
        return self.plan.window.fraction(self.progress.step, self.progress.elapsed_s)

    @property
    def is_over(self) -> bool:
        return self.fraction >= 1

    @property
    def learning_rate(self) -> float:
        return learning_rate(self.plan.training, self.fraction)

    def train(self, should_stop: Callable[[], bool]) -> None:
        """To the end, or until it should stop; a checkpoint is there in either case."""
        self.events.stage("training")
        next_checkpoint = self.progress.elapsed_s + self.plan.checkpoint_s
        if self.progress.step == 0:
            self._validate()
        stopped = False
        while not (self.is_over or stopped):
            with self._metered():
                while True:
                    self._take_step()
                    stopped = should_stop()
                    checkpoint_is_due = (
                        stopped or self.is_over or self.progress.elapsed_s >= next_checkpoint
                    )
                    if checkpoint_is_due or self._validation_is_due:
                        break
            if self._validation_is_due:
                self._validate()
            if checkpoint_is_due:
                self.checkpoint.write(self.progress)
                next_checkpoint = self.progress.elapsed_s + self.plan.checkpoint_s
        self._report()

    def _take_step(self) -> None:
        begin = time.perf_counter()
        for group in self.step.optimizer.param_groups:  # over what the step's own schedule had set
            group["lr"] = self.learning_rate
        chosen = [self.plan.train[index] for index in next(self.order)]
        cut = self.step.cut(whole(self.volumes, chosen), labels_of(self.plan.labels, chosen))
        batch = moved(pinned(cut, self.device), self.device)
        number = self.progress.step + 1
        loss = self._measured(batch) if number == _MEASURED_STEP else self.step(batch)
        self.ema.update(number)
        synchronize(self.device)
        self.progress.step = number
        self.progress.elapsed_s += time.perf_counter() - begin
        value = loss.item()
        self.progress.loss_sum += value
        self.progress.loss_count += 1
        self.events.send(
            "step",
            step=number,
            elapsed_s=self.progress.elapsed_s,
            loss=value,
            fraction=self.fraction,
        )
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss of step {number} is {value}")

    def _measured(self, batch: Batch) -> Tensor:
        """A step like any other, whose peak of memory is followed."""
        held = tensors_in(self.step.held(batch))
        memory = MemoryProbe(self.network, self.step.optimizer, self.device, held)
        memory.start()
        loss = self.step(batch)
        self.progress.peak = memory.stop().columns()
        return loss

    @property
    def _validation_is_due(self) -> bool:
        return self.progress.validations < math.floor(self.fraction * self.plan.validations)

    def _validate(self) -> None:
        self.events.stage("validating")
        progress = self.progress
        progress.val_mse = raw = self.validation(self.denoise)
        with self.ema.applied():
            progress.val_mse_ema = averaged = self.validation(self.denoise)
        row = Learning(
            method=self.plan.method,
            seed=self.plan.seed,
            step=progress.step,
            elapsed_s=progress.elapsed_s,
            energy_j=progress.energy_j,
            energy_source=progress.energy_source,
            loss_train=progress.loss_sum / progress.loss_count if progress.loss_count else None,
            val_mse=raw,
            val_mse_ema=averaged,
            learning_rate=self.learning_rate,
        )
        self.run.append(row)
        if self.curve_log is not None:
            self.curve_log.add(row)
        progress.validations = math.floor(self.fraction * self.plan.validations)
        progress.loss_sum, progress.loss_count = 0.0, 0
        self.events.send("validated", val_mse=raw, val_mse_ema=averaged)
        self._report()
        self.events.stage("training")

    def _report(self) -> None:
        """What trained.csv will say of it, should this be the last that is heard."""
        progress = self.progress
        self.events.found(
            steps=progress.step,
            elapsed_s=progress.elapsed_s,
            energy_j=progress.energy_j,
            energy_source=progress.energy_source,
            parameters=sum(p.numel() for p in self.network.parameters()),
            val_mse=progress.val_mse,
            val_mse_ema=progress.val_mse_ema,
            **progress.peak,
        )

    def _restore(self) -> None:
        path = self.run.checkpoint(self.plan.method, self.plan.seed)
        self.checkpoint = Checkpoint(
            path, self.network, self.ema, self.step.optimizer, self.step.rng, self.device
        )
        found = self.checkpoint.read(self.plan.method, self.plan.seed)
        self.progress = found or Progress(self.plan.method, self.plan.seed)
        if not self.probes:
            self.progress.energy_j = None
        self.run.forget_learning(self.plan.method, self.plan.seed, self._kept)

    @property
    def _kept(self) -> int:
        """The step up to which points of the curve count, when it starts: that of the checkpoint.

        -1 without one: then not even the point before the first step does.
        """
        return self.progress.step or -1

    def _open_energy(self) -> list[SampledProbe]:
        card = None
        if self.device.type == "cuda":
            try:
                card = Card.open(self.device.index or 0)
            except CardUnavailable as why:
                self.events.found(warnings=[str(why)])
        meter = open_meter(self.device, card)
        return [] if meter is None else [EnergyProbe(meter)]

    @contextmanager
    def _metered(self) -> Iterator[None]:
        """A stretch of training whose energy counts."""
        with polling(self.probes, _SAMPLE_HZ, lambda *_, **__: None) as found:
            yield
        whole = Energy()
        for measurement in found:
            notes = Measurement(warnings=measurement.warnings, contention=measurement.contention)
            self.events.found(notes)
            if isinstance(measurement, Energy):
                whole = measurement
        energy, source = whole.energy_j, whole.energy_source
        progress = self.progress
        elsewhere = progress.energy_source not in (None, source)
        if energy is None or progress.energy_j is None or elsewhere:
            progress.energy_j = None  # a part is missing, or from elsewhere: there is no sum
        else:
            progress.energy_j += energy
            progress.energy_source = source


if __name__ == "__main__":
    sys.exit(serve(TrainingPlan, run))
