"""No measurement depends on its output: closed, full, left, of another encoding, of no terminal."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.records.folder import Run

ROOT = Path(__file__).parents[3]
TINY = (
    "--models", "idm", "--steps", "3", "--volume", "8", "--batch-size", "1", "--channels", "4",
    "8", "--subjects", "2", "--idle", "0",
)  # fmt: skip
SHELL = {
    "closed": "{} >&-",
    "closed, errors too": "{} >&- 2>&-",
    "a full disk": "{} >/dev/full 2>/dev/full",
    "a reader that leaves": "{} | head -n 1",
    "ascii": "PYTHONIOENCODING=ascii {}",
    "cp1252": "PYTHONIOENCODING=cp1252 {}",
    "POSIX": "LC_ALL=POSIX PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {}",
}

WHOLE = (
    pytest.param("a full disk", marks=pytest.mark.slow),
    *(
        pytest.param(how, marks=pytest.mark.thorough)
        for how in ("a reader that leaves", "closed, errors too", "POSIX")
    ),
)
"""The hardest of each kind, for whole benchmarks; `--help` meets all."""


def command(tmp_path: Path, *arguments: str) -> str:
    words = [sys.executable, *arguments]
    return " ".join(f"'{word}'" for word in words)


def check_whole(out: Path) -> None:
    (folder,) = out.iterdir()
    run = Run(folder)
    assert run.records()["status"].tolist() == ["ok"]
    assert len(run.steps()) == 3
    for name in ("environment.json", "table2.md", "peak_memory.png", "report.html"):
        assert (folder / name).stat().st_size > 0


@pytest.mark.parametrize("how", WHOLE)
def test_a_benchmark_goes_on(tmp_path, how):
    typed = command(tmp_path, "run_bench.py", *TINY, "--out", str(tmp_path / "out"))
    process = subprocess.run(
        ["bash", "-o", "pipefail", "-c", SHELL[how].format(typed)], cwd=ROOT, capture_output=True
    )
    assert process.returncode == 0, process.stderr
    assert b"Traceback" not in process.stdout + process.stderr
    assert b"Exception ignored" not in process.stderr
    check_whole(tmp_path / "out")


@pytest.mark.slow
def test_a_benchmark_outlives_its_terminal(tmp_path):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "run_bench.py", *TINY, "--out", str(tmp_path / "out")], cwd=ROOT,
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    while not (tmp_path / "out").exists() and process.poll() is None:
        time.sleep(0.02)
    os.close(master)
    assert process.wait(120) == 0
    check_whole(tmp_path / "out")


@pytest.mark.parametrize("how", SHELL)
def test_help_in_any_output(tmp_path, how):
    typed = command(tmp_path, "-m", "bench", "run", "--help")
    process = subprocess.run(
        ["bash", "-o", "pipefail", "-c", SHELL[how].format(typed)], cwd=ROOT, capture_output=True
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == b""
    if how in ("ascii", "cp1252", "POSIX"):
        assert b"--models" in process.stdout


def test_a_folder_that_is_not_utf_8_is_refused_before_anything_starts(tmp_path):
    """The run ended in a traceback, after its data had been prepared."""
    name = os.fsencode(tmp_path) + b"/\xff"
    process = subprocess.run(
        [sys.executable, "run_bench.py", *TINY, "--out", name], cwd=ROOT, capture_output=True
    )
    assert process.returncode == 2
    assert process.stderr.startswith(b"error: --out: a name that is not UTF-8")
    assert process.stderr.count(b"\n") == 1
    assert list(tmp_path.iterdir()) == []
