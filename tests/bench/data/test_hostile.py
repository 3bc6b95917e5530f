"""Files nobody should trust: each is read as what it is or refused in one line, at bounded cost."""

import gzip
import io
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import monai.transforms  # noqa: F401 – or the first volume would pay for its import
import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bench.data import open_source
from bench.errors import UserError

QUICK = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MEMORY = 48 << 20  # bytes; the honest files here need less than one MiB

# Numbers on which arithmetic goes wrong.
NASTY = st.sampled_from(
    [0, 1, -1, 2, 127, 255, 256, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**40, 2**63 - 1]
)


@contextmanager
def bounded_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


def read_or_refuse(open_it: Callable, path: Path) -> bool:
    """True if the first volume could be read; anything but a UserError fails the test."""
    volume, line = None, ""
    with bounded_memory():
        try:
            volume = open_it()[0]
        except UserError as refusal:
            line = str(refusal)
    if volume is None:
        assert "\n" not in line
        assert path.name in line
        return False
    assert np.isfinite(volume).all()
    assert 0 <= volume.min() <= volume.max() <= 1
    return True


# ---- NIfTI -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def brats(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("brats")
    (folder / "BraTS20_Training_001").mkdir()
    return folder


def honest(dtype: str = "<i2") -> bytes:
    voxels = np.random.default_rng(0).integers(1, 100, size=(9, 8, 7)).astype(dtype)
    return bytes(nib.Nifti1Image(voxels, np.eye(4)).to_bytes())


def offer(brats: Path, content: bytes, zipped: bool = True) -> bool:
    path = brats / "BraTS20_Training_001" / "BraTS20_Training_001_t1.nii.gz"
    path.write_bytes(gzip.compress(content, 1) if zipped else content)
    return read_or_refuse(lambda: open_source("brats", brats, ("t1",), 8, 0), path)


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "<u2", "<i4", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("zipped", [True, False])
def test_an_honest_file_is_read(brats, dtype, zipped):
    assert offer(brats, honest(dtype), zipped)


# Fields of the header: where they are, and how they are stored.
FIELDS = {
    "sizeof_hdr": (0, "<i4"),
    **{f"dim[{i}]": (40 + 2 * i, "<i2") for i in range(8)},
    "datatype": (70, "<i2"),
    "bitpix": (72, "<i2"),
    **{f"pixdim[{i}]": (76 + 4 * i, "<f4") for i in range(4)},
    "vox_offset": (108, "<f4"),
    "scl_slope": (112, "<f4"),
    "scl_inter": (116, "<f4"),
    "qform_code": (252, "<i2"),
    "sform_code": (254, "<i2"),
    **{f"quatern[{i}]": (256 + 4 * i, "<f4") for i in range(6)},
    **{f"srow[{i}]": (280 + 4 * i, "<f4") for i in range(12)},
    "magic": (344, "<i4"),
    "extension": (348, "<i4"),
    "extension size": (352, "<i4"),
}
FLOATS = st.sampled_from(
    [0.0, -1.0, 1e-45, 3e38, -3e38, float("nan"), float("inf"), 352.5, 2.0**40]
)


@QUICK
@given(
    changes=st.lists(st.tuples(st.sampled_from(sorted(FIELDS)), NASTY, FLOATS), max_size=5),
    dtype=st.sampled_from(["<i2", "<f4"]),
    zipped=st.booleans(),
)
def test_headers_that_lie(brats, changes, dtype, zipped):
    content = bytearray(honest(dtype))
    for name, integer, real in changes:
        at, kind = FIELDS[name]
        value = np.float32(real) if kind == "<f4" else np.array(integer).astype(kind)
        content[at : at + value.nbytes] = value.tobytes()
    offer(brats, bytes(content), zipped)


@QUICK
@given(
    cuts=st.lists(st.tuples(st.integers(0, 1400), st.binary(max_size=12)), max_size=6),
    keep=st.integers(0, 1400),
    zipped=st.booleans(),
)
def test_bytes_overwritten_and_cut_off(brats, cuts, keep, zipped):
    content = bytearray(honest())
    for at, patch in cuts:
        content[at : at + len(patch)] = patch
    offer(brats, bytes(content[:keep]), zipped)


@QUICK
@given(at=st.integers(0, 900), patch=st.binary(min_size=1, max_size=20), keep=st.integers(0, 1000))
def test_damaged_gzip(brats, at, patch, keep):
    content = bytearray(gzip.compress(honest(), 1))
    content[at : at + len(patch)] = patch
    offer(brats, bytes(content[: keep + 10]), zipped=False)


