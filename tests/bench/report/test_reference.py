"""The committed results: tables are what `report` makes of the rows, and bounds are met."""

from pathlib import Path

import pytest

from bench.methods import METHODS
from bench.quality.learning import QualityRun
from bench.report import write_reports

README = Path(__file__).parents[3] / "README.md"
RESULTS = README.parent / "results"
REFERENCE = RESULTS / "reference"
QUALITY = RESULTS / "quality"
GIB = 2**30


def runs_of(part: str) -> list[QualityRun]:
    if not (QUALITY / part).exists():
        pytest.skip("no reference trainings yet: make reference-quality")
    folders = sorted(path.parent for path in QUALITY.glob(f"{part}/*/trained.csv"))
    assert folders, part
    return [QualityRun(folder) for folder in folders]


def test_the_reference_tables_come_from_the_reference_rows(tmp_path: Path):
    marks = ("runs.csv", "scale.csv")
    folders = sorted({path.parent for mark in marks for path in REFERENCE.glob(f"*/{mark}")})
    assert folders
    write_reports(folders, tmp_path)
    for name in ("table1", "table2", "claims"):
        for kind in ("csv", "md", "tex"):
            file = f"{name}.{kind}"
            assert (tmp_path / file).read_text() == (REFERENCE / file).read_text(), file


def test_the_readme_shows_rows_of_the_reference_tables():
    tables = (REFERENCE / "table2.md").read_text().splitlines()
    shown = [line for line in README.read_text().splitlines() if "(1.00×)" in line]
    assert len(shown) == 7
    assert set(shown) <= set(tables)


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


@pytest.mark.parametrize("part", ["long", "seeds", "budget"])
def test_the_committed_trainings_are_whole(part: str, tmp_path: Path):
    runs = runs_of(part)
    for run in runs:
        trained, minutes = run.trained(), 15 if part == "long" else 5
        assert (trained["status"] == "ok").all()
        assert (trained["elapsed_s"] >= 60 * minutes).all()
        assert run.environment()["git"]["dirty"] is False
    write_reports([run.folder for run in runs], tmp_path)
    for kind in ("csv", "md", "tex"):
        made = (tmp_path / f"table1.{kind}").read_text()
        assert made == (QUALITY / part / f"table1.{kind}").read_text()


def test_a_quarter_of_an_hour_teaches_idm_to_denoise():
    (run,) = runs_of("long")
    trained = run.trained().set_index("method")
    assert trained.loc["idm", "val_mse_ema"] <= 0.2  # predicting zero has 1
    scores = run.scores()
    scores = scores[(scores["method"] == "idm") & (scores["protocol"] == "validation")]
    scores = scores[scores["timestep"] == 500]
    for modality in ("t1", "t2"):
        of_modality = scores[scores["modality"] == modality].set_index("column")["value"]
        assert of_modality["psnr"] >= of_modality["psnr_noisy"] + 5  # dB


def test_an_inverted_training_is_not_worse_than_a_stored_one_beyond_the_spread_of_seeds():
    """As good in the same five minutes, of which inverting takes a part."""
    ends = {}
    for run in runs_of("seeds"):
        for method, trainings in run.trained().groupby("method"):
            assert trainings["seed"].tolist() == [0, 1, 2]
            ends[method] = trainings["val_mse_ema"]
    spread = max(values.max() - values.min() for values in ends.values())
    assert ends["idm"].mean() <= ends["idm-stored"].mean() + spread


def test_every_network_of_the_budget_trained_in_it():
    peaks = {}
    for run in runs_of("budget"):
        for row in run.trained().itertuples():
            assert row.peak_memory_bytes == row.predicted_peak_bytes <= row.budget_bytes == GIB
            peaks[row.method] = row.peak_memory_bytes
    assert set(peaks) == set(METHODS)
