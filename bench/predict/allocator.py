"""What PyTorch's CUDA caching allocator would hold, from the order of allocations and releases.

A model of `c10/cuda/CUDACachingAllocator.cpp` with its default settings. Its rules:

- A request is rounded up to 512 bytes.
- Requests up to 1 MiB come from segments of 2 MiB, requests below 10 MiB from segments of 20 MiB,
  larger ones get a segment of their own, rounded up to 2 MiB. Small and large are apart.
- The smallest free block that is large enough is taken, at the lowest address. What it has too
  much is split off and stays free: any rest among the small, more than 1 MiB among the large.
- A released block joins its free neighbours in the segment. Segments are kept, unless the device
  is full: then all that are wholly free are given back, and the request is tried once more.
"""

import bisect
from dataclasses import dataclass

KIB, MIB = 2**10, 2**20
ROUND = 512
SMALL_REQUEST, SMALL_SEGMENT = 1 * MIB, 2 * MIB
LARGE_REQUEST, LARGE_SEGMENT = 10 * MIB, 20 * MIB
ROUND_SEGMENT = 2 * MIB


@dataclass(frozen=True)
class Pool:
    """In bytes."""

    peak_allocated: int
    """Most that was given out at a time, rounded: `torch.cuda.max_memory_allocated`."""
    reserved: int
    """Most that was held in segments at a time: `torch.cuda.max_memory_reserved`."""


class OutOfMemory(Exception):
    """The device has no room for a segment."""


class Block:
    """A stretch of a segment, given out or free."""

    __slots__ = ("address", "after", "before", "free", "size", "small")

    def __init__(self, address: int, size: int, small: bool) -> None:
        self.address, self.size, self.small = address, size, small
        self.free = True
        self.before: Block | None = None
        self.after: Block | None = None

    @property
    def key(self) -> tuple[int, int]:
        return self.size, self.address


class CachingAllocator:
    """`allocate(size) -> Block`, `release(block)`, and `pool()`: what this came to.

    Args:
        capacity: bytes of the device; None: it never ends.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}  # sorted, by `small`
        self._at: dict[int, Block] = {}  # free blocks by address
        self._next_address = 0
        self.allocated = self.reserved = 0
        self.peak_allocated = self.peak_reserved = 0

    def pool(self) -> Pool:
        return Pool(self.peak_allocated, self.peak_reserved)

    def allocate(self, size: int) -> Block:
        """Raises OutOfMemory if there is no room."""
        size = max(ROUND, round_up(size, ROUND))
        small = size <= SMALL_REQUEST
        block = self._best_fit(size, small) or self._new_segment(size, small)
        rest = block.size - size
        if rest >= ROUND if small else rest > SMALL_REQUEST:
            self._split(block, size)
        block.free = False
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def release(self, block: Block) -> None:
        self.allocated -= block.size
        block.free = True
        for other in (block.before, block.after):
            if other is not None and other.free:
                self._forget(other)
                block = _join(block, other)
        self._offer(block)

    def _best_fit(self, size: int, small: bool) -> Block | None:
        free = self._free[small]
        index = bisect.bisect_left(free, (size, -1))
        if index == len(free):
            return None
        _, address = free.pop(index)
        return self._at.pop(address)

    def _new_segment(self, size: int, small: bool) -> Block:
        if small:
            segment = SMALL_SEGMENT
        elif size < LARGE_REQUEST:
            segment = LARGE_SEGMENT
        else:
            segment = round_up(size, ROUND_SEGMENT)
        if self.capacity is not None and self.reserved + segment > self.capacity:
            self._give_back()
            if self.reserved + segment > self.capacity:
                raise OutOfMemory
        block = Block(self._next_address, segment, small)
        self._next_address += segment
        self.reserved += segment
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return block

    def _give_back(self) -> None:
        for block in list(self._at.values()):
            if block.before is None and block.after is None:
                self._forget(block)
                self.reserved -= block.size

    def _split(self, block: Block, size: int) -> None:
        rest = Block(block.address + size, block.size - size, block.small)
        block.size = size
        rest.before, rest.after = block, block.after
        if rest.after is not None:
            rest.after.before = rest
        block.after = rest
        self._offer(rest)

    def _offer(self, block: Block) -> None:
        bisect.insort(self._free[block.small], block.key)
        self._at[block.address] = block

    def _forget(self, block: Block) -> None:
        free = self._free[block.small]
        del free[bisect.bisect_left(free, block.key)]
        del self._at[block.address]


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _join(one: Block, other: Block) -> Block:
    """Two neighbours as one; the lower stays."""
    lower, upper = sorted((one, other), key=lambda block: block.address)
    lower.size += upper.size
    lower.after = upper.after
    if lower.after is not None:
        lower.after.before = lower
    return lower
