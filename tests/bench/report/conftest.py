"""One run with known numbers and its report, made once."""

from pathlib import Path

import pytest

from bench.records.folder import Run
from bench.report.write import write_reports
from tests.bench.report.runs import METHODS, full_run, predicted, record, write_run


@pytest.fixture(scope="session")
def paper_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`paper`, measured on a card: all methods, 3 repeats."""
    return full_run(tmp_path_factory.mktemp("runs") / "20260101T000000Z-paper")


@pytest.fixture(scope="session")
def equal_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`equal`, predicted."""
    folder = tmp_path_factory.mktemp("runs") / "equal"
    return write_run(folder, [predicted(method, "equal") for method in METHODS])


@pytest.fixture(scope="session")
def report(paper_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of `paper_run`."""
    out = tmp_path_factory.mktemp("report")
    write_reports([paper_run.folder], out)
    return out


@pytest.fixture(scope="session")
def two_groups(paper_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two groups, with a method that failed and a name that is an attack."""
    folder = tmp_path_factory.mktemp("two")
    empty = dict.fromkeys(("peak_memory_bytes", "peak_allocated_bytes", "step_time_median_s"), None)
    evil = "<img src=x onerror=\"document.title='owned'\">"
    other = write_run(
        folder / "other",
        [
            record("idm", preset="equal"),
            record("patchddm", preset="equal"),
            record("unet", preset="equal", status="oom", error="out of memory", **empty),
            record(evil, preset="equal"),
        ],
    )
    write_reports([paper_run.folder, other.folder], folder / "out")
    return folder / "out"
