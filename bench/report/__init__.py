"""From the files of a run to its tables and figures. Reads files, never a live trial."""

from pathlib import Path

from bench.report import figures, tables
from bench.results import Run


def write_report(run: Run, out: Path | None = None) -> list[Path]:
    """Table 2 and Figures 3 to 5 of a run, into its folder or `out`; returns what was written."""
    out = out or run.folder
    out.mkdir(parents=True, exist_ok=True)
    records, samples = run.records(), run.samples()
    return [
        *tables.write_table2(records, out),
        *figures.write_peak_memory(records, out),
        *figures.write_energy_per_parameter(records, samples, out),
        *figures.write_temperature(records, samples, out),
    ]
