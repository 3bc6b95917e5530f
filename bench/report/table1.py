"""Table 1 of the paper: how good the images are. Published rows first, then those of these runs."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import pandas as pd

from ..records.files import column_names
from ..records.rows import Score
from ..sizes import GIB
from . import published
from .grid import NOTHING, Cell, Grid, Row, as_rows, significant
from .learning import name_runs

HEADLINE = 500
"""The timestep of Table 1: t = T/4 of the schedule's T = 2,000."""
_COLUMNS = column_names(Score)
_COLUMNS.insert(_COLUMNS.index("protocol"), "origin")
BEST_BATCH, VALIDATION = "best-batch", "validation"
_SCORES = ("psnr", "psnr_noisy", "ssim", "mae")
LABELS = {
    "psnr": "PSNR (dB)", "psnr_noisy": "noisy input (dB)", "ssim": "SSIM", "mae": "MAE of ε",
    "mse": "MSE of ε", "ms_ssim": "MS-SSIM, samples", "ms_ssim_real": "MS-SSIM, real",
    "histogram_distance": "histogram distance", "histogram_distance_real": "distance, real",
    "frechet_random": "Fréchet distance (random features)",
    "frechet_random_real": "Fréchet, real",
    "dice": "Dice with the mask", "dice_real": "Dice, real",
    "sampling_start": "from t", "sampling_peak_memory_bytes": "peak memory, live (GiB)",
}  # fmt: skip
_SAMPLED = re.compile(r"dd[a-z-]+-\d+")
"""A protocol that is a sampler and its steps: `ddpm-2000`."""
_SAMPLES = ("ms_ssim", "ms_ssim_real", "histogram_distance", "histogram_distance_real")
_WHERE_THEY_ARE = ("frechet_random", "frechet_random_real", "dice", "dice_real")
_KEYS = ["modality", "method", "origin", "protocol", "data"]
_DATA = {
    "phantom": "embedded brains, drawn from one average anatomy: not BraTS",
    "brats": "BraTS",
    "synapse": "SynapseMNIST3D",
    "nifti": "scans of your own: not BraTS",
}


def score_table(quality: pd.DataFrame | None = None) -> pd.DataFrame:
    """All rows as numbers: the published ones (`origin` paper), then those of `quality` (here).

    Args:
        quality: rows of `quality.csv` (`bench.records.rows.Score`), and maybe `run`.
    """
    rows = [published.scores().assign(origin="paper")]
    if quality is not None and not quality.empty:
        numbers = dict.fromkeys(("timestep", "count", "seed"), float)
        rows.append(name_runs(quality).assign(origin="here").astype(numbers))
    every = [each.reindex(columns=_COLUMNS).astype(object) for each in rows]
    return pd.concat(every, ignore_index=True)


def score_rows(table: pd.DataFrame) -> list[Row]:
    """The rows of `score_table`, None where a cell is empty."""
    return [
        {name: None if pd.isna(value) else value for name, value in row.items()}
        for row in as_rows(table)
    ]


def table1_grid(rows: Sequence[Row]) -> Grid:
    """A row a method, modality and protocol, at t = T/4; published rows are marked as such."""
    rows = [r for r in rows if r["timestep"] in (None, HEADLINE) and r["column"] in _SCORES]
    modalities = list(dict.fromkeys(row["modality"] for row in rows))
    rows.sort(key=lambda row: modalities.index(row["modality"]))
    shown = []
    for (modality, method, origin, _, _), of_row in grouped(rows, _KEYS).items():
        quoted = origin == "paper"
        name = published.NAMES.get(method, method) if quoted else method
        shown.append(
            (
                _label(name, modality), Cell("published" if quoted else "here"),
                Cell(_protocol(of_row)), *(score_cell(of_row, column) for column in _SCORES),
            )
        )  # fmt: skip
    return Grid(
        "Table 1", _caption(rows),
        ("", "from", "protocol", *(LABELS[column] for column in _SCORES)),
        tuple(shown), tuple(_notes(rows)),
    )  # fmt: skip


def noise_levels_grid(rows: Sequence[Row]) -> Grid:
    """The scores of these runs at every timestep, over the validation volumes."""
    rows = [row for row in rows if row["protocol"] == VALIDATION and row["timestep"]]
    shown = (
        (
            _label(method, modality), Cell(f"{step:g}", step),
            *(score_cell(at_step, column) for column in (*_SCORES, "mse")),
        )
        for (modality, method, *_), of_method in grouped(rows, _KEYS).items()
        for (step,), at_step in sorted(grouped(of_method, ["timestep"]).items())
    )  # fmt: skip
    return Grid(
        "Table 1, at other noise levels",
        "Validation volumes, mean ± standard deviation; t of 2,000, later is noisier.",
        ("", "t", *(LABELS[column] for column in (*_SCORES, "mse"))),
        tuple(shown), tuple(_seeds_note(rows)),
    )  # fmt: skip


