"""BraTS folders: 240 x 240 x 155 scans of glioma, skull-stripped, at 1 mm."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError
from .listing import SUFFIXES, Listing, Rows, Scan

# How a column ends a file's name: in BraTS 2017 to 2021, and since 2023.
ENDINGS = {
    "t1": ("_t1", "-t1n"),
    "t2": ("_t2", "-t2w"),
    "t1ce": ("_t1ce", "-t1c"),
    "flair": ("_flair", "-t2f"),
    "seg": ("_seg", "-seg"),
}


def list_brats(data_dir: Path | None, columns: tuple[str, ...]) -> Listing:
    """The scans of a folder with a folder for each subject, as the challenge hands it out.

    Subjects may lie one folder deeper, in several (HGG and LGG): all of them are taken.
    """
    for name in columns:
        if name not in ENDINGS:
            raise UserError(f"--modality {name}: unknown; BraTS has {', '.join(ENDINGS)}")
    rows: Rows = {}
    for folder in _subject_folders(data_dir):
        found = {name: path for name in ENDINGS if (path := _scan(folder, name))}
        subject = folder.name if folder.name not in rows else f"{folder.parent.name}/{folder.name}"
        rows[subject] = {name: Scan(path) for name, path in found.items()}
    if not any(name in row for row in rows.values() for name in columns):
        raise UserError(
            f"{data_dir}: no subject with {' and '.join(columns)}; expected files such as "
            f"BraTS20_Training_001/BraTS20_Training_001_{columns[0]}.nii.gz"
        )
    return Listing({subject: row for subject, row in rows.items() if row})


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
    folders = _folders_in(data_dir)
    if not os.listdir(data_dir):
        raise UserError(f"--data-dir {data_dir}: empty; give the folder that holds the subjects")
    if _any_scan(data_dir):
        raise UserError(f"--data-dir {data_dir}: is one subject; give its parent {data_dir.parent}")
    deeper = [inner for folder in folders if not _any_scan(folder) for inner in _folders_in(folder)]
    return [*folders, *(folder for folder in deeper if _any_scan(folder))]


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir())
    except OSError as error:
        raise UserError(f"--data-dir {folder}: {error.strerror}") from error


def _any_scan(folder: Path) -> bool:
    return any(_scan(folder, name) is not None for name in ENDINGS)


def _scan(folder: Path, column: str) -> Path | None:
    for ending in ENDINGS[column]:
        for suffix in SUFFIXES:
            path = folder / f"{folder.name}{ending}{suffix}"
            if os.path.lexists(path):  # a link to nothing is said, when it is read
                return path
    return None
