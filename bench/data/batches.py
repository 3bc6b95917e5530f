"""The order in which volumes are trained on, and the batches that follow from it."""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..presets import Workload

T = TypeVar("T")


def iterate_batches(
    volumes: np.ndarray,
    work: Workload,
    seed: int,
    device: torch.device,
    cut: Callable[..., Any] = lambda whole, labels: whole,
    labels: Sequence[int] = (),
) -> Iterator[Any]:
    """Batches (B, C + K, D, H, W) float32 for ever: all volumes in a new random order each epoch.

    For a card the next batch is cut and pinned by another thread meanwhile, so that what a step
    waits for is its way to the card.

    Args:
        cut: what of whole volumes and their labels, on the host, goes to the device: a tensor, or a
            tree of tensors.
        labels: a class label for each of `volumes`; empty: they have none.
    """
    host = (
        pinned(cut(whole(volumes, chosen), labels_of(labels, chosen)), device)
        for chosen in iterate_order(len(volumes), work.batch_size, seed)
    )
    for batch in prefetched(host) if device.type == "cuda" else host:
        yield moved(batch, device)


def whole(volumes: np.ndarray, chosen: Sequence[int]) -> Tensor:
    """Some of (N, C, …), on the host."""
    return torch.from_numpy(np.stack([volumes[index] for index in chosen]))


def as_drawn(volumes: np.ndarray, work: Workload) -> np.ndarray:
    """What is validated on, and drawn: whole volumes, or of (N, C, D, H, W) the middle slices.

    With two dims they are (N, C, D, H), axial, one of each volume.
    """
    return volumes if work.dims == 3 else volumes[..., volumes.shape[-1] // 2]


def labels_of(
    labels: Sequence[int], chosen: Sequence[int], device: torch.device | None = None
) -> Tensor | None:
    """The class labels of some volumes, (B,) int64; None where they have none."""
    return torch.tensor([labels[index] for index in chosen], device=device) if labels else None


def iterate_order(count: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Which of `count` volumes each batch has, for ever."""
    rng = random.Random(seed)
    queue: list[int] = []
    while True:
        while len(queue) < batch_size:
            queue += rng.sample(range(count), count)
        chosen, queue = queue[:batch_size], queue[batch_size:]
        yield chosen


def pinned(batch: Any, device: torch.device) -> Any:
    """Tensors in memory that a card can read without the processor; for a CPU as they are."""
    if device.type != "cuda":
        return batch
    return tree_map(lambda tensor: tensor.pin_memory(), batch)


def moved(batch: Any, device: torch.device) -> Any:
    """On the device; from pinned memory, the processor goes on meanwhile."""
    return tree_map(lambda tensor: tensor.to(device, non_blocking=True), batch)


def prefetched(source: Iterator[T]) -> Iterator[T]:
    """The same without an end; each is made by another thread while the one before it is used."""
    with ThreadPoolExecutor(1, "batches") as thread:
        ahead = thread.submit(next, source)
        while True:
            ready = ahead.result()
            ahead = thread.submit(next, source)
            yield ready
