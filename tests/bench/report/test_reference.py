"""The committed reference tables are what `report` makes of the committed rows."""

from pathlib import Path

import pytest

from bench.quality.learning import QualityRun
from bench.report import write_reports

RESULTS = Path(__file__).parents[3] / "results"
REFERENCE = RESULTS / "reference"


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


def test_idm_lean_learns_as_idm_does():
    """The committed trainings: over three seeds, after 500 steps, within 2 %."""
    ends = {}
    for method in ("idm", "idm-lean"):
        run = QualityRun(RESULTS / "lean" / method)
        assert (run.trained()["status"] == "ok").all()
        last = run.learning().groupby("seed").last()
        assert last["step"].tolist() == [500, 500, 500]
        ends[method] = last
    numbers = ["val_mse", "loss_train"]
    ratio = ends["idm-lean"][numbers] / ends["idm"][numbers]
    assert ratio["val_mse"].between(0.98, 1.02).all()
    assert ratio["loss_train"].between(0.98, 1.02).all()
