"""Reading the sampled probes at a steady rate while something else runs."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.errors import last_line
from bench.probes import Columns, SampledProbe, add_columns


@contextmanager
def sampling(
    probes: list[SampledProbe], hertz: float, send: Callable[..., None], columns: Columns
) -> Iterator[None]:
    """Read the probes at a steady rate in a thread; `columns` has theirs at the end.

    A probe that fails is left out from then on, with a warning: measuring must not end a trial.

    Args:
        send: is given each reading, as `send("sample", **columns of samples.csv)`; it may raise
            BrokenPipeError when nobody listens any more.
    """
    stop = threading.Event()
    working = list(probes)
    lateness: list[float] = []

    def ask(probe: SampledProbe, question: str) -> Columns:
        try:
            return getattr(probe, question)() or {}
        except Exception as error:
            working.remove(probe)
            name = type(probe).__name__
            add_columns(columns, {"warnings": [f"{name} failed at {question}: {last_line(error)}"]})
            return {}

    def read() -> None:
        sample: Columns = {"elapsed_s": time.perf_counter() - started}
        for probe in list(working):
            sample |= ask(probe, "sample")
        send("sample", **sample)

    def repeat() -> None:
        due = started
        while True:
            due += 1 / hertz  # from a fixed grid, so that delays do not add up
            if stop.wait(max(0.0, due - time.perf_counter())):
                return
            lateness.append(time.perf_counter() - due)
            try:
                read()
            except BrokenPipeError:  # the parent is gone; the training loop will notice too
                return

    for probe in probes:
        ask(probe, "start")
    started = time.perf_counter()
    thread = threading.Thread(target=repeat, name="probes", daemon=True)
    read()
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        elapsed = time.perf_counter() - started
        read()
        for probe in reversed(list(working)):
            add_columns(columns, ask(probe, "stop"))
        if lateness:
            add_columns(columns, sampling_columns(lateness, elapsed, hertz))


def sampling_columns(lateness: list[float], elapsed: float, hertz: float) -> Columns:
    """How steady the sampling was, from how late each reading came."""
    columns: Columns = {"sample_late_p95_s": percentile_95(lateness)}
    periods = len(lateness)
    if periods >= 10:  # fewer say little about a rate
        columns["sample_rate_hz"] = rate = periods / elapsed
        if rate < 0.9 * hertz and elapsed - periods / hertz > 1 / hertz:
            columns["warnings"] = [f"sampled at {rate:.3g} Hz, not at {hertz:g} Hz"]
    return columns


def percentile_95(values: list[float]) -> float:
    """By nearest rank."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]
