"""Rows of the tables beside the pages of this folder: a dataclass, a CSV column for each field."""

import csv
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

Row = TypeVar("Row")


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return [
            row_type(**{f.name: f.type(row[f.name]) for f in fields(row_type)})  # type: ignore[arg-type,operator]
            for row in csv.DictReader(file)
        ]
