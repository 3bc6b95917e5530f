"""What a trial and a training both need to know; it goes to their process as JSON."""

from dataclasses import dataclass, field
from typing import Any

from ..ddpm.step import Training
from ..methods import METHODS
from ..presets import CountOr0, Reading, Workload
from ..records.rows import setting_columns
from .backends import Backends
from .window import Window


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One method, one workload, one process."""

    method: str
    preset: str
    preset_changes: str = "none"
    """What flags changed of the preset (`bench.methods.preset_changes`)."""
    work: Workload
    training: Training
    window: Window
    device: str
    data: str
    """Name of the data source."""
    subjects: int = 0
    """Volumes that it has."""
    reading: Reading = field(default_factory=Reading)
    volumes: str
    """The prepared volumes, an .npy of shape (N, C + K, D, H, W): image, then condition."""
    labels: tuple[CountOr0, ...] = ()
    """A class label for each of them; empty: they have none."""
    backends: Backends = field(default_factory=Backends)
    country: str | None = None
    """ISO 3166-1 alpha-3 code of the grid for CO₂; None: the world's mean."""

    @property
    def number(self) -> int:
        """What tells the plans of one method apart."""
        raise NotImplementedError

    @property
    def key(self) -> tuple[str, int]:
        return self.method, self.number

    def columns(self) -> dict[str, Any]:
        """What of a record is known before anything has run."""
        return {
            **METHODS[self.method].columns(),
            **setting_columns(self.work, self.training, self.reading),
            "preset": self.preset,
            "preset_changes": self.preset_changes,
            "data": self.data,
            "subjects": self.subjects,
            "device": self.device,
            **self.backends.columns(self.device),
            "window_limit_s": self.window.seconds,
            "window_limit_steps": self.window.steps,
        }
