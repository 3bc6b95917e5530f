"""The caching allocator's rules, each by a case worked out by hand."""

import itertools
import random

import pytest

from bench.errors import UserError
from bench.predict.alloc_conf import MIB, AllocConf, alloc_conf_text, parse_alloc_conf
from bench.predict.allocator import CachingAllocator, OutOfMemory

EXPANDABLE = AllocConf(expandable_segments=True)
GIB = 1024 * MIB


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


def sizes(allocator, *mebibytes):
    return [allocator.allocate(size * MIB) for size in mebibytes]


def test_an_expandable_segment_grows_by_pages():
    allocator = CachingAllocator(conf=EXPANDABLE)
    first, second = sizes(allocator, 30, 30)  # two pages of 20, then one more
    assert (first.address, second.address) == (0, 30 * MIB)
    assert allocator.reserved == 60 * MIB
    allocator.allocate(512)  # the small have pages of 2
    assert allocator.reserved == 62 * MIB


def test_an_expandable_segment_splits_to_the_last_block():
    allocator = CachingAllocator(conf=EXPANDABLE)
    (first,) = sizes(allocator, 20)
    allocator.release(first)
    assert allocator.allocate(20 * MIB - 512).size == 20 * MIB - 512  # by default: all 20 MiB


def test_a_free_end_is_the_beginning_of_a_larger_block():
    """By default, 4 × 12 MiB and then 48 MiB hold 96; in one segment of addresses 60."""
    for conf, reserved in ((None, 96), (EXPANDABLE, 60)):
        allocator = CachingAllocator(conf=conf)
        for block in sizes(allocator, 12, 12, 12, 12):
            allocator.release(block)
        allocator.allocate(48 * MIB)
        assert allocator.pool().reserved == reserved * MIB


def test_a_full_device_unmaps_the_pages_that_are_free_and_no_others():
    allocator = CachingAllocator(capacity=60 * MIB, conf=EXPANDABLE)
    first, _ = sizes(allocator, 25, 15)  # 0 to 25 and 25 to 40, two pages
    allocator.release(first)
    # 30 need two pages at the end; the page from 0 to 20 is given back for them, and 20 to 25 stay.
    assert allocator.allocate(30 * MIB).address == 40 * MIB
    assert (allocator.reserved, allocator.free) == (60 * MIB, 15 * MIB)
    with pytest.raises(OutOfMemory):  # 0 to 25 are free addresses; there is no page for them
        allocator.allocate(25 * MIB)


