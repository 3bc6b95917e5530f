"""Table 1 of the paper: how good the images are. Published rows first, then what was trained here.

A row of `quality.csv` is a `bench.quality.scoring.Score`; this file knows its columns, not the code
that computed it.
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bench.report import published
from bench.report.grid import NOTHING, Cell, Grid, as_rows, significant
from bench.report.quality import name_runs
from bench.report.tables import GIB, Row, write

HEADLINE = 500
"""The timestep of Table 1: t = T/4 of the schedule's T = 2,000."""
OPTIONAL = ("protocol", "timestep", "sd", "count", "seed", "data")
"""Columns that a `quality.csv` from elsewhere may lack."""
BEST_BATCH, VALIDATION = "best-batch", "validation"
_SCORES = ("psnr", "psnr_noisy", "ssim", "mae")
_SAMPLED = re.compile(r"dd[a-z-]+-\d+")
"""A protocol that is a sampler and its steps: `ddpm-2000`."""
_SAMPLES = ("ms_ssim", "ms_ssim_real", "histogram_distance", "histogram_distance_real")
_KEYS = ["modality", "method", "origin", "protocol", "data"]
_DATA = {
    "phantom": "embedded brains, drawn from one average anatomy: not BraTS",
    "brats": "BraTS",
    "synapse": "SynapseMNIST3D",
}


def table1(quality: pd.DataFrame | None = None) -> pd.DataFrame:
    """All rows as numbers: the published ones (`origin` paper), then those of `quality` (here)."""
    rows = published.scores().assign(origin="paper").reindex(
        columns=["source", "method", "modality", "column", "value", "unit", "note", "origin",
                 *OPTIONAL]
    )  # fmt: skip
    if quality is not None and not quality.empty:
        here = name_runs(quality).assign(origin="here").reindex(columns=rows.columns)
        rows = pd.concat([rows.astype(object), here.astype(object)], ignore_index=True)
    return rows


def table1_grid(quality: pd.DataFrame | None = None) -> Grid:
    """A row a method, modality and protocol, at t = T/4; published rows are marked as such."""
    rows = [row for row in _rows(quality) if row["timestep"] in (None, HEADLINE)]
    rows = [row for row in rows if row["column"] in _SCORES]
    modalities = list(dict.fromkeys(row["modality"] for row in rows))
    rows.sort(key=lambda row: modalities.index(row["modality"]))
    shown = []
    for (modality, method, origin, _, _), of_row in _grouped(rows, _KEYS).items():
        name = published.NAMES.get(method, method) if origin == "paper" else method
        shown.append(
            (
                Cell(f"{name}, {str(modality).upper()}"),
                Cell("published" if origin == "paper" else "here"),
                Cell(_protocol(of_row)),
                *(_cell(of_row, column) for column in _SCORES),
            )
        )
    return Grid(
        "Table 1", _caption(rows),
        ("", "from", "protocol", "PSNR (dB)", "noisy input (dB)", "SSIM", "MAE of ε"),
        tuple(shown), tuple(_notes(rows)),
    )  # fmt: skip


def noise_levels_grid(quality: pd.DataFrame | None = None) -> Grid | None:
    """What was trained here at every timestep that was scored, over the validation volumes."""
    rows = [row for row in _rows(quality) if row["protocol"] == VALIDATION and row["timestep"]]
    if not rows:
        return None
    shown = [
        (
            Cell(f"{method}, {str(modality).upper()}"),
            Cell(f"{step:g}", step),
            *(_cell(at_step, column) for column in (*_SCORES, "mse")),
        )
        for (modality, method, *_), of_method in _grouped(rows, _KEYS).items()
        for (step,), at_step in sorted(_grouped(of_method, ["timestep"]).items())
    ]
    return Grid(
        "Table 1, at other noise levels",
        "Validation volumes, mean ± standard deviation; t of 2,000, later is noisier.",
        ("", "t", "PSNR (dB)", "noisy input (dB)", "SSIM", "MAE of ε", "MSE of ε"),
        tuple(shown), tuple(_seeds_note(rows)),
    )  # fmt: skip


def samples_grid(quality: pd.DataFrame | None = None) -> Grid | None:
    """Samples beside real volumes, and what sampling takes; None where nothing was sampled."""
    rows = [row for row in _rows(quality) if _SAMPLED.fullmatch(str(row["protocol"]))]
    if not rows:
        return None
    shown = []
    for (method, protocol, _), drawn in _grouped(rows, ["method", "protocol", "data"]).items():
        sampler, _, steps = str(protocol).rpartition("-")
        start = _cell(drawn, "sampling_start")
        memory = _cell(drawn, "sampling_peak_memory_bytes", 1 / GIB)
        for (modality,), of_modality in _grouped(drawn, ["modality"]).items():
            if not any(row["column"] in _SAMPLES for row in of_modality):
                continue
            shown.append(
                (
                    Cell(f"{method}, {str(modality).upper()}"), Cell(sampler),
                    Cell(steps, float(steps)), start,
                    *(_cell(of_modality, column) for column in _SAMPLES), memory,
                )
            )  # fmt: skip
    return Grid(
        "Table 1, samples", "Generated volumes beside real ones.",
        ("", "sampler", "steps", "from t", "MS-SSIM, samples", "MS-SSIM, real",
         "histogram distance", "distance, real", "peak memory (GiB)"),
        tuple(shown),
        (
            "MS-SSIM: mean over pairs of volumes of the same set, ± standard deviation. Samples "
            "above the real volumes are less diverse than these.",
            "Histogram distance: 1-Wasserstein distance of the intensities above 0.05, on a scale "
            "of 0 to 1, of samples to real volumes; real: of one half of the real volumes to the "
            "other.",
            "From t: the timestep at which sampling begins, 1999 with pure noise; ddpm-mean begins "
            "lower, with the mean training volume under the noise of that timestep.",
            "Peak memory: live tensor storages in one denoising step of all samples at once, "
            "without gradients.",
            *_seeds_note(rows),
        ),
    )  # fmt: skip


