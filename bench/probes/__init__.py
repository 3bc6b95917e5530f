"""What measures, and from outside: no probe knows a method.

A probe is `start()`, `stop() -> measurement`; one that samples also has `sample() -> reading`. Both
are dataclasses of `bench.records.rows`, whose fields are the columns of the files. The step probes
(memory, FLOPs, the allocator's log) watch one extra training step, so that the timed ones run bare;
the window probes (energy, temperature, host) watch the window. What a machine cannot tell is None:
never 0, never a guess without its name.
"""

from typing import Protocol

from ..records.rows import Measurement, Reading


class Probe(Protocol):
    """Measures between `start` and `stop`."""

    def start(self) -> None: ...

    def stop(self) -> Measurement: ...


class SampledProbe(Probe, Protocol):
    """A probe that also follows its quantity through the window."""

    def sample(self) -> Reading:
        """The quantity at this moment."""
        ...
