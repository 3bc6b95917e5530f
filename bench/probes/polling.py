"""Reading the sampled probes at a steady rate while something else runs."""

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from ..errors import last_line
from ..records.rows import Measurement, Polling, Reading
from . import SampledProbe, Span

_PATIENCE_S = 30.0


@contextmanager
def polling(
    probes: list[SampledProbe],
    hertz: float,
    send: Callable[..., None],
    window: Span | None = None,
) -> Iterator[list[Measurement]]:
    """Read the probes at a steady rate in a thread; what they measured is in the list at the end.

    The probe that comes last starts last and is read first, also when the window ends: what a slow
    reading costs falls on the others. No reading of all probes comes between a start and the
    window, and one that is under way when the window ends is cut short.

    A probe that fails is left out from then on, with a warning: measuring must not end a trial. So
    is one whose reading does not come back (a driver that hangs) half a minute after the window.

    Args:
        send: is given each reading, as `send("sample", **columns of samples.csv)`; it may raise
            BrokenPipeError when the parent has ended.
        window: what the probes shall measure. Whoever knows its ends better sets them in the body;
            otherwise it is the body.
    """
    window = window if window is not None else Span()
    stop = threading.Event()
    working = list(probes)
    lateness: list[float] = []
    durations: dict[str, list[float]] = defaultdict(list)
    found: list[Measurement] = []

    def failed(probe: SampledProbe, at: str, error: Exception) -> None:
        working.remove(probe)
        text = f"{type(probe).__name__} failed at {at}: {last_line(error)}"
        found.append(Measurement(warnings=(text,)))

    def finish(probe: SampledProbe, sample: dict[str, Any]) -> None:
        sample |= read(probe)
        if probe not in working:
            return
        try:
            found.append(probe.stop(window))
        except Exception as error:
            failed(probe, "stop", error)

    def read(probe: SampledProbe) -> dict[str, Any]:
        begin = time.perf_counter()
        try:
            reading: Reading = probe.sample()
        except Exception as error:
            failed(probe, "sample", error)
            return {}
        durations[type(probe).__name__].append(time.perf_counter() - begin)
        return {name: value for name, value in asdict(reading).items() if value is not None}

    def read_all() -> None:
        sample = {"elapsed_s": time.perf_counter() - started}
        for probe in reversed(list(working)):
            if stop.is_set():
                break
            sample |= read(probe)
        send("sample", **sample)

    def repeat() -> None:
        due = started
        try:
            read_all()
            while True:
                due += 1 / hertz  # from a fixed grid, so that delays do not add up
                if stop.wait(max(0.0, due - time.perf_counter())):
                    return
                lateness.append(time.perf_counter() - due)
                read_all()
        except BrokenPipeError:  # the parent is gone; the training loop will notice too
            return

    for probe in probes:
        try:
            probe.start()
        except Exception as error:
            failed(probe, "start", error)
    started = window.begin = time.perf_counter()
    thread = threading.Thread(target=repeat, name="probes", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        if window.end == math.inf:
            window.end = time.perf_counter()
        stop.set()
        thread.join(_PATIENCE_S)
        sample = {"elapsed_s": time.perf_counter() - started}
        for probe in reversed(list(working)):
            end = threading.Thread(target=finish, args=(probe, sample), daemon=True)
            end.start()
            end.join(_PATIENCE_S)
            if end.is_alive():
                hangs = TimeoutError(f"no answer for {_PATIENCE_S:g} s")
                failed(probe, "stop", hangs)
        found.append(steadiness(lateness, window.end - started, hertz, durations))
        send("sample", **sample)


def steadiness(
    lateness: Sequence[float],
    elapsed: float,
    hertz: float,
    durations: Mapping[str, Sequence[float]] | None = None,
) -> Polling:
    """How steady the polling was, from how late each reading after the first came.

    Args:
        lateness, elapsed: seconds.
        durations: of each probe's readings, in seconds, by its name.
    """
    found = Polling(sample_late_p95_s=percentile_95(lateness) if lateness else None)
    periods = len(lateness)
    if elapsed * hertz < 10:  # so short a stretch says little about a rate
        return found
    found.sample_rate_hz = rate = periods / elapsed
    if rate < 0.9 * hertz and elapsed - periods / hertz > 1 / hertz:
        found.warnings = (f"sampled at {rate:.3g} Hz, not at {hertz:g} Hz{_slowest(durations)}",)
    return found


def _slowest(durations: Mapping[str, Sequence[float]] | None) -> str:
    means = {name: sum(each) / len(each) for name, each in (durations or {}).items() if each}
    if not means:
        return ""
    name = max(means, key=means.__getitem__)
    return f": a reading of {name} takes {means[name]:.2g} s"


def percentile_95(values: Sequence[float]) -> float:
    """By nearest rank."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]
