"""What measures, and from outside: no probe knows a method.

A probe is `start()`, `stop() -> columns`; one that samples also has `sample() -> columns of
samples.csv`. The step probes (memory, FLOPs, the allocator's log) watch one extra training step,
so that the timed ones run bare; the window probes (energy, temperature, host) watch the window.
What a machine cannot tell is left out of the columns: never 0, never a guess without its name.
"""

from typing import Any, Protocol

Columns = dict[str, Any]


class Probe(Protocol):
    """Measures between `start` and `stop`."""

    def start(self) -> None: ...

    def stop(self) -> Columns:
        """Columns of `bench.results.Record`, with their sources."""
        ...


class SampledProbe(Probe, Protocol):
    """A probe that also follows its quantity through the window."""

    def sample(self) -> Columns:
        """Columns of `bench.results.Sample` at this moment."""
        ...
