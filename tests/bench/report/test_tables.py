"""The tables, byte for byte, and what their numbers mean.

`UPDATE_GOLDEN=1 python -m pytest tests/bench/report/test_tables.py` rewrites the golden files: read
the diff before you commit it.
"""

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from bench.report.grid import Cell, Grid, for_terminal, latex, markdown
from bench.report.published import costs
from bench.report.tables import CostTable, table2_grid
from bench.report.write import write_reports
from tests.bench.report.runs import METHODS, full_run, record, write_run

GOLDEN = Path(__file__).parent / "golden"
NAMES = [
    f"{name}.{kind}" for name in ("table1", "table2", "claims") for kind in ("csv", "md", "tex")
]


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_the_golden_ones(report: Path, name: str):
    made = (report / name).read_text(encoding="utf-8")
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        (GOLDEN / name).write_text(made)
    assert made == (GOLDEN / name).read_text(encoding="utf-8")


def test_a_report_made_twice_is_the_same_to_the_byte(report: Path, paper_run, tmp_path: Path):
    write_reports([paper_run.folder], tmp_path)
    names = {path.name for path in report.iterdir()}
    assert names == {path.name for path in tmp_path.iterdir()}
    assert {"report.html", "peak_memory.pdf", "frontier.png", "table2.tex"} <= names
    for name in names:
        assert (report / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_a_cell_is_the_median_with_its_interval_and_its_ratio(paper_run):
    table = CostTable(paper_run.records()).frame()
    rows = table[table["column"] == "step_time_median_s"].set_index("method")
    assert rows.loc["idm", "value"] == pytest.approx(0.9 * 1.01)  # of 1.00, 1.01 and 1.02 times
    assert (rows["low"] <= rows["value"]).all()
    assert (rows["value"] <= rows["high"]).all()
    assert (rows["trials"] == 3).all()
    assert rows.loc["idm", "ratio"] == pytest.approx(0.9)  # to unet, the first
    peaks = table[table["column"] == "peak_memory_bytes"]
    assert peaks["low"].isna().all()  # nothing varies: an interval would be noise


def test_a_patch_is_not_passed_off_as_a_volume(paper_run):
    notes = " ".join(table2_grid(paper_run.records()).notes)
    assert "patchddm trains on 128³ patches of 256³ volumes" in notes
    assert "its step sees 1/8 of a volume" in notes
    assert "idm trains on" not in notes


def test_methods_that_the_trials_do_not_tell_apart_are_marked(paper_run):
    grid = table2_grid(paper_run.records())
    texts = {
        row[0].text: dict(zip(grid.header, (c.text for c in row), strict=True)) for row in grid.rows
    }
    assert "≈" in texts["Peak temperature (°C)"]["idm"]  # the same three readings
    assert "≈" not in texts["Step time, median (s)"]["idm"]
    assert "≈" not in texts["Peak memory, live (GiB)"]["idm"]


def test_the_paper_stands_beside_the_run_with_source_and_ratio(paper_run):
    grid = CostTable(paper_run.records()).beside_paper()
    assert grid is not None
    rows = {row[0].text: row for row in grid.rows}
    peak = dict(zip(grid.header, rows["Peak memory, live (GiB)"], strict=True))
    assert peak["IDM, paper"].text == "6.71"
    assert peak["IDM, paper"].source is not None
    assert peak["IDM, paper"].source.startswith("Table 2")
    assert peak["IDM, here"].text == "6.00"
    assert peak["IDM, here ÷ paper"].text == "0.89×"
    assert peak["IDM ÷ PatchDDM-3D, paper"].text == "0.85×"
    assert peak["IDM ÷ PatchDDM-3D, here"].text == "0.80×"
    assert not any("not the paper's setting" in note for note in grid.notes)


def test_a_run_of_another_setting_says_so_beside_the_paper(tmp_path: Path):
    run = full_run(tmp_path / "run", repeats=1, preset="small")
    grid = CostTable(run.records()).beside_paper()
    assert grid is not None
    assert "not the paper's setting" in grid.notes[0]
    changed = write_run(tmp_path / "flag", [record("idm", volume=32), record("patchddm")])
    grid = CostTable(changed.records()).beside_paper()
    assert grid is not None
    assert "Flags changed the preset" in grid.notes[0]


def test_every_published_number_has_its_place_in_the_paper():
    assert costs()["patchddm", "peak_memory_bytes"].value == pytest.approx(7.899565 * 2**30)
    assert costs()["idm", "flops_step"].value == 5643083550
    assert costs()["idm", "temperature_peak_c"].value == 61
    assert all(number.source.startswith(("Table 2", "§6.2")) for number in costs().values())


def test_no_text_of_a_file_can_break_a_table():
    bad = "a|b\n& 5 % $x_1$ \\input{x} <b>*bold*</b> `c` ~^#"
    grid = Grid("Table", bad, ("", bad), ((Cell(bad), Cell(bad)),), (bad,))
    lines = markdown(grid).splitlines()
    assert [line.count("|") - line.count(r"\|") for line in lines[2:5]] == [3, 3, 3]
    assert "<b>" not in markdown(grid)
    text = latex(grid)
    assert r"\input" not in text
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    assert body.count("&") - body.count(r"\&") == 1
    for special in "%$#_":
        assert body.replace(r"$\times$", "").count(special) == body.count("\\" + special)


def test_methods_keep_the_order_in_which_they_ran(paper_run):
    assert list(dict.fromkeys(CostTable(paper_run.records()).frame()["method"])) == list(METHODS)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_terminal_of_any_width_shows_whole_words_of_all_columns(width):
    names = tuple(f"measurement{number:02}" for number in range(12))
    row = tuple(Cell(f"{number:09}") for number in range(12))
    grid = Grid(
        "Table", "A caption", ("method", *names), ((Cell("unet+checkpoint"), *row),), ("A note",)
    )
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(for_terminal(grid))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert [text.count(each) for each in (*names, *(cell.text for cell in row))] == [1] * 24
    assert text.count("A caption") == text.count("A note") == 1
    assert text.count("unet+checkpoint") == text.count("method")
    assert (text.count("method") == 1) == (width > 12 * 15)
