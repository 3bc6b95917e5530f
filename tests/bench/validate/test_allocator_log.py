"""A card's log, played through our model of its allocator, and read for what is no tensor."""

import csv
import gzip
import random

from bench.predict.allocator import CachingAllocator
from bench.probes.cost import Operator
from bench.probes.memory import Change, Part, Storage
from bench.validate.allocator_log import LogEntry, replay, save_log, scratch_of

MIB = 2**20


def log_of(requests: int, seed: int, empty_at: int | None = None) -> list[LogEntry]:
    """What a card would log whose allocator is as ours, but whose segments lie anywhere."""
    rng = random.Random(seed)
    places = [2**40 + 2**33 * k for k in rng.sample(range(1000), 1000)]

    class Card(CachingAllocator):
        def _new_addresses(self, blocks, size, mapped):
            self._next_address = places.pop()
            log.append(LogEntry("segment_alloc", size, self._next_address))
            return super()._new_addresses(blocks, size, mapped)

        def _give_back(self, segment):
            log.append(LogEntry("segment_free", segment.size, segment.address))
            super()._give_back(segment)

    log: list[LogEntry] = []
    card, alive = Card(), []

    def release(block):
        log.append(LogEntry("free_completed", block.size, block.address))
        card.release(block)

    for number in range(requests):
        if number == empty_at:
            for block in alive:
                release(block)
            alive.clear()
            card.empty_cache()
        elif alive and rng.random() < 0.45:
            release(alive.pop(rng.randrange(len(alive))))
        else:
            size = rng.choice((700, 200_000, 3 * MIB, 11 * MIB, 11 * MIB, 64 * MIB))
            block = card.allocate(size)
            log.append(LogEntry("alloc", size, block.address))
            alive.append(block)
    return log


def test_a_replay_holds_what_the_card_holds_wherever_its_segments_lie():
    for seed in range(5):
        found = replay(log_of(2000, seed))
        assert found.differences == 0, found.first
        assert found.reserved > 64 * MIB


def test_a_replay_follows_when_the_cache_is_emptied():
    assert replay(log_of(2000, 7, empty_at=1000)).differences == 0


def test_a_replay_says_where_the_card_does_otherwise():
    log = log_of(50, 1)
    index = next(i for i, entry in enumerate(log) if entry.action == "segment_alloc")
    log[index] = log[index]._replace(size=log[index].size + 2 * MIB)
    found = replay(log)
    assert found.differences > 0
    assert found.first is not None
    assert found.first.startswith("entry 1, ")


class FollowedStep:
    """What `scratch_of` reads of a probe: two operators, two results."""

    trace = (
        Operator("aten.convolution.default", "a", 0, 0, False),
        Operator("aten.add.Tensor", "", 0, 0, False),
    )
    marks = (1, 3, 4)
    changes = (
        Change(Storage(600, Part.ACTIVATION, "aten.convolution.default"), 600, 1),
        Change(Storage(MIB, Part.ACTIVATION, "aten.add.Tensor"), MIB, 2),
    )


def test_scratch_is_what_became_no_tensor():
    log = [
        LogEntry("alloc", 512, 0),  # before the step
        LogEntry("alloc", 1024, 1),  # the result, rounded
        LogEntry("alloc", 3 * MIB, 2),  # the workspace
        LogEntry("free_completed", 3 * MIB, 2),
        LogEntry("alloc", MIB, 3),
    ]
    found = scratch_of(FollowedStep(), log)  # type: ignore[arg-type]
    assert found.most == 3 * MIB
    assert found.found == ("1 × 3.00 MiB in aten.convolution.default of a",)


def test_a_log_is_kept_whole(tmp_path):
    log = log_of(20, 3)
    save_log(tmp_path / "log.csv.gz", log)
    with gzip.open(tmp_path / "log.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["action", "size", "address"]
    assert [(action, int(size), int(address)) for action, size, address in rows[1:]] == log
