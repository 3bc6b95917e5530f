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
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data import load
from ..data.batches import as_drawn, iterate_order, labels_of, moved, pinned, whole
from ..ddpm.samplers import denoiser
from ..ddpm.step import Batch, Training, TrainingStep, latents_of, prepared, seen_shape
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
from .autoencoder import SHARE, AutoencoderStep
from .checkpoint import Checkpoint, Progress
from .ema import Ema
from .evaluation import Stopped, evaluate, stoppable
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
    trainer = Trainer(plan, device, events, should_stop)
    trainer.train()
    if trainer.is_over:
        with trainer.ema.applied(), suppress(Stopped):
            evaluate(
                plan, trainer.network, trainer.denoise, trainer.drawn, events, should_stop,
                trainer.seen if trainer.first else None,
            )  # fmt: skip


def learning_rate(training: Training, fraction: float) -> float:
    """The cosine annealing of the paper's §5.2 over the whole training, which it does not time.

    A fraction of steps where the training is measured in steps, so that the same step always has
    the same rate; of seconds where it is measured in minutes, since the number of steps that
    fit into them is not known before.
    """
    return training.learning_rate * (1 + math.cos(math.pi * fraction)) / 2


class Stage:
    """The training of one network, from its checkpoint if there is one.

    Args:
        share: of the whole training, where it begins and ends.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        path: Path,
        step: TrainingStep,
        ema: float,
        device: torch.device,
        share: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.step, self.ema = step, Ema(step.network, ema)
        self.checkpoint = Checkpoint(path, step.network, self.ema, step.optimizer, step.rng, device)
        found = self.checkpoint.read(plan.method, plan.seed)
        self.progress = found or Progress(plan.method, plan.seed)
        order = iterate_order(len(plan.train), plan.work.batch_size, plan.seed)
        self.order = itertools.islice(order, self.progress.step, None)
        self.begin, self.end = share


class Trainer:
    """A training in progress."""

    def __init__(
        self,
        plan: TrainingPlan,
        device: torch.device,
        events: Events,
        should_stop: Callable[[], bool],
    ) -> None:
        self.plan, self.device, self.events = plan, device, events
        self.should_stop, self.tell = should_stop, stoppable(events, should_stop)
        self.run = QualityRun(Path(plan.folder))
        self.volumes = self.seen = load(Path(plan.volumes))
        self.drawn = as_drawn(self.volumes, plan.work)
        torch.manual_seed(plan.seed)
        with device:
            self.network = METHODS[plan.method].build(plan.work)
        self.denoise = denoiser(self.network, plan.work, device)
        self.probes = self._open_energy()
        path = partial(self.run.checkpoint, plan.method, plan.seed)
        self.first: Stage | None = None
        """Of the autoencoder, where there is one; the network's follows."""
        if (latents := latents_of(self.network)) is not None:
            step = AutoencoderStep(latents.autoencoder, plan.work, plan.training, device)
            self.first = Stage(plan, path("autoencoder"), step, 0.0, device, (0.0, SHARE))
        of_network = TrainingStep(self.network, plan.work, plan.training, device)
        begin = 0.0 if self.first is None else self.first.end
        self.main = Stage(plan, path(), of_network, plan.ema, device, (begin, 1.0))
        self.stage = self.first or self.main
        for stage in filter(None, (self.first, self.main)):
            if not self.probes:
                stage.progress.energy_j = None
        self.run.forget_learning(plan.method, plan.seed, self._kept)
        self.curve_log = None
        if plan.tensorboard:
            folder = self.run.folder / "tensorboard" / f"{plan.method}-{plan.seed}"
            self.curve_log = CurveLog(folder, self._kept)

    @property
    def ema(self) -> Ema:
        return self.main.ema

    @property
    def steps(self) -> int:
        """Done, of the autoencoder and of the network."""
        before = self._steps_before if self.stage is self.main else 0
        return before + self.stage.progress.step

    @property
    def _steps_before(self) -> int:
        """Of the autoencoder."""
        return 0 if self.first is None else self.first.progress.step

    @property
    def fraction(self) -> float:
        """How much of the training is over, 0 to 1."""
        return self.plan.window.fraction(self.steps, self.stage.progress.elapsed_s)

    @property
    def is_over(self) -> bool:
        return self.stage is self.main and self.fraction >= 1

    @property
    def learning_rate(self) -> float:
        """Each stage has an annealing of its own."""
        stage = self.stage
        own = (self.fraction - stage.begin) / (stage.end - stage.begin)
        return learning_rate(stage.step.training, min(1.0, own))

    def train(self) -> None:
        """To the end, or until it should stop; a checkpoint of the last step is there, then."""
        with suppress(Stopped):
            self._train()
        self._report()

    def _train(self) -> None:
        if self.first is not None:
            self.events.stage("training the autoencoder")
            self._train_stage()
            self._encode(self.first)
        self.events.stage("training")
        plan, known = self.plan, self.seen if self.first else self.drawn
        self.validation = Validation(
            known, plan.val, plan.split_seed, plan.work.batch_size, self.device,
            known.shape[1] - len(plan.work.condition), plan.labels,
        )  # fmt: skip
        if self.main.progress.step == 0:
            self._validate()
        elif self._validation_is_due:  # the one in which it was stopped
            self._validate()
            self.main.checkpoint.write(self.main.progress)
        self._train_stage()

    def _train_stage(self) -> None:
        """To the end of the present stage."""
        stage = self.stage
        next_checkpoint = stage.progress.elapsed_s + self.plan.checkpoint_s
        while self.fraction < stage.end:
            with self._metered(stage.progress):
                while True:
                    self._take_step()
                    stopped = self.should_stop()
                    checkpoint_is_due = (
                        stopped
                        or self.fraction >= stage.end
                        or stage.progress.elapsed_s >= next_checkpoint
                    )
                    if checkpoint_is_due or self._validation_is_due:
                        break
            try:
                if self._validation_is_due:
                    self._validate()
            except Stopped:
                stopped = True
            if checkpoint_is_due or stopped:
                stage.checkpoint.write(stage.progress)
                next_checkpoint = stage.progress.elapsed_s + self.plan.checkpoint_s
            if stopped:
                raise Stopped

    def _encode(self, first: Stage) -> None:
        """From the autoencoder to the network: the latents of all that it trains and validates on.

        They are made again where a training goes on, which counts as little as its start.
        """
        main = self.main.progress
        is_new = main.step == 0
        if is_new:
            done = first.progress
            main.elapsed_s, main.energy_j, main.energy_source = (
                done.elapsed_s, done.energy_j, done.energy_source
            )  # fmt: skip
        begin = time.perf_counter()
        first.step.optimizer.zero_grad(set_to_none=True)
        with self._metered(main if is_new else replace(main)):
            self.seen = np.zeros(seen_shape(self.network, self.volumes.shape), np.float32)
            for name, members in (("training", self.plan.train), ("validation", self.plan.val)):
                chosen, tell = list(members), self.tell(f"encoding {name} volumes")
                self.seen[chosen] = prepared(
                    self.network, self.plan.work, self.volumes[chosen], self.device, tell
                )
        if is_new:
            main.elapsed_s += time.perf_counter() - begin
            first.checkpoint.write(first.progress)  # with the range of the latents
        first.step.optimizer.state.clear()  # nothing of it stays on the device
        first.ema.means.clear()
        self.stage = self.main

    def _take_step(self) -> None:
        begin = time.perf_counter()
        step, progress = self.stage.step, self.stage.progress
        for group in step.optimizer.param_groups:  # over what the step's own schedule had set
            group["lr"] = self.learning_rate
        chosen = [self.plan.train[index] for index in next(self.stage.order)]
        cut = step.cut(whole(self.seen, chosen), labels_of(self.plan.labels, chosen))
        batch = moved(pinned(cut, self.device), self.device)
        number = progress.step + 1
        loss = self._measured(batch) if number == _MEASURED_STEP else step(batch)
        self.stage.ema.update(number)
        synchronize(self.device)
        progress.step = number
        progress.elapsed_s += time.perf_counter() - begin
        value = loss.item()
        progress.loss_sum += value
        progress.loss_count += 1
        self.events.send(
            "step",
            step=self.steps,
            elapsed_s=progress.elapsed_s,
            loss=value,
            fraction=self.fraction,
        )
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss of step {self.steps} is {value}")

    def _measured(self, batch: Batch) -> Tensor:
        """A step like any other, whose peak of memory is followed."""
        step = self.stage.step
        held = tensors_in(step.held(batch))
        memory = MemoryProbe(step.network, step.optimizer, self.device, held)
        memory.start()
        loss = step(batch)
        self.stage.progress.peak = memory.stop().columns()
        return loss

    @property
    def _validation_is_due(self) -> bool:
        """After the last step of the network that was taken, or that a checkpoint has."""
        main = self.main.progress
        if not main.step:
            return False
        fraction = self.plan.window.fraction(self._steps_before + main.step, main.elapsed_s)
        return main.validations < math.floor(fraction * self.plan.validations)

    def _validate(self) -> None:
        progress = self.main.progress
        raw = averaged = self.validation(self.denoise, self.tell("validating"))
        if progress.step:  # before the first step the averages are the weights
            with self.ema.applied():
                averaged = self.validation(self.denoise, self.tell("validating averaged weights"))
        progress.val_mse, progress.val_mse_ema = raw, averaged
        row = Learning(
            method=self.plan.method,
            seed=self.plan.seed,
            step=self.steps,
            elapsed_s=progress.elapsed_s,
            energy_j=progress.energy_j,
            energy_source=progress.energy_source,
            loss_train=progress.loss_sum / progress.loss_count if progress.loss_count else None,
            val_mse=raw,
            val_mse_ema=averaged,
            val_of=None if self.first is None else "latents",
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
        progress, main = self.stage.progress, self.main.progress
        if self.first is not None:
            done, network = self.first.progress, self.first.step.network
            self.events.found(
                autoencoder_steps=done.step,
                autoencoder_s=done.elapsed_s,
                autoencoder_j=done.energy_j,
                autoencoder_parameters=sum(p.numel() for p in network.parameters()),
                autoencoder_peak_bytes=done.peak.get("peak_memory_bytes"),
            )
        self.events.found(
            steps=self.steps,
            elapsed_s=progress.elapsed_s,
            energy_j=progress.energy_j,
            energy_source=progress.energy_source,
            parameters=sum(p.numel() for p in self.network.parameters()),
            val_mse=main.val_mse,
            val_mse_ema=main.val_mse_ema,
            **main.peak,
        )

    @property
    def _kept(self) -> int:
        """The step up to which points of the curve count, when it starts: that of the checkpoint.

        The one before where that was stopped in its validation. -1 without a checkpoint: then not
        even the point before the first step counts.
        """
        if not self.main.progress.step:
            return -1
        last = self._steps_before + self.main.progress.step
        return last - 1 if self._validation_is_due else last

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
    def _metered(self, progress: Progress) -> Iterator[None]:
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
        elsewhere = progress.energy_source not in (None, source)
        if energy is None or progress.energy_j is None or elsewhere:
            progress.energy_j = None  # a part is missing, or from elsewhere: there is no sum
        else:
            progress.energy_j += energy
            progress.energy_source = source


if __name__ == "__main__":
    sys.exit(serve(TrainingPlan, run))
