"""Every window begins with the device as warm as in the first one, in a trial that is warmed up.

The trial itself waits, right before its window. Its CUDA context exists by then, and so it did when
the first trial's temperature was taken: a card without one rests colder, and may never come back
to that between trials.
"""

import time
from collections.abc import Callable

NEAR_C = 2.0
"""Windows begin at most so many degrees Celsius warmer than the first."""
_LOOK_BACK_S = 20.0
_RESOLUTION_C = 1.0  # a card tells whole degrees


def cool_down(
    read: Callable[[], float | None],
    target_c: float,
    longest_s: float,
    tell: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Wait until the device is within 2 °C of `target_c`, or colder; warnings where it is not.

    Cooling becomes slower and slower. So what the device would not reach within `longest_s` at the
    rate of the last 20 s, it will not reach at all, and the wait ends then.
    """
    begin, seen = clock(), list[tuple[float, float]]()
    while True:
        now, waited = read(), clock() - begin
        if now is None:
            return ["temperature cannot be read: no wait for the device to cool"]
        if now <= target_c + NEAR_C:
            break
        seen.append((waited, now))
        if should_stop() or not _comes_down(seen, target_c + NEAR_C, longest_s):
            break
        tell(f"cooling from {seen[0][1]:.0f} to {target_c:.0f} °C: {now:.0f} °C")
        sleep(1.0)
    if abs(now - target_c) <= NEAR_C:
        return []
    side = "above" if now > target_c else "below"
    return [
        f"started at {now:.0f} °C, {abs(now - target_c):.0f} °C {side} the first trial's start, "
        f"after a wait of {waited:.0f} s (--cooldown {longest_s:g})"
    ]


def _comes_down(seen: list[tuple[float, float]], goal_c: float, longest_s: float) -> bool:
    """Whether it can reach the goal in time, by readings (seconds waited, degrees Celsius)."""
    waited, now = seen[-1]
    before = [pair for pair in seen if pair[0] <= waited - _LOOK_BACK_S]
    if waited >= longest_s or not before:
        return waited < longest_s
    then, warmer = before[-1]
    rate = (warmer - now + _RESOLUTION_C) / (waited - then)  # at most
    return rate * (longest_s - waited) >= now - goal_c - _RESOLUTION_C


def how_long(windows_s: list[float | None], cooldown_s: float) -> str:
    """How long trials take at most, for a person who waits.

    Args:
        windows_s: length of each window; None where it is measured in steps.
        cooldown_s: longest wait before each but the first.
    """
    count = len(windows_s)
    trials = f"{count} trials" if count > 1 else "1 trial"
    known = [seconds for seconds in windows_s if seconds is not None]
    windows = f"{sum(known) / 60:.3g} min of windows" if known else "windows of so many steps"
    cooling = cooldown_s * (count - 1) / 60
    waits = f", at most {cooling:.3g} min of cooling (--cooldown)" if cooling else ""
    return f"{trials}: {windows}{waits}, and the start and warm-up of each."
