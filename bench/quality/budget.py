"""The widest network of a method that trains in so much memory.

All widths of the preset are scaled by a common factor, so that the network keeps its shape. Which
factors there are follows from the method: every level must be able to divide its width (an
invertible network sends an eighth of a level's channels down, a group norm has groups). What a
width needs is predicted (`bench.predict`), to the byte, and not measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from ..errors import UserError
from ..methods import METHODS
from ..predict import Device, predict_method
from ..predict.fake import FaithfulFakeMode, faking
from ..predict.search import largest_that_fits
from ..presets import Workload
from ..sizes import show_size

FINEST_STEP = 8
"""Channels at the level of which the others are multiples: fewer would leave the group norms of
some widths with a single group, which is another network."""
_WIDEST = 4096  # channels there; what is wider is no question of memory


@dataclass(frozen=True)
class Question:
    method: str
    work: Workload
    """Whose channels are scaled."""
    device: Device
    """That it trains on."""
    limit: int
    """Bytes that one training step may have alive at a time."""


@dataclass(frozen=True)
class Width:
    channels: tuple[int, ...]
    peak_memory_bytes: int
    """Predicted, of one whole training step."""
    next_channels: tuple[int, ...]
    next_peak_memory_bytes: int
    """Of the next wider network, which does not fit."""


def widest(question: Question) -> Width:
    """UserError where not even the narrowest network fits."""
    method, work = METHODS[question.method], question.work
    step = width_step(question)

    def scaled(count: int) -> Workload:
        return replace(work, channels=scale(work.channels, count * step))

    @cache
    def peak(count: int) -> int:
        work = scaled(count)
        found = predict_method(method, work, device=question.device, count_forward=False)
        return found.peak_memory_bytes

    start = math.gcd(*work.channels) // step
    # Weights grow with the square of the widths, and so does what an optimizer keeps of them.
    count = largest_that_fits(peak, question.limit, start, power=2, most=_WIDEST // step)
    if not count:
        narrowest = " ".join(map(str, scaled(1).channels))
        raise UserError(
            f"--budget: {show_size(question.limit)} are not enough for {method.name}, which needs "
            f"{show_size(peak(1))} even with channels {narrowest}"
        )
    wider = scaled(count + 1)
    return Width(scaled(count).channels, peak(count), wider.channels, peak(count + 1))


def scale(channels: Sequence[int], unit: int) -> tuple[int, ...]:
    """The widths in the same ratio to each other, with `unit` as their greatest common divisor."""
    divisor = math.gcd(*channels)
    return tuple(width // divisor * unit for width in channels)


def width_step(question: Question) -> int:
    """Every multiple of this can be the greatest common divisor of the method's widths."""
    method, work = METHODS[question.method], question.work
    step = min(FINEST_STEP, math.gcd(*work.channels))
    while True:
        try:
            with faking(FaithfulFakeMode()):
                for odd in (1, 3):  # so that it is not a larger power of 2 that makes it work
                    method.build(replace(work, channels=scale(work.channels, odd * step)))
            return step
        except ValueError as error:
            step *= 2
            if step > _WIDEST:
                widths = " ".join(map(str, work.channels))
                raise UserError(
                    f"--channels {widths}: {method.name} has no network: {error}"
                ) from None
