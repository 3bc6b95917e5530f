"""Volumes made of scans: what lies where is read from their headers, and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..sizes import Shape
from .geometry import (
    box_of,
    find_foreground,
    grid_around,
    one_hot,
    resample,
    scale_intensity,
    voxel_size,
    window_intensity,
)
from .listing import Listing, Rows, Scan, select
from .nifti import Image, Place, find_scan, read_image, read_place
from .source import Source

SAME_PLACE = 0.1  # of a voxel: as far apart as two headers may put a corner of one field of view
LEAST_OVERLAP = 0.5  # of the first scan's field of view, that the others of a subject have to show
MOST_LABELS = 32  # of a mask; an image has more values

Box = list[tuple[float, float]]


class Scans(Source):
    """Scans of subjects, one file a channel, made volumes of one shape.

    Of each subject the first channel decides where the volume lies: around the foreground of all
    its images, with voxels of equal sides, or of `spacing`. Its other scans are brought there by
    their headers. Images are scaled to [0, 1], by the foreground's percentiles or by a window.
    Masks become a channel of 0 and 1 for each of their labels.

    Args:
        name: of the source.
        listing: which file shows what.
        channels: columns of the listing that are learned.
        condition: columns that are given: masks, and images.
        content: shape, in voxels.
        place: what the person gave as --data-dir, for messages.
        subjects: at most so many.
        window: intensities that become 0 and 1; the whole field of view is then the content.
        spacing: mm of a voxel along each axis; None: as many as let the foreground fit.
    """

    def __init__(
        self,
        name: str,
        listing: Listing,
        channels: tuple[str, ...],
        condition: tuple[str, ...],
        content: Shape,
        place: Path,
        *,
        subjects: int | None = None,
        window: tuple[float, float] | None = None,
        spacing: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.channels = name, channels
        self.volume = self.content = Shape(content)
        self.window, self.spacing = window, spacing
        of_classes = [each for each in condition if listing.holds_classes(each)]
        if len(of_classes) > 1:
            raise UserError(f"--condition {' '.join(of_classes)}: one column of classes at most")
        condition = tuple(each for each in condition if each not in of_classes)
        columns = (*channels, *condition)
        rows, self.left_out = select(listing.rows, columns, place)
        if of_classes:
            rows = self._with_classes(rows, listing, *of_classes)
        self.subjects = list(rows)[:subjects]
        if of_classes:
            told = [listing.attributes[each][of_classes[0]] for each in self.subjects]
            known = sorted(set(told))
            self.labels, self.classes = tuple(map(known.index, told)), len(known)
            for name in known:
                of_it = [s for s, each in zip(self.subjects, told, strict=True) if each == name]
                self.remarks[f"{of_classes[0]} {name} is class {known.index(name)}"] = of_it
        self.rows = {
            subject: {c: Scan(find_scan(scan.path), scan.part) for c, scan in rows[subject].items()}
            for subject in self.subjects
        }
        for subject in self.subjects:
            self._compare_places(subject)
        self.masks = {c: names for c in condition if (names := self._labels_of(c, listing.labels))}
        self.condition = tuple(
            f"{column}:{label}" if label else column
            for column in condition
            for label in self.masks.get(column, {0: ""}).values()
        )
        self._columns = columns
        self._affines: dict[int, np.ndarray] = {}

    def read(self, index: int) -> np.ndarray:
        subject = self.subjects[index]
        scans = self.rows[subject]
        images = {name: read_image(*scan) for name, scan in scans.items()}
        reference = images[self.channels[0]]
        for name, image in images.items():
            if _same_place(_place_of(image), _place_of(reference)):  # but for rounding
                images[name] = image._replace(affine=reference.affine)
        scaled, boxes = {}, []
        for name, image in images.items():
            if name not in self.masks:
                scaled[name], box = self._scale(subject, name, image)
                boxes.append(_moved(box, image.affine, reference.affine))
        box = [
            (min(a for a, _ in axis), max(b for _, b in axis)) for axis in zip(*boxes, strict=True)
        ]
        grid = grid_around(box, reference.affine, self.content, self.spacing)
        self._affines[index] = grid
        extent = np.subtract(*np.array(box).T[::-1]) * voxel_size(reference.affine)
        if (extent > voxel_size(grid) * self.content.sides + voxel_size(reference.affine)).any():
            self.remark(f"larger than {self.content} voxels at --spacing; the rim is cut", subject)
        channels: list[np.ndarray] = []
        for name in self._columns:
            voxels, affine = images[name]
            if name in self.masks:
                labels = self._mask(name, scans[name], voxels)
                found = one_hot(labels, list(self.masks[name]), affine, grid, self.content)
                channels.extend(found)
            else:
                channels.append(resample(scaled[name], affine, grid, self.content))
        return np.stack(channels)

    def _with_classes(self, rows: Rows, listing: Listing, column: str) -> Rows:
        """The subjects whose class the manifest tells; the others are left out."""
        told = {each: row for each, row in rows.items() if listing.attributes[each].get(column)}
        if len(told) < len(rows):
            self.left_out[f"lacks {column}"] = [each for each in rows if each not in told]
        return told

    def content_affine(self, index: int) -> np.ndarray:
        return self._affines[index]

    def fingerprint(self) -> dict[str, Any]:
        content: dict[str, Any] = {
            flag: None if value is None else list(value)
            for flag, value in (("window", self.window), ("spacing", self.spacing))
        }
        for subject in self.subjects:
            for name, (path, part) in self.rows[subject].items():
                status = path.stat()
                content[f"{subject} {name}"] = [path.name, part, status.st_size, status.st_mtime_ns]
        return content

    def _scale(self, subject: str, name: str, image: Image) -> tuple[np.ndarray, Box]:
        """In [0, 1], and the box of voxels that the volume has to show."""
        path = self.rows[subject][name].path
        if self.window is not None:
            return window_intensity(image.voxels, *self.window), [
                (0, n) for n in image.voxels.shape
            ]
        found = find_foreground(image.voxels)
        if not found.mask.any():
            raise UserError(f"{path}: every voxel is {image.voxels.flat[0]:g}; take it out")
        if not found.constant:
            self.remark(
                f"the background of {name} is not constant: taken for air around a whole head",
                subject,
            )
        if found.fills_the_view:
            self.remark(f"{name} has no background on any side: its whole view is used", subject)
        try:
            return scale_intensity(image.voxels, found), [*box_of(found.mask)]
        except ValueError as error:
            raise UserError(f"{path}: {error}; take it out") from error

    def _compare_places(self, subject: str) -> None:
        """Whether the scans of a subject can be laid over each other, by their headers."""
        scans = self.rows[subject]
        (first, scan), *others = ((name, scans[name]) for name in scans)
        reference = read_place(*scan)
        for name, other in others:
            place = read_place(*other)
            if _same_place(place, reference):
                continue
            if not (place.told and reference.told):
                unsaid = other if not place.told else scan
                raise UserError(
                    f"{unsaid.path}: its header does not say where its voxels lie, so {name} "
                    f"cannot be laid over {first}; save it with the affine of the other"
                )
            overlap = _overlap(place, reference)
            if overlap < LEAST_OVERLAP:
                raise UserError(
                    f"{other.path}: shows {overlap:.0%} of what {scan.path.name} shows, by their "
                    "headers; correct its affine or take the subject out"
                )
            self.remark(f"{name} lies on another grid than {first}: resampled to it", subject)

    def _labels_of(self, column: str, told: Mapping[str, Mapping[int, str]]) -> dict[int, str]:
        """Label -> name, without the background; empty for a column that is an image."""
        if column in told:
            return {label: name for label, name in sorted(told[column].items()) if label != 0}
        first = self.rows[self.subjects[0]][column]
        if _values(first) is None:
            return {}
        found = set()
        with ThreadPoolExecutor(4) as threads:  # it waits for gzip, which lets others run
            scans = [self.rows[subject][column] for subject in self.subjects]
            for scan, values in zip(scans, threads.map(_values, scans), strict=True):
                if values is None:
                    raise UserError(
                        f"{scan.path}: not a mask, as {first.path.name} is: not whole numbers, or "
                        f"more than {MOST_LABELS} of them"
                    )
                found |= values
        found.discard(0)
        if not found:
            raise UserError(f"{first.path}: no mask of {column} has a label other than 0")
        if len(found) > MOST_LABELS:
            raise UserError(f"{column}: its masks have {len(found)} labels, at most {MOST_LABELS}")
        names = {label: str(label) for label in sorted(found)}
        return dict.fromkeys(names, "") if len(names) == 1 else names

    def _mask(self, column: str, scan: Scan, voxels: np.ndarray) -> np.ndarray:
        labels = np.rint(voxels).astype(np.int64)
        unknown = set(np.unique(labels[::2, ::2, ::2])) - {0, *self.masks[column]}
        if unknown:
            raise UserError(f"{scan.path}: has label {min(unknown)}, which {column} has not")
        return labels


def _values(scan: Scan) -> set[int] | None:
    """The labels of a mask; None for an image."""
    voxels = read_image(*scan).voxels
    whole = np.rint(voxels)
    low = float(whole.min())
    if np.abs(voxels - whole).max() > 1e-3 or whole.max() - low > 1 << 16:
        return None
    counts = np.bincount((whole - low).astype(np.int64).ravel())
    found = {int(value + low) for value in np.flatnonzero(counts)}
    return found if len(found) <= MOST_LABELS + 1 else None


def _corners(shape: Sequence[int]) -> np.ndarray:
    """(4, 8), of the first and last voxels."""
    return np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in shape))]).T


def _place_of(image: Image) -> Place:
    return Place(image.voxels.shape, image.affine, told=True)


def _same_place(place: Place, reference: Place) -> bool:
    """Whether every corner lies where the reference's does, but for a part of a voxel."""
    if place.shape != reference.shape:
        return False
    apart = (place.affine - reference.affine) @ _corners(reference.shape)
    distance = np.linalg.norm(apart[:3], axis=0).max()
    return bool(distance <= SAME_PLACE * voxel_size(reference.affine).min())


def _overlap(place: Place, reference: Place) -> float:
    """The part of the reference's field of view that another shows too."""
    axes = [np.linspace(0, n - 1, 16) for n in reference.shape]
    points = np.stack([*(each.ravel() for each in np.meshgrid(*axes)), np.ones(16**3)])
    there = (np.linalg.inv(place.affine) @ reference.affine @ points)[:3]
    ends = np.array(place.shape)[:, None]
    return float(((there > -0.5) & (there < ends - 0.5)).all(axis=0).mean())


def _moved(box: Sequence[tuple[float, float]], affine: np.ndarray, other: np.ndarray) -> Box:
    """The box, of voxels of one affine, in voxels of another."""
    corners = np.array([(*corner, 1) for corner in product(*((a, b - 1) for a, b in box))]).T
    there = np.round((np.linalg.inv(other) @ affine @ corners)[:3], 6)
    return [
        (float(a), float(b) + 1) for a, b in zip(there.min(axis=1), there.max(axis=1), strict=True)
    ]
