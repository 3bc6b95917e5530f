"""How long reports of many trials take: `pytest tests/benchmarks/test_bench_report.py`."""

import resource
from pathlib import Path

from bench.report.write import write_reports
from tests.bench.report.runs import METHODS, record, window, write_run

BOUND_S = 20


def test_a_report_of_1000_trials(benchmark, report_bound, tmp_path: Path):
    trials = [(method, repeat) for repeat in range(1, 201) for method in METHODS]
    run = write_run(
        tmp_path / "run",
        [record(method, repeat) for method, repeat in trials],
        [sample for trial in trials for sample in window(*trial, count=240)],
    )
    paths = benchmark.pedantic(write_reports, ([run.folder], tmp_path / "out"), rounds=1)
    assert all(path.stat().st_size for path in paths)
    report_bound("report of 1,000 trials, s", benchmark.stats.stats.max, BOUND_S)


def test_a_report_of_1000_methods(benchmark, report_bound, tmp_path: Path):
    run = write_run(tmp_path / "run", [record(f"method-{number}") for number in range(1000)])
    benchmark.pedantic(write_reports, ([run.folder], tmp_path / "out"), rounds=1)
    report_bound("report of 1,000 methods, s", benchmark.stats.stats.max, BOUND_S)


def test_a_report_of_10000_trials(benchmark, report_bound, tmp_path: Path):
    """And the memory of this process: what the files are made of included."""
    trials = [(method, repeat) for repeat in range(1, 2001) for method in METHODS]
    run = write_run(
        tmp_path / "run",
        [record(method, repeat) for method, repeat in trials],
        [sample for trial in trials for sample in window(*trial)],
    )
    benchmark.pedantic(write_reports, ([run.folder], tmp_path / "out"), rounds=1)
    report_bound("report of 10,000 trials, s", benchmark.stats.stats.max, 60)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report_bound("report of 10,000 trials, GiB resident", resident / 2**30, 2)