@QUICK
@given(content=st.binary(max_size=600), zipped=st.booleans())
def test_not_nifti_at_all(brats, content, zipped):
    assert not offer(brats, content, zipped)


def with_shape(*shape: int) -> bytes:
    content = bytearray(honest()[:352])
    content[40:56] = np.array([3, *shape, 1, 1, 1, 1], dtype="<i2").tobytes()
    return bytes(content)


@pytest.mark.parametrize("shape", [(32767,) * 3, (1024, 1024, 1024), (512, 512, 256), (0, 8, 8)])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_header_that_claims_terabytes_allocates_nothing(brats, shape, zipped):
    assert not offer(brats, with_shape(*shape) + bytes(5000), zipped)


def refused_with(brats: Path, content: bytes) -> str:
    path = brats / "BraTS20_Training_001" / "BraTS20_Training_001_t1.nii.gz"
    path.write_bytes(gzip.compress(content, 1))
    with pytest.raises(UserError) as refusal:
        open_source("brats", brats, ("t1",), 8, 0)
    return str(refusal.value)


@pytest.mark.parametrize("shape", [(1024, 1024, 1024), (512, 512, 513), (1025, 8, 8), (1, 8, 8)])
def test_a_size_that_is_no_head_is_refused_by_its_header_alone(brats, shape):
    """A bomb may be consistent: a zipped stream really can hold the gigabytes it announces."""
    line = refused_with(brats, with_shape(*shape))
    assert " x ".join(map(str, shape)) in line


@pytest.mark.parametrize("offset", [0, 351, 1 << 21, 3e9])
def test_voxels_that_start_at_no_sensible_byte(brats, offset):
    content = bytearray(honest())
    content[108:112] = np.float32(offset).tobytes()
    line = refused_with(brats, bytes(content))
    assert "start at byte" in line or "vox offset" in line


@pytest.mark.parametrize("tail", [b"", b"\x1f\x8b", b"lie"])
def test_a_gzip_bomb_costs_no_more_than_the_header_admits(brats, tail):
    path = brats / "BraTS20_Training_001" / "BraTS20_Training_001_t1.nii.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(honest())
        for _ in range(400):
            stream.write(bytes(1 << 20))
    if tail == b"lie":  # the trailer claims the honest length
        size = len(honest()).to_bytes(4, "little")
        path.write_bytes(path.read_bytes()[:-4] + size)
    else:
        path.write_bytes(path.read_bytes() + tail)
    assert not read_or_refuse(lambda: open_source("brats", brats, ("t1",), 8, 0), path)


# ---- npz ---------------------------------------------------------------------------------------


def cubes(count: int = 3, side: int = 28) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, side, side, side), dtype=np.uint8)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npy_claiming(header: str, body: bytes = bytes(100), version: bytes = b"\x01\x00") -> bytes:
    text = header.encode("latin1")
    length = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + length + text + body


def offer_npz(folder: Path, train: bytes, packing: int = zipfile.ZIP_DEFLATED) -> bool:
    path = folder / "synapsemnist3d.npz"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("train_images.npy", train)
        archive.writestr("val_images.npy", npy(cubes(1)))
        archive.writestr("test_images.npy", npy(cubes(1)))
    return read_or_refuse(lambda: open_source("synapse", path, ("t1",), 8, 0), path)


def test_an_honest_archive_is_read(tmp_path):
    assert offer_npz(tmp_path, npy(cubes()))
    assert offer_npz(tmp_path, npy(cubes()), zipfile.ZIP_STORED)
    assert offer_npz(tmp_path, npy(cubes()[..., None]))


HEADER = "{'descr': '|u1', 'fortran_order': False, 'shape': (3, 28, 28, 28), }"
HOSTILE_HEADERS = [
    HEADER.replace("3, 28", "10**12, 28"),
    HEADER.replace("3, 28", "1000000000000, 28"),
    HEADER.replace("28, 28, 28", "100000, 100000, 100000"),
    HEADER.replace("(3, 28", "(-3, 28"),
    HEADER.replace("(3, 28", "(True, 28"),
    HEADER.replace("|u1", "|O"),
    HEADER.replace("|u1", "|i1"),
    HEADER.replace("|u1", "<f8"),
    HEADER.replace("|u1", "|V1000000000"),
    HEADER.replace("'|u1'", "[('a', '|O')]"),
    HEADER.replace("'|u1'", "__import__('os').system('true')"),
    HEADER.replace("False", "True"),
    HEADER.replace("(3, 28, 28, 28)", "(65856,)"),
    HEADER.replace("(3, 28, 28, 28)", "(3, 28, 28, 28, 3)"),
    HEADER.replace("(3, 28, 28, 28)", "(0, 28, 28, 28)"),
    HEADER.replace("(3, 28, 28, 28)", "(" * 3000),
    HEADER.replace("(3, 28, 28, 28)", "((((3, 28, 28, 28"),
    HEADER[:-20],
    "'" * 50,
    "[" * 9000 + "]" * 9000,
    " " * 60000 + HEADER,
    "",
]


