"""Predictions side by side, of which one process is killed."""

import os

import pytest

from bench.errors import UserError
from bench.predict import parallel


def test_a_process_that_is_killed_is_told_of_in_a_line(monkeypatch):
    """As the kernel does it for want of memory: `check`, `fit` and `scale` ended in tracebacks."""
    monkeypatch.setattr(parallel, "_cores", lambda: 2)
    with pytest.raises(UserError, match="one of the 2 processes that predict was ended") as refusal:
        list(parallel.in_processes(os._exit, [1, 1, 1]))
    assert "\n" not in str(refusal.value)
