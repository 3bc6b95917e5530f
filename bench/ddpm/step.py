"""One DDPM training step (paper §5.2, eq. 8), and the window that repeats it.

What a network may offer beside `forward(x_t, t) -> eps`:

- `crop(x_0, patch, rng) -> (x_0, keywords)`: the part of the volumes that a step trains on, and
  what its forward pass wants to know of it (PatchDDM: the coordinates);
- `inverse(v) -> x`: U⁻¹, for the λ_R term of eq. (8);
- `latents`: it trains on latents, which `latents.encode(volumes, device, dtype, progress)` makes of
  all volumes beforehand, of the shape `latents.shape(shape)`, and `latents.decode` volumes of them;
- `make_optimizer(learning_rate, lambda_l2) -> Optimizer`: for a method that updates in its own
  way. One that adds the λ_L2 term itself has an attribute `lambda_l2`; tensors that it keeps
  beside its state are its `constants`;
- `techniques`: how it is trained (`bench/ddpm/technique.py`); `bench.methods` puts them there.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from ..presets import Count, Precision, Seed, Weight, Workload
from ..sizes import Shape
from .diffusion import EMPTY, Diffusion, shown, split_channels
from .technique import Technique, optimizer_of, saving

Shown = tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]
"""x_t and its condition (B, C + K, D, H, W), t (B,), the target to be found (B, C, D, H, W),
keywords of the forward pass; of slices without W."""

Batch = Tensor | tuple[Tensor, dict[str, Tensor]]
"""Volumes and their condition (B, C + K, D, H, W), slices of them (B, C + K, D, H), or patches and
keywords of the forward pass."""


@dataclass(frozen=True)
class Training:
    """How every method is trained (paper §5.2)."""

    learning_rate: float = 2e-4
    """Of AdamW, at the start of the cosine annealing."""
    lambda_r: Weight = 0.0
    """Weight of ‖x_t − U⁻¹(U(x_t, t))‖² in eq. (8), for invertible networks."""
    lambda_l2: Weight = 1e-4
    """Weight of ‖W‖₂ in eq. (8)."""
    anneal_steps: Count = 10_000
    """Steps over which the learning rate is annealed to 0."""
    seed: Seed = 0
    """Of the weights, the noise and the order of the data."""


class TrainingStep:
    """`step(x_0) -> loss`: one whole step of one network, gradients, optimizer and all.

    Runs on real and on fake tensors alike: nothing in it looks at a value.
    """

    def __init__(
        self,
        network: nn.Module,
        work: Workload,
        training: Training | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.network = network
        self.techniques: tuple[Technique, ...] = getattr(network, "techniques", ())
        self.work = work
        self.training = training or Training()
        self.patch = work.patch
        self.device = torch.device(device)
        self.autocast_dtype = autocast_dtype(work.precision)
        self.diffusion = Diffusion(device=self.device)
        self.rng = random.Random(self.training.seed)
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = self._make_optimizer()
        self.adds_l2_itself = hasattr(self.optimizer, "lambda_l2")
        # But for fp16 it hands on everything as it is.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=work.precision == "fp16")
        if self.scaler.is_enabled():  # makes its tensors, which it would else do in the first step
            self.scaler.scale(torch.zeros((), device=self.device))
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, T_max=self.training.anneal_steps
        )

    def __call__(self, batch: Batch) -> Tensor:
        """Train on volumes (B, C + K, D, H, W) in [0, 1], or on what `cut` made of them.

        Returns the loss of eq. (8), a scalar.
        """
        self.optimizer.zero_grad(set_to_none=True)
        shown = self.noised(batch)
        parts = [self._learn(*part) for part in self._micro_batches(shown)]
        loss, weight_norm = reduce(torch.add, (loss for loss, _ in parts)), parts[-1][1]
        if not self.adds_l2_itself:
            if self.scaler.is_enabled():
                self.scaler.unscale_(self.optimizer)
            pull = self.training.lambda_l2 / weight_norm
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.addcmul_(parameter.detach(), pull)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return loss + self.training.lambda_l2 * weight_norm

    def held(self, batch: Batch) -> list[Any]:
        """What has tensors before a step, beside the network and the optimizer's state."""
        constants = [self.diffusion.log_snr, *getattr(self.optimizer, "constants", ())]
        return [batch, *vars(self.scaler).values(), constants]

    def cut(self, volumes: Tensor, labels: Tensor | None = None) -> Batch:
        """What of whole volumes, on the host, the step trains on: it alone goes to the device.

        With two dims that is an axial slice of each, (B, C + K, D, H), every one as likely.
        """
        given = {} if labels is None else {"class_labels": labels}
        if volumes.ndim > 2 + self.work.dims:
            places = [self.rng.randrange(volumes.shape[-1]) for _ in range(len(volumes))]
            chosen = zip(volumes.unbind(), places, strict=True)
            volumes = torch.stack([volume[..., place] for volume, place in chosen])
        elif self.work.dims == 3 and not self.patch >= Shape(volumes.shape[2:]):
            volumes, place = self.network.crop(volumes, self.patch.sides, self.rng)  # type: ignore[operator]
            given |= place
        return (volumes, given) if given else volumes

    def _learn(self, share: float, *shown: Any) -> tuple[Tensor, Tensor]:
        """Forward and backward pass; the loss without its λ_L2 term, and ‖W‖₂."""
        with self._autocast(), saving(self.techniques, self.work, self.device):
            loss = self._loss(*shown)
        # ‖W‖₂ is a sum over all weights: its gradient, W / ‖W‖₂, is added in closed form, which
        # costs no graph and lets a method free gradients during the backward pass.
        weight_norm = torch.nn.utils.get_total_norm([p.detach() for p in self.parameters])
        if hasattr(weight_norm, "full_tensor"):  # of the shards of all cards
            weight_norm = weight_norm.full_tensor()
        loss = loss if share == 1 else loss * share
        self.scaler.scale(loss).backward()
        return loss.detach(), weight_norm

    def _micro_batches(self, shown: Shown) -> Iterator[tuple[Any, ...]]:
        """The share of the batch that each has, and what the network is shown of it.

        The loss is a mean over the batch: that of the whole is the sum of theirs times the shares.
        """
        x_t, t, wanted, keywords = shown
        size = self.work.micro_batch or len(t)
        if size >= len(t):
            yield (1, *shown)
            return
        for first in range(0, len(t), size):
            some = slice(first, first + size)
            own = {name: value[some] for name, value in keywords.items()}
            yield len(t[some]) / len(t), x_t[some], t[some], wanted[some], own

    def noised(self, batch: Batch) -> Shown:
        """What the network is shown, and what it is to find in it."""
        cut = self.cut(batch) if isinstance(batch, Tensor) else batch
        volumes, keywords = (cut, {}) if isinstance(cut, Tensor) else cut
        x_0, condition = self._split(self.diffusion.scale_in(volumes))
        t = torch.randint(self.diffusion.timesteps, (x_0.shape[0],), device=self.device)
        eps = torch.randn_like(x_0)
        if self.work.drop_condition and self.work.is_conditional:
            condition, keywords = self._dropped(condition, keywords)
        x_t = shown(self.diffusion.q_sample(x_0, t, eps), condition)
        return x_t, t, self.diffusion.wanted(self.work.target, x_0, t, eps), keywords

    def _dropped(
        self, condition: Tensor, keywords: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Some volumes without what they are given (Ho & Salimans 2022, arXiv:2207.12598, §3.2)."""
        dropped = torch.rand(len(condition), device=self.device) < self.work.drop_condition
        if labels := self.work.classes:
            labels_left = keywords["class_labels"].masked_fill(dropped, labels)
            keywords = keywords | {"class_labels": labels_left}
        return condition.masked_fill(
            dropped.view(-1, *(1,) * (condition.ndim - 1)), EMPTY
        ), keywords

    def _split(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        return split_channels(volumes, volumes.shape[1] - len(self.work.condition))

    def _loss(self, x_t: Tensor, t: Tensor, wanted: Tensor, keywords: dict[str, Tensor]) -> Tensor:
        predicted = self.network(x_t, t, **keywords)
        if predicted.shape != wanted.shape:  # the loss would broadcast
            found, expected = tuple(predicted.shape), tuple(wanted.shape)
            raise UserError(
                f"the network's output is {found}, its target {expected}; under a condition its "
                "`build` is told out_channels"
            )
        loss = F.mse_loss(predicted.float(), wanted)  # eq. (8), first term
        if self.training.lambda_r > 0:
            reconstructed = self.network.inverse(predicted)  # type: ignore[operator]
            image, _ = self._split(x_t)
            loss = loss + self.training.lambda_r * F.mse_loss(reconstructed.float(), image)
        return loss

    def _make_optimizer(self) -> torch.optim.Optimizer:
        rate, l2 = self.training.learning_rate, self.training.lambda_l2
        for module in self.network.modules():  # the network, or the one that a technique wraps
            if hasattr(module, "make_optimizer"):
                return module.make_optimizer(learning_rate=rate, lambda_l2=l2)  # type: ignore[no-any-return, operator]
        if make := optimizer_of(self.techniques):
            return make(self.network, learning_rate=rate, lambda_l2=l2)
        # The fused kernel updates in place; the others hold temporaries the size of the weights.
        return torch.optim.AdamW(self.parameters, lr=rate, fused=True)

    def _autocast(self) -> torch.autocast:
        enabled = self.autocast_dtype is not None
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=enabled)


def random_batch(
    work: Workload, network: nn.Module | None = None, sides: Iterable[int] | None = None
) -> tuple[Tensor, Tensor | None]:
    """Volumes with their condition and class labels, as `TrainingStep.cut` takes them.

    Or the latents that `network` trains on in their place; or, with the sides of `work.grid`, what
    a sampler is given.
    """
    shape = seen_shape(network, (work.batch_size, work.shown_channels, *(sides or work.volume)))
    labels = torch.zeros(work.batch_size, dtype=torch.int64) if work.classes else None
    return torch.rand(shape), labels


def prepared(
    network: nn.Module,
    work: Workload,
    volumes: np.ndarray,
    device: torch.device,
    progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """What of volumes (N, C + K, D, H, W) a network trains on: themselves, or their latents.

    Args:
        progress: told the share that is encoded, 0 to 1, after every volume.
    """
    latents = latents_of(network)
    if latents is None:
        return volumes
    found: np.ndarray = latents.encode(volumes, device, autocast_dtype(work.precision), progress)
    return found


def seen_shape(network: nn.Module | None, volumes: tuple[int, ...]) -> tuple[int, ...]:
    """Of what `prepared` makes of volumes of this shape."""
    latents = latents_of(network)
    return volumes if latents is None else latents.shape(volumes)


def latents_of(network: nn.Module | None) -> Any:
    """None of a network that trains on volumes."""
    return getattr(network, "latents", None)


def make_state(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer its state, and the parameters gradients, as after a first step."""
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]

    def is_there() -> bool:
        return not trained or all(optimizer.state.get(parameter) for parameter in trained)

    if is_there():
        return
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    if not is_there():  # it works in the backward pass: of a loss that costs next to nothing, ∑ w²
        torch.stack([parameter.square().sum() for parameter in trained]).sum().backward()
        optimizer.step()


def autocast_dtype(precision: Precision) -> torch.dtype | None:
    """The 16-bit type of autocast, or None for float32 throughout."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
