"""A command that is refused, in this process."""

import sys
from pathlib import Path

import pytest

from bench import cli


@pytest.fixture
def refuse(monkeypatch, capsys, tmp_path):
    """Type a command; returns its one line of error."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: str, out: Path | None = None) -> str:
        out = out or tmp_path / "out"
        monkeypatch.setattr(sys, "argv", ["run_bench.py", *arguments, "--out", str(out)])
        assert cli.run_bench() == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert "Traceback" not in captured.err
        assert not list(tmp_path.glob("out/*/runs.csv"))  # nothing had begun
        return captured.err

    return run
