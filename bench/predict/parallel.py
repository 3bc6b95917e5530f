"""Independent predictions side by side: a core each."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..errors import UserError
from ..harness.process import die_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    function: Callable[[Item], Result], items: Sequence[Item], console: Console, title: str
) -> list[Result]:
    """As `in_processes`, while a bar counts those that are done."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=len(items))
        return list(in_processes(function, items, lambda: progress.advance(task)))


def in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    done: Callable[[], None] = lambda: None,
) -> Iterator[Result]:
    """`map`, with a process per core; results in order. Importing torch in each takes seconds.

    `done` is called as soon as an item is, in whatever order. UserError where a process was killed.
    """
    workers = min(len(items), _cores())
    if workers <= 1:
        for item in items:
            yield function(item)
            done()
        return
    context = multiprocessing.get_context("spawn")  # a forked torch may hang in its thread pools
    parent = (os.getpid(),)
    try:
        with ProcessPoolExecutor(workers, context, die_with_parent, parent) as pool:
            futures = [pool.submit(function, item) for item in items]
            for future in futures:
                future.add_done_callback(lambda _: done())
            try:
                for future in futures:
                    yield future.result()
            finally:
                for future in futures:
                    future.cancel()
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
