"""What measures, and from outside: no probe knows a method.

A probe is `start()`, `stop() -> measurement`; one that samples also has `sample() -> reading`. Both
are dataclasses of `bench.records.rows`, whose fields are the columns of the files. The step probes
(memory, FLOPs, the allocator's log) watch one extra training step, so that the timed ones run bare;
the window probes (energy, temperature, host) watch the window, and are told at the end when it was.
What a machine cannot tell is None: never 0, never a guess without its name.
"""

import math
from dataclasses import dataclass
from typing import Protocol

from ..records.rows import Measurement, Reading

_NEAR_SHARE = 0.01
_NEAR_S = 0.01  # of a window of a few steps, the scheduler alone takes more than 1 %


@dataclass
class Span:
    """A window on the clock of `time.perf_counter`, in seconds; at first without ends."""

    begin: float = -math.inf
    end: float = math.inf

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    @property
    def near_s(self) -> float:
        """What happened at most so far from the window belongs to it: 1 % of it, 10 ms at least."""
        return max(_NEAR_S, _NEAR_SHARE * self.seconds)

    def has(self, time: float) -> bool:
        """Whether that was in the window, or near it."""
        return self.begin - self.near_s <= time <= self.end + self.near_s


class Probe(Protocol):
    """Measures between `start` and `stop`."""

    def start(self) -> None: ...

    def stop(self) -> Measurement: ...


class SampledProbe(Probe, Protocol):
    """A probe that also follows its quantity through the window."""

    def sample(self) -> Reading:
        """The quantity at this moment."""
        ...

    def stop(self, window: Span | None = None) -> Measurement:
        """What it was in `window`; None: since `start`."""
        ...
