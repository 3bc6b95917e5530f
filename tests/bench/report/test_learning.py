"""Table 1, Figure 2 and the learning curves of a quality run, looked at."""

import os
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from nilearn.datasets import load_mni152_template

from bench.quality import scoring
from bench.records.rows import Score
from bench.report import table1
from bench.report.figure2 import figure2, middle_slices
from bench.report.figures import COLOURS, styled
from bench.report.learning import PREDICT_ZERO, learning_curves, name_runs
from bench.report.page import _learned
from bench.report.reading import read_evidence
from bench.report.write import write_reports
from tests.bench.report.quality_runs import (
    METHODS,
    learning,
    quality_run,
    scores,
    volumes,
)
from tests.bench.report.runs import record, write_run
from tests.bench.report.test_page import Page

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, two seeds."""
    return quality_run(tmp_path_factory.mktemp("quality") / "run", seeds=2)


@pytest.fixture(scope="module")
def report(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    write_reports([run], out)
    return out


def rows_from(rows: list[Score]) -> list:
    return table1.score_rows(table1.score_table(pd.DataFrame(rows)))


def rows_of(grid) -> list[list[str]]:
    return [[cell.text for cell in row] for row in grid.rows]


@pytest.mark.parametrize("kind", ["csv", "md", "tex"])
def test_table_1_of_a_quality_run_is_the_golden_one(report: Path, kind: str):
    made, golden = (
        (report / f"table1.{kind}").read_text(encoding="utf-8"),
        GOLDEN / f"quality_table1.{kind}",
    )
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(made)
    assert made == golden.read_text(encoding="utf-8")


def test_published_rows_are_marked_and_both_protocols_are_told_apart():
    rows = rows_of(table1.table1_grid(rows_from(scores("idm"))))
    assert ["IDM, T1", "published", "best batch of 2", "25.01", "–", "0.4852", "0.409"] in rows
    assert ["MT-Net, T2", "published", "its authors'", "22.028", "–", "0.903", "–"] in rows
    ours = [row for row in rows if row[1] == "here"]
    assert ours == [
        ["idm, T1", "here", "validation, n = 3", "20.00 ± 0.25", "14.00 ± 0.25", "0.800 ± 0.250",
         "0.300 ± 0.250"],
        ["idm, T1", "here", "best batch of 2", "21.00", "14.00", "0.800", "0.300"],
    ]  # fmt: skip
    assert {row[0].split(",")[0] for row in rows} >= {"AGGrGAN", "CycleGAN", "MT-Net", "IDM"}


def test_the_timestep_of_table_1_is_the_one_that_is_scored():
    assert table1.HEADLINE == scoring.HEADLINE
    shown = table1.noise_levels_grid(rows_from(scores("idm")))
    assert [row[1].value for row in shown.rows] == list(scoring.TIMES)


def test_several_seeds_are_shown_as_mean_least_and_most():
    grid = table1.table1_grid(rows_from([row for n in range(3) for row in scores("idm", n)]))
    row = next(row for row in rows_of(grid) if row[2].startswith("validation"))
    assert row[3] == "20.50 [20.00, 21.00]"
    assert any("least and the most" in note for note in grid.notes)


def test_the_data_are_named_and_embedded_brains_are_not_called_brats():
    grid = table1.table1_grid(rows_from(scores("idm")))
    assert "not BraTS" in grid.caption
    assert any("no BraTS scores" in note for note in grid.notes)
    brats = table1.table1_grid(rows_from([replace(row, data="brats") for row in scores("idm")]))
    assert "Here: BraTS." in brats.caption
    assert not any("no BraTS scores" in note for note in brats.notes)


def test_the_table_says_what_its_numbers_are():
    words = " ".join(table1.table1_grid(rows_from(scores("idm"))).notes)
    for word in ("t = T/4", "10 log (1 / MSE)", "data range [0, 1]", "window of 11", "0.798"):
        assert word in words


def test_samples_have_a_table_of_their_own():
    grid = table1.samples_grid(rows_from(scores("idm")))
    assert rows_of(grid) == [
        ["idm, T1", "ddpm", "2000", "1999",
         "0.750 ± 0.020", "0.820", "0.050", "0.010", "0.125"]
    ]  # fmt: skip
    assert len(table1.table1_grids(rows_from([]))) == 1


def test_a_quality_table_of_five_columns_still_has_its_row():
    row = Score(source="validation", method="idm", modality="t1", column="psnr", value=20.5)
    shown = rows_of(table1.table1_grid(rows_from([row])))
    assert ["idm, T1", "here", "–", "20.50", "–", "–", "–"] in shown


def test_the_methods_of_two_runs_are_not_mixed(run: Path, tmp_path: Path):
    other = quality_run(tmp_path / "narrow")
    evidence = read_evidence([run, other])
    rows = table1.score_rows(table1.score_table(evidence.side_tables["quality.csv"]))
    names = {row[0] for row in rows_of(table1.table1_grid(rows))}
    assert {"idm (run), T1", "idm (narrow), T1"} <= names
    picture = learning_curves(evidence.side_tables["learning.csv"])
    labels = [text.get_text() for text in picture.figure.legends[0].get_texts()]
    assert labels == ["idm (run)", "patchddm (run)", "idm (narrow)", "patchddm (narrow)"]


def test_a_method_of_one_run_only_keeps_its_name():
    rows = pd.concat(
        [learning(("idm",)).assign(run="a"), learning(("idm", "patchddm")).assign(run="b")]
    )
    assert list(dict.fromkeys(name_runs(rows)["method"])) == ["idm (a)", "idm (b)", "patchddm"]


def test_the_curves_are_the_averaged_networks_in_three_budgets():
    picture = learning_curves(learning(seeds=1))
    steps, minutes, energy = picture.figure.axes
    for axes, end in ((steps, 400), (minutes, 400 * 2 / 60), (energy, 400 * 100 / 1000)):
        lines = {line.get_label(): line for line in axes.lines if line.get_label() in METHODS}
        assert list(lines) == list(METHODS)
        assert lines["idm"].get_xdata()[-1] == pytest.approx(end)
        assert lines["idm"].get_ydata()[-1] == pytest.approx(0.1, rel=0.02)
        assert lines["patchddm"].get_ydata()[-1] == pytest.approx(0.2, rel=0.02)
        assert axes.get_yscale() == "log"
        level = axes.lines[0]
        assert list(level.get_ydata()) == [PREDICT_ZERO, PREDICT_ZERO] == [1, 1]
        assert [text.get_text() for text in axes.texts] == ["always predicting 0"]
        dashes = {str(line._dash_pattern) for line in lines.values()}
        assert len(dashes) == len(METHODS)  # greyscale: not by colour alone
    assert "minutes" in minutes.get_xlabel()
    assert "averaged weights" in picture.caption


def test_an_error_of_latents_is_named_and_ranked_with_no_other(tmp_path):
    rows = learning(seeds=1)
    rows.loc[rows["method"] == "patchddm", "val_of"] = "latents"
    picture = learning_curves(rows)
    labels = [text.get_text() for text in picture.figure.legends[0].get_texts()]
    assert labels == ["idm", "patchddm (latents)"]
    assert "Of latents, the error compares with no other." in picture.caption
    folder = quality_run(tmp_path / "run")
    rows.to_csv(folder / "learning.csv", index=False)
    assert list(_learned(read_evidence([folder]))) == ["idm"]


def test_each_seed_is_a_thin_line_and_their_median_a_thick_one():
    picture = learning_curves(learning(seeds=3))
    lines = picture.figure.axes[0].lines
    thin = [line for line in lines if line.get_linewidth() < 0.7 and line.get_color() in COLOURS]
    assert len(thin) == 3 * len(METHODS)
    (thick,) = (line for line in lines if line.get_label() == "idm")
    ends = sorted(line.get_ydata()[-1] for line in thin[:3])
    assert thick.get_ydata()[-1] == pytest.approx(ends[1])
    assert thick.get_linewidth() > 1
    assert "Thin: each seed" in picture.caption


@pytest.mark.parametrize(
    ("source", "words"),
    [("tdp-estimate", "tdp-estimate, an estimate"), ("nvml-counter", "(nvml-counter)"),
     (None, "not available on this machine")],
)  # fmt: skip
def test_the_energy_panel_names_its_source(source, words):
    axes = learning_curves(learning(energy_source=source)).figure.axes[2]
    assert words in axes.get_xlabel()
    drawn = [line for line in axes.lines if line.get_label() in METHODS]
    assert bool(drawn) == (source is not None)


def test_curves_without_averaged_weights_say_so():
    rows = learning(seeds=1).assign(val_mse_ema=None, seed=None)
    picture = learning_curves(rows)
    (line,) = (line for line in picture.figure.axes[0].lines if line.get_label() == "idm")
    assert line.get_ydata()[-1] == pytest.approx(0.105, rel=0.02)
    assert "weights as they are" in picture.caption


def test_nothing_evaluated_is_said(tmp_path: Path):
    picture = learning_curves(learning().iloc[:0])
    assert picture.content == "nothing was evaluated"
    assert picture.save(tmp_path) == []


def test_the_file_of_the_curves_shows_them_at_column_width(report: Path):
    image = matplotlib.image.imread(report / "learning_curve.png")[..., :3]
    assert image.shape[1] == 1050  # 3.5 inches at 300 dots
    thirds = np.array_split(image, 3)
    for colour in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0)):
        near = [
            (np.abs(third - np.array(colour) / 255) < 0.02).all(axis=2).mean() for third in thirds
        ]
        assert min(near) > 0.001
    assert (report / "learning_curve.pdf").read_bytes().startswith(b"%PDF")


def test_slices_are_shown_as_radiologists_look_at_them():
    """A head with a mark in front, one on the patient's right, one on top."""
    head = np.zeros((8, 8, 8))
    head[0, 4, 4], head[4, 7, 4], head[4, 4, 7] = 0.3, 0.6, 0.9  # left, front, top
    axial, coronal, sagittal = middle_slices(head)
    assert axial[0].max() == 0.6  # the face is up
    assert axial[:, -1].max() == 0.3  # the patient's left is at the right
    assert coronal[0].max() == 0.9  # the crown is up
    assert coronal[:, -1].max() == 0.3
    assert sagittal[0].max() == 0.9
    assert sagittal[:, 0].max() == 0.6  # faces left


