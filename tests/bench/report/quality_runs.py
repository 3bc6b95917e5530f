"""The folder of a quality run with known numbers, as `python -m bench quality` leaves it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.quality.scoring import TIMES, UNITS
from bench.records.files import write_rows
from bench.records.rows import Score, Trained
from bench.report.figure2 import write_figure2
from tests.bench.report.runs import ENVIRONMENT, GIB

METHODS = ("idm", "patchddm")
SIDE = 12


def scores(method: str, seed: int = 0, modality: str = "t1") -> list[Score]:
    """At T/4: PSNR 20 dB of idm, 18 of patchddm, half a decibel more with each seed."""
    better = {"idm": 20.0, "patchddm": 18.0}[method] + 0.5 * seed
    rows = []
    for step in TIMES:
        worse = (step - 500) / 100
        values = {"psnr": better - worse, "ssim": 0.8 - worse / 50, "mae": 0.3 - worse / 100,
                  "mse": 0.15 - worse / 100, "psnr_noisy": 14 - worse}  # fmt: skip
        for protocol, extra, count in (("validation", 0.0, 3), ("best-batch", 1.0, 2)):
            for column, value in values.items():
                gain = extra if column == "psnr" else 0.0
                rows.append(
                    Score(
                        method=method, modality=modality, column=column, unit=UNITS[column],
                        value=value + gain, sd=0.25 if protocol == "validation" else None,
                        protocol=protocol, timestep=step, count=count, seed=seed, data="phantom",
                    )
                )  # fmt: skip
    drawn = {"ms_ssim": 0.75, "ms_ssim_real": 0.82,
             "histogram_distance": 0.05, "histogram_distance_real": 0.01,
             "sampling_start": 1999, "sampling_peak_memory_bytes": 0.125 * GIB}  # fmt: skip
    for column, value in drawn.items():
        rows.append(
            Score(
                method=method, modality="all" if "sampling" in column else modality, column=column,
                value=value, unit=UNITS[column], sd=0.02 if column == "ms_ssim" else None,
                protocol="ddpm-2000", count=6, seed=seed, data="phantom",
            )
        )  # fmt: skip
    return rows


def learning(
    methods: tuple[str, ...] = METHODS, seeds: int = 2, energy_source: str | None = "tdp-estimate"
) -> pd.DataFrame:
    """2 s and 100 J a step; the averaged weights fall from 1 to 0.1, patchddm's to twice that."""
    rows = []
    for method in methods:
        for seed in range(seeds):
            for step in range(0, 401, 50):
                floor = (0.1 if method == "idm" else 0.2) * (1 + 0.1 * seed)
                value = floor + (1 - floor) * math.exp(-step / 60)
                rows.append(
                    {
                        "method": method, "seed": seed, "step": step, "elapsed_s": 2.0 * step,
                        "energy_j": 100.0 * step if energy_source else None,
                        "energy_source": energy_source, "loss_train": value,
                        "val_mse": value * 1.05, "val_of": None, "val_mse_ema": value,
                        "learning_rate": 2e-4,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def volumes(count: int, seed: int = 0) -> np.ndarray:
    """Balls in a dark cube, (N, 1, SIDE, SIDE, SIDE)."""
    rng = np.random.default_rng(seed)
    axis = np.linspace(-1, 1, SIDE)
    distance = np.sqrt(sum(a**2 for a in np.meshgrid(axis, axis, axis)))
    balls = [(distance < radius) * 0.8 for radius in rng.uniform(0.5, 0.9, count)]
    return np.stack(balls)[:, None].astype(np.float32)


def quality_run(
    folder: Path, seeds: int = 1, methods: tuple[str, ...] = METHODS, **settings: Any
) -> Path:
    """`settings`: columns of `trained.csv`."""
    folder.mkdir(parents=True)
    each = [(method, seed) for method in methods for seed in range(seeds)]
    write_rows(folder / "quality.csv", Score, [row for one in each for row in scores(*one)])
    learning(methods, seeds).to_csv(folder / "learning.csv", index=False)
    values = {"status": "ok", "preset": "small", "learning_rate": 2e-4, "ema": 0.995, **settings}
    trained = [Trained(method=method, seed=seed, **values) for method, seed in each]
    write_rows(folder / "trained.csv", Trained, trained)
    write_figure2(volumes(2), {m: volumes(2, i) for i, m in enumerate(methods, 1)}, folder)
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT), encoding="utf-8")
    return folder
