"""A file that the disk refuses, whatever command writes it: one line, and what was there stays.

A limit on the size of files stands for a full disk, which only root can make.
"""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench import cli
from bench.errors import UserError
from bench.predict.check import read_baseline, write_baseline
from bench.records.files import shipped
from tests.bench.records.test_mutations import RUNS

NETWORK = ("--models", "idm", "--channels", "4", "8", "--batch-size", "1")
COMMANDS = {
    "predict": ("predict", *NETWORK, "--volume", "8", "--timeline"),
    "report": ("report", str(RUNS["predicted"])),
}


@contextmanager
def files_of_at_most(nbytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("name", "most_bytes"),
    [("predict", 50), ("predict", 5000), ("predict", 30_000), ("report", 100), ("report", 15_000)],
)
def test_what_does_not_fit_is_one_line(tmp_path, monkeypatch, capsys, name, most_bytes):
    """They ended in tracebacks, and left half of a table or of a picture."""
    monkeypatch.setattr(sys, "argv", ["bench", *COMMANDS[name], "--out", str(tmp_path)])
    with files_of_at_most(most_bytes):
        assert cli.main() == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.endswith("cannot be written (File too large)\n")
    assert line.count("\n") == 1
    assert not list(tmp_path.glob("*.part"))
    for path in tmp_path.iterdir():
        assert 0 < path.stat().st_size <= most_bytes


def test_a_baseline_that_cannot_be_written_anew_is_kept(tmp_path):
    """`check --update` began by emptying it."""
    path = tmp_path / "baseline.csv"
    path.write_bytes(shipped("baseline.csv").read_bytes())
    peaks = read_baseline(path).values()
    with files_of_at_most(1000), pytest.raises(UserError, match=r"--baseline .*\(File too large\)"):
        write_baseline(path, peaks)
    assert path.read_bytes() == shipped("baseline.csv").read_bytes()
