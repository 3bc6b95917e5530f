"""Memory over one training step, from a prediction."""

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bench.predict.prediction import Prediction
from bench.probes.memory import Part
from bench.probes.step import Moment, Phase

# NVIDIA RTX A5000, from its data sheet: 27.8 TFLOP/s in fp32, 768 GB/s.
FLOPS_PER_S = 27.8e12
BYTES_PER_S = 768e9


@dataclass(frozen=True)
class Timeline:
    """What is alive when, along the step.

    A prediction takes no time, so an operator is as long as on an ideal card: its arithmetic at the
    card's peak, or the bytes that it reads and writes at its bandwidth, whichever takes longer.
    That gives a step its proportions; it is no prediction of seconds.
    """

    name: str
    position: np.ndarray
    """(n,): where each change happens, from 0 to 1."""
    parts: dict[Part, np.ndarray]
    """(n,) each: bytes alive after it."""
    ends: dict[Phase, float]
    """Where each phase ends, from 0 to 1."""
    peak_at: int
    """Index of the peak."""
    peak: Moment

    @classmethod
    def of(cls, name: str, prediction: Prediction) -> "Timeline":
        clock = np.cumsum(
            [0.0]
            + [
                max(operator.flops / FLOPS_PER_S, operator.traffic / BYTES_PER_S)
                for operator in prediction.operators
            ]
        )
        clock /= clock[-1] or 1.0
        position = np.array(
            [  # a result exists from the start of its operator, what is released until its end
                clock[max(0, change.operator - (change.nbytes > 0))]
                for change in prediction.changes
            ]
        )
        parts = {part: np.zeros(len(position)) for part in Part}
        for index, change in enumerate(prediction.changes):
            parts[change.storage.part][index] = change.nbytes
        ends = dict.fromkeys(Phase, 0.0)
        for index, phase in enumerate(prediction.phases):
            ends[phase] = clock[index + 1]
        return cls(
            name,
            position,
            {part: np.cumsum(values) for part, values in parts.items()},
            ends,
            prediction.peak.change,
            prediction.peak,
        )

    @cached_property
    def total(self) -> np.ndarray:
        """(n,): bytes alive."""
        return np.sum(list(self.parts.values()), axis=0)

    def thinned(self, pieces: int = 1500) -> np.ndarray:
        """Indices enough to draw: of each of `pieces` stretches the highest moment, the last."""
        stretch = np.minimum((self.position * pieces).astype(int), pieces - 1)
        starts = np.flatnonzero(np.diff(stretch, prepend=-1))
        bounds = [*starts, len(stretch)]
        kept = {self.peak_at}
        for first, last in itertools.pairwise(bounds):
            kept |= {first + int(self.total[first:last].argmax()), last - 1}
        return np.array(sorted(kept))
