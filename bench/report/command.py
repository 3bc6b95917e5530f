"""The command `report`: run folders in, tables, figures and a page out."""

from rich.console import Console
from rich.text import Text

from bench.commands import ReportCommand
from bench.errors import UserError
from bench.report import write_evidence
from bench.report.reading import read_evidence


def run_report(command: ReportCommand, console: Console) -> int:
    """Exit status 0, also for partial runs, whose faults are said; UserError for no run at all."""
    runs, out = command.runs, command.out
    if not runs:
        raise UserError("report: name at least one run folder, such as results/RUN")
    if out is None and len(runs) > 1:
        raise UserError("--out: say where the report of several runs goes")
    evidence = read_evidence(runs)
    folder = out or runs[0]
    try:
        paths = write_evidence(evidence, folder)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror})") from None
    for problem in evidence.problems:
        console.print(Text(f"warning: {problem}", style="yellow"))
    for path in paths:
        console.print(Text(f"  {path}"))
    return 0
