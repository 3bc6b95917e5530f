"""How long the data take: `pytest tests/benchmarks/test_bench_data.py`."""

import time

import numpy as np
import pytest
import torch

from bench.data import open_source, prepare
from tests.volumes import make_brats_folder

BOUND_S = 0.100  # a 64³ volume on one core


@pytest.fixture
def one_core():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Processor time: what other processes on the machine take is not the phantom's cost.
@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("modality", [("t1",), ("t1", "t2")], ids="+".join)
def test_one_phantom_of_64(benchmark, one_core, modality):
    source = open_source("phantom", None, modality, volume=64, seed=0, subjects=32)
    source[0]  # reads the atlas
    indices = iter(range(10**6))
    benchmark.pedantic(lambda: source[next(indices) % 32], rounds=32, warmup_rounds=2)
    assert np.median(benchmark.stats.stats.data) < BOUND_S


def test_one_real_scan_to_64(benchmark, one_core, tmp_path):
    folder = make_brats_folder(tmp_path, subjects=1, modalities=("t1",))
    source = open_source("brats", folder, ("t1",), volume=64, seed=0)
    benchmark.pedantic(lambda: source[0], rounds=5, warmup_rounds=1)


def test_finding_a_prepared_cache(benchmark, tmp_path):
    source = open_source("phantom", None, ("t1",), volume=64, seed=0, subjects=32)
    prepare(source, tmp_path)
    benchmark(lambda: prepare(source, tmp_path))
