"""What PyTorch's CUDA caching allocator would hold, from the order of allocations and releases.

A model of `c10/cuda/CUDACachingAllocator.cpp` as of PyTorch 2.13, for no CUDA graphs. Its rules:

- A request is rounded up to 512 bytes.
- Requests up to 1 MiB come from segments of 2 MiB, requests below 10 MiB from segments of 20 MiB,
  larger ones get a segment of their own, rounded up to 2 MiB. Small and large are apart, and
  so is each stream.
- The smallest free block that is large enough is taken, at the lowest address. What it has too
  much is split off and stays free: any rest among the small, more than 1 MiB among the large.
- A released block joins its free neighbours in the segment. Segments are kept, unless the device
  is full: then all that are wholly free are given back, and the request is tried once more.

With expandable segments there is one segment of addresses for the small and one for the large.
Memory is mapped into it where it ends, or where it has a hole, in pages of 2 MiB and 20 MiB; any
rest of a block is split off; and on a full device every page that is wholly free is given back,
wherever it is. What is still lost are the free parts of pages and the holes between blocks that
are too small for a request.

`AllocConf` has the other settings. On a card the threshold of garbage collection counts only after
`torch.cuda.set_per_process_memory_fraction`; here the capacity is that fraction.
"""

import bisect
from collections import defaultdict
from dataclasses import dataclass, field

from .alloc_conf import LARGE_SEGMENT, MIB, ROUND, AllocConf, round_up

KIB = 2**10
SMALL_REQUEST, SMALL_SEGMENT = 1 * MIB, 2 * MIB
LARGE_REQUEST = 10 * MIB
ROUND_SEGMENT = 2 * MIB
_ENDLESS = 2**50  # addresses; a card has less memory


@dataclass(frozen=True)
class Pool:
    """In bytes."""

    peak_allocated: int
    """Most that was given out at a time, rounded: `torch.cuda.max_memory_allocated`."""
    reserved: int
    """Most that was held in segments at a time: `torch.cuda.max_memory_reserved`."""


class OutOfMemory(Exception):
    """The device has no room for a request."""


class Block:
    """A stretch of a segment: given out, free, or addresses without memory."""

    __slots__ = ("address", "after", "before", "blocks", "free", "free_since", "mapped", "size")

    def __init__(self, address: int, size: int, blocks: "_Blocks", mapped: bool = True) -> None:
        self.address, self.size, self.blocks, self.mapped = address, size, blocks, mapped
        self.free = True
        self.free_since = 0
        self.before: Block | None = None
        self.after: Block | None = None

    @property
    def key(self) -> tuple[int, int]:
        return self.size, self.address

    @property
    def end(self) -> int:
        return self.address + self.size

    @property
    def is_whole_segment(self) -> bool:
        return self.before is None and self.after is None

    @property
    def could_grow_to(self) -> int:
        """In an expandable segment, with the addresses behind it."""
        behind = self.after
        return self.size + (behind.size if behind is not None and not behind.mapped else 0)

    def split(self, size: int, mapped: bool = True) -> "Block":
        """Keep `size` bytes; the rest, as a block of its own."""
        rest = Block(self.address + size, self.size - size, self.blocks, mapped)
        self.size = size
        rest.before, rest.after = self, self.after
        if rest.after is not None:
            rest.after.before = rest
        self.after = rest
        return rest


@dataclass
class _Blocks:
    """The free blocks of the small, or of the large."""

    small: bool
    by_size: list[tuple[int, int]] = field(default_factory=list)
    """Size and address, sorted."""
    at: dict[int, Block] = field(default_factory=dict)
    """By address."""
    unmapped: dict[int, Block] = field(default_factory=dict)
    searches: int = 0

    def add(self, block: Block) -> None:
        block.free_since = self.searches
        bisect.insort(self.by_size, block.key)
        self.at[block.address] = block

    def remove(self, block: Block) -> None:
        if block.mapped:
            del self.by_size[bisect.bisect_left(self.by_size, block.key)]
            del self.at[block.address]
        else:
            del self.unmapped[block.address]

    def join_free_neighbours(self, block: Block) -> Block:
        """The neighbours are no longer in the lists; the lowest of the three stays."""
        for other in (block.before, block.after):
            if other is not None and other.free and other.mapped == block.mapped:
                self.remove(other)
                block = _join(block, other)
        return block


