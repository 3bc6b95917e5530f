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
    [("seeds", "elapsed_s", 300), ("steps", "steps", 500), ("fine-steps", "steps", 500),
     ("fine-time", "elapsed_s", 900), ("vtarget", "elapsed_s", 900),
     ("fine-memory", "elapsed_s", 600), ("budget", "elapsed_s", 300)],
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
    tables = (QUALITY / "vtarget" / "table1.md").read_text(encoding="utf-8").splitlines()
    docs = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
    shown = [line for line in docs.splitlines() if re.match(r"\| [a-z-]+, T[12] \|", line)]
    assert len(shown) == 2
    assert set(shown) <= set(tables)


def scores_of(part: str, method: str) -> pd.DataFrame:
    scores = pd.concat([run.scores() for run in runs_of(part)])
    return scores[scores["method"] == method]


def test_a_quarter_of_an_hour_teaches_idm_fine_to_denoise():
    assert (ends_of("fine-time")["idm-fine"]["val_mse_ema"] <= 0.2).all()  # predicting zero has 1
    scores = scores_of("fine-time", "idm-fine")
    scores = scores[(scores["protocol"] == "validation") & (scores["timestep"] == 500)]
    found = scores.pivot_table(index=["modality", "seed"], columns="column", values="value")
    assert len(found) == 6
    assert (found["psnr"] >= found["psnr_noisy"] + 5).all()  # dB


def test_from_pure_noise_idm_fine_draws_volumes_as_diverse_as_real_ones():
    """Trained to predict v; predicting ε, as long, it drew no heads (fine-noise)."""
    trained = pd.concat([run.trained() for run in runs_of("vtarget")])
    assert (trained["target"] == "v").all()
    scores = scores_of("vtarget", "idm-fine")
    scores = scores[scores["protocol"] == "ddpm-clipped-250"]
    found = scores.pivot_table(index="modality", columns="column", values="value")
    assert found.loc["all", "sampling_start"] == 1999
    for modality in ("t1", "t2"):
        of_modality = found.loc[modality]
        assert of_modality["ms_ssim"] == pytest.approx(of_modality["ms_ssim_real"], abs=0.05)


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


BUDGETS = {"fine-memory": (64, 2 * GIB), "budget": (32, GIB)}


def trained_in(part: str) -> pd.DataFrame:
    return pd.concat([run.trained() for run in runs_of(part)]).sort_values("val_mse")


@pytest.mark.parametrize("part", BUDGETS)
def test_in_one_budget_idm_fine_learns_more_than_every_other_exact_network(part: str):
    """In equal time, each at the widths of `small` or those of a U-Net of IDM's FLOPs, or at the
    widest that the memory takes."""
    side, budget = BUDGETS[part]
    trained = trained_in(part)
    assert (trained["volume"].astype(str) == str(side)).all()
    assert (trained["peak_memory_bytes"] <= budget).all()
    given = trained.dropna(subset="budget_bytes")
    assert (given["budget_bytes"] == budget).all()
    assert (given["peak_memory_bytes"] == given["predicted_peak_bytes"]).all()
    exact = trained[trained["kind"] == "exact"]
    ours = exact["network"] == "idm-fine"
    assert set(exact.loc[~ours, "network"]) >= {"unet", "idm", "iunet", "revunet"}
    assert exact.loc[ours, "val_mse"].min() < exact.loc[~ours, "val_mse"].min()


@pytest.mark.parametrize("part", BUDGETS)
def test_the_docs_show_what_was_learned_in_one_budget(part: str):
    docs = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
    for row in trained_in(part).itertuples():
        cells = (
            f"`{row.method}`", row.channels, f"{row.parameters / 1e6:.1f}",
            f"{row.peak_memory_bytes / GIB:.3f}", f"{row.steps}", f"{row.val_mse:.3f}",
        )  # fmt: skip
        assert f"| {' | '.join(map(str, cells))} |\n" in docs


@pytest.mark.parametrize(("part", "bound"), [("fine-steps", 1.0), ("fine-time", 1.05)])
def test_idm_fine_learns_what_a_unet_of_equal_flops_does(part: str, bound: float):
    ends = ends_of(part)
    for column in ("val_mse", "val_mse_ema"):
        assert (ends["idm-fine"][column] <= bound * ends["unet"][column]).all()
    unets = pd.concat([run.trained() for run in runs_of(part)]).set_index("method").loc["unet"]
    assert (unets["match"] == "flops").all()


@pytest.mark.parametrize("part", ["fine-steps", "fine-time"])
def test_at_no_noise_is_idm_fine_worse_than_predicting_zero(part: str):
    scores = scores_of(part, "idm-fine")
    errors = scores[(scores["protocol"] == "validation") & (scores["column"] == "mse")]
    assert set(errors["timestep"]) >= {20, 500, 1500}
    assert set(errors["modality"]) == {"t1", "t2"}
    assert set(errors["seed"]) == {0, 1, 2}
    assert errors["value"].max() < 1


def test_the_docs_show_what_idm_fine_learned():
    docs = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
    for part, name in (("fine-steps", "500 steps"), ("fine-time", "15 minutes")):
        for method, rows in ends_of(part).items():
            errors = [*rows["val_mse"], rows["val_mse"].mean()]
            assert f"| {' | '.join(f'{each:.4f}' for each in errors)} |\n" in docs
            scores = scores_of(part, method)
            scores = scores[(scores["protocol"] == "validation") & (scores["column"] == "mse")]
            by_t = scores.groupby("timestep")["value"].mean()
            cells = " | ".join(f"{each:.3f}" for each in by_t)
            assert f"| {name}, `{method}` | {cells} |\n" in docs