def test_a_hole_is_mapped_again_before_the_segment_grows():
    allocator = CachingAllocator(capacity=200 * MIB, conf=EXPANDABLE)
    first, _, _ = sizes(allocator, 40, 20, 100)
    allocator.release(first)
    (third,) = sizes(allocator, 50)  # three pages at the end; the two of `first` go back for them
    (fourth,) = sizes(allocator, 20)  # one page, in the hole of 40
    assert [block.address // MIB for block in (fourth, third)] == [0, 160]
    assert allocator.reserved == 200 * MIB


def test_blocks_from_max_split_size_on_stay_whole():
    allocator = CachingAllocator(conf=AllocConf(max_split_size=32 * MIB))
    (large,) = sizes(allocator, 60)
    allocator.release(large)
    sizes(allocator, 12)  # does not begin it
    assert allocator.reserved == 72 * MIB
    (again,) = sizes(allocator, 44)  # takes it whole: 16 MiB more are less than 20
    assert (again.size, allocator.reserved) == (60 * MIB, 72 * MIB)
    allocator.release(again)
    sizes(allocator, 40)  # 20 MiB more are not
    assert allocator.reserved == 112 * MIB


def test_a_full_device_gives_back_one_block_that_may_not_be_split():
    allocator = CachingAllocator(100 * MIB, AllocConf(max_split_size=32 * MIB))
    for block in sizes(allocator, 60, 12):
        allocator.release(block)
    sizes(allocator, 30)  # the 60 go, the 12 stay
    assert allocator.reserved == 42 * MIB


def test_garbage_collection_gives_back_what_has_been_free_for_longest():
    conf = AllocConf(garbage_collection_threshold=0.5)
    allocator = CachingAllocator(100 * MIB, conf)
    old, new = sizes(allocator, 30, 24)
    allocator.release(old)
    sizes(allocator, 12)  # 30 MiB, of which 18 are split off: no longer whole
    allocator.release(new)
    sizes(allocator, 40)  # 54 of 100 are more than the half: the 24 go
    assert allocator.reserved == 70 * MIB


@pytest.mark.parametrize(
    ("text", "size", "taken"),
    [
        ("roundup_power2_divisions:4", 1200 * MIB, 1280 * MIB),  # the documentation's example
        ("roundup_power2_divisions:4", 1024 * MIB, 1024 * MIB),
        ("roundup_power2_divisions:4", 2048, 2048),  # up to 512 × 4 as without
        ("roundup_power2_divisions:4", 2049, 2560),
        ("roundup_power2_divisions:[256:1,512:2,1024:4,>:8]", 300 * MIB + 1, 300 * MIB + 512),
        ("roundup_power2_divisions:[256:1,512:2,1024:4,>:8]", 600 * MIB, 768 * MIB),
        ("roundup_power2_divisions:[256:1,512:2,1024:4,>:8]", 2100 * MIB, 2304 * MIB),
        ("", 2049, 2560),
    ],
)
def test_requests_rounded_towards_the_next_power_of_two(text, size, taken):
    assert parse_alloc_conf(text).round(size) == taken


def test_settings_are_read_as_pytorch_reads_them():
    text = "expandable_segments:True, max_split_size_mb:512,garbage_collection_threshold:0.8"
    assert parse_alloc_conf(text) == AllocConf(True, 512 * MIB, 20 * MIB, 0.8)
    assert parse_alloc_conf("") == AllocConf()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("expandable_segments", "'expandable_segments' is no expandable_segments; give True"),
        ("expandable_segments:true", "give True or False"),
        ("max_split_size_mb:19", "at least 20"),
        ("max_split_size_mb:1e3", "whole MiB"),
        ("garbage_collection_threshold:1", "between 0 and 1"),
        ("garbage_collection_threshold:nan", "between 0 and 1"),
        ("roundup_power2_divisions:3", "power of two"),
        ("roundup_power2_divisions:[256:1", "power of two"),
        ("backend:cudaMallocAsync", "'backend' is not modelled; known are expandable_segments"),
        ("expandable_segments:True,", "'' is not modelled"),
    ],
)
def test_settings_that_pytorch_would_refuse_or_that_are_not_modelled(text, message):
    with pytest.raises(UserError, match="--alloc-conf: ") as refusal:
        parse_alloc_conf(text)
    assert message in str(refusal.value)


def test_the_environment_counts_where_nothing_is_typed(monkeypatch):
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    assert alloc_conf_text(None) == "max_split_size_mb:64"
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    assert alloc_conf_text(None) == "expandable_segments:True"
    assert alloc_conf_text("") == ""


@pytest.mark.parametrize(
    "conf", [AllocConf(), EXPANDABLE, AllocConf(max_split_size=20 * MIB)], ids=str
)
@pytest.mark.parametrize("capacity", [None, 4 * GIB])
def test_nothing_overlaps_and_nothing_is_lost(conf, capacity):
    """A long random history against the plainest book-keeping."""
    rng = random.Random(0)
    allocator, live = CachingAllocator(capacity, conf), []
    refused = 0
    for _ in range(5000):
        if live and rng.random() < 0.5:
            allocator.release(live.pop(rng.randrange(len(live))))
        else:
            try:
                live.append(allocator.allocate(int(2 ** rng.uniform(0, 28))))
            except OutOfMemory:
                refused += 1
        assert allocator.allocated == sum(block.size for block in live)
        assert allocator.allocated + allocator.free == allocator.reserved
        assert capacity is None or allocator.reserved <= capacity
    spans = sorted((block.address, block.address + block.size) for block in live)
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(spans))
    for block in live:
        allocator.release(block)
    assert allocator.allocated == 0
    assert allocator.free == allocator.reserved
