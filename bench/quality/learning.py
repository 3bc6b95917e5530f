"""The tables of a quality run, in the folder that also has `environment.json`:

    learning.csv    a row at each validation, appended by the training itself
    trained.csv     a row a training, when it ended
    quality.csv     what the trained denoisers and their samples are worth (`scoring.Score`)
    split.json      who trains, validates, tests
    checkpoints/    <method>-<seed>.safetensors
    samples/        <method>-<seed>_<n>.nii.gz

`elapsed_s` and `energy_j` are those of training alone: reading the data, the steps and the moving
average. Validating, writing checkpoints and the start of the process are not in them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd

from bench.quality.scoring import Score
from bench.results import Run, Status


@dataclass(kw_only=True)
class Learning:
    """A point of the learning curve."""

    method: str
    seed: int
    step: int
    """Steps done; 0 is the network as it was built."""
    elapsed_s: float
    """Of training."""
    energy_j: float | None = None
    """Of training, of the device under test."""
    energy_source: str | None = None
    loss_train: float | None = None
    """Mean of eq. (8) over the steps since the row before."""
    val_mse: float
    """Of ε, over the fixed pairs of `bench.quality.validation`; 1 is that of predicting 0."""
    val_mse_ema: float
    """The same with the moving average of the weights."""
    learning_rate: float
    """Of the next step."""


@dataclass(kw_only=True)
class Trained:
    """What became of one training. None is an empty cell."""

    method: str
    seed: int
    """Of the weights, the noise and the order of the data."""
    status: Status | None = None
    error: str | None = None
    """Last line of what went wrong."""
    preset: str | None = None
    data: str | None = None
    device: str | None = None
    device_name: str | None = None
    precision: str | None = None
    steps: int | None = None
    elapsed_s: float | None = None
    energy_j: float | None = None
    energy_source: str | None = None
    co2_kg: float | None = None
    """Of `energy_j` at the mean intensity of the grid that `co2_source` names."""
    co2_source: str | None = None
    parameters: int | None = None
    channels: str | None = None
    """Width of each level, finest first."""
    peak_memory_bytes: int | None = None
    """Highest sum of live tensor storages on the device in one whole step, the second; without
    the moving average, which is not part of a step."""
    peak_memory_source: str | None = None
    volume: int | None = None
    """Side of a whole volume, in voxels."""
    patch: int | None = None
    """Side of what one step sees."""
    batch_size: int | None = None
    budget_bytes: int | None = None
    """Memory for which the channels were chosen."""
    predicted_peak_bytes: int | None = None
    """What was predicted for these channels when they were chosen."""
    val_mse: float | None = None
    val_mse_ema: float | None = None
    """At the end, as in learning.csv."""
    subjects_train: int | None = None
    subjects_val: int | None = None
    """Volumes."""
    split_seed: int | None = None
    started_at: str | None = None
    """UTC, ISO 8601; of the last process that worked on it."""
    warnings: str | None = None
    """What could not be measured as it should, separated by "; "."""


class QualityRun(Run):
    """The folder of one quality run."""

    tables: ClassVar[Mapping[str, type]] = {
        "trained.csv": Trained,
        "learning.csv": Learning,
        "quality.csv": Score,
    }
    durable: ClassVar[tuple[str, ...]] = ("trained.csv", "learning.csv")
    program: ClassVar[str] = "-m bench quality"

    def trained(self) -> pd.DataFrame:
        return self._read("trained.csv", Trained)

    def learning(self) -> pd.DataFrame:
        return self._read("learning.csv", Learning)

    def scores(self) -> pd.DataFrame:
        return self._read("quality.csv", Score)

    def samples_of(self, method: str, seed: int) -> Path:
        """As `bench.quality.sampling` takes it, which numbers the files."""
        return self.folder / "samples" / f"{method}-{seed}.nii.gz"

    def checkpoint(self, method: str, seed: int) -> Path:
        return self.folder / "checkpoints" / f"{method}-{seed}.safetensors"

    def forget_trainings(self, redone: Collection[tuple[str, int]]) -> None:
        """Take the records of trainings that will be gone on with out of `trained.csv`."""
        names = {(method, str(seed)) for method, seed in redone}
        self.keep("trained.csv", lambda row: (row["method"], row["seed"]) not in names)

    def forget_learning(self, method: str, seed: int, after: int) -> None:
        """Take the rows of steps beyond `after` out: the training will come to them again."""
        name = method, str(seed)
        self.keep(
            "learning.csv",
            lambda row: (row["method"], row["seed"]) != name or float(row["step"]) <= after,
        )

    def forget_scores(self, method: str, seed: int) -> None:
        """Take the scores of a training out: it is about to be scored again."""
        name = method, str(seed)
        self.keep("quality.csv", lambda row: (row["method"], row["seed"]) != name)
