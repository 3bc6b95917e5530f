"""The paper's own numbers, `results/published.csv`, each with the table or section it stands in."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import pandas as pd

from ..errors import UserError
from ..records.files import shipped
from .grid import as_rows

PUBLISHED_CSV = shipped("published.csv")
NAMES = {"patchddm": "PatchDDM-3D", "idm": "IDM"}
"""What the paper calls the methods that it measured."""
_UNITS = {"GiB": 2**30}  # the other units are those of `runs.csv`


@dataclass(frozen=True)
class Published:
    value: float
    """In the unit of the column of `runs.csv`."""
    source: str
    """Table or section, and what it leaves open."""


@cache
def costs() -> Mapping[tuple[str, str], Published]:
    """(method, column of `runs.csv`) -> what the paper says; Table 2 and §6.2."""
    rows = _read()
    return {
        (row["method"], row["column"]): Published(
            value=row["value"] * _UNITS.get(row["unit"], 1),
            source=row["source"] + (f": {row['note']}" if pd.notna(row["note"]) else ""),
        )
        for row in as_rows(rows[rows["modality"].isna()])
    }


def scores() -> pd.DataFrame:
    """Table 1: `source, method, modality, column, value, unit, note`."""
    rows = _read()
    return rows[rows["modality"].notna()]


@cache
def _read() -> pd.DataFrame:
    columns = ["source", "method", "modality", "column", "value", "unit", "note"]
    try:
        return pd.read_csv(PUBLISHED_CSV)[columns]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{PUBLISHED_CSV}: cannot be read ({error}); restore it") from None
