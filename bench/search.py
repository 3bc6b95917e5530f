"""The largest whole number that fits, found with few evaluations."""

from collections.abc import Callable


def largest_that_fits(
    need: Callable[[int], int], limit: int, start: int, power: int = 1, most: int = 65536
) -> int:
    """The largest n in 1 … `most` with need(n) <= limit < need(n + 1); 0 if need(1) > limit.

    Bisection between a number that fits and one that does not, but where the line through the two
    last evaluations says the limit is met: `need` is nearly a + b · n**power, so that most searches
    end after four evaluations. Each is exact: the line only says where to look.

    Args:
        need: bytes, growing with n.
        start: where to look first.
    """
    fits, exceeds = 0, most + 1
    known: list[tuple[int, int]] = []
    guess = min(max(1, start), most)
    while exceeds - fits > 1:
        needed = need(guess)
        known.append((guess**power, needed))
        if needed <= limit:
            fits = guess
        else:
            exceeds = guess
        guess = min(max(_next_guess(known, limit, power, start), fits + 1), exceeds - 1)
        if len(known) > 6:  # the line leads nowhere
            guess = (fits + exceeds) // 2 if exceeds <= most else min(2 * fits, most)
    return fits


def _next_guess(known: list[tuple[int, int]], limit: int, power: int, start: int) -> int:
    if len(known) == 1:
        return 2 * start if known[0][1] <= limit else 1
    (x1, y1), (x2, y2) = known[-2:]
    if y1 == y2:
        return 2 * start
    meets = x1 + (limit - y1) * (x2 - x1) / (y2 - y1)
    return int(max(0.0, meets) ** (1 / power) + 1e-9)
