"""`report.html`: the whole report as one file that asks nothing of any network."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.report import advice, table1, tables
from bench.report.claims import SETTINGS, Judged
from bench.report.figures import Picture
from bench.report.grid import Cell, Grid, as_rows, one_line
from bench.report.reading import QUALITY_TABLES, Evidence, Group
from bench.sizes import GIB

TEMPLATES = Path(__file__).parent / "templates"
MOST_IMAGE_BYTES = 2**23
_MOST_PROBLEMS = 50


@dataclass(frozen=True)
class Drawing:
    """A picture as the page wants it."""

    id: str
    title: str
    caption: str
    content: str
    svg: Markup


@dataclass(frozen=True)
class Section:
    """What the page says of one group."""

    id: str
    group: Group
    methods: Grid
    sources: dict[str, str]
    """Source in words -> id of its place under the table."""
    beside_paper: Grid | None
    drawings: list[Drawing]
    not_drawn: list[str]
    """What there is no figure of, and why."""


@dataclass(frozen=True)
class Photograph:
    """A picture that another command left in a run folder."""

    title: str
    data: str


def write_html(
    evidence: Evidence,
    judged: Sequence[Judged],
    pictures: dict[int, list[Picture]],
    curves: Picture | None,
    timelines: Sequence[Picture],
    out: Path,
) -> Path:
    """`pictures`: by the index of the group in the evidence; `curves`: the learning curves;
    `timelines`: a picture a run.
    """
    scores = evidence.side_tables.get("quality.csv")
    sections = [
        _section(index, group, pictures[index]) for index, group in enumerate(evidence.groups)
    ]
    best = advice.best_group(evidence.groups)
    samplers = ", ".join(table1.samplers(scores))
    drawn = f", drawn by {samplers}" if samplers else ""
    script = (TEMPLATES / "page.js").read_text()
    page = _environment().get_template("report.html").render(
        runs=list(evidence.folders),
        best=best,
        budget=advice.MAIN_BUDGET_GIB,
        advice=advice.advise(best) if best else None,
        largest=advice.advise_from_fit(evidence.side_tables.get("fit.csv")),
        budgets=advice.budgets_grid(best) if best else None,
        judged=judged,
        settings=SETTINGS,
        sections=sections,
        quality=bool(QUALITY_TABLES & set(evidence.side_tables)),
        table1=table1.grids(scores),
        figure2=_left_behind(evidence, "figure2", f"Figure 2. Real and generated volumes{drawn}"),
        curves=None if curves is None or curves.empty else _drawing("quality", curves),
        timelines=[_drawing(f"t{index}", each) for index, each in enumerate(timelines)],
        environments={run: _facts(env) for run, env in evidence.environments.items()},
        problems=_cut(evidence.problems),
        remarks=_cut(list(remarks(evidence))),
        style=Markup((TEMPLATES / "style.css").read_text()),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip
    path = out / "report.html"
    path.write_text(page)
    return path


def remarks(evidence: Evidence) -> list[str]:
    """What the trials themselves warn of, each once."""
    lines = []
    for group in evidence.groups:
        for column in ("warnings", "contention", "throttled"):
            if column not in group.records:
                continue
            said = group.records.dropna(subset=[column])
            for text, rows in said.groupby(column, sort=False):
                trials = ", ".join(f"{r.method} {r.repeat}" for r in rows.head(6).itertuples())
                more = f" and {len(rows) - 6} more" if len(rows) > 6 else ""
                lines.append(f"{text} ({trials}{more})")
    return lines


def methods_grid(group: Group, table: pd.DataFrame) -> Grid:
    """Table 2 with a row a method, which is how a person sorts it."""
    shown = [m for m in tables.METRICS if table[table["column"] == m.column]["value"].notna().any()]
    cells = {
        (row["method"], row["column"]): tables.plain_cell(metric, row)
        for metric in shown
        for row in as_rows(table[table["column"] == metric.column])
    }
    trials = _trials(group)
    rows = [
        (Cell(name), trials[name], *(cells[name, metric.column] for metric in shown))
        for name in group.methods
    ]
    return Grid(
        "Table 2", tables.caption(group.records, ratios=False),
        ("Method", "Trials ok", *(m.label for m in shown)),
        tuple(rows), tuple(tables.footnotes(table, group.records)),
    )  # fmt: skip


def _trials(group: Group) -> dict[str, Cell]:
    """By method: how many trials were ok, and why the others were not."""
    ok: dict[str, int] = dict.fromkeys(group.methods, 0)
    bad: dict[str, list[str]] = {name: [] for name in ok}
    for row in as_rows(group.records[["method", "repeat", "status", "error"]]):
        if row["status"] == "ok":
            ok[row["method"]] += 1
        else:
            error = f" ({row['error']})" if isinstance(row["error"], str) else ""
            bad[row["method"]].append(f"repeat {row['repeat']}: {row['status']}{error}")
    return {
        name: Cell(
            f"{count} of {count + len(bad[name])}", count,
            "; ".join(bad[name][:3]) or "runs.csv: every trial was ok",
        )
        for name, count in ok.items()
    }  # fmt: skip


def _section(index: int, group: Group, pictures: Sequence[Picture]) -> Section:
    table = tables.table2(group.records)
    methods = methods_grid(group, table)
    said = dict.fromkeys(c.source for row in methods.rows for c in row if c.source)
    sources = {text: f"g{index}-s{number}" for number, text in enumerate(said, 1)}
    drawings = [_drawing(f"g{index}", picture) for picture in pictures if not picture.empty]
    beside = tables.beside_paper_grid(table, group)
    not_drawn = [f"{p.title}: {p.content}." for p in pictures if p.empty]
    return Section(f"g{index}", group, methods, sources, beside, drawings, not_drawn)


def _drawing(prefix: str, picture: Picture) -> Drawing:
    name = f"{prefix}-{picture.name}"
    svg = Markup(picture.svg(name))  # matplotlib escapes its text
    return Drawing(name, picture.title, picture.caption, picture.content, svg)


def _left_behind(evidence: Evidence, name: str, title: str) -> list[Photograph]:
    """Pictures that other commands left in the run folders: `figure2`.

    As images: whatever the file holds, a browser runs nothing of it.
    """
    kinds = {".svg": ("image/svg+xml", b"<"), ".png": ("image/png", b"\x89PNG\r\n\x1a\n")}
    found = []
    for run, folder in evidence.folders.items():
        for suffix, (kind, start) in kinds.items():
            path = folder / f"{name}{suffix}"
            if not path.is_file() or path.stat().st_size > MOST_IMAGE_BYTES:
                continue
            content = path.read_bytes()
            if content.startswith(start):
                data = base64.b64encode(content).decode()
                found.append(Photograph(f"{title}, {run}", f"data:{kind};base64,{data}"))
                break
    return found


def _facts(environment: dict[str, Any]) -> dict[str, str]:
    """Hardware, versions, commit and command, flat; the plan of every trial stays in the file."""
    facts = {}
    for name, value in environment.items():
        if name == "trials":
            continue
        if isinstance(value, dict):
            facts.update({f"{name}: {key}": _plain(inner) for key, inner in value.items()})
        elif name == "command" and isinstance(value, list):
            facts[name] = one_line(" ".join(map(str, value)))
        else:
            facts[name] = _plain(value)
    return {one_line(key): text for key, text in facts.items() if text}


def _plain(value: Any) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{one_line(k)} {_plain(v)}" for k, v in value.items())[:500]
    if isinstance(value, list):
        return "; ".join(map(_plain, value))[:500]
    if isinstance(value, int) and value >= GIB:
        return f"{value / GIB:.1f} GiB"
    return one_line(value)[:500]


def _cut(lines: list[str]) -> list[str]:
    if len(lines) <= _MOST_PROBLEMS:
        return lines
    return [*lines[:_MOST_PROBLEMS], f"and {len(lines) - _MOST_PROBLEMS} more"]


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
