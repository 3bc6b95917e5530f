"""The commands as they are typed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli import main

ROOT = Path(__file__).parents[3]


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_report_writes_into_the_folder_of_the_run(paper_run, report: Path, tmp_path: Path):
    folder = tmp_path / paper_run.folder.name
    shutil.copytree(paper_run.folder, folder)
    process = bench("report", folder)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    for path in report.iterdir():  # the same in another process, from another place
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name
        assert path.name in process.stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["report"], "name at least one run folder"),
        (["report", "nowhere"], "runs.csv: missing"),
        (["report", "nowhere", "nowhere-else"], "--out"),
        (["compare", "nowhere", "nowhere"], "runs.csv: missing"),
    ],
)
def test_mistakes_are_a_line_and_status_2(arguments, word, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    assert main() == 2
    shown = capsys.readouterr().err
    assert word in shown
    assert shown.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_a_line_and_status_2(
    equal_run, tmp_path: Path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("", encoding="utf-8")
    out = str(tmp_path / "file")
    monkeypatch.setattr(sys, "argv", ["bench", "report", str(equal_run.folder), "--out", out])
    assert main() == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: --out")
    assert shown.count("\n") == 1
