"""Predictions side by side, of which one process is killed."""

import io
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from bench.errors import UserError
from bench.predict import parallel


@pytest.mark.parametrize("cores", [1, 2])
def test_what_is_done_is_counted_and_results_stay_in_order(monkeypatch, cores):
    monkeypatch.setattr(parallel, "_cores", lambda: cores)
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80)
    assert parallel.side_by_side(abs, [-3, 1, -2], terminal, "Predicting") == [3, 1, 2]
    assert "3/3" in screen.getvalue()


def wait_for(file: Path | None) -> bool:
    end = time.monotonic() + 120
    while file is not None and not file.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    return file is not None


def test_the_second_is_counted_while_the_first_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr(parallel, "_cores", lambda: 2)
    counted = tmp_path / "counted"
    assert list(parallel.in_processes(wait_for, [counted, None], counted.touch)) == [True, False]


def test_a_process_that_is_killed_is_told_of_in_a_line(monkeypatch):
    """As the kernel does it for want of memory: `check`, `fit` and `scale` ended in tracebacks."""
    monkeypatch.setattr(parallel, "_cores", lambda: 2)
    with pytest.raises(UserError, match="one of the 2 processes that predict was ended") as refusal:
        list(parallel.in_processes(os._exit, [1, 1, 1]))
    assert "\n" not in str(refusal.value)
