"""The committed results: tables are what `report` makes of the rows, and bounds are met."""

import re
from pathlib import Path

import pandas as pd
import pytest

from bench.records.folder import QualityRun
from bench.report.write import write_reports

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / "results" / "reference"
QUALITY = ROOT / "results" / "quality"
GIB = 2**30


def runs_of(part: str) -> list[QualityRun]:
    folders = [path.parent for path in QUALITY.glob(f"{part}/*/trained.csv")]
    folders.sort(key=lambda folder: f"{folder}/")  # as the Makefile's */ does
    assert folders, part
    return [QualityRun(folder) for folder in folders]


@pytest.mark.slow
def test_the_reference_tables_come_from_the_reference_rows(tmp_path: Path):
    marks = ("runs.csv", "scale.csv")
    folders = list({path.parent for mark in marks for path in REFERENCE.glob(f"*/{mark}")})
    folders.sort(key=lambda folder: f"{folder}/")  # as the Makefile's */ does
    assert folders
    write_reports(folders, tmp_path)
    for name in ("table1", "table2", "claims"):
        for kind in ("csv", "md"):
            file = f"{name}.{kind}"
            made, committed = (folder / file for folder in (tmp_path, REFERENCE))
            assert made.read_bytes() == committed.read_bytes(), file


def test_the_readme_shows_rows_of_the_reference_tables():
    tables = (REFERENCE / "table2.md").read_text(encoding="utf-8").splitlines()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = [line for line in readme.splitlines() if "(1.00×)" in line]
    assert len(shown) == 11
    assert set(shown) <= set(tables)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "column", "least"),
    [("long", "elapsed_s", 900), ("seeds", "elapsed_s", 300), ("budget", "elapsed_s", 300),
     ("steps", "steps", 500), ("fine-steps", "steps", 500), ("fine-time", "elapsed_s", 900)],
)  # fmt: skip
def test_the_committed_trainings_are_whole(part: str, column: str, least: int, tmp_path: Path):
    runs = runs_of(part)
    for run in runs:
        trained = run.trained()
        assert (trained["status"] == "ok").all()
        assert (trained[column] >= least).all()
        assert run.environment()["git"]["dirty"] is False
    write_reports([run.folder for run in runs], tmp_path)
    for kind in ("csv", "md"):
        made = (tmp_path / f"table1.{kind}").read_text(encoding="utf-8")
        assert made == (QUALITY / part / f"table1.{kind}").read_text(encoding="utf-8")


def test_the_docs_show_rows_of_the_reference_tables():
    tables = (QUALITY / "long" / "table1.md").read_text(encoding="utf-8").splitlines()
    docs = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
    shown = [line for line in docs.splitlines() if re.match(r"\| [a-z-]+, T[12] \|", line)]
    assert len(shown) >= 16
    assert set(shown) <= set(tables)


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


def ends_of(part: str) -> dict[str, pd.DataFrame]:
    """By method the last row of the curve of each of three seeds."""
    curves = pd.concat([run.learning() for run in runs_of(part)])
    ends = {
        str(method): rows.sort_values("step").groupby("seed").last()
        for method, rows in curves.groupby("method")
    }
    assert all(rows.index.tolist() == [0, 1, 2] for rows in ends.values())
    return ends


def test_step_by_step_an_inverted_training_is_a_stored_one():
    """It is the same function. (In the same time it takes fewer steps: docs/quality.md.)"""
    ends = ends_of("steps")
    inverted, stored = (ends[method]["val_mse_ema"] for method in ("idm", "idm-stored"))
    assert inverted.mean() <= stored.mean() + (stored.max() - stored.min())
    assert (inverted / stored).between(0.99, 1.01).all()


def test_idm_lean_learns_as_idm_does():
    """Over three seeds, after 500 steps, within 2 %."""
    ends = ends_of("steps")
    for column in ("val_mse", "loss_train"):
        assert (ends["idm-lean"][column] / ends["idm"][column]).between(0.98, 1.02).all()


def test_every_network_of_the_budget_trained_in_it():
    peaks = {}
    for run in runs_of("budget"):
        for row in run.trained().itertuples():
            assert row.peak_memory_bytes == row.predicted_peak_bytes <= row.budget_bytes == GIB
            peaks[row.method] = row.peak_memory_bytes
    assert peaks.keys() == {"unet", "checkpoint", "patchddm", "idm", "idm-lean", "idm-stored"}


@pytest.mark.parametrize(("part", "bound"), [("fine-steps", 1.0), ("fine-time", 1.05)])
def test_idm_fine_learns_what_a_unet_of_equal_flops_does(part: str, bound: float):
    ends = ends_of(part)
    for column in ("val_mse", "val_mse_ema"):
        assert (ends["idm-fine"][column] <= bound * ends["unet"][column]).all()
    unets = pd.concat([run.trained() for run in runs_of(part)]).set_index("method").loc["unet"]
    assert (unets["match"] == "flops").all()


@pytest.mark.parametrize("part", ["fine-steps", "fine-time"])
def test_at_no_noise_is_idm_fine_worse_than_predicting_zero(part: str):
    scores = pd.concat([run.scores() for run in runs_of(part)])
    scores = scores[(scores["method"] == "idm-fine") & (scores["protocol"] == "validation")]
    errors = scores[scores["column"] == "mse"]
    assert set(errors["timestep"]) >= {20, 500, 1500}
    assert set(errors["modality"]) == {"t1", "t2"}
    assert set(errors["seed"]) == {0, 1, 2}
    assert errors["value"].max() < 1


def test_the_docs_show_what_idm_fine_learned():
    docs = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
    for part, name in (("fine-steps", "500 steps"), ("fine-time", "15 minutes")):
        scores = pd.concat([run.scores() for run in runs_of(part)])
        scores = scores[(scores["protocol"] == "validation") & (scores["column"] == "mse")]
        for method, rows in ends_of(part).items():
            errors = [*rows["val_mse"], rows["val_mse"].mean()]
            assert f"| {' | '.join(f'{each:.4f}' for each in errors)} |\n" in docs
            by_t = scores[scores["method"] == method].groupby("timestep")["value"].mean()
            cells = " | ".join(f"{each:.3f}" for each in by_t)
            assert f"| {name}, `{method}` | {cells} |\n" in docs
