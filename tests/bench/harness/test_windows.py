"""Without POSIX, as on Windows: what needs it says so, and the rest works."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
WITHOUT_POSIX = """
import builtins, os, sys
whole = builtins.__import__
def without_posix(name, globals=None, *rest, **more):
    ours = globals and globals.get("__name__", "").startswith("bench")
    if ours and name in ("fcntl", "resource", "pwd", "grp", "termios", "pty"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return whole(name, globals, *rest, **more)
builtins.__import__ = without_posix  # libraries know that they are on Linux, and go on so
for name in ("fork", "sched_getaffinity"): delattr(os, name)
from bench.cli import main
for sys.argv[1:] in eval(sys.argv[1]):
    if status := main(): sys.exit(status)
"""


def windows(*commands: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """One after the other, until one fails."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX, repr(commands)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_predictions_and_reports_work(tmp_path):
    """They failed on fcntl and resource, though they need neither."""
    process = windows(
        ("predict", "--models", "idm", "--preset", "small", "--out", str(tmp_path / "predicted")),
        ("check", "--presets", "small", "--models", "idm"),
        ("report", str(tmp_path / "predicted"), "--out", str(tmp_path / "page")),
        ("compare", str(tmp_path / "predicted"), str(tmp_path / "predicted")),
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "page" / "report.html").is_file()


@pytest.mark.parametrize("command", ["run", "quality"])
def test_what_needs_posix_says_so(command):
    process = windows((command, "--models", "idm"))
    assert process.returncode == 2
    assert process.stderr.startswith(f"error: {command} needs Linux or macOS")
    assert process.stderr.count("\n") == 1
