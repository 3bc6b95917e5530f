"""Reading the sampled probes at a steady rate while something else runs."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from ..errors import last_line
from ..records.rows import Measurement, Polling, Reading
from . import SampledProbe


@contextmanager
def polling(
    probes: list[SampledProbe], hertz: float, send: Callable[..., None]
) -> Iterator[list[Measurement]]:
    """Read the probes at a steady rate in a thread; what they measured is in the list at the end.

    A probe that fails is left out from then on, with a warning: measuring must not end a trial.

    Args:
        send: is given each reading, as `send("sample", **columns of samples.csv)`; it may raise
            BrokenPipeError when the parent has ended.
    """
    stop = threading.Event()
    working = list(probes)
    lateness: list[float] = []
    found: list[Measurement] = []

    def failed(probe: SampledProbe, at: str, error: Exception) -> None:
        working.remove(probe)
        text = f"{type(probe).__name__} failed at {at}: {last_line(error)}"
        found.append(Measurement(warnings=(text,)))

    def read() -> None:
        sample = {"elapsed_s": time.perf_counter() - started}
        for probe in list(working):
            try:
                reading: Reading = probe.sample()
            except Exception as error:
                failed(probe, "sample", error)
                continue
            sample |= {name: value for name, value in asdict(reading).items() if value is not None}
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
        try:
            probe.start()
        except Exception as error:
            failed(probe, "start", error)
    started = time.perf_counter()
    thread = threading.Thread(target=repeat, name="probes", daemon=True)
    read()
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
        elapsed = time.perf_counter() - started
        read()
        for probe in reversed(list(working)):
            try:
                found.append(probe.stop())
            except Exception as error:
                failed(probe, "stop", error)
        if lateness:
            found.append(steadiness(lateness, elapsed, hertz))


def steadiness(lateness: list[float], elapsed: float, hertz: float) -> Polling:
    """How steady the polling was, from how late each reading came."""
    found = Polling(sample_late_p95_s=percentile_95(lateness))
    periods = len(lateness)
    if periods >= 10:  # fewer say little about a rate
        found.sample_rate_hz = rate = periods / elapsed
        if rate < 0.9 * hertz and elapsed - periods / hertz > 1 / hertz:
            found.warnings = (f"sampled at {rate:.3g} Hz, not at {hertz:g} Hz",)
    return found


def percentile_95(values: list[float]) -> float:
    """By nearest rank."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]