def test_a_real_brain_is_up_and_faces_left():
    """The back of the head reaches lower than the frontal lobe: the cerebellum is there."""
    template = load_mni152_template(resolution=4).get_fdata()
    _, coronal, sagittal = middle_slices(template)
    lowest = [np.flatnonzero(column > 0.2).max(initial=0) for column in sagittal.T]
    middle = len(lowest) // 2
    assert max(lowest[middle:]) > max(lowest[:middle])
    assert coronal.shape == (template.shape[2], template.shape[0])


def test_figure_2_has_the_real_row_first_and_a_row_a_method():
    real, made = volumes(3), volumes(2, seed=5)
    picture = figure2(real, {"idm": made, "patchddm": made[:1]})
    axes = {each.get_label(): each for each in picture.figure.axes}
    assert len(axes) == 6 + 6 + 3
    for label, volume in (("real, 2", real[1, 0]), ("idm, 1", made[0, 0])):
        for plane, cut in zip(("axial", "coronal", "sagittal"), middle_slices(volume), strict=True):
            shown = axes[f"{label}, {plane}"].images[0]
            np.testing.assert_array_equal(shown.get_array(), cut)
            assert shown.get_clim() == (0, 1)  # one grey scale for all
            assert shown.get_cmap().name == "gray"
    tops = [axes[f"{row}, 1, axial"].get_position().y0 for row in ("real", "idm", "patchddm")]
    assert tops == sorted(tops, reverse=True)
    texts = [text.get_text() for text in picture.figure.texts]
    assert {"real", "idm", "patchddm", "axial", "coronal", "sagittal", "volume 2"} <= set(texts)