class CachingAllocator:
    """`allocate(size) -> Block`, `release(block)`, and `pool()`: what this came to.

    Args:
        capacity: bytes that the device has for it; None: it never ends.
        conf: PYTORCH_ALLOC_CONF; None: PyTorch's defaults.
    """

    def __init__(self, capacity: int | None = None, conf: AllocConf | None = None) -> None:
        self.capacity, self.conf = capacity, conf or AllocConf()
        self._streams: defaultdict[int, tuple[_Blocks, _Blocks]] = defaultdict(
            lambda: (_Blocks(small=True), _Blocks(small=False))
        )
        self._next_address = 0
        self.allocated = self.reserved = 0
        self.peak_allocated = self.peak_reserved = 0

    def pool(self) -> Pool:
        return Pool(self.peak_allocated, self.peak_reserved)

    @property
    def free(self) -> int:
        """Bytes held and not given out, by the lists of free blocks."""
        return sum(size for pair in self._streams.values() for b in pair for size, _ in b.by_size)

    def allocate(self, size: int, stream: int = 0) -> Block:
        """Raises OutOfMemory if there is no room."""
        size = self.conf.round(size)
        small, large = self._streams[stream]
        blocks = small if size <= SMALL_REQUEST else large
        block = self._best_fit(blocks, size) or self._more(blocks, size)
        if self._is_split(blocks, size, block.size - size):
            blocks.add(block.split(size))
        block.free = False
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def release(self, block: Block) -> None:
        self.allocated -= block.size
        block.free = True
        block.blocks.add(block.blocks.join_free_neighbours(block))

    def _is_split(self, blocks: _Blocks, size: int, rest: int) -> bool:
        if blocks.small or self.conf.expandable_segments:
            return rest >= ROUND
        return rest > SMALL_REQUEST and not self._is_oversize(size)

    def _is_oversize(self, size: int) -> bool:
        return self.conf.max_split_size is not None and size >= self.conf.max_split_size

    def _best_fit(self, blocks: _Blocks, size: int) -> Block | None:
        blocks.searches += 1
        by_size = blocks.by_size
        index = bisect.bisect_left(by_size, (size, -1))
        if index == len(by_size):
            return None
        block = blocks.at[by_size[index][1]]
        if self.conf.expandable_segments:  # what could grow counts as large as it could be
            for larger in range(index + 1, len(by_size)):
                other = blocks.at[by_size[larger][1]]
                if other.could_grow_to >= block.could_grow_to:
                    break
                block = other
        if self._is_oversize(block.size) and (
            not self._is_oversize(size) or block.size >= size + self.conf.max_non_split_rounding
        ):
            return None
        blocks.remove(block)
        return block

    def _more(self, blocks: _Blocks, size: int) -> Block:
        """A block that was not there: from the device, which may have to get some back first."""
        more = self._expand if self.conf.expandable_segments else self._new_segment
        self._collect_garbage()
        block = more(blocks, size)
        if block is None and self._give_back_oversize(blocks, size):
            block = more(blocks, size)
        if block is None:
            self.empty_cache()
            block = more(blocks, size)
        if block is None:
            raise OutOfMemory
        return block

    def _take_from_device(self, size: int) -> bool:
        if self.capacity is not None and self.reserved + size > self.capacity:
            return False
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return True

    def _new_addresses(self, blocks: _Blocks, size: int, mapped: bool) -> Block:
        block = Block(self._next_address, size, blocks, mapped)
        self._next_address += size
        return block

    def _new_segment(self, blocks: _Blocks, size: int) -> Block | None:
        if blocks.small:
            segment = SMALL_SEGMENT
        elif size < LARGE_REQUEST:
            segment = LARGE_SEGMENT
        else:
            segment = round_up(size, ROUND_SEGMENT)
        if not self._take_from_device(segment):
            return None
        return self._new_addresses(blocks, segment, mapped=True)

    # Expandable segments

    def _expand(self, blocks: _Blocks, size: int) -> Block | None:
        """The lowest place where free blocks and holes in a row have `size` bytes, mapped."""
        block = self._expandable_place(blocks, size)
        if not block.mapped:
            mapped = self._map(block, min(size, block.size))
            if mapped is None:
                return None
            block = mapped
        while block.size < size:
            hole = block.after
            assert hole is not None  # the place was large enough
            mapped = self._map(hole, min(size - block.size, hole.size))
            if mapped is None:
                return None
            block = mapped
        blocks.remove(block)
        return block

    def _expandable_place(self, blocks: _Blocks, size: int) -> Block:
        for address in sorted(blocks.unmapped):
            first = blocks.unmapped[address]
            if first.before is not None and first.before.free:
                first = first.before
            room, block = 0, first
            while room < size and block is not None and block.free:
                room, block = room + block.size, block.after  # type: ignore[assignment]
            if room >= size:
                return first
        page = SMALL_SEGMENT if blocks.small else LARGE_SEGMENT
        addresses = _ENDLESS if self.capacity is None else self.capacity * 9 // 8
        addresses = round_up(max(addresses, size), page)
        self._next_address = round_up(self._next_address, page)
        segment = self._new_addresses(blocks, addresses, mapped=False)
        blocks.unmapped[segment.address] = segment
        return segment

    def _map(self, hole: Block, size: int) -> Block | None:
        """Whole pages, from where the hole begins; joined with what is free beside them."""
        blocks = hole.blocks
        pages = round_up(size, SMALL_SEGMENT if blocks.small else LARGE_SEGMENT)
        if not self._take_from_device(pages):
            return None
        blocks.remove(hole)
        if pages < hole.size:
            rest = hole.split(pages, mapped=False)
            blocks.unmapped[rest.address] = rest
        hole.mapped = True
        block = blocks.join_free_neighbours(hole)
        blocks.add(block)
        return block

    def _unmap(self, block: Block) -> None:
        """Give back the whole pages of a free block; what is beside them stays free."""
        blocks = block.blocks
        page = SMALL_SEGMENT if blocks.small else LARGE_SEGMENT
        begin, end = round_up(block.address, page), block.end // page * page
        if begin >= end:
            return
        blocks.remove(block)
        if begin > block.address:
            front, block = block, block.split(begin - block.address)
            blocks.add(front)
        if end < block.end:
            blocks.add(block.split(end - block.address))
        self.reserved -= block.size
        block.mapped = False
        hole = blocks.join_free_neighbours(block)
        if not hole.is_whole_segment:
            blocks.unmapped[hole.address] = hole

    # Giving back

    def empty_cache(self) -> None:
        """Give back every segment, or page, that is wholly free."""
        for blocks in (
            blocks for small, large in self._streams.values() for blocks in (large, small)
        ):
            for block in list(blocks.at.values()):
                if self.conf.expandable_segments:
                    self._unmap(block)
                elif block.is_whole_segment:
                    self._give_back(block)

    def _give_back(self, segment: Block) -> None:
        segment.blocks.remove(segment)
        self.reserved -= segment.size

    def _give_back_oversize(self, blocks: _Blocks, size: int) -> bool:
        """Where blocks may be too large to be split: one that is large enough, or several."""
        if self.conf.max_split_size is None or self.conf.expandable_segments:
            return False
        wanted = max(size, self.conf.max_split_size)
        index = bisect.bisect_left(blocks.by_size, (wanted, -1))
        if index < len(blocks.by_size):
            self._give_back(blocks.at[blocks.by_size[index][1]])
            return True
        released = 0
        while released < wanted and blocks.by_size and self._is_oversize(blocks.by_size[-1][0]):
            released += blocks.by_size[-1][0]
            self._give_back(blocks.at[blocks.by_size[-1][1]])
        return released >= wanted

    def _collect_garbage(self) -> None:
        """Above the threshold: segments free for longer than the average, until below it."""
        threshold = self.conf.garbage_collection_threshold
        if threshold is None or self.capacity is None:
            return
        goal = int(threshold * self.capacity)
        while self.reserved > goal and not self.conf.expandable_segments:
            large = [blocks for _, blocks in self._streams.values()]
            whole = [b for blocks in large for b in blocks.at.values() if b.is_whole_segment]
            if not whole:
                return
            ages = [block.blocks.searches - block.free_since for block in whole]
            average = sum(ages) / len(ages)
            for block, age in zip(whole, ages, strict=True):
                if age >= average:
                    self._give_back(block)


def _join(one: Block, other: Block) -> Block:
    """Two neighbours as one; the lower stays."""
    lower, upper = sorted((one, other), key=lambda block: block.address)
    lower.size += upper.size
    lower.after = upper.after
    if lower.after is not None:
        lower.after.before = lower
    return lower
