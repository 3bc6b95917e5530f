"""What a prediction costs, bound and measured side by side; and its bytes, for `compare`.

Times are of whole commands, the start of Python and the import of PyTorch included. They want an
idle machine: on 2 cores that others use, they are theirs, too.
"""

import os
import subprocess
import sys
import time

import pytest

from bench.methods import METHODS
from bench.predict import predict

COMMAND = [sys.executable, "-m", "bench"]
FOUR = ("unet", "checkpoint", "patchddm", "idm")


def run(*arguments: object) -> tuple[int, float, float]:
    """Exit status, seconds and MiB of resident memory of a command."""
    begin = time.perf_counter()
    process = subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, time.perf_counter() - begin, usage.ru_maxrss / 1024


@pytest.fixture(scope="module", autouse=True)
def files_in_memory(tmp_path_factory):
    """A command before the first that counts: what it reads from a cold disk is not the bound's."""
    status, seconds, _ = run(
        "predict", "--models", "unet", "--out", tmp_path_factory.mktemp("cold")
    )
    assert status == 0
    print(f"\nthe first prediction, its files perhaps on a cold disk: {seconds:.2f} s")


@pytest.mark.parametrize("preset", ["paper", "equal", "full-volume"])
@pytest.mark.parametrize("name", METHODS)
def test_one_prediction(report_bound, tmp_path, name, preset):
    status, seconds, mebibytes = run(
        "predict", "--models", name, "--preset", preset, "--out", tmp_path
    )
    assert status == 0
    report_bound(f"predict {name} at {preset}: resident MiB", mebibytes, 1024)
    report_bound(f"predict {name} at {preset}: seconds", seconds, 5)


def test_fit_of_four_methods(report_bound):
    status, seconds, _ = run("fit", "--memory", "24GiB", "--models", *FOUR)
    assert status == 0
    report_bound("fit four methods in 24 GiB: seconds", seconds, 60)


def test_the_gate(report_bound):
    status, seconds, _ = run("check", "--baseline", "results/baseline.csv")
    assert status == 0
    report_bound("check against the baseline: seconds", seconds, 60)


@pytest.mark.parametrize("name", METHODS)
def test_bytes(benchmark, name):
    """`pytest-benchmark compare --columns=median` lists the bytes under extra_info, in JSON."""
    prediction = benchmark.pedantic(predict, (name,), {"preset": "small"}, rounds=3)
    benchmark.extra_info["peak_memory_bytes"] = prediction.peak_memory_bytes
    benchmark.extra_info |= {f"{part}_bytes": nbytes for part, nbytes in prediction.parts.items()}
    assert sum(prediction.parts.values()) == benchmark.extra_info["peak_memory_bytes"]
