"""`report.html`, the whole report as one self-contained page, and `validation.html`."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..records.files import replace_file
from ..sizes import GIB
from . import advice
from .claims import SETTINGS, Judged
from .figures import Picture
from .grid import Grid, one_line
from .learning import last_errors, name_runs, with_value
from .reading import QUALITY_TABLES, Evidence, Group, flat_environment
from .table1 import samplers

TEMPLATES = Path(__file__).parent / "templates"
MOST_IMAGE_BYTES = 2**23
_MOST_PROBLEMS = 50


@dataclass(frozen=True)
class Section:
    """What the page says of one group."""

    id: str
    group: Group
    pictures: Sequence[Picture]
    methods: Grid
    """Table 2."""
    sources: Mapping[str, str]
    """Source in words -> id of its place under the table."""


def write_page(
    evidence: Evidence,
    judged: Sequence[Judged],
    table1: Sequence[Grid],
    pictures: Sequence[Sequence[Picture]],
    curves: Picture | None,
    timelines: Sequence[Picture],
    out: Path,
) -> Path:
    """`pictures`: of each group in the evidence; `timelines`: of each run."""
    sections = [
        _section(f"g{index}", group, drawn)
        for index, (group, drawn) in enumerate(zip(evidence.groups, pictures, strict=True))
    ]
    best = advice.best_group(evidence.groups)
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    page = _templates().get_template("report.html").render(
        runs=list(evidence.folders),
        best=best,
        budget=advice.MAIN_BUDGET_GIB,
        advice=advice.advise(best, _learned(evidence)) if best else None,
        largest=advice.advise_from_fit(evidence.side_tables.get("fit.csv")),
        budgets=advice.budgets_grid(best) if best else None,
        judged=judged,
        settings=SETTINGS,
        sections=sections,
        quality=bool(QUALITY_TABLES & set(evidence.side_tables)),
        table1=table1,
        figure2=_images(evidence, "figure2.png"),
        drawn_by=", ".join(samplers(evidence.side_tables.get("quality.csv"))),
        curves=curves,
        timelines=timelines,
        environments={run: _facts(env) for run, env in evidence.environments.items()},
        problems=_cut(evidence.problems),
        remarks=_cut([line for group in evidence.groups for line in _remarks(group)]),
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip
    path = out / "report.html"
    replace_file(path, page)
    return path


def write_validation_page(
    where: str, verdict: str, pictures: Sequence[Picture], grids: Sequence[Grid],
    environment: dict[str, Any], out: Path,
) -> Path:  # fmt: skip
    """`validation.html`: prediction beside measurement on one device."""
    page = _templates().get_template("validation.html").render(
        where=where,
        verdict=verdict,
        pictures=pictures,
        grids=grids,
        facts=_facts(environment),
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
    )  # fmt: skip
    path = out / "validation.html"
    replace_file(path, page)
    return path


def _learned(evidence: Evidence) -> dict[str, float]:
    """Validation error of volumes by method, where runs trained them."""
    learning = evidence.side_tables.get("learning.csv")
    if learning is None:
        return {}
    rows = name_runs(with_value(learning))
    return last_errors(rows[rows["val_of"] != "latents"])


def _section(name: str, group: Group, pictures: Sequence[Picture]) -> Section:
    methods = group.costs.by_method()
    said = dict.fromkeys(cell.source for row in methods.rows for cell in row if cell.source)
    sources = {text: f"{name}-s{number}" for number, text in enumerate(said, 1)}
    return Section(name, group, pictures, methods, sources)


def _remarks(group: Group) -> list[str]:
    """Warnings of the trials themselves, each once."""
    lines = []
    for column in ("warnings", "contention", "throttled"):
        for text, rows in group.records.groupby(column, sort=False):
            trials = ", ".join(f"{r.method} {r.repeat}" for r in rows.head(6).itertuples())
            more = f" and {len(rows) - 6} more" if len(rows) > 6 else ""
            lines.append(f"{text} ({trials}{more})")
    return lines


def _images(evidence: Evidence, name: str) -> dict[str, str]:
    """A PNG that another command left in the run folders, by run, as the address of an image."""
    found = {}
    for run, folder in evidence.folders.items():
        path = folder / name
        if path.is_file() and path.stat().st_size <= MOST_IMAGE_BYTES:
            content = path.read_bytes()
            if content.startswith(b"\x89PNG"):
                found[run] = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return found


def _facts(environment: dict[str, Any]) -> dict[str, str]:
    """Hardware, versions, commit and command, in words."""
    found = {key: _in_words(value) for key, value in flat_environment(environment)}
    return {one_line(key): text for key, text in found.items() if text}


def _in_words(value: Any) -> str:
    """A value of JSON, of any kind."""
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(_in_words, value))[:500]
    if isinstance(value, int) and value >= GIB:
        return f"{value / GIB:.1f} GiB"
    return one_line(value)[:500]


def _cut(lines: list[str]) -> list[str]:
    if len(lines) <= _MOST_PROBLEMS:
        return lines
    return [*lines[:_MOST_PROBLEMS], f"and {len(lines) - _MOST_PROBLEMS} more"]


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
