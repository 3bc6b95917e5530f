"""Every process of ours ends with the one that started it, however that ends."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[3]
LATEST_S = 5.0
"""Importing PyTorch takes longer than this: a process that only then learns of it is too late."""
COMMANDS = {
    "check": ("-m", "bench", "check", "--presets", "equal"),
    "fit": ("-m", "bench", "fit", "--memory", "24GiB", "--models", "unet", "idm"),
    "run": ("run_bench.py", "--models", "idm", "--steps", "100000"),
}


def children_of(process: subprocess.Popen, ready: Callable[[], bool]) -> list[psutil.Process]:
    while process.poll() is None:
        try:
            found = psutil.Process(process.pid).children(recursive=True)
        except psutil.Error:
            break
        if found and ready():
            return found
        time.sleep(0.005)
    raise AssertionError("it ended before it had started anything")


STARTING_S, WORKING_S = 0.0, 3.0
SOME = (
    ("check", signal.SIGKILL, STARTING_S), ("fit", signal.SIGTERM, WORKING_S),
    ("run", signal.SIGKILL, STARTING_S), ("run", signal.SIGTERM, WORKING_S),
)  # fmt: skip
"""Of all ends, those in the slow suite."""
ENDS = [
    pytest.param(*end, marks=pytest.mark.slow if end in SOME else pytest.mark.thorough)
    for end in product(
        COMMANDS, (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP), (STARTING_S, WORKING_S)
    )
    if end[:2] != ("run", signal.SIGHUP)  # a benchmark goes on when its terminal closes
]


@pytest.mark.parametrize(("name", "how", "wait_s"), ENDS)
def test_no_process_outlives_its_command(tmp_path, name, how, wait_s):
    """They ran on for ever, 0.9 GB each; a trial's, until it had imported PyTorch."""
    out = () if name == "check" else ("--out", str(tmp_path / "out"))
    process = subprocess.Popen(
        [sys.executable, *COMMANDS[name], *out], cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    started = time.monotonic()
    children = children_of(process, lambda: time.monotonic() - started > wait_s)
    process.send_signal(how)
    process.wait(60)
    _, alive = psutil.wait_procs(children, timeout=LATEST_S)
    assert [child.cmdline() for child in alive if child.is_running()] == []
