"""BraTS folders: 240 x 240 x 155 scans of glioma, skull-stripped, at 1 mm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..sizes import Shape
from .geometry import bounding_box, cut, resize, scale_intensity
from .nifti import read_header, read_volume
from .source import Source

# How a modality ends a file's name: in BraTS 2020 and 2021, and since 2023.
ENDINGS = {
    "t1": ("_t1", "-t1n"),
    "t2": ("_t2", "-t2w"),
    "t1ce": ("_t1ce", "-t1c"),
    "flair": ("_flair", "-t2f"),
}
SUFFIXES = (".nii.gz", ".nii")


class BraTS(Source):
    """A folder with a folder for each subject, as the challenge hands it out.

    A scan becomes a cube as in IDM, §5.1: cut to the brain (one box for all modalities of a
    subject, made cubic), scaled to [0, 1] by the brain's 0.5 and 99.5 percentiles, resampled.

    `skipped` lists the subjects that lack a modality asked for.
    """

    name = "brats"

    def __init__(
        self,
        data_dir: Path | None,
        modality: tuple[str, ...],
        volume: Shape,
        subjects: int | None = None,
    ) -> None:
        unknown = [name for name in modality if name not in ENDINGS]
        if unknown:
            raise UserError(f"--modality {unknown[0]}: unknown; BraTS has {', '.join(ENDINGS)}")
        folders = _subject_folders(data_dir)
        self.channels = modality
        self.volume = self.content = Shape(volume)
        self.files: dict[str, list[Path]] = {}
        self.skipped: list[str] = []
        for folder in folders:
            scans = [_scan(folder, name) for name in modality]
            found = [scan for scan in scans if scan is not None]
            if len(found) == len(modality):
                self.files[folder.name] = found
            else:
                self.skipped.append(folder.name)
        if not self.files:
            raise UserError(
                f"{data_dir}: no subject with {' and '.join(modality)}; expected files such as "
                f"BraTS20_Training_001/BraTS20_Training_001_{modality[0]}.nii.gz"
            )
        self.subjects = sorted(self.files)[:subjects]
        for subject in self.subjects:
            shapes = {read_header(path).get_data_shape() for path in self.files[subject]}
            if len(shapes) > 1:
                raise UserError(
                    f"{self.files[subject][0].parent}: its modalities differ in shape "
                    f"({', '.join(map(str, sorted(shapes)))}); take the subject out"
                )

    def read(self, index: int) -> np.ndarray:
        paths = self.files[self.subjects[index]]
        images = [read_volume(path) for path in paths]
        if len({image.shape for image in images}) > 1:
            raise UserError(
                f"{paths[0].parent}: its modalities are turned differently; take it out"
            )
        brains = [image != 0 for image in images]  # the challenge sets all but the brain to 0
        for path, brain in zip(paths, brains, strict=True):
            if not brain.any():
                raise UserError(f"{path}: every voxel is 0; take it out")
        corner, sides = bounding_box(np.logical_or.reduce(brains), self.content)
        channels = []
        for path, image, brain in zip(paths, images, brains, strict=True):
            try:
                cube = scale_intensity(cut(image, corner, sides), cut(brain, corner, sides))
            except ValueError as error:
                raise UserError(f"{path}: {error}; take it out") from error
            channels.append(resize(cube, self.content))
        return np.stack(channels)

    def fingerprint(self) -> dict[str, Any]:
        content = {}
        for subject in self.subjects:
            for path in self.files[subject]:
                status = path.stat()
                content[path.name] = [status.st_size, status.st_mtime_ns]
        return content


def _subject_folders(data_dir: Path | None) -> list[Path]:
    if data_dir is None:
        raise UserError("--data brats needs --data-dir, the folder that holds BraTS20_Training_001")
    data_dir = Path(data_dir)
    if not data_dir.exists():
        raise UserError(f"--data-dir {data_dir}: no such folder")
    if not data_dir.is_dir():
        raise UserError(
            f"--data-dir {data_dir}: not a folder; give the one that holds the subjects"
        )
    try:
        entries = sorted(data_dir.iterdir())
        folders = [entry for entry in entries if entry.is_dir()]
    except OSError as error:
        raise UserError(f"--data-dir {data_dir}: {error.strerror}") from error
    if not entries:
        raise UserError(f"--data-dir {data_dir}: empty; give the folder that holds the subjects")
    if _any_scan(data_dir):
        raise UserError(f"--data-dir {data_dir}: is one subject; give its parent {data_dir.parent}")
    inner = [folder for folder in folders if any(_any_scan(f) for f in _folders_in(folder))]
    if inner and not any(_any_scan(folder) for folder in folders):
        raise UserError(f"--data-dir {data_dir}: the subjects are one deeper; give {inner[0]}")
    return folders


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir())[:10]
    except OSError:
        return []


def _any_scan(folder: Path) -> bool:
    return any(_scan(folder, name) is not None for name in ENDINGS)


def _scan(folder: Path, modality: str) -> Path | None:
    for ending in ENDINGS[modality]:
        for suffix in SUFFIXES:
            path = folder / f"{folder.name}{ending}{suffix}"
            try:
                if path.exists():
                    return path
            except OSError as error:
                raise UserError(f"{path}: {error.strerror}") from error
    return None
