"""All that one training needs to know; it goes to its process as JSON."""

from dataclasses import dataclass

from bench.commands import Sampler
from bench.presets import Workload
from bench.training import Training, Window


@dataclass(frozen=True)
class Plan:
    """All that a training needs to know."""

    method: str
    preset: str
    work: Workload
    training: Training
    """`anneal_steps` is left out of account: the rate follows the window (`learning_rate`)."""
    window: Window
    device: str
    folder: str
    """The run's."""
    data: str
    """Name of the data source, for the record."""
    volumes: str
    """The prepared volumes, an .npy of shape (N, C, D, H, W)."""
    train: tuple[int, ...]
    val: tuple[int, ...]
    """Which of them train and which validate."""
    split_seed: int = 0
    """Of the split, and of the timesteps and the noise of the validation."""
    validations: int = 30
    ema: float = 0.995
    checkpoint_s: float = 60.0
    """Of training, from one checkpoint to the next."""
    budget_bytes: int | None = None
    predicted_peak_bytes: int | None = None
    samples: int = 4
    sampler: Sampler = "ddpm-clipped"
    sampler_steps: int | None = None
    """None: the sampler's own (`bench.quality.sampling.STEPS`)."""
    tensorboard: bool = False
    country: str | None = None
    """ISO 3166-1 alpha-3 code of the grid for CO₂; None: the world's mean."""

    @property
    def seed(self) -> int:
        return self.training.seed
