"""Where two sequences of allocations and releases part, one predicted, one measured."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..probes.memory import Change
from ..sizes import show_size


class Event(NamedTuple):
    """A change of live memory within a step, small enough to be sent between processes."""

    nbytes: int
    """Positive for an allocation, negative for a release."""
    operator: str
    layer: str

    def __str__(self) -> str:
        kind = "is allocated" if self.nbytes > 0 else "is released"
        return f"{show_size(abs(self.nbytes))} {kind}, made by {self.operator} in {self.layer}"


def events_of_step(changes: Iterable[Change]) -> list[Event]:
    """What a step changes: without what was there before it, but with its release."""
    return [
        Event(change.nbytes, change.storage.operator, change.storage.layer)
        for change in changes
        if change.nbytes and (change.storage.operator or change.nbytes < 0)
    ]


def first_difference(predicted: Sequence[Event], measured: Sequence[Event]) -> str | None:
    """None where every allocation and release agrees, in bytes and in order."""
    for index, (one, other) in enumerate(zip(predicted, measured, strict=False)):
        if one.nbytes != other.nbytes:
            return f"change {index}: predicted {one}; measured {other}"
    if len(predicted) != len(measured):
        return f"{len(predicted)} changes predicted, {len(measured)} measured; equal until then"
    return None
