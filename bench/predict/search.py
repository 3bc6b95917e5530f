"""The largest whole number that fits, found with few evaluations."""

from collections.abc import Callable


def largest_that_fits(
    need: Callable[[int], int],
    limit: int,
    start: int,
    power: int = 1,
    most: int = 65536,
) -> int:
    """The largest n in 1 … `most` with need(n) <= limit < need(n + 1); 0 if need(1) > limit.

    Bisection between a number that fits and one that does not, but where the line through the two
    last evaluations says that the limit is met: `need` is nearly a + b · n**power, so that most
    searches end after four evaluations. The line only says where to look.

    Args:
        need: bytes, growing with n.
        start: where to look first.
    """
    fits, exceeds = 0, most + 1
    known: list[tuple[int, int]] = []
    guess = min(max(1, start), most)
    while exceeds - fits > 1:
        needed = need(guess)
        fit = needed <= limit
        known.append((guess**power, needed))
        if fit:
            fits = guess
        else:
            exceeds = guess
        if len(known) > 6 and exceeds <= most:  # the line leads nowhere
            guess = (fits + exceeds) // 2
        else:
            guess = _where_the_line_meets(known, limit, power) or (2 * start if fit else 1)
        guess = min(max(guess, fits + 1), exceeds - 1)
    return fits


def _where_the_line_meets(known: list[tuple[int, int]], limit: int, power: int) -> int | None:
    if len(known) < 2 or known[-1][1] == known[-2][1]:
        return None
    (x1, y1), (x2, y2) = known[-2:]
    meets = x1 + (limit - y1) * (x2 - x1) / (y2 - y1)
    return int(max(0.0, meets) ** (1 / power) + 1e-9)