def samplers(quality: pd.DataFrame | None) -> list[str]:
    """By what the samples of these rows were drawn: `ddpm-2000`, …"""
    protocols = () if quality is None or "protocol" not in quality else quality["protocol"]
    return [name for name in dict.fromkeys(map(str, protocols)) if _SAMPLED.fullmatch(name)]


def grids(quality: pd.DataFrame | None = None) -> list[Grid]:
    """All that is shown of a quality run."""
    made = (table1_grid(quality), noise_levels_grid(quality), samples_grid(quality))
    return [grid for grid in made if grid is not None]


def write_table1(out: Path, quality: pd.DataFrame | None = None) -> list[Path]:
    """`table1.csv` with every row, `.md` and `.tex` with the grids."""
    return write(out, "table1", table1(quality), grids(quality))


def _rows(quality: pd.DataFrame | None) -> list[Row]:
    """The rows of `table1`, None where a cell is empty."""
    return [
        {name: None if pd.isna(value) else value for name, value in row.items()}
        for row in as_rows(table1(quality))
    ]


def _grouped(rows: Sequence[Row], names: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """By the values of these columns, in the order in which they come."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def _protocol(rows: Sequence[Row]) -> str:
    protocol = rows[0]["protocol"]
    if protocol is not None:
        counts = dict.fromkeys(f"{row['count']:g}" for row in rows if row["count"] is not None)
        words = {BEST_BATCH: "best batch of", VALIDATION: "validation, n ="}
        return f"{words.get(protocol, protocol)} {' / '.join(counts)}".strip()
    if rows[0]["origin"] == "here":
        return NOTHING
    own = any("best single validation batch of 2" in str(row["note"]) for row in rows)
    return "best batch of 2" if own else "its authors'"


def _cell(rows: Sequence[Row], column: str, scale: float = 1.0) -> Cell:
    """The number of one seed with its deviation, or of several their mean, least and most."""
    rows = [row for row in rows if row["column"] == column and row["value"] is not None]
    if not rows:
        return Cell(NOTHING)
    values = [float(row["value"]) * scale for row in rows]
    mean = sum(values) / len(values)
    if rows[0]["origin"] == "paper":
        text = f"{mean:g}"
    else:
        text = _digits(column, mean)
        low, high = _digits(column, min(values)), _digits(column, max(values))
        if low != high:
            text += f" [{low}, {high}]"
        elif len(values) == 1 and rows[0]["sd"] is not None:
            text += f" ± {_digits(column, float(rows[0]['sd']) * scale)}"
    return Cell(text, mean, _source(rows))


def _digits(column: str, value: float) -> str:
    """As many decimals for all methods: a column is read from top to bottom."""
    if not math.isfinite(value):
        return f"{value:g}"
    if column == "sampling_peak_memory_bytes":
        return significant(value)
    if column == "sampling_start":
        return f"{value:.0f}"
    return f"{value:.2f}" if column.startswith("psnr") else f"{value:.3f}"


def _source(rows: Sequence[Row]) -> str:
    said = [str(rows[0][name]) for name in ("source", "note") if rows[0][name] is not None]
    if rows[0]["count"] is not None:
        said.append(f"n = {rows[0]['count']:g}")
    if len(rows) > 1:
        said.append(f"{len(rows)} seeds")
    return "; ".join(said)


def _caption(rows: Sequence[Row]) -> str:
    data = dict.fromkeys(row["data"] for row in rows if row["data"] is not None)
    names = [_DATA.get(name, name) for name in data]
    where = f" Here: {'; '.join(names)}." if names else ""
    return f"Image quality. Published: BraTS2020, T1 and T2.{where}"


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    here = [row for row in rows if row["origin"] == "here"]
    yield (
        "Published: quoted from the paper, which took AGGrGAN, CycleGAN and MT-Net from their own "
        "publications: the rows are not of one protocol."
    )
    yield (
        "The paper does not say at which timestep its PSNR and SSIM were taken, of which volume, "
        "nor what its MAE is the error of."
    )
    if not here:
        yield "No quality run among these results: nothing is measured here."
        return
    yield (
        "Here, at t = T/4: PSNR = 10 log (1 / MSE) in dB, and SSIM (3D, Gaussian window of 11 "
        "voxels, σ 1.5), of the volume that the denoiser finds under the noise, clamped to the "
        "data range [0, 1], against the true one; higher is better. Noisy input: PSNR of the same "
        "with ε = 0. MAE: mean absolute error of ε, whose standard deviation is 1; lower is "
        "better, 0.798 is predicting no noise."
    )
    yield (
        "Best batch: the paper's protocol, the single batch of validation volumes with the highest "
        "PSNR. Validation: mean ± standard deviation over all n validation volumes."
    )
    if any(row["data"] == "phantom" for row in here):
        yield (
            "Scores on the embedded brains are no BraTS scores: they vary around one anatomy, and "
            "may be compared with each other only."
        )
    yield from _seeds_note(here)


def _seeds_note(rows: Sequence[Row]) -> Iterator[str]:
    if len({row["seed"] for row in rows}) > 1:
        yield "Of several seeds: their mean, in brackets the least and the most of them."
