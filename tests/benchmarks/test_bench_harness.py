"""What the harness adds: to a step, and before the first one."""

import itertools
import json
import os
import select
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from bench.ddpm.step import TrainingStep
from bench.harness.window import Window
from bench.methods import METHODS
from bench.presets import Overrides

ROOT = Path(__file__).parents[2]


def test_a_step_under_the_harness_against_a_bare_loop(report_bound):
    """Interleaved step by step in one process, so that the machine's moods hit both alike."""
    work = METHODS["idm"].workload("small", Overrides(volume=16, batch_size=2, channels=(32, 64)))
    torch.manual_seed(0)
    step = TrainingStep(METHODS["idm"].build(work), work)
    volumes = torch.rand(2, 1, 16, 16, 16)
    batches = itertools.repeat(volumes)
    cpu = torch.device("cpu")

    def bare(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            step(volumes)
        return time.perf_counter() - begin

    def harnessed(count: int) -> float:
        begin = time.perf_counter()
        with open(os.devnull, "w") as sink:
            for done in Window(steps=count).train(step, batches, cpu):
                sink.write(json.dumps({"event": "step", "step": done.step, "loss": done.loss}))
                sink.flush()
        return time.perf_counter() - begin

    bare(3)
    ratios = [harnessed(5) / bare(5) for _ in range(15)]
    report_bound("step under the harness / bare loop", statistics.median(ratios), 1.01)


def test_start_up_to_the_first_step(report_bound, tmp_path):
    """Seconds from typing the command to the end of the first timed step, at `small`."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "run_bench.py", "--models", "idm", "--steps", "1", "--out", tmp_path],
        cwd=ROOT, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    first_step = None
    while process.poll() is None and first_step is None:
        select.select([], [], [], 0.02)
        for steps in tmp_path.glob("*/steps.csv"):
            if steps.read_bytes().count(b"\n") > 1:
                first_step = time.perf_counter() - begin
    process.wait()
    assert first_step is not None
    report_bound("start-up to the first step at small (s)", first_step, 10.0)
