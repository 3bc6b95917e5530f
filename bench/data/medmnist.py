"""SynapseMNIST3D: cubes of electron microscopy, 28³ or 64³, from MedMNIST's `.npz`.

The archive is opened as a zip of `.npy` files: sizes are compared before anything is unpacked,
and no object array is ever unpickled.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError
from ..sizes import Shape
from .geometry import resize
from .source import Source

PARTS = ("train", "val", "test")
PIECE = 1 << 20
LARGEST_FILE = 4 << 30  # bytes unpacked, all parts; the 64³ edition has 0.5 GB
# What a broken or hostile archive makes zipfile, zlib and NumPy's header parser raise.
UNREADABLE = (
    *(OSError, EOFError, zlib.error, zipfile.BadZipFile, MemoryError, OverflowError),
    *(ValueError, TypeError, KeyError, RuntimeError, SyntaxError, tokenize.TokenError),
)


class Part(NamedTuple):
    """One array of the archive, (cubes, side, side, side) uint8."""

    entry: str
    cubes: int
    side: int


class SynapseMNIST3D(Source):
    """All of MedMNIST's own train, val and test cubes, in this order, scaled from [0, 255].

    Subjects are `train-0000`, … after MedMNIST's parts.
    """

    name = "synapse"
    channels = ("em",)

    def __init__(self, data_dir: Path | None, volume: Shape, subjects: int | None = None) -> None:
        super().__init__()
        self.volume = self.content = Shape(volume)
        self.path = _archive(data_dir, volume)
        self.parts = _check(self.path)
        names = [f"{p.entry.split('_')[0]}-{i:04d}" for p in self.parts for i in range(p.cubes)]
        self.subjects = names[:subjects]

    def read(self, index: int) -> np.ndarray:
        return resize(self._cubes[index] / np.float32(255), self.content)[None]

    def fingerprint(self) -> dict[str, Any]:
        status = self.path.stat()
        return {self.path.name: [status.st_size, status.st_mtime_ns]}

    @cached_property
    def _cubes(self) -> list[np.ndarray]:
        cubes: list[np.ndarray] = []
        try:
            with zipfile.ZipFile(self.path) as archive:
                for part in self.parts:
                    if len(cubes) >= len(self):
                        break
                    with archive.open(part.entry) as stream:
                        _read_shape(stream)
                        # In pieces: zipfile inflates as much as it is asked for, or everything.
                        # To the end: that is where it compares the checksum.
                        data = b"".join(iter(partial(stream.read, PIECE), b""))
                    shape = (part.cubes, part.side, part.side, part.side)
                    cubes.extend(np.frombuffer(data, dtype=np.uint8).reshape(shape))
        except UNREADABLE as error:
            raise _damaged(self.path, error) from error
        return cubes[: len(self)]


def _archive(data_dir: Path | None, volume: Shape) -> Path:
    if data_dir is None:
        raise UserError(
            "--data synapse needs --data-dir, MedMNIST's synapsemnist3d.npz or its folder"
        )
    path = Path(data_dir)
    if path.is_dir():
        # The 64³ edition only where it shows more than the 28³ one.
        names = ("synapsemnist3d.npz", "synapsemnist3d_64.npz")
        wanted = names if volume <= 28 else names[::-1]
        found = [path / name for name in wanted if (path / name).is_file()]
        if not found:
            raise UserError(f"--data-dir {path}: holds neither {names[0]} nor {names[1]}")
        return found[0]
    if not path.is_file():
        raise UserError(f"--data-dir {path}: no such file or folder")
    return path


def _check(path: Path) -> list[Part]:
    """The three arrays, if names, types, shapes and sizes are those of a 3D MedMNIST file."""
    parts = []
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            for part in PARTS:
                entry = f"{part}_images.npy"
                if entry not in entries:
                    raise UserError(f"{path}: has no {part}_images; is it a MedMNIST 3D file?")
                if entries[entry].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("neither stored nor deflated")  # others inflate unbounded
                with archive.open(entry) as stream:
                    count, side, header_bytes = _read_shape(stream)
                if entries[entry].file_size != header_bytes + count * side**3:
                    raise ValueError(f"{part}_images is not as long as its header says")
                parts.append(Part(entry, count, side))
    except UNREADABLE as error:
        raise _damaged(path, error) from error
    if len({part.side for part in parts}) > 1:
        raise UserError(f"{path}: its parts differ in size; download it again")
    if sum(part.cubes * part.side**3 for part in parts) > LARGEST_FILE:
        raise UserError(f"{path}: would unpack to more than 4 GiB; it is not SynapseMNIST3D")
    return parts


def _read_shape(stream: Any) -> tuple[int, int, int]:
    """(count, side, bytes of the header) of an `.npy` stream, which is left at the first cube."""
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"written in npy version {version[0]}.{version[1]}")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if len(shape) == 5 and shape[4] == 1:
        shape = shape[:4]
    if dtype != np.uint8 or fortran_order:
        raise ValueError(f"holds {dtype}, not uint8")
    if len(shape) != 4 or len(set(shape[1:])) != 1 or not 8 <= shape[1] <= 128 or shape[0] < 1:
        raise ValueError(f"an array of shape {shape} is not a list of cubes")
    return shape[0], shape[1], stream.tell()


def _damaged(path: Path, error: BaseException) -> UserError:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return UserError(f"{path}: not a readable MedMNIST 3D file ({reason}); download it again")
