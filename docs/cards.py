"""Prediction beside measurement, card by card: the tables of docs/cards.md.

    python -m docs.cards    # from results/cards/*.csv

To add a card: `python -m bench validate --preset equal` on it, and the file named after the card
and its PyTorch into results/cards/.
"""

from pathlib import Path

import pandas as pd

from bench.records.files import read_table
from bench.records.rows import Validated
from bench.report.grid import markdown
from bench.report.validated import beside_grid, memory_grid, verdict

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "results" / "cards"
PAGE = ROOT / "docs" / "cards.md"
BEGIN, END = "<!-- tables -->", "<!-- end of the tables -->"


def read_cards() -> dict[str, pd.DataFrame]:
    """Rows of each file, by its name; UserError where one is damaged."""
    return {path.stem: read_table(path, Validated) for path in sorted(CARDS.glob("*.csv"))}


def tables() -> str:
    """A section a card: the verdict in a line, then both tables of each workload."""
    lines = []
    for table in read_cards().values():
        first = table.iloc[0]
        lines += [
            f"## {first['device_name']}, torch {first['torch']}",
            "",
            f"cuDNN {first['cudnn']}, driver {first['driver']}.",
            "",
        ]
        for (preset, precision, tf32), rows in table.groupby(
            ["preset", "precision", "tf32"], sort=False
        ):
            lines += [
                f"### {preset}, {precision}{', TF32' if tf32 == 'True' else ''}",
                "",
                verdict(rows),
                "",
                markdown(memory_grid(rows)),
                markdown(beside_grid(rows)),
            ]
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its tables made anew."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
