"""From the files of runs to tables, figures and a page. Reads files, never a live trial.

Evidence (`reading.py`)  what may be compared with what
  -> Grid (`table1.py`, `tables.py`, `claims.py`, `advice.py`)  -> CSV, Markdown, LaTeX
  -> Picture (`figures.py`, `quality.py`)                       -> PNG, PDF
  -> both in one page (`html.py`)                               -> report.html
"""

from collections.abc import Sequence
from pathlib import Path

from bench.report import claims, figures, html, quality, table1, tables, timeline
from bench.report.figures import Picture
from bench.report.reading import QUALITY_TABLES, Evidence, Group, read_evidence
from bench.results import Run


def write_report(run: Run, out: Path | None = None) -> list[Path]:
    """Everything about one run, into its folder or `out`; returns what was written."""
    return write_reports([run.folder], out or run.folder)


def write_reports(folders: Sequence[Path], out: Path) -> list[Path]:
    """Tables 1 and 2, the claims, Figures 3 to 5, the frontier, the learning curves and the page.

    The same files make the same bytes. Figures of several groups have the group in their names.
    """
    return write_evidence(read_evidence(folders), out)


def write_evidence(evidence: Evidence, out: Path) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    scores, learning = (evidence.side_tables.get(f"{n}.csv") for n in ("quality", "learning"))
    timelines = _timelines(evidence)
    curves = None if learning is None else quality.learning_curves(learning)
    pictures = {index: figures.draw_all(group) for index, group in enumerate(evidence.groups)}
    suffixes = _suffixes(evidence.groups)
    # A quality run measures no cost: its folder gets no empty tables of it.
    of_costs = bool(evidence.groups) or not set(evidence.side_tables) <= QUALITY_TABLES
    judged = claims.judge(evidence) if of_costs else []
    written = table1.write_table1(out, scores)
    if curves is not None:
        written += curves.save(out)
    if of_costs:
        written += tables.write_table2(evidence.groups, out)
        grids = [claims.claims_grid(judged)]
        written += tables.write(out, "claims", claims.claims_table(judged), grids)
    for index, drawn in pictures.items():
        for picture in drawn:
            written += picture.save(out, suffixes[index])
    for run, drawn_of_run in timelines.items():
        written += drawn_of_run.save(out, "" if len(timelines) == 1 else f"-{run}")
    written.append(
        html.write_html(evidence, judged, pictures, curves, list(timelines.values()), out)
    )
    return written


def _timelines(evidence: Evidence) -> dict[str, Picture]:
    """By run, of those that followed the memory of a step."""
    rows = evidence.side_tables.get("timeline.csv")
    if rows is None:
        return {}
    return {
        str(run): timeline.draw_timelines(of_run, str(run))
        for run, of_run in rows.groupby("run", sort=False)
    }


def _suffixes(groups: Sequence[Group]) -> list[str]:
    """`peak_memory.png` of one group; `peak_memory-paper.png`, `-paper-2.png` of several."""
    if len(groups) == 1:
        return [""]
    names: list[str] = []
    for group in groups:
        preset = "".join(c for c in group.preset if c.isalnum() or c == "-") or "other"
        name = f"-{preset}" + ("-predicted" if group.kind == "predicted" else "")
        number = sum(name == other or other.startswith(f"{name}-n") for other in names)
        names.append(f"{name}-n{number + 1}" if number else name)
    return names


__all__ = ["write_evidence", "write_report", "write_reports"]
