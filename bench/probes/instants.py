"""Memory along one training step, thinned to what a picture can show.

A step that is watched takes longer than one that is not, and a prediction takes no time at all. So
an operator is taken to be as long as on an ideal card: its arithmetic at the card's peak, or the
bytes that it reads and writes at its bandwidth, whichever takes longer. That gives a step its
proportions, the same for a measured and for a predicted one; it is no measure of seconds.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from .cost import Operator, Phase
from .memory import Change, Part

# NVIDIA RTX A5000, from its data sheet: 27.8 TFLOP/s in fp32, 768 GB/s.
FLOPS_PER_S = 27.8e12
BYTES_PER_S = 768e9
PIECES = 400
"""Stretches of a step of which the highest moment is kept: a line of a picture is 7 inches long."""


def instants(
    operators: Sequence[Operator],
    changes: Sequence[Change],
    phases: Sequence[Phase],
    pieces: int = PIECES,
) -> list[dict[str, Any]]:
    """What was alive when, as columns of `bench.results.Instant`, in order.

    Of each stretch its highest and its last moment, and the first of each phase: the peak is among
    them, to the byte.

    Args:
        operators, phases: those of the step, in order, and the phase of each.
        changes: every allocation and release.
    """
    # What is there before the step is there at once.
    first = max(0, next(i for i, change in enumerate(changes) if change.storage.operator) - 1)
    position = _positions(operators, changes)
    alive = {
        part: np.cumsum([change.nbytes * (change.storage.part is part) for change in changes])
        for part in Part
    }
    total = np.sum(list(alive.values()), axis=0)
    in_phase = [phases[change.operator - 1] if change.operator else Phase.FORWARD
                for change in changes]  # fmt: skip
    return [
        {
            "position": float(position[index]),
            "phase": str(in_phase[index]),
            "layer": changes[index].storage.layer or None,
            "operator": changes[index].storage.operator or None,
            **{f"{part}_bytes": int(nbytes[index]) for part, nbytes in alive.items()},
        }
        for index in sorted({first, *_worth_drawing(position, total, in_phase, pieces)})
        if index >= first
    ]


def _positions(operators: Sequence[Operator], changes: Sequence[Change]) -> np.ndarray:
    """(n,): where each change happens, from 0 to 1."""
    lengths = [
        max(operator.flops / FLOPS_PER_S, operator.traffic / BYTES_PER_S) for operator in operators
    ]
    clock = np.cumsum([0.0, *lengths])
    clock /= clock[-1] or 1.0
    # A result exists from the start of its operator, what is released until its end; where an
    # operator releases before it allocates, the order of happening stays.
    at = clock[[max(0, change.operator - (change.nbytes > 0)) for change in changes]]
    return np.maximum.accumulate(at)


def _worth_drawing(
    position: np.ndarray, total: np.ndarray, in_phase: Sequence[Phase], pieces: int
) -> set[int]:
    stretch = np.minimum((position * pieces).astype(int), pieces - 1)
    starts = np.flatnonzero(np.diff(stretch, prepend=-1))
    kept = {in_phase.index(phase) for phase in set(in_phase)}
    for first, last in itertools.pairwise([*starts, len(stretch)]):
        kept |= {first + int(total[first:last].argmax()), last - 1}
    return kept
