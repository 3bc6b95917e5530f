"""Prediction beside measurement, card by card: the tables of docs/cards.md.

    python -m docs.cards    # from results/cards/*.csv

To add a card: `python -m bench validate --preset equal` on it, and the file named after the card
and its PyTorch into results/cards/.
"""

from functools import cache
from pathlib import Path

import pandas as pd

from bench.methods import METHODS
from bench.predict import Prediction, predict_method
from bench.predict.attention import of_capability
from bench.presets import Overrides
from bench.records.files import read_table
from bench.records.rows import Validated
from bench.report.grid import Cell, Grid, markdown
from bench.report.validated import beside_grid, memory_grid, verdict
from bench.sizes import show_size

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "results" / "cards"
PAGE = ROOT / "docs" / "cards.md"
BEGIN, END = "<!-- tables -->", "<!-- end of the tables -->"


def read_cards() -> dict[str, pd.DataFrame]:
    """Rows of each file, by its name; UserError where one is damaged."""
    return {path.stem: read_table(path, Validated) for path in sorted(CARDS.glob("*.csv"))}


FORMER = {"nvidia-h200-2.11.0-cu130": ("unet+offload",)}
"""Methods that have changed since a card measured them."""


def of_today() -> list[pd.Series]:
    """The rows whose methods are what they were when they were measured."""
    return [
        row
        for name, table in read_cards().items()
        for _, row in table.iterrows()
        if row["method"] not in FORMER.get(name, ())
    ]


CUBLAS = 2 * 2**25
"""Bytes of cuBLAS's workspaces on Hopper: one for each of the two threads of a step."""


def predict_row(row: pd.Series) -> Prediction:
    """Today's prediction of what a row has measured, in the widths that it had."""
    widths = tuple(map(int, row["channels"].split()))
    overrides = Overrides(precision=row["precision"], channels=widths)
    major, minor = map(int, row["capability"].split("."))
    return _predict(row["method"], row["preset"], overrides, (major, minor))


@cache
def _predict(
    name: str, preset: str, overrides: Overrides, capability: tuple[int, int]
) -> Prediction:
    method = METHODS[name]
    with of_capability(capability):
        return predict_method(method, method.workload(preset, overrides), count_forward=False)


def arithmetic(row: pd.Series) -> str:
    """fp32, TF32, bf16 or fp16."""
    return "TF32" if row["tf32"] == "True" else str(row["precision"])


def expected_grid(name: str, table: pd.DataFrame) -> Grid:
    """Measured pools beside those that are predicted with the workspaces of cuDNN and cuBLAS."""
    rows = []
    for _, row in table[~table["method"].isin(FORMER.get(name, ()))].iterrows():
        pool = predict_row(row).cuda_pool_with_workspaces
        cells = [Cell(f"{row['method']}, {row['preset']}, {arithmetic(row)}")]
        for kind, counted in (("allocated", pool.peak_allocated), ("reserved", pool.reserved)):
            measured = row[f"measured_{kind}_bytes"]
            off = f"{100 * (measured / (counted + CUBLAS) - 1):+.2f} %"
            cells += [Cell(show_size(counted + CUBLAS)), Cell(show_size(measured)), Cell(off)]
        rows.append(tuple(cells))
    return Grid(
        "With the workspaces that are expected",
        "Today's prediction, with cuDNN's copies played as allocations and 64 MiB for cuBLAS.",
        ("", "allocated: expected", "measured", "off", "reserved: expected", "measured", "off"),
        tuple(rows),
    )


def tables() -> str:
    """A section a card: the verdict in a line, then both tables of each workload."""
    lines = []
    for name, table in read_cards().items():
        first = table.iloc[0]
        lines += [
            f"## {first['device_name']}, torch {first['torch']}",
            "",
            f"cuDNN {first['cudnn']}, driver {first['driver']}.",
            "",
            markdown(expected_grid(name, table)),
        ]
        cost = CARDS / name / "table2.md"
        if cost.exists():
            lines += ["### What training costs there", "", _first_table(cost)]
        for (preset, *_), rows in table.groupby(["preset", "precision", "tf32"], sort=False):
            lines += [
                f"### {preset}, {arithmetic(rows.iloc[0])}",
                "",
                verdict(rows),
                "",
                markdown(memory_grid(rows)),
                markdown(beside_grid(rows)),
            ]
    return "\n".join(lines)


def _first_table(path: Path) -> str:
    """With its title, and without the notes below it."""
    text = path.read_text(encoding="utf-8")
    return text.partition("\n- ")[0]


def page(text: str) -> str:
    """The page with its tables made anew."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
