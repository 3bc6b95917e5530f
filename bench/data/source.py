"""What every source of volumes has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from ..sizes import Shape
from .geometry import centred_affine

PREPROCESSING = 2  # part of every cache key: raise it when any source's output changes


class Source(ABC):
    """Volumes of one shape, by index.

    `source[i]` is float32 (C + K, D, H, W) in [0, 1]; the axes D, H, W run left → right, posterior
    → anterior, inferior → superior where the data know about patients. The first C are learned, the
    K after them given: images, and a channel of 0 and 1 for each label of a mask.
    """

    name: str
    channels: tuple[str, ...]  # what each of the C channels of the image shows
    condition: tuple[str, ...] = ()  # and each of the K: "t2", "seg", "seg:edema"
    labels: tuple[int, ...] = ()  # a class label of each volume; empty: they have none
    classes: int = 0  # how many labels there are
    volume: Shape  # (D, H, W), in voxels
    content: Shape  # the part of it that holds data; around it there are zeros
    subjects: list[str]  # the id of each volume, in order
    millimetres: float = 1.0  # side of a voxel of `content`, where the volumes have no own

    def __init__(self) -> None:
        self.left_out: dict[str, list[str]] = {}
        """Why -> the subjects that were found and cannot be used."""
        self.remarks: dict[str, list[str]] = {}
        """What a person should know -> the subjects that it holds for."""

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

    def affine(self, index: int) -> np.ndarray:
        """(4, 4) from voxels of the volume to mm, once the volume has been read."""
        affine = self.content_affine(index).copy()
        rims = [(a - b) // 2 for a, b in zip(self.volume, self.content, strict=True)]
        affine[:3, 3] -= affine[:3, :3] @ rims
        return affine

    def content_affine(self, index: int) -> np.ndarray:
        """The same, of its content."""
        return centred_affine([self.millimetres] * 3, self.content)

    def remark(self, what: str, subject: str) -> None:
        named = self.remarks.setdefault(what, [])
        if subject not in named:
            named.append(subject)

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """The content of `subjects[index]`, float32 (C + K, *content)."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What the content depends on beyond name, channels, side and subjects (JSON values)."""
