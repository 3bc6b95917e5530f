"""What sampling costs: `pytest tests/benchmarks/test_bench_overhead.py`.

One process trains windows of half a second, every other one under the sampled probes of a trial,
so that whatever else the machine does falls on both kinds alike. Processor time, because it holds
the sampling thread's own work too and not what other processes take; wall time is shown beside it.
"""

import statistics
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from bench.ddpm.step import TrainingStep
from bench.methods import METHODS
from bench.presets import Workload
from bench.probes.energy import EnergyProbe, TdpMeter
from bench.probes.host import HostProbe
from bench.probes.polling import polling
from bench.records.rows import Record

BOUND = 0.01
HERTZ = 10.0
PAIRS = 20
STEPS = 4


@pytest.fixture(scope="module")
def step():
    torch.manual_seed(0)
    work = Workload(16, 16, 1, (8, 16), 1, "fp32")
    step = TrainingStep(METHODS["idm"].build(work), work)
    batch = torch.rand(1, 1, 16, 16, 16)
    for _ in range(5):
        step(batch)
    return lambda: step(batch)


def probes():
    return [HostProbe(torch.device("cpu")), EnergyProbe(TdpMeter())]


def window(step, sampled) -> tuple[float, float]:
    """Processor and wall seconds of one window's steps, the probes' start and stop left out."""
    with sampled:
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(STEPS):
            step()
        return time.process_time() - cpu, time.perf_counter() - wall


def test_sampling_at_10_hz(benchmark, step):
    watching = probes()
    rounds: list[tuple[float, ...]] = []

    def pair() -> None:
        bare = window(step, nullcontext())
        sampled = window(step, polling(watching, HERTZ, lambda *_, **__: None))
        rounds.append((sampled[0] / bare[0], sampled[1] / bare[1]))

    benchmark.pedantic(pair, rounds=PAIRS, warmup_rounds=1)
    cpu, wall = (statistics.median(column) - 1 for column in zip(*rounds[1:], strict=True))
    benchmark.extra_info |= {"bound": BOUND, "overhead_cpu": cpu, "overhead_wall": wall}
    print(
        f"\nsampling at {HERTZ:g} Hz costs {cpu:+.2%} processor time, {wall:+.2%} wall time; "
        f"bound {BOUND:.0%}"
    )
    assert cpu <= BOUND


def test_one_reading(benchmark):
    """All sampled probes of a CPU once; 10 Hz of it is its share of one core."""
    watching = probes()
    for probe in watching:
        probe.start()

    def read() -> None:
        for probe in watching:
            probe.sample()

    benchmark.pedantic(read, rounds=200, warmup_rounds=5)
    share = statistics.median(benchmark.stats.stats.data) * HERTZ
    benchmark.extra_info |= {"bound": BOUND, "share_of_a_core": share}
    print(f"\nreadings at {HERTZ:g} Hz: {share:.2%} of one core; bound {BOUND:.0%}")
    assert share <= BOUND


def test_how_steady(benchmark, step):
    """Lateness of the readings beside a training loop that holds Python's lock most of the time."""
    row = Record(method="idm", repeat=1)

    def train() -> None:
        with polling(probes(), HERTZ, lambda *_, **__: None) as found:
            end = time.perf_counter() + 5
            while time.perf_counter() < end:
                step()
        for measurement in found:
            row.take(measurement.columns())

    benchmark.pedantic(train, rounds=1)
    rate, late = row.sample_rate_hz, row.sample_late_p95_s
    assert rate is not None
    assert late is not None
    benchmark.extra_info |= {"rate_hz": rate, "late_p95_s": late}
    print(
        f"\nasked {HERTZ:g} Hz, got {rate:.2f} Hz; "
        f"95 % of readings at most {late * 1e3:.1f} ms late"
    )
    assert np.isfinite(late)
