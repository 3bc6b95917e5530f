"""Independent predictions side by side: a core each."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from ..errors import UserError
from ..harness.process import die_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """`map`, with a process per core; results in order. Importing torch in each takes seconds.

    UserError where one of them was killed.
    """
    workers = min(len(items), _cores())
    if workers <= 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")  # a forked torch may hang in its thread pools
    parent = (os.getpid(),)
    try:
        with ProcessPoolExecutor(workers, context, die_with_parent, parent) as pool:
            yield from pool.map(function, items)
    except BrokenProcessPool:
        raise UserError(
            f"one of the {workers} processes that predict was ended from outside, perhaps by the "
            "kernel for want of memory; run this again"
        ) from None


def _cores() -> int:
    """Of this machine, those that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
