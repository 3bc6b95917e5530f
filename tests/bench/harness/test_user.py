"""A container: a user that nobody has registered, no home folder, or one that cannot be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import cli
from bench.errors import UserError
from bench.harness.planning import default_cache_dir

ROOT = Path(__file__).parents[3]
TINY = ("--models", "unet", "--steps", "1", "--volume", "16", "--batch-size", "1", "--channels",
        "8", "16", "--subjects", "2", "--idle", "0")  # fmt: skip
NO_USER = """
import os, pwd, sys
def nobody(uid): raise KeyError("getpwuid(): uid not found: 1234")
pwd.getpwuid = nobody
for name in ("LOGNAME", "USER", "LNAME", "USERNAME"): os.environ.pop(name, None)
from bench.cli import run_bench
sys.exit(run_bench())
"""


def run(tmp_path: Path, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """As `docker run --user 1234` would: `pwd` knows no such user."""
    env = {**os.environ, "XDG_CACHE_HOME": None, **environment}
    return subprocess.run(
        [sys.executable, "-c", NO_USER, *TINY, "--out", str(tmp_path / "out")], cwd=ROOT,
        capture_output=True, text=True, env={k: v for k, v in env.items() if v is not None},
    )  # fmt: skip


@pytest.mark.slow
def test_a_user_without_an_entry_trains(tmp_path):
    """MONAI and PyTorch ask for the name: KeyError."""
    process = run(tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert process.returncode == 0, process.stderr


def test_a_home_that_cannot_be_written_names_the_flag(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr(sys, "argv", ["run_bench.py", *TINY, "--out", str(tmp_path / "out")])
    assert cli.run_bench() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "--cache-dir" in line


def test_no_home_names_the_flag(monkeypatch):
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", none)
    with pytest.raises(UserError, match="--cache-dir"):
        default_cache_dir()