def samples_grid(rows: Sequence[Row]) -> Grid:
    """Generated volumes beside real ones, and the cost of generating them."""
    rows = [row for row in rows if _SAMPLED.fullmatch(str(row["protocol"]))]
    there = {row["column"] for row in rows}
    columns = (*_SAMPLES, *(column for column in _WHERE_THEY_ARE if column in there))
    shown = []
    for (method, protocol, _), drawn in grouped(rows, ["method", "protocol", "data"]).items():
        sampler, _, steps = str(protocol).rpartition("-")
        start = score_cell(drawn, "sampling_start")
        memory = score_cell(drawn, "sampling_peak_memory_bytes")
        shown += [
            (
                _label(method, modality), Cell(sampler), Cell(steps, float(steps)), start,
                *(score_cell(of_modality, column) for column in columns), memory,
            )
            for (modality,), of_modality in grouped(drawn, ["modality"]).items()
            if any(row["column"] in columns for row in of_modality)
        ]  # fmt: skip
    return Grid(
        "Table 1, samples", "Generated volumes beside real ones.",
        ("", "sampler", "steps", LABELS["sampling_start"],
         *(LABELS[column] for column in columns), LABELS["sampling_peak_memory_bytes"]),
        tuple(shown),
        (
            "MS-SSIM: mean over pairs of volumes of the same set, ± standard deviation. Samples "
            "above the real volumes are less diverse than these.",
            "Histogram distance: 1-Wasserstein distance of the intensities above 0.05, on a scale "
            "of 0 to 1, of samples to real volumes; real: of one half of the real volumes to the "
            "other.",
            *_notes_where_they_are(there),
            "From t: the timestep at which sampling begins, 1999 with pure noise; ddpm-mean begins "
            "lower, with the mean training volume under the noise of that timestep.",
            "Peak memory, live: of the tensors in one denoising step of all samples at once, "
            "without gradients.",
            *_seeds_note(rows),
        ),
    )  # fmt: skip


def _notes_where_they_are(columns: set[Any]) -> Iterator[str]:
    if "frechet_random" in columns:
        yield (
            "Fréchet distance: of samples to as many real volumes, in what an untrained network "
            "with fixed random weights sees, as a share of the variance there; real: of as many "
            "other real volumes to these."
        )
    if "dice" in columns:
        yield (
            "Dice with the mask: of the labels that the intensities say, each that of most real "
            "voxels of this intensity, with the mask that was drawn from; real: of the real "
            "volumes with theirs."
        )


def samplers(quality: pd.DataFrame | None) -> list[str]:
    """Of the samples that these rows score: `ddpm-2000`, …"""
    protocols = () if quality is None else quality["protocol"]
    return [name for name in dict.fromkeys(map(str, protocols)) if _SAMPLED.fullmatch(name)]


def table1_grids(rows: Sequence[Row]) -> list[Grid]:
    """Of those about these runs, the ones that have rows."""
    others = (noise_levels_grid(rows), samples_grid(rows))
    return [table1_grid(rows), *(grid for grid in others if grid.rows)]


def grouped(rows: Sequence[Row], names: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """By the values of these columns, in the order in which they come."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def _label(method: str, modality: str) -> Cell:
    return Cell(f"{method}, {modality.upper()}")


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


def score_cell(rows: Sequence[Row], column: str) -> Cell:
    """The number of one seed with its deviation, or of several their mean, least and most."""
    scale = 1 / GIB if column.endswith("_bytes") else 1.0
    rows = [row for row in rows if row["column"] == column and row["value"] is not None]
    if not rows:
        return Cell(NOTHING)
    values = [float(row["value"]) * scale for row in rows]
    mean = fmean(values)
    if rows[0]["origin"] == "paper":
        return Cell(f"{mean:g}", mean, _source(rows))
    text = mean_and_range(values, partial(digits, column))
    if len(values) == 1 and rows[0]["sd"] is not None:
        text += f" ± {digits(column, float(rows[0]['sd']) * scale)}"
    return Cell(text, mean, _source(rows))


def mean_and_range(values: Sequence[float], show: Callable[[float], str]) -> str:
    low, high = show(min(values)), show(max(values))
    return show(fmean(values)) + (f" [{low}, {high}]" if low != high else "")


def digits(column: str, value: float) -> str:
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
        "publications: the rows follow different protocols."
    )
    yield (
        "The paper does not say at which timestep and of which volume its PSNR and SSIM were "
        "taken, nor of what its MAE is the error."
    )
    if not here:
        yield "These results have no quality run: only published rows are shown."
        return
    yield (
        "Here, at t = T/4: PSNR = 10 log (1 / MSE) in dB, and SSIM (3D, Gaussian window of 11 "
        "voxels, σ 1.5), of the volume that the denoiser finds under the noise, clamped to the "
        "data range [0, 1], compared with the true one; higher is better. Noisy input: PSNR of the "
        "same with ε = 0. MAE: mean absolute error of ε, whose standard deviation is 1; lower is "
        "better; a network that always predicts 0 has an error of 0.798."
    )
    yield (
        "Best batch: the paper's protocol, the single batch of validation volumes with the highest "
        "PSNR. Validation: mean ± standard deviation over all n validation volumes."
    )
    if any(row["data"] == "phantom" for row in here):
        yield (
            "Scores on the embedded brains are no BraTS scores: the brains vary around one "
            "anatomy. Compare them with each other only."
        )
    yield from _seeds_note(here)


def _seeds_note(rows: Sequence[Row]) -> Iterator[str]:
    if len({row["seed"] for row in rows}) > 1:
        yield "Of several seeds: their mean, in brackets the least and the most."
