"""All that one trial needs to know."""

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Interval

from ..harness.plan import Plan
from ..presets import Count, Hertz, SecondsOr0

Celsius = Annotated[float, Interval(ge=-100, le=200)]

PROBES = ("memory", "flops", "energy", "temperature", "host")


@dataclass(frozen=True, kw_only=True)
class TrialPlan(Plan):
    """One method in one preset, once."""

    repeat: Count
    """Counted from 1."""
    probes: tuple[str, ...] = PROBES
    sample_hz: Hertz = 10.0
    memory_limit: int | None = None
    """Bytes of memory of its own that the trial's process may have; None: no limit."""
    card: str | None = None
    """NVIDIA card to measure, by NVML's index, UUID or MIG id; None: the one that is `device`."""

    start_c: Celsius | None = None
    """Temperature at the start of the first trial's window; None: nothing to wait for."""
    cooldown_s: SecondsOr0 = 0.0
    """Longest wait for it."""

    @property
    def number(self) -> int:
        return self.repeat

    def columns(self) -> dict[str, Any]:
        return super().columns() | {
            "memory_limit_bytes": self.memory_limit,
            "card": self.card,
            "sample_hz": self.sample_hz,
        }
