"""What measures, and from outside: no probe knows a method.

A probe is `start()`, `stop() -> columns`; one that samples also has `sample() -> columns of
samples.csv`. The step probes (memory, FLOPs, the allocator's log) watch one extra training step,
so that the timed ones run bare; the window probes (energy, temperature, host) watch the window.
What a machine cannot tell is left out of the columns: never 0, never a guess without its name.
"""

from typing import Any, Protocol

Columns = dict[str, Any]
_LISTS = ("warnings", "contention")


def add_columns(columns: Columns, more: Columns) -> None:
    """Add the columns of one probe to those of others; lines follow one another, each once."""
    for name, value in more.items():
        if name in _LISTS:
            value = list(dict.fromkeys([*columns.get(name, []), *value]))
        columns[name] = value


class Probe(Protocol):
    """Measures between `start` and `stop`."""

    def start(self) -> None: ...

    def stop(self) -> Columns:
        """Columns of `bench.results.Record`, with their sources.

        Two of them are lists of lines, to which every probe may add: `warnings` (what could not be
        measured as it should) and `contention` (what else used the machine).
        """
        ...


class SampledProbe(Probe, Protocol):
    """A probe that also follows its quantity through the window."""

    def sample(self) -> Columns:
        """Columns of `bench.results.Sample` at this moment."""
        ...
