"""What the command refuses: one line, exit status 2, before any trial."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.methods import METHODS
from tests.volumes import make_brats_folder


def test_an_unknown_method(refuse):
    line = refuse("--models", "idm", "patchdm")
    assert "patchdm" in line
    assert "did you mean patchddm?" in line
    assert line.rstrip().endswith("Known: " + ", ".join(METHODS))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--minutes", "0"), "--minutes 0"),
        (("--minutes", "-1"), "--minutes -1"),
        (("--minutes", "nan"), "--minutes nan"),
        (("--steps", "0"), "--steps 0"),
        (("--minutes", "1", "--steps", "1"), "not both"),
        (("--repeats", "0"), "--repeats 0"),
        (("--batch-size", "0"), "--batch-size 0"),
        (("--device", "tpu"), "--device tpu"),
        (("--device", "cuda:99"), "--device cuda:99"),
    ],
)
def test_a_number_or_device_that_cannot_be(refuse, flags, said):
    assert said in refuse("--models", "idm", *flags)


def test_a_volume_that_a_method_cannot_divide(refuse):
    line = refuse("--models", "idm", "--volume", "36")
    assert "multiples of 8" in line
    assert "32, 40" in line


def test_a_patch_that_cannot_be(refuse):
    assert "--patch 64" in refuse("--models", "patchddm", "--patch", "64")
    assert "multiples of 8" in refuse("--models", "patchddm", "--volume", "24")


def test_a_data_folder_that_is_missing_empty_or_not_one(refuse, tmp_path):
    brats = ("--models", "idm", "--data", "brats", "--data-dir")
    assert "nowhere" in refuse(*brats, str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "empty" in refuse(*brats, str(tmp_path / "empty"))
    (tmp_path / "file").write_text("")
    assert "file" in refuse(*brats, str(tmp_path / "file"))
    assert "--data-dir" in refuse("--models", "idm", "--data", "brats")


def test_a_folder_without_that_modality(refuse, tmp_path):
    folder = make_brats_folder(tmp_path / "brats", subjects=1, modalities=("t1",))
    line = refuse(
        "--models", "idm", "--data", "brats", "--data-dir", str(folder), "--modality", "t2"
    )
    assert "t2" in line


@pytest.mark.parametrize("damage", ["truncated", "not NIfTI"])
def test_a_damaged_file_is_named(refuse, tmp_path, damage):
    folder = make_brats_folder(tmp_path / "brats", subjects=2, modalities=("t1",))
    victim = folder / "BraTS20_Training_002" / "BraTS20_Training_002_t1.nii.gz"
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"hello" * 100)
    line = refuse("--models", "idm", "--data", "brats", "--data-dir", str(folder))
    assert victim.name in line


def test_an_output_folder_that_cannot_be_written(refuse, tmp_path):
    (tmp_path / "file").write_text("")
    assert "--out" in refuse(
        "--models", "idm", "--steps", "1", "--idle", "0", "--volume", "8", "--subjects", "1",
        out=tmp_path / "file" / "results",
    )  # fmt: skip


def test_the_real_process_prints_a_line_and_exits_with_2(tmp_path):
    process = subprocess.run(
        [sys.executable, "run_bench.py", "--models", "nothing", "--out", str(tmp_path)],
        cwd=Path(__file__).parents[3], capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.count("\n") == 1


def test_a_reader_that_leaves_gets_no_traceback():
    """`python -m bench --help | true`: the pipe is closed before all of it is written."""
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-m", "bench", "--help"], cwd=Path(__file__).parents[3], stdout=write,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    os.close(write)
    assert process.stderr == ""
    assert process.returncode == 0
