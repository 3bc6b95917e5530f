"""The command `report`: run folders in; tables, figures and a page out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from ..errors import UserError
from ..records.folder import Run
from .claims import claims_grid, claims_table, judge
from .figures import draw_all
from .learning import learning_curves
from .page import write_page
from .reading import QUALITY_TABLES, Evidence, Group, read_evidence
from .table1 import score_rows, score_table, table1_grids
from .tables import write, write_table2
from .timeline import draw_timelines

if TYPE_CHECKING:
    from ..commands import ReportCommand  # it knows the presets


def run_report(command: "ReportCommand", console: Console) -> int:
    """Exit status 0, also for partial runs, with a warning for each fault; UserError for no run."""
    if not command.runs:
        raise UserError("report: name at least one run folder, such as results/RUN")
    if command.out is None and len(command.runs) > 1:
        raise UserError("--out: name the folder for the report of several runs")
    evidence = read_evidence(command.runs)
    folder = command.out or command.runs[0]
    try:
        paths = write_evidence(evidence, folder)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror})") from None
    for problem in evidence.problems:
        console.print(Text(f"warning: {problem}", style="yellow"))
    for path in paths:
        console.print(Text(f"  {path}"))
    return 0


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
    groups, side_tables = evidence.groups, evidence.side_tables
    pictures = [draw_all(group) for group in groups]
    curves = learning_curves(side_tables["learning.csv"]) if "learning.csv" in side_tables else None
    timelines = {}
    if "timeline.csv" in side_tables:
        for run, rows in side_tables["timeline.csv"].groupby("run", sort=False):
            timelines[f"-{run}"] = draw_timelines(rows, str(run))
    scores = score_table(side_tables.get("quality.csv"))
    score_grids = table1_grids(score_rows(scores))
    written = write(out, "table1", scores, score_grids)
    if curves is not None:
        written += curves.save(out)
    # A quality run measures no cost: its folder gets no empty tables of it.
    judged = judge(evidence) if groups or not set(side_tables) <= QUALITY_TABLES else []
    if judged:
        written += write_table2([group.costs for group in groups], out)
        written += write(out, "claims", claims_table(judged), [claims_grid(judged)])
    for drawn, suffix in zip(pictures, _suffixes(groups), strict=True):
        for picture in drawn:
            written += picture.save(out, suffix)
    for suffix, picture in timelines.items():
        written += picture.save(out, suffix if len(timelines) > 1 else "")
    written.append(
        write_page(evidence, judged, score_grids, pictures, curves, list(timelines.values()), out)
    )
    return written


def _suffixes(groups: Sequence[Group]) -> list[str]:
    """`peak_memory.png` of one group; `peak_memory-paper.png`, `-paper-n2.png` of several."""
    if len(groups) == 1:
        return [""]
    names: list[str] = []
    for group in groups:
        preset = "".join(c for c in group.preset if c.isalnum() or c == "-") or "other"
        name = (
            f"-{preset}"
            + ("-flops" if group.match == "flops" else "")
            + ("-predicted" if group.kind == "predicted" else "")
        )
        number = sum(name == other or other.startswith(f"{name}-n") for other in names)
        names.append(f"{name}-n{number + 1}" if number else name)
    return names
