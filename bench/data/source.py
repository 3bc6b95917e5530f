"""What every source of volumes has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

PREPROCESSING = 1  # part of every cache key: raise it when any source's output changes


class Source(ABC):
    """Volumes of one shape, by index.

    `source[i]` is float32 (C, D, H, W) in [0, 1], a cube of side `volume`; the axes D, H, W run
    left → right, posterior → anterior, inferior → superior where the data know about patients.
    """

    name: str
    channels: tuple[str, ...]  # what each of the C channels shows
    volume: int  # side of the cube, in voxels
    subjects: list[str]  # the id of each volume, in order

    def __len__(self) -> int:
        return len(self.subjects)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, D, H, W) of each volume."""
        return len(self.channels), self.volume, self.volume, self.volume

    @abstractmethod
    def __getitem__(self, index: int) -> np.ndarray:
        """The volume of `subjects[index]`. Raises UserError when its file is not what it claims."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What the content depends on beyond name, channels, side and subjects (JSON values)."""

    def _checked(self, index: int) -> int:
        # Python ends `for volume in source` on IndexError.
        if not 0 <= index < len(self):
            raise IndexError(f"volume {index} of {len(self)}")
        return index
