"""What CUDA's caching allocator tells of itself, and what our model of it makes of the same.

The log is PyTorch's own (`torch.cuda.memory._record_memory_history`, without stacks, which would
cost more than the step): every request and release, and every segment taken from the device.
"""

import csv
import gzip
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..predict.alloc_conf import round_up
from ..predict.allocator import Block, CachingAllocator
from ..probes.cost import StepProbe
from ..sizes import show_size

_MOST_EVENTS = 2_000_000
_ROUND = 512


class LogEntry(NamedTuple):
    """One line of the allocator's log."""

    action: str
    """`alloc`, `free_requested`, `free_completed`, `segment_alloc`, `segment_free`."""
    size: int
    """Bytes."""
    address: int


class AllocatorLog:
    """The log of one CUDA device, from before its first tensor."""

    def __init__(self, device: torch.device) -> None:
        self.index = device.index or 0
        torch.cuda.memory._record_memory_history(
            enabled="all", context=None, stacks="python", max_entries=_MOST_EVENTS
        )

    def requests(self) -> int:
        """How many allocations there were."""
        stats = torch.cuda.memory_stats_as_nested_dict(self.index)
        return stats["allocation"]["all"]["allocated"] if stats else 0

    def close(self) -> list[LogEntry]:
        """End it; returns its entries, oldest first."""
        trace = torch.cuda.memory._snapshot(self.index)["device_traces"][self.index]
        torch.cuda.memory._record_memory_history(enabled=None)
        return [LogEntry(entry["action"], entry["size"], entry["addr"]) for entry in trace]


def save_log(path: Path, log: Iterable[LogEntry]) -> None:
    """As CSV, compressed: evidence that can be replayed elsewhere."""
    with gzip.open(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(LogEntry._fields)
        writer.writerows(log)


class LoggedProbe(StepProbe):
    """A step probe that knows which requests to the allocator an operator made."""

    def __init__(self, log: AllocatorLog, *args: Any) -> None:
        super().__init__(*args)
        self.log = log
        self.marks: list[int] = []
        """Requests before the step, and after each operator."""

    def start(self) -> None:
        super().start()
        self.marks = [self.log.requests()]

    def has_run(self, *args: Any) -> None:
        super().has_run(*args)
        self.marks.append(self.log.requests())


@dataclass(frozen=True)
class Scratch:
    """What operators asked the allocator for beside their results: workspaces, temporaries."""

    most: int
    """Bytes, of one operator."""
    found: tuple[str, ...]
    """The largest, in words, by operator and layer."""


def scratch_of(probe: LoggedProbe, log: Sequence[LogEntry], most_lines: int = 8) -> Scratch:
    """Requests of each operator that became no tensor which anybody saw."""
    requests = [entry.size for entry in log if entry.action == "alloc"]
    results: dict[int, Counter[int]] = {}
    for change in probe.changes:
        if change.nbytes > 0 and change.storage.operator:
            results.setdefault(change.operator, Counter())[_rounded(change.nbytes)] += 1
    by_place: dict[tuple[str, str], Counter[int]] = {}
    most = 0
    for number, operator in enumerate(probe.trace, start=1):
        asked = Counter(map(_rounded, requests[probe.marks[number - 1] : probe.marks[number]]))
        beside = asked - results.get(number, Counter())
        if beside:
            by_place.setdefault((operator.name, operator.layer), Counter()).update(beside)
            most = max(most, sum(size * count for size, count in beside.items()))
    largest = sorted(by_place.items(), key=lambda item: -max(item[1]))[:most_lines]
    return Scratch(most, tuple(_in_words(*place, sizes) for place, sizes in largest))


def _in_words(operator: str, layer: str, sizes: Counter[int]) -> str:
    largest = sorted(sizes.items(), reverse=True)[:3]
    text = ", ".join(f"{count} × {show_size(size)}" for size, count in largest)
    return f"{text} in {operator} of {layer or 'no layer'}"


@dataclass(frozen=True)
class Replay:
    """A card's own requests and releases, played through our model of its allocator."""

    reserved: int
    """Most that the model held, in bytes."""
    differences: int
    """Requests after which the model held another amount than the card."""
    first: str | None


def replay(log: Iterable[LogEntry]) -> Replay:
    """Segments that the model would have taken, at the moments at which the card took its own."""
    model, held, blocks = _AtTheirAddresses(), 0, dict[int, Block]()
    differences, first = 0, None
    for number, entry in enumerate(log):
        match entry.action:
            case "segment_alloc":
                held += entry.size
                model.addresses.append(entry.address)
            case "segment_free":
                held -= entry.size
                if model.reserved > held:  # the cache was emptied
                    model.empty_cache()
            case "alloc":
                blocks[entry.address] = model.allocate(entry.size)
                if model.reserved != held:
                    differences += 1
                    first = first or (
                        f"entry {number}, {show_size(entry.size)}: the card holds "
                        f"{show_size(held)}, the model {show_size(model.reserved)}"
                    )
            case "free_completed" if entry.address in blocks:
                model.release(blocks.pop(entry.address))
    return Replay(model.peak_reserved, differences, first)


class _AtTheirAddresses(CachingAllocator):
    """Segments lie where the card put them: of free blocks of one size the lowest is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: deque[int] = deque()

    def _new_addresses(self, blocks: Any, size: int, mapped: bool) -> Block:
        self._next_address = self.addresses.popleft() if self.addresses else self._nowhere
        self._nowhere += size
        return super()._new_addresses(blocks, size, mapped)

    _nowhere = 2**62
    """Where a segment goes that the card did not take."""


def _rounded(size: int) -> int:
    return round_up(size, _ROUND)
