"""The committed results hold what a test, a table or a document needs, and nothing twice."""

import hashlib
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from docs.keep_results import KINDS, shown_pictures, unneeded

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def committed() -> list[Path]:
    git = ["git", "-C", str(ROOT), "ls-files", "results"]
    process = subprocess.run(git, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in process.stdout.splitlines() if (ROOT / line).exists()]


def test_only_rows_and_pictures_that_a_document_shows(committed):
    shown = shown_pictures()
    assert any(name.startswith("results/") for name in shown)
    for path in committed:
        name = path.relative_to(ROOT).as_posix()
        assert path.suffix in KINDS or name in shown, name
        assert path.stat().st_size < 2_000_000, name


def test_every_picture_that_a_document_shows_is_there():
    missing = [name for name in shown_pictures() if not (ROOT / name).is_file()]
    assert missing == []


def test_no_file_is_there_twice(committed):
    copies = defaultdict(list)
    for path in committed:
        copies[hashlib.sha256(path.read_bytes()).digest()].append(path.relative_to(ROOT))
    assert [paths for paths in copies.values() if len(paths) > 1] == []


@pytest.mark.parametrize("part", ["reference", "quality"])
def test_the_makefile_would_keep_what_is_there(part):
    assert [str(path) for path in unneeded(ROOT / "results" / part, f"results/{part}")] == []
