"""What every source of volumes has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from ..sizes import Shape

PREPROCESSING = 1  # part of every cache key: raise it when any source's output changes


class Source(ABC):
    """Volumes of one shape, by index.

    `source[i]` is float32 (C + K, D, H, W) in [0, 1]; the axes D, H, W run left → right, posterior
    → anterior, inferior → superior where the data know about patients.
    """

    name: str
    channels: tuple[str, ...]  # what each of the C channels of the image shows
    condition: tuple[str, ...] = ()  # and each of the K after them, which a network is given
    labels: tuple[int, ...] = ()  # a class label of each volume; empty: they have none
    classes: int = 0  # how many labels there are
    volume: Shape  # (D, H, W), in voxels
    content: Shape  # the part of it that holds data; around it there are zeros
    subjects: list[str]  # the id of each volume, in order

    def __len__(self) -> int:
        return len(self.subjects)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C + K, D, H, W) of each volume."""
        depth, height, width = self.volume
        return len(self.channels) + len(self.condition), depth, height, width

    def __getitem__(self, index: int) -> np.ndarray:
        """The volume of `subjects[index]`. Raises UserError when its file is not what it claims."""
        # Python ends `for volume in source` on IndexError.
        if not 0 <= index < len(self):
            raise IndexError(f"volume {index} of {len(self)}")
        content = self.read(index)
        rims = [(a - b) // 2 for a, b in zip(self.volume, self.content, strict=True)]
        if not any(rims) and content.shape == self.shape:
            return content
        ends = [a - b - rim for a, b, rim in zip(self.volume, self.content, rims, strict=True)]
        return np.pad(content, [(0, 0), *zip(rims, ends, strict=True)])

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """The content of `subjects[index]`, float32 (C + K, *content)."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What the content depends on beyond name, channels, side and subjects (JSON values)."""
