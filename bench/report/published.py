"""The paper's own numbers, `results/published.csv`, each with the table or section it stands in."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from bench.errors import UserError
from bench.report.grid import as_rows

PUBLISHED_CSV = Path(__file__).parents[2] / "results" / "published.csv"
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
    rows = rows[rows["modality"].isna()]
    return MappingProxyType(
        {
            (row["method"], row["column"]): Published(
                value=row["value"] * _UNITS.get(row["unit"], 1),
                source=row["source"] + (f": {row['note']}" if pd.notna(row["note"]) else ""),
            )
            for row in as_rows(rows)
        }
    )


def scores() -> pd.DataFrame:
    """Table 1: `source, method, modality, column, value, unit, note`."""
    rows = _read()
    return rows[rows["modality"].notna()]


def _read() -> pd.DataFrame:
    columns = ["source", "method", "modality", "column", "value", "unit", "note"]
    if not PUBLISHED_CSV.exists():  # installed from a wheel, which holds no results
        return pd.DataFrame(columns=columns)
    try:
        return pd.read_csv(PUBLISHED_CSV)[columns]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{PUBLISHED_CSV}: cannot be read ({error}); restore it") from None