def test_each_modality_has_rows_of_its_own():
    both = np.concatenate([volumes(2), volumes(2, 1)], axis=1)
    picture = figure2(both, {"idm": both}, ("t1", "t2"))
    texts = [text.get_text().replace("\n", " ") for text in picture.figure.texts]
    assert texts[:4] == ["real, T1", "idm, T1", "real, T2", "idm, T2"]


def test_the_file_of_figure_2_shows_the_volumes(run: Path):
    image = matplotlib.image.imread(run / "figure2.png")[..., :3]
    assert image.shape[1] == 1050
    assert (image == image[..., :1]).mean() > 0.99  # grey; the ink of the letters is not
    ball = np.abs(image[..., 0] - 0.8) < 0.01
    assert 0.1 < ball.mean() < 0.6
    assert (run / "figure2.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("name", ["idm-equal-memory-width-40", "x" * 60, "idm-stored", "模型$x_1$"])
def test_long_and_odd_names_stay_beside_their_row(name: str):
    picture = figure2(volumes(1), {name: volumes(1)})
    with styled():
        picture.figure.draw_without_rendering()
    (label,) = (text for text in picture.figure.texts if text.get_text().startswith(name[:3]))
    assert label.get_window_extent().x0 >= 0


def test_the_page_of_a_quality_run_shows_it_all(report: Path):
    page = (report / "report.html").read_text(encoding="utf-8")
    assert "How well it learned" in page
    assert "<h1>What training teaches</h1>" in page
    assert page.count("<table") == 3
    assert "Figure 2. Real and generated volumes, drawn by ddpm-2000, " in page
    assert "data:image/png;base64" in page
    assert "Learning curves" in page
    assert "Made-up CPU" in page  # the environment
    assert "No trial in these runs was ok" not in page
    parsed = Page(page)
    assert parsed.open == []
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    for name in ("aria-labelledby", "aria-describedby"):
        assert set(parsed.values(name)) <= set(ids)


def test_a_quality_run_gets_no_empty_tables_of_costs(report: Path):
    assert {path.name for path in report.iterdir()} == {
        "table1.csv", "table1.md", "table1.tex", "learning_curve.png", "learning_curve.pdf",
        "report.html",
    }  # fmt: skip


def test_a_report_of_costs_and_quality_has_both(run: Path, tmp_path: Path):
    costs = write_run(tmp_path / "costs", [record("idm")])
    write_reports([costs.folder, run], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "For 24 GiB" in page
    assert "Learning curves" in page
    assert (tmp_path / "out" / "table2.csv").exists()


def test_the_same_files_make_the_same_bytes(run: Path, report: Path, tmp_path: Path):
    write_reports([run], tmp_path / "again")
    for path in report.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    again = quality_run(tmp_path / "run", seeds=2)
    for name in ("figure2.png", "figure2.pdf"):
        assert (run / name).read_bytes() == (again / name).read_bytes()


def test_a_damaged_learning_curve_is_left_out_and_said(run: Path, tmp_path: Path):
    folder = quality_run(tmp_path / "run")
    (folder / "learning.csv").write_text("method,step\nidm,many\n")
    evidence = read_evidence([folder])
    assert set(evidence.side_tables) == {"quality.csv", "trained.csv"}
    assert evidence.problems == [
        "run: learning.csv: column step holds what is not a number; it is left out"
    ]
