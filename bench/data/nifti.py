"""Reading NIfTI files of strangers: memory and time are bounded before anything is believed.

A header is a few hundred bytes that may claim terabytes, a gzip stream may grow a thousandfold, an
extension may announce two gigabytes. So the header is read alone and checked, and then exactly as
many bytes as it honestly implies are taken from the stream, and no more.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
import os
import stat
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1PairHeader
from nibabel.nifti2 import Nifti2PairHeader
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from nibabel.spatialimages import HeaderDataError

from ..errors import UserError

HEADER_BYTES = 348
LONGER_HEADER_BYTES = 540  # of NIfTI-2
LARGEST_SIDE = 1024
LARGEST_VOLUME = 1 << 27  # voxels; a BraTS scan has 8.9 million, a CT of 512 x 512 x 500 131
MOST_VOLUMES = 64  # of a 4D file
LARGEST_OFFSET = 1 << 20  # bytes between header and voxels: the header's extensions

_MILLIMETRES = {1: 1e3, 2: 1.0, 3: 1e-3}  # of a header's unit: metres, millimetres, micrometres

# What a broken or hostile file makes gzip, zlib, NumPy and nibabel raise.
UNREADABLE = (OSError, EOFError, zlib.error, HeaderDataError, ValueError, OverflowError, TypeError)

# nibabel logs what it finds odd in a header as well as raising; one line from us is enough.
SILENT = logging.getLogger(__name__)
SILENT.addHandler(logging.NullHandler())
SILENT.propagate = False


class Image(NamedTuple):
    """One volume of a scan, as it is in the head."""

    voxels: np.ndarray
    """float32 (D, H, W), axes turned to left → right, back → front, down → up."""
    affine: np.ndarray
    """(4, 4) from their indices to mm."""


class Place(NamedTuple):
    """Where the voxels of a scan lie, by its header."""

    shape: tuple[int, ...]
    affine: np.ndarray
    """(4, 4) from voxels, as they are stored, to mm."""
    told: bool
    """Whether the header says so: an identity matrix is what programs write that do not know."""


def find_scan(path: Path) -> Path:
    """The file itself, where `path` is a folder called like one: some archives unpack to those.

    Raises:
        UserError: a link to nothing, or a folder without one scan.
    """
    if path.is_symlink() and not path.exists():
        raise UserError(
            f"{path}: a link whose content is not here ({os.readlink(path):.60}); fetch it first "
            "(git annex get, datalad get)"
        )
    if not path.is_dir():
        return path
    inside = [file for file in path.iterdir() if _is_called_a_scan(file)]
    if len(inside) != 1:
        raise UserError(f"{path}: a folder with {len(inside)} scans, not a scan; leave one in it")
    return inside[0]


def _is_called_a_scan(file: Path) -> bool:
    return file.name.endswith((".nii", ".nii.gz")) and not file.name.startswith(".")


def read_header(path: Path, part: int | None = None) -> Nifti1PairHeader:
    """The header of a NIfTI-1 or -2 file, plain or gzipped, after asking whether it can be true.

    Args:
        part: which volume of a 4D file is wanted; None: the file has one.

    Raises:
        UserError: not a NIfTI file, not 3D, not numbers, absurdly large, or shorter than it says.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for ever
            raise UserError(f"{path}: not a regular file; give the scan itself")
        with _open(path) as stream:
            block = stream.read(LONGER_HEADER_BYTES)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    kind: Any
    if block[344:348] == b"n+1\0":
        kind, length = Nifti1PairHeader, HEADER_BYTES
    elif block[4:12] == b"n+2\0\r\n\x1a\n" and len(block) == LONGER_HEADER_BYTES:
        kind, length = Nifti2PairHeader, LONGER_HEADER_BYTES
    elif block[344:348] == b"ni1\0":
        raise UserError(f"{path}: a header without its voxels; save it as one .nii.gz file")
    else:
        raise UserError(f"{path}: not a NIfTI file; take it out or download it again")
    try:
        header = kind(block[:length], check=False)
        header.check_fix(logger=SILENT)
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        offset = header.get_data_offset()
    except UNREADABLE as error:
        raise UserError(f"{path}: damaged NIfTI header ({_line(error)}); replace it") from error

    spatial, volumes = shape[:3], math.prod(shape[3:])
    if len(shape) < 3 or (part is None and volumes != 1) or len(shape) > 7:
        raise UserError(
            f"{path}: has {len(shape)} dimensions ({' x '.join(map(str, shape))}), a scan has 3; "
            "take it out"
        )
    if part is not None and (len(shape) != 4 or part >= volumes):
        raise UserError(f"{path}: has {volumes} volumes; number {part} is asked for, from 0")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise UserError(f"{path}: holds {dtype}, a scan holds real numbers; take it out")
    if (
        min(spatial) < 2
        or max(spatial) > LARGEST_SIDE
        or math.prod(spatial) > LARGEST_VOLUME
        or volumes > MOST_VOLUMES
    ):
        size = " x ".join(map(str, shape))
        raise UserError(f"{path}: claims {size} voxels, which is no scan of a head; replace it")
    if not length + 4 <= offset <= LARGEST_OFFSET:
        raise UserError(f"{path}: claims that its voxels start at byte {offset}; replace it")
    _check_length(path, header)
    return header


