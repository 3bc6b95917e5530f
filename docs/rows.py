"""Rows of the tables beside the pages of this folder: a dataclass, a CSV column for each field."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

Row = TypeVar("Row")


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return [
            row_type(**{f.name: f.type(row[f.name]) for f in fields(row_type)})  # type: ignore[arg-type,operator]
            for row in csv.DictReader(file)
        ]


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """All rows, at least one, in place of what the file had."""
    with path.open("w", newline="", encoding="utf-8") as file:
        names = [each.name for each in fields(rows[0])]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, rows))
