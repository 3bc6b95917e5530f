"""The committed reference tables are what `report` makes of the committed rows."""

from pathlib import Path

import pytest

from bench.report import write_reports

REFERENCE = Path(__file__).parents[3] / "results" / "reference"


@pytest.mark.skipif(not REFERENCE.exists(), reason="no reference results yet: make reference")
def test_the_reference_tables_come_from_the_reference_rows(tmp_path: Path):
    marks = ("runs.csv", "scale.csv")
    folders = sorted({path.parent for mark in marks for path in REFERENCE.glob(f"*/{mark}")})
    assert folders
    write_reports(folders, tmp_path)
    for name in ("table1", "table2", "claims"):
        for kind in ("csv", "md", "tex"):
            file = f"{name}.{kind}"
            assert (tmp_path / file).read_text() == (REFERENCE / file).read_text(), file
