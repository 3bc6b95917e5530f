"""The order in which volumes are trained on, and the batches that follow from it."""

import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..presets import Workload


def iterate_batches(
    volumes: np.ndarray, work: Workload, seed: int, device: torch.device
) -> Iterator[Tensor]:
    """Batches (B, C, D, H, W) float32 for ever: all volumes in a new random order each epoch."""
    for chosen in iterate_order(len(volumes), work.batch_size, seed):
        yield torch.from_numpy(np.stack([volumes[i] for i in chosen])).to(device)


def iterate_order(count: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Which of `count` volumes each batch has, for ever."""
    rng = random.Random(seed)
    queue: list[int] = []
    while True:
        while len(queue) < batch_size:
            queue += rng.sample(range(count), count)
        chosen, queue = queue[:batch_size], queue[batch_size:]
        yield chosen