def read_place(path: Path, part: int | None = None) -> Place:
    """Where a scan lies, by its header alone. Raises as `read_header`."""
    header = read_header(path, part)
    affine = _affine(header)
    told = bool(header["sform_code"] > 0 or header["qform_code"] > 0)
    return Place(
        header.get_data_shape()[:3], affine, told and not np.array_equal(affine, np.eye(4))
    )


def read_image(path: Path, part: int | None = None) -> Image:
    """The voxels of one volume, and where they lie.

    Raises:
        UserError: as `read_header`; or truncated, padded, damaged, or with voxels that are not
            finite.
    """
    header = read_header(path, part)
    shape = header.get_data_shape()[:3]
    size = math.prod(shape) * header.get_data_dtype().itemsize
    before = (part or 0) * size
    after = _bytes_of_voxels(header) - before - size
    try:
        with _open(path) as stream:
            _skip(stream, header.get_data_offset() + before)
            voxels = stream.read(size)
            if len(voxels) < size or _skip(stream, after) < after:
                raise EOFError(f"{len(voxels)} of {size} bytes of voxels")
            if stream.read(1):  # reaching the end also makes gzip compare its checksum
                raise ValueError("longer than its header says")
        affine = _affine(header)
        header["vox_offset"] = 0
        header.set_data_shape(shape)
        with np.errstate(all="ignore"):  # what overflows becomes infinite, and is refused below
            image = np.asarray(header.data_from_fileobj(io.BytesIO(voxels)), dtype=np.float32)
        orientation = _orientation(affine)
        turned = apply_orientation(image, orientation)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if not np.isfinite(turned).all():
        raise UserError(f"{path}: has voxels that are NaN or infinite; take it out")
    return Image(np.ascontiguousarray(turned), affine @ inv_ornt_aff(orientation, shape))


def _affine(header: Nifti1PairHeader) -> np.ndarray:
    """(4, 4) from voxels to mm."""
    millimetres = _MILLIMETRES.get(int(header["xyzt_units"]) % 8, 1.0)
    with np.errstate(all="ignore"):
        affine = np.diag([*[millimetres] * 3, 1.0]) @ header.get_best_affine()
        sides = np.linalg.norm(affine[:3, :3], axis=0)
        # A hostile affine is no reason to refuse good voxels: they are taken as they lie.
        possible = (
            np.isfinite(affine).all()
            and ((sides > 1e-3) & (sides < 1e3)).all()
            and np.abs(affine[:3, 3]).max() < 1e6
            and np.abs(np.linalg.det(affine[:3, :3] / sides)) > 1e-2
        )
    return affine if possible else np.eye(4)


def _orientation(affine: np.ndarray) -> np.ndarray:
    orientation = io_orientation(affine)
    return orientation if np.isfinite(orientation).all() else io_orientation(np.eye(4))


def _check_length(path: Path, header: Nifti1PairHeader) -> None:
    """Cheap enough for every file of a folder before the first is decoded."""
    expected = header.get_data_offset() + _bytes_of_voxels(header)
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


def _bytes_of_voxels(header: Nifti1PairHeader) -> int:
    return math.prod(map(int, header.get_data_shape())) * int(header.get_data_dtype().itemsize)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _unreadable(path: Path, error: BaseException) -> UserError:
    if isinstance(error, FileNotFoundError | PermissionError) and error.strerror:
        return UserError(f"{path}: {error.strerror}")
    return UserError(f"{path}: truncated or damaged ({_line(error)}); download it again")


def write_nifti(path: Path, volumes: npt.ArrayLike, affines: npt.ArrayLike) -> list[Path]:
    """Volumes (N, C, D, H, W) as NIfTI-1 files, one a volume and channel; returns what was written.

    Slices (N, C, D, H) get a third axis of one voxel.

    `samples.nii.gz` becomes `samples_0.nii.gz`, `samples_1.nii.gz`, …; with several channels
    `samples_0_0.nii.gz`, ….

    Args:
        affines: (4, 4), or one for each volume (N, 4, 4), from voxels to mm.
    """
    array = np.asarray(volumes, dtype=np.float32)
    written = []
    places = np.broadcast_to(np.asarray(affines, dtype=float), (len(array), 4, 4))
    for index, (channels, affine) in enumerate(zip(array, places, strict=True)):
        for channel, voxels in enumerate(channels):
            image = nibabel.Nifti1Image(np.atleast_3d(voxels), affine)
            image.header.set_xyzt_units("mm")
            written.append(_file_of(path, index, channel, len(channels)))
            nibabel.save(image, written[-1])
    return written


def read_nifti(path: Path, channels: int) -> np.ndarray | None:
    """What `write_nifti` wrote to `path`, (N, C, …) float32; None if there is nothing."""
    volumes: list[list[np.ndarray]] = []
    while _file_of(path, len(volumes), 0, channels).exists():
        files = (_file_of(path, len(volumes), channel, channels) for channel in range(channels))
        images = (nibabel.Nifti1Image.from_filename(file) for file in files)
        volumes.append([image.get_fdata(dtype=np.float32) for image in images])
    if not volumes:
        return None
    found = np.asarray(volumes)
    return found[..., 0] if found.shape[-1] == 1 else found


def _file_of(path: Path, index: int, channel: int, channels: int) -> Path:
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    suffix = path.name[len(stem) :] or ".nii.gz"
    return path.with_name(f"{stem}_{index}" + (f"_{channel}" if channels > 1 else "") + suffix)
