"""All that one training needs to know."""

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import MinLen

from ..harness.plan import Plan
from ..presets import Count, CountOr0, Decay, Guidance, Sampler, SecondsOr0, Seed


@dataclass(frozen=True, kw_only=True)
class TrainingPlan(Plan):
    """One method from one seed. Its learning rate follows the window, not `anneal_steps`."""

    folder: str = ""
    """The run's, once there is one."""
    train: Annotated[tuple[CountOr0, ...], MinLen(1)]
    val: Annotated[tuple[CountOr0, ...], MinLen(1)]
    """Which of the volumes train and which validate."""
    split_seed: Seed = 0
    """Of the split, and of the timesteps and the noise of the validation."""
    validations: Count = 30
    ema: Decay = 0.995
    checkpoint_s: SecondsOr0 = 60.0
    """Of training, from one checkpoint to the next."""
    budget_bytes: int | None = None
    predicted_peak_bytes: int | None = None
    samples: CountOr0 = 4
    sampler: Sampler = "ddpm-clipped"
    sampler_steps: int | None = None
    """None: the sampler's own (`bench.ddpm.samplers.STEPS`)."""
    guidance: Guidance = 1.0
    """Of the samples: 1 for none (`bench.ddpm.samplers.given`)."""
    tensorboard: bool = False

    @property
    def seed(self) -> int:
        return self.training.seed

    @property
    def number(self) -> int:
        return self.seed

    def columns(self) -> dict[str, Any]:
        own = ("split_seed", "validations", "ema", "budget_bytes", "predicted_peak_bytes",
               "samples", "sampler", "sampler_steps", "guidance")  # fmt: skip
        return super().columns() | {
            **{name: getattr(self, name) for name in own},
            "anneal_steps": None,
            "subjects_train": len(self.train),
            "subjects_val": len(self.val),
        }
