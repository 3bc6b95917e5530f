"""Reading NIfTI files of strangers: memory and time are bounded before anything is believed.

A header is 348 bytes that may claim terabytes, a gzip stream may grow a thousandfold, an
extension may announce two gigabytes. So the header is read alone and checked, and then exactly as
many bytes as it honestly implies are taken from the stream, and no more.
"""

from __future__ import annotations

import gzip
import io
import logging
import os
import stat
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1PairHeader
from nibabel.orientations import apply_orientation, io_orientation
from nibabel.spatialimages import HeaderDataError

from ..errors import UserError

HEADER_BYTES = 348
LARGEST_SIDE = 1024
LARGEST_VOLUME = 1 << 26  # voxels; a BraTS scan has 8.9 million
LARGEST_OFFSET = 1 << 20  # bytes between header and voxels: the header's extensions

# What a broken or hostile file makes gzip, zlib, NumPy and nibabel raise.
UNREADABLE = (OSError, EOFError, zlib.error, HeaderDataError, ValueError, OverflowError, TypeError)

# nibabel logs what it finds odd in a header as well as raising; one line from us is enough.
SILENT = logging.getLogger(__name__)
SILENT.addHandler(logging.NullHandler())
SILENT.propagate = False


def read_header(path: Path) -> Nifti1PairHeader:
    """The header of a 3D NIfTI-1 file, plain or gzipped, after asking whether it can be true.

    Raises:
        UserError: not a NIfTI file, not 3D, not numbers, absurdly large, or shorter than it says.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for ever
            raise UserError(f"{path}: not a regular file; give the scan itself")
        with _open(path) as stream:
            block = stream.read(HEADER_BYTES)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if len(block) < HEADER_BYTES or block[344:348] != b"n+1\0":
        raise UserError(f"{path}: not a NIfTI-1 file; take it out or download it again")
    try:
        header = Nifti1PairHeader(block, check=False)
        header.check_fix(logger=SILENT)
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        offset = header.get_data_offset()
    except UNREADABLE as error:
        raise UserError(f"{path}: damaged NIfTI header ({_line(error)}); replace it") from error

    if len(shape) != 3:
        raise UserError(f"{path}: has {len(shape)} dimensions, a scan has 3; take it out")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise UserError(f"{path}: holds {dtype}, a scan holds real numbers; take it out")
    if min(shape) < 2 or max(shape) > LARGEST_SIDE or _voxels(header) > LARGEST_VOLUME:
        size = " x ".join(map(str, shape))
        raise UserError(f"{path}: claims {size} voxels, which is no scan of a head; replace it")
    if not HEADER_BYTES + 4 <= offset <= LARGEST_OFFSET:
        raise UserError(f"{path}: claims that its voxels start at byte {offset}; replace it")
    _check_length(path, header)
    return header


def read_volume(path: Path) -> np.ndarray:
    """The voxels, float32 (D, H, W), axes turned to left → right, back → front, down → up.

    Raises:
        UserError: as `read_header`; or truncated, padded, damaged, or with voxels that are not
            finite.
    """
    header = read_header(path)
    offset, size = header.get_data_offset(), _voxels(header) * header.get_data_dtype().itemsize
    try:
        with _open(path) as stream:
            _skip(stream, offset)
            voxels = stream.read(size)
            if len(voxels) < size:
                raise EOFError(f"{len(voxels)} of {size} bytes of voxels")
            if stream.read(1):  # reaching the end also makes gzip compare its checksum
                raise ValueError("longer than its header says")
        header["vox_offset"] = 0
        with np.errstate(all="ignore"):  # what overflows becomes infinite, and is refused below
            image = np.asarray(header.data_from_fileobj(io.BytesIO(voxels)), dtype=np.float32)
        turned = apply_orientation(image, _orientation(header))
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if not np.isfinite(turned).all():
        raise UserError(f"{path}: has voxels that are NaN or infinite; take it out")
    return np.ascontiguousarray(turned)


def _orientation(header: Nifti1PairHeader) -> np.ndarray:
    with np.errstate(all="ignore"):
        affine = header.get_best_affine()
        # A hostile affine is no reason to refuse good voxels: they are taken as they lie.
        if not np.isfinite(affine).all() or np.abs(np.linalg.det(affine[:3, :3])) < 1e-6:
            affine = np.eye(4)
        orientation = io_orientation(affine)
    return orientation if np.isfinite(orientation).all() else io_orientation(np.eye(4))


def _check_length(path: Path, header: Nifti1PairHeader) -> None:
    """Cheap enough for every file of a folder before the first is decoded."""
    expected = header.get_data_offset() + _voxels(header) * header.get_data_dtype().itemsize
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            length = file.seek(0, os.SEEK_END)
            if zipped:
                # The last four bytes of a gzip member are its uncompressed length.
                file.seek(-4, os.SEEK_END)
                length = int.from_bytes(file.read(4), "little")
        if zipped and length != expected:
            # Cut off, or written in several members, as bgzip does: only decoding can tell.
            with _open(path) as stream:
                length = _skip(stream, expected) + len(stream.read(1))
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if length < expected:
        raise UserError(f"{path}: truncated: {length:,} bytes of {expected:,}; download it again")
    if length > expected:
        raise UserError(f"{path}: longer than its header says ({expected:,} bytes); replace it")


def _skip(stream: BinaryIO, count: int) -> int:
    """Reads up to `count` bytes and forgets them; how many there were."""
    done = 0
    while done < count:
        block = stream.read(min(count - done, 1 << 20))
        if not block:
            break
        done += len(block)
    return done


def _open(path: Path) -> BinaryIO:
    # By content, not by name: folders hold gzipped `.nii` and plain `.nii.gz`.
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path, "rb")) if zipped else path.open("rb")


def _voxels(header: Nifti1PairHeader) -> int:
    x, y, z = (int(n) for n in header.get_data_shape())
    return x * y * z


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _unreadable(path: Path, error: BaseException) -> UserError:
    if isinstance(error, FileNotFoundError | PermissionError) and error.strerror:
        return UserError(f"{path}: {error.strerror}")
    return UserError(f"{path}: truncated or damaged ({_line(error)}); download it again")


def write_nifti(path: Path, volumes: npt.ArrayLike, voxel_mm: float = 1.0) -> list[Path]:
    """Volumes (N, C, D, H, W) as NIfTI-1 files, one a volume and channel; returns what was written.

    D, H, W run left → right, posterior → anterior, inferior → superior, which is NIfTI's own
    orientation (RAS+): the affine is diag(voxel_mm, voxel_mm, voxel_mm, 1) with the middle of the
    volume at the origin. `samples.nii.gz` becomes `samples_0.nii.gz`, `samples_1.nii.gz`, …; with
    several channels `samples_0_0.nii.gz`, ….

    Args:
        voxel_mm: side of a voxel, in mm.
    """
    array = np.asarray(volumes, dtype=np.float32)
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = [-voxel_mm * (side - 1) / 2 for side in array.shape[2:]]
    written = []
    for index, channels in enumerate(array):
        for channel, voxels in enumerate(channels):
            image = nibabel.Nifti1Image(voxels, affine)
            image.header.set_xyzt_units("mm")
            written.append(_file_of(path, index, channel, len(channels)))
            nibabel.save(image, written[-1])
    return written


def read_nifti(path: Path, channels: int) -> np.ndarray | None:
    """What `write_nifti` wrote to `path`, (N, C, D, H, W) float32; None if there is nothing."""
    volumes: list[list[np.ndarray]] = []
    while _file_of(path, len(volumes), 0, channels).exists():
        files = (_file_of(path, len(volumes), channel, channels) for channel in range(channels))
        images = (nibabel.Nifti1Image.from_filename(file) for file in files)
        volumes.append([image.get_fdata(dtype=np.float32) for image in images])
    return np.asarray(volumes) if volumes else None


def _file_of(path: Path, index: int, channel: int, channels: int) -> Path:
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    suffix = path.name[len(stem) :] or ".nii.gz"
    return path.with_name(f"{stem}_{index}" + (f"_{channel}" if channels > 1 else "") + suffix)
