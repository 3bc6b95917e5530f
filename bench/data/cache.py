"""Preprocessed volumes as one memory-mapped array, so that no window ever measures gzip."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import secrets
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import UserError
from ..sizes import Shape, show_size
from .geometry import centred_affine, voxel_size
from .source import PREPROCESSING, Source

BLOCK = 1 << 20
BLOCKS_CHECKED = 1024  # at most 1 GiB is read to verify a cache, however large it is


def prepare(
    source: Source, cache_dir: Path, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Reads, checks and preprocesses every volume of `source`, once.

    The file is named by what it depends on: the source's files (name, size, time of change) and
    the settings. If a sound one is there, it is returned at once; a damaged one is rebuilt.

    Args:
        progress: called with (done, total) after each volume; not when the cache is used.

    Returns:
        path of an `.npy` (N, C, D, H, W), float32; see `load`.

    Raises:
        UserError: a volume that cannot be used, or a cache folder that cannot be written.
    """
    identity = _identity(source)
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(cache_dir) / f"{source.name}-{source.volume}-{key}.npy"
    note = _sound_note(path, identity)
    if note is not None:
        source.remarks = note["remarks"]
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, source, identity, progress)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        need = f" ({show_size(len(source) * math.prod(source.shape) * 4)} are needed)"
        reason = (error.strerror or str(error)) + (need if full else "")
        raise UserError(
            f"cannot write the cache {path.parent}: {reason}; name another folder with --cache-dir"
        ) from error
    return path


def load(path: Path) -> np.ndarray:
    """The volumes of `prepare`, (N, C, D, H, W) float32, read from disk as they are touched.

    Raises:
        UserError: the file is gone or not what `prepare` left.
    """
    if _note(path) is None:
        raise UserError(f"{path}: not a complete cache of volumes; start the run again")
    return np.load(path, mmap_mode="r", allow_pickle=False)


def load_affines(path: Path) -> np.ndarray:
    """(N, 4, 4), from the voxels of each volume of `prepare` to mm. Raises as `load`."""
    note = _note(path)
    if note is None:
        raise UserError(f"{path}: not a complete cache of volumes; start the run again")
    return np.array(note["affines"], dtype=float)


def load_typical_affine(path: Path, indices: Sequence[int]) -> np.ndarray:
    """(4, 4), of a volume that is nobody's: that of these volumes where it is the same for all.

    Where it differs, the mean size of their voxels, the middle of the volume at the origin.
    """
    affines = load_affines(path)[list(indices)]
    if (affines == affines[0]).all():
        return affines[0]
    shape = Shape(load(path).shape[2:])
    return centred_affine(np.mean([voxel_size(each) for each in affines], axis=0), shape)


def _identity(source: Source) -> dict[str, Any]:
    return {
        "preprocessing": PREPROCESSING,
        "source": source.name,
        "channels": [*source.channels, *source.condition],
        "shape": list(source.shape),
        "subjects": source.subjects,
        "content": source.fingerprint(),
        **({} if source.content == source.volume else {"inside": source.content.as_json()}),
    }


def _write(
    path: Path,
    source: Source,
    identity: dict[str, Any],
    progress: Callable[[int, int], None] | None,
) -> None:
    shape = (len(source), *source.shape)
    # Not named by the process: in two containers that share the folder both may be process 1.
    temporary = path.with_suffix(f".{secrets.token_hex(8)}.tmp")
    try:
        # Plain writes and no memory map: on a full disk they raise, a map kills the process.
        with temporary.open("w+b") as file:
            file.write(_header(shape))
            for index in range(len(source)):
                volume = source[index]
                assert volume.shape == source.shape
                assert volume.dtype == np.float32
                file.write(np.ascontiguousarray(volume, dtype="<f4").data)
                if progress is not None:
                    progress(index + 1, len(source))
            file.flush()
            os.fsync(file.fileno())
            checksum = _checksum(file)
        affines = [source.affine(index).tolist() for index in range(len(source))]
        note = {
            "shape": shape, "checksum": checksum, "identity": identity, "affines": affines,
            "remarks": source.remarks,
        }  # fmt: skip
        os.replace(temporary, path)
        temporary.write_text(json.dumps(note, indent=1), encoding="utf-8")
        os.replace(temporary, path.with_suffix(".json"))
    finally:
        temporary.unlink(missing_ok=True)


def _header(shape: tuple[int, ...]) -> bytes:
    """What an `.npy` of little-endian float32 begins with."""
    buffer = io.BytesIO()
    description = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def _note(path: Path) -> dict[str, Any] | None:
    """The note beside the array, if the array begins as it says and is as long as it says."""
    try:
        note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        shape = tuple(int(n) for n in note["shape"])
        header = _header(shape)
        with path.open("rb") as file:
            begins = file.read(len(header)) == header
            long = file.seek(0, os.SEEK_END) == len(header) + 4 * math.prod(shape)
        placed = np.array(note["affines"], dtype=float).shape == (shape[0], 4, 4)
        return note if begins and long and placed and isinstance(note["remarks"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _sound_note(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    note = _note(path)
    if note is None or note.get("identity") != identity:
        return None
    with path.open("rb") as file:
        return note if _checksum(file) == note.get("checksum") else None


def _checksum(file: BinaryIO) -> int:
    """CRC-32 of the file, or of evenly spread blocks of one that is larger than 1 GiB."""
    value = 0
    for start in _block_starts(file.seek(0, os.SEEK_END)):
        file.seek(start)
        value = zlib.crc32(file.read(BLOCK), value)
    return value


def _block_starts(size: int) -> Iterator[int]:
    blocks = -(-size // BLOCK)
    checked = min(blocks, BLOCKS_CHECKED)
    for i in range(checked):
        yield (i * blocks // checked) * BLOCK
