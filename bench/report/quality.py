"""Figure 2 of the paper, real beside generated slices, and the learning curves.

Figure 2 is drawn by the quality run, which has the volumes; a report shows the file. The curves
are drawn from `learning.csv`.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.report.figures import (
    COLOURS,
    COLUMN_INCHES,
    DASHES,
    INK,
    MOST_METHODS,
    Picture,
    in_words,
    nothing_to_show,
    plain_log_ticks,
    short_name,
    spread,
    styled,
)

PREDICT_ZERO = 1.0
"""Mean squared error of the denoiser that says "there is no noise"."""
_OPTIONAL = ("seed", "energy_j", "energy_source", "val_mse_ema")
PLANES = ("axial", "coronal", "sagittal")
_LABEL_INCHES = 0.62
_GAP_INCHES = 0.02


@dataclass(frozen=True)
class Budget:
    """What a learning curve is drawn against."""

    name: str
    column: str
    """Of `learning.csv`."""
    unit: float
    """What the column is divided by."""
    label: str


BUDGETS = (
    Budget("steps", "step", 1, "training steps"),
    Budget("minutes", "elapsed_s", 60, "training time (minutes)"),
    Budget("energy", "energy_j", 1000, "energy of training in kJ"),
)


def write_learning_curves(learning: pd.DataFrame, out: Path) -> list[Path]:
    """`learning_curve.png` and `.pdf` in `out`, from the rows of `learning.csv`."""
    return learning_curves(learning).save(out)


def learning_curves(learning: pd.DataFrame) -> Picture:
    """Validation MSE of eps against steps, minutes and energy: a line a method.

    `learning` has `method, step, elapsed_s, val_mse`, a row an evaluation, and may have `seed,
    energy_j, energy_source, val_mse_ema`. Drawn is the averaged network (`val_mse_ema`), which is
    the one that is scored and sampled from; where a method has none, `val_mse`. Of several seeds
    each is a thin line, and their median a thick one.
    """
    name, title = "learning_curve", "Learning curves"
    learning = learning.reindex(columns=list(dict.fromkeys([*learning.columns, *_OPTIONAL])))
    value = learning["val_mse_ema"].fillna(learning["val_mse"]).astype(float)
    rows = name_runs(learning.assign(value=value).dropna(subset=["value"]))
    with styled():
        if rows.empty:
            figure = Figure(figsize=(COLUMN_INCHES, 1.5))
            reason = "nothing was evaluated"
            return nothing_to_show(figure, figure.subplots(), name, title, reason)
        figure = Figure(figsize=(COLUMN_INCHES, 5.6))
        panels: Sequence[Axes] = figure.subplots(len(BUDGETS), 1, sharey=True)
        for axes, budget in zip(panels, BUDGETS, strict=True):
            _draw_budget(axes, rows, budget)
        plain_log_ticks(panels[0].yaxis)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper left", ncols=3, handlelength=2.2, columnspacing=1.2
        )
        picture = Picture(name, title, _caption(rows), _content(rows), figure)
        picture.lay_out()
    return picture


def write_figure2(
    real: np.ndarray,
    generated: Mapping[str, np.ndarray],
    out: Path,
    modalities: tuple[str, ...] = ("t1",),
    most: int = 2,
) -> list[Path]:
    """`figure2.png` and `.pdf` in `out`; the arguments of `figure2`."""
    return figure2(real, generated, modalities, most).save(out)


def figure2(
    real: np.ndarray,
    generated: Mapping[str, np.ndarray],
    modalities: tuple[str, ...] = ("t1",),
    most: int = 2,
) -> Picture:
    """Figure 2: middle slices of real volumes in the first row, of generated ones below.

    All in one grey scale, 0 black and 1 white, as radiologists look at them: the patient's right
    at the left of axial and coronal slices, the face to the left of sagittal ones, the crown up.

    Args:
        real: (N, C, D, H, W) in [0, 1].
        generated: by method, of the same C, D, H, W. A method's row is empty where it has fewer
            volumes than are shown.
        modalities: what the C channels show; each has rows of its own.
        most: volumes in a row, of the first ones.
    """
    rows = [
        (f"{name}, {modality.upper()}" if len(modalities) > 1 else name, volumes[:most, channel])
        for channel, modality in enumerate(modalities)
        for name, volumes in {"real": real, **generated}.items()
    ]
    shown = max(len(volumes) for _, volumes in rows)
    columns = shown * len(PLANES)
    tile = (COLUMN_INCHES - _LABEL_INCHES) / columns
    head = 0.28
    height = head + len(rows) * tile
    with styled():
        figure = Figure(figsize=(COLUMN_INCHES, height))
        figure.set_layout_engine("none")
        for number, (label, volumes) in enumerate(rows):
            bottom = (height - head - (number + 1) * tile) / height
            figure.text(
                _LABEL_INCHES / COLUMN_INCHES - 0.015, bottom + tile / height / 2,
                _in_lines(label), ha="right", va="center", fontsize=7,
            )  # fmt: skip
            for index, volume in enumerate(volumes):
                for plane, cut in enumerate(middle_slices(volume)):
                    left = _LABEL_INCHES + (index * len(PLANES) + plane) * tile
                    axes = figure.add_axes(
                        (left / COLUMN_INCHES, bottom, (tile - _GAP_INCHES) / COLUMN_INCHES,
                         (tile - _GAP_INCHES) / height)
                    )  # fmt: skip
                    axes.imshow(cut, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                    axes.set_axis_off()
                    axes.set_label(f"{label}, {index + 1}, {PLANES[plane]}")
        for index in range(columns):
            middle = _LABEL_INCHES + (index + 0.5) * tile
            figure.text(
                middle / COLUMN_INCHES, (height - head + 0.02) / height, PLANES[index % 3],
                ha="center", va="bottom", fontsize=6,
            )  # fmt: skip
        for index in range(shown):
            middle = _LABEL_INCHES + (index + 0.5) * len(PLANES) * tile
            figure.text(
                middle / COLUMN_INCHES, (height - head + 0.13) / height, f"volume {index + 1}",
                ha="center", va="bottom", fontsize=7,
            )  # fmt: skip
    side = " × ".join(map(str, real.shape[2:]))
    return Picture(
        "figure2", "Figure 2. Real and generated volumes",
        f"Middle slices of volumes of {side} voxels, all in one grey scale. The patient's right is "
        "at the left; sagittal slices face left.",
        "Rows: " + ", ".join(label for label, _ in rows), figure,
    )  # fmt: skip


def middle_slices(volume: np.ndarray) -> list[np.ndarray]:
    """Axial, coronal and sagittal slice of (D, H, W), as an image's rows from the top.

    The axes run left → right, posterior → anterior, inferior → superior: each slice is turned so
    that up is the face or the crown, and left the patient's right or the face.
    """
    d, h, w = (side // 2 for side in volume.shape)
    return [cut.T[::-1, ::-1] for cut in (volume[:, :, w], volume[:, h], volume[d])]


def name_runs(rows: pd.DataFrame) -> pd.DataFrame:
    """A method that several runs trained is named with its run: its network may differ."""
    if "run" not in rows:
        return rows
    several = rows.groupby("method")["run"].transform("nunique") > 1
    named = rows["method"] + " (" + rows["run"] + ")"
    return rows.assign(method=rows["method"].mask(several, named))


def _draw_budget(axes: Axes, rows: pd.DataFrame, budget: Budget) -> None:
    """One panel: a line a method, and the level of the denoiser that finds nothing."""
    axes.set_yscale("log")
    axes.axhline(PREDICT_ZERO, color=INK, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    axes.annotate(
        "predicting no noise", (1, PREDICT_ZERO), (0, 2), xycoords=("axes fraction", "data"),
        textcoords="offset points", ha="right", va="bottom", fontsize=6.5,
    )  # fmt: skip
    axes.set_ylabel("validation MSE of ε")
    axes.set_xlabel(budget.label)
    low, high = rows["value"].min(), max(rows["value"].max(), PREDICT_ZERO)
    axes.set_ylim(max(low, 1e-4) / 1.25, high * 1.5)
    drawn = rows.assign(elapsed_s=rows[budget.column].astype(float) / budget.unit)
    drawn = drawn.dropna(subset=["elapsed_s"])
    for index, method in enumerate(_methods(rows)):
        of_method = drawn[drawn["method"] == method]
        seeds = [one for _, one in of_method.groupby("seed", dropna=False, sort=False)]
        style: Any = {
            "color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)]
        }  # fmt: skip
        if not seeds:
            continue
        if len(seeds) == 1:
            x, middle = seeds[0]["elapsed_s"].to_numpy(), seeds[0]["value"].to_numpy()
        else:
            for one in seeds:
                axes.plot(
                    one["elapsed_s"], one["value"], linewidth=0.5, alpha=0.6,
                    color=style["color"], label="_seed",
                )  # fmt: skip
            # Between evaluations the lines of the seeds are straight on this axis, so in the log.
            x, _, middle, _ = spread([one.assign(value=np.log(one["value"])) for one in seeds])
            middle = np.exp(middle)
        axes.plot(x, middle, linewidth=1.4, label=short_name(method), **style)
    if drawn.empty:
        axes.set_xticks([])
        axes.set_xlabel(f"{budget.label}: not available on this machine")
    elif budget.column == "energy_j":
        sources = list(dict.fromkeys(drawn["energy_source"].dropna())) or ["source not recorded"]
        guess = ", an estimate" if "tdp-estimate" in sources else ""
        axes.set_xlabel(f"{budget.label} ({', '.join(sources)}{guess})")
    axes.set_xlim(left=0)


def _methods(rows: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(rows["method"]))[:MOST_METHODS]


def _caption(rows: pd.DataFrame) -> str:
    averaged = rows["val_mse_ema"].notna()
    which = (
        "of the averaged weights" if averaged.all()
        else "of the weights as they are" if not averaged.any()
        else "of the averaged weights where there are any"
    )  # fmt: skip
    several = rows.groupby("method")["seed"].nunique().max() > 1
    seeds = " Thin: each seed; thick: their median." if several else ""
    return (
        f"Mean squared error of ε on the validation volumes, {which}; the denoiser that predicts "
        f"no noise has 1.{seeds}"
    )


def _content(rows: pd.DataFrame) -> str:
    last = rows.sort_values("step", kind="stable").groupby(["method", "seed"], dropna=False).tail(1)
    ends = [(m, last[last["method"] == m]["value"].median()) for m in _methods(rows)]
    return "At the end of training: " + in_words("", ends)


def _in_lines(label: str) -> str:
    """The column of names is ten letters wide, and a row three lines high."""
    return "\n".join(textwrap.wrap(label, 10, max_lines=3, placeholder="…"))
