"""The caching allocator's rules, each by a case worked out by hand."""

import itertools
import random

import pytest

from bench.predict.allocator import MIB, CachingAllocator, OutOfMemory


def test_requests_are_rounded_up_to_512():
    allocator = CachingAllocator()
    assert [allocator.allocate(size).size for size in (1, 512, 513)] == [512, 512, 1024]


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (1, 2 * MIB),
        (1 * MIB, 2 * MIB),  # the largest small request
        (1 * MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),  # the smallest with a segment of its own
        (11 * MIB + 1, 12 * MIB),
    ],
)
def test_segments(size, segment):
    allocator = CachingAllocator()
    allocator.allocate(size)
    assert allocator.pool().reserved == segment


def test_small_and_large_do_not_share():
    allocator = CachingAllocator()
    allocator.allocate(2 * MIB)  # leaves 18 MiB of its segment
    allocator.allocate(512)
    assert allocator.pool().reserved == 22 * MIB


def test_the_rest_of_a_large_block_is_kept_whole_up_to_a_mebibyte():
    allocator = CachingAllocator()
    allocator.release(allocator.allocate(12 * MIB))
    assert allocator.allocate(11 * MIB).size == 12 * MIB  # a rest of 1 MiB is not split off
    allocator = CachingAllocator()
    allocator.release(allocator.allocate(12 * MIB))
    assert allocator.allocate(11 * MIB - 512).size == 11 * MIB - 512


def test_the_smallest_block_that_fits_is_taken():
    allocator = CachingAllocator()
    blocks = [allocator.allocate(size * MIB) for size in (40, 12, 30)]
    for block in blocks:
        allocator.release(block)
    assert allocator.allocate(12 * MIB) is blocks[1]
    assert allocator.allocate(28 * MIB).address == blocks[2].address
    assert allocator.pool().reserved == 82 * MIB


def test_neighbours_join():
    allocator = CachingAllocator()
    parts = [allocator.allocate(4 * MIB) for _ in range(5)]  # one segment of 20 MiB
    for index in (0, 2, 4, 1, 3):
        allocator.release(parts[index])
    assert allocator.allocate(20 * MIB).address == 0
    assert allocator.pool().reserved == 20 * MIB


def test_a_full_device_gives_back_what_is_free_before_it_fails():
    allocator = CachingAllocator(capacity=50 * MIB)
    allocator.release(allocator.allocate(30 * MIB))
    held = allocator.allocate(40 * MIB)  # only if the 30 MiB go back
    assert held.size == 40 * MIB
    with pytest.raises(OutOfMemory):
        allocator.allocate(12 * MIB)


def test_fragments_are_not_given_back():
    allocator = CachingAllocator(capacity=20 * MIB)
    parts = [allocator.allocate(4 * MIB) for _ in range(5)]
    for part in parts[:4]:
        allocator.release(part)
    with pytest.raises(OutOfMemory):  # 16 MiB are free, but in a segment that is in use
        allocator.allocate(18 * MIB)


def test_nothing_overlaps_and_nothing_is_lost():
    """A long random history against the plainest book-keeping."""
    rng = random.Random(0)
    allocator, live = CachingAllocator(), []
    for _ in range(5000):
        if live and rng.random() < 0.5:
            allocator.release(live.pop(rng.randrange(len(live))))
        else:
            live.append(allocator.allocate(int(2 ** rng.uniform(0, 25))))
        assert allocator.allocated == sum(block.size for block in live)
    spans = sorted((block.address, block.address + block.size) for block in live)
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(spans))
    for block in live:
        allocator.release(block)
    assert allocator.allocated == 0
    assert (
        sum(size for sizes in allocator._free.values() for size, _ in sizes) == allocator.reserved
    )
