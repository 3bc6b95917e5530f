"""What the process that measures one method needs to know; it goes there as JSON."""

from dataclasses import dataclass, field
from typing import Any

import torch

from ..ddpm.step import Training
from ..harness.backends import Backends
from ..presets import Workload
from ..records.rows import setting_columns


@dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """One method on one device: its steps, not its window."""

    method: str
    preset: str
    preset_changes: str = "none"
    work: Workload
    training: Training
    device: str
    backends: Backends = field(default_factory=Backends)
    folder: str = "."
    """Of the run, for the allocator's log."""

    number = 1
    """Of the measurements of one method: there is one."""

    def columns(self) -> dict[str, Any]:
        """What of a row is known before anything has run."""
        return {
            **setting_columns(self.work),
            **self.backends.columns(self.device),
            "method": self.method,
            "preset": self.preset,
            "preset_changes": self.preset_changes,
            "device": self.device,
            "torch": torch.__version__,
        }