@pytest.mark.parametrize("header", HOSTILE_HEADERS, ids=range(len(HOSTILE_HEADERS)))
def test_array_headers_that_lie(tmp_path, header):
    assert offer_npz(tmp_path, npy_claiming(HEADER, bytes(3 * 28**3)))
    assert not offer_npz(tmp_path, npy_claiming(header, bytes(3 * 28**3)))


@pytest.mark.parametrize("count", [3 * 28**3 - 1, 3 * 28**3 + 1, 0])
def test_an_array_that_is_not_as_long_as_it_says(tmp_path, count):
    assert not offer_npz(tmp_path, npy_claiming(HEADER, bytes(count)))


def test_array_header_of_four_gigabytes(tmp_path):
    claim = b"\x93NUMPY\x02\x00" + b"\xff" * 4 + HEADER.encode()
    assert not offer_npz(tmp_path, claim)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path):
    sprung = tmp_path / "sprung"
    objects = np.empty((3, 28, 28, 28), dtype=object)
    objects[0, 0, 0, 0] = Trap(sprung)
    assert not offer_npz(tmp_path, npy(objects))
    body = npy(objects)
    pickled = body[body.index(b"\x80") :]
    assert not offer_npz(tmp_path, npy_claiming(HEADER, pickled))
    (tmp_path / "synapsemnist3d.npz").write_bytes(pickled)
    path = tmp_path / "synapsemnist3d.npz"
    assert not read_or_refuse(lambda: open_source("synapse", path, ("t1",), 8, 0), path)
    assert not sprung.exists()


def test_a_zip_bomb_costs_no_more_than_it_admits(tmp_path):
    """200 MiB of zeros behind a directory entry that admits three cubes."""
    path = tmp_path / "synapsemnist3d.npz"
    honest_size = len(npy(cubes()))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("train_images.npy", "w") as entry:
            entry.write(npy(cubes()))
            for _ in range(200):
                entry.write(bytes(1 << 20))
        archive.writestr("val_images.npy", npy(cubes(1)))
        archive.writestr("test_images.npy", npy(cubes(1)))
    content = path.read_bytes()
    true_size = (honest_size + (200 << 20)).to_bytes(4, "little")
    assert content.count(true_size) == 2
    path.write_bytes(content.replace(true_size, honest_size.to_bytes(4, "little")))
    assert not read_or_refuse(lambda: open_source("synapse", path, ("t1",), 8, 0), path)


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_that_unpack_without_bound_are_refused(tmp_path, packing):
    assert not offer_npz(tmp_path, npy(cubes()), packing)


@QUICK
@given(
    patches=st.lists(st.tuples(st.integers(0, 3000), st.binary(max_size=8)), max_size=5),
    from_end=st.lists(st.tuples(st.integers(1, 300), st.binary(max_size=8)), max_size=5),
    lost=st.sampled_from([0, 0, 0, 1, 30, 400]),
)
@example(patches=[], from_end=[], lost=0)
def test_damaged_archives(archive, patches, from_end, lost):
    path, honest_bytes = archive
    content = bytearray(honest_bytes)
    for at, patch in patches:
        content[at : at + len(patch)] = patch
    for back, patch in from_end:  # the directory of a zip is at its end
        at = len(content) - back
        content[at : at + len(patch)] = patch
    path.write_bytes(bytes(content[: len(content) - lost]))
    was_read = read_or_refuse(lambda: open_source("synapse", path, ("t1",), 8, 0), path)
    assert was_read or patches or from_end or lost


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("synapse") / "synapsemnist3d.npz"
    small = np.zeros((2, 8, 8, 8), dtype=np.uint8)
    np.savez_compressed(path, train_images=small, val_images=small, test_images=small)
    return path, path.read_bytes()


@QUICK
@given(content=st.binary(max_size=400))
def test_not_an_archive(archive, content):
    path, _ = archive
    path.write_bytes(content)
    assert not read_or_refuse(lambda: open_source("synapse", path, ("t1",), 8, 0), path)
