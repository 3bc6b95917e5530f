"""The caching allocator's settings, as PYTORCH_ALLOC_CONF gives them.

    expandable_segments:True,max_split_size_mb:512,garbage_collection_threshold:0.8

The keys that change how much memory is held are understood; any other is refused, because a
prediction that ignored it would be of another allocator.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import UserError

MIB = 2**20
ROUND = 512
LARGE_SEGMENT = 20 * MIB
_INTERVALS = 16
"""Of sizes, from 1 MiB to 64 GiB, each twice as large as the one before."""

VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The first that is set counts, as in PyTorch."""


@dataclass(frozen=True)
class AllocConf:
    """Bytes are bytes; None: no limit."""

    expandable_segments: bool = False
    max_split_size: int | None = None
    """Blocks of at least so much are not split, and serve requests of nearly their size alone."""
    max_non_split_rounding: int = LARGE_SEGMENT
    """A block that may not be split may be larger than the request by less than this."""
    garbage_collection_threshold: float | None = None
    """Share of the capacity above which blocks that have long been free are given back."""
    roundup_power2_divisions: tuple[int, ...] = (0,) * _INTERVALS
    """For each interval: parts of the way to the next power of two, as steps to round up to."""

    def round(self, size: int) -> int:
        """What a request of `size` bytes takes."""
        interval = min(max(size.bit_length() - 1 - 20, 0), _INTERVALS - 1)
        divisions = self.roundup_power2_divisions[interval]
        if divisions > 1 and size > ROUND * divisions:
            return round_up(size, 2 ** (size.bit_length() - 1) // divisions)
        return max(ROUND, round_up(size, ROUND))


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def alloc_conf_text(given: str | None) -> str:
    """What was typed, or else the environment's: "" for PyTorch's defaults."""
    if given is not None:
        return given
    return next((os.environ[name] for name in VARIABLES if os.environ.get(name)), "")


def parse_alloc_conf(text: str, where: str = "--alloc-conf") -> AllocConf:
    """UserError for a key or a value that PyTorch would refuse, or that is not modelled."""
    found: dict[str, Any] = {}
    for item in _items(text.replace(" ", "")):
        key, colon, value = item.partition(":")
        if key not in _READERS:
            raise UserError(f"{where}: {key!r} is not modelled; known are {', '.join(_READERS)}")
        name, read = _READERS[key]
        try:
            if not colon:
                raise ValueError
            found[name] = read(value)
        except ValueError:
            raise UserError(f"{where}: {item!r} is no {key}; {_EXAMPLES[key]}") from None
    return AllocConf(**found)


def _items(text: str) -> Iterator[str]:
    """Parts between commas, but for those in brackets."""
    item, depth = "", 0
    for character in text:
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == "," and not depth:
            yield item
            item = ""
        else:
            item += character
    if text:
        yield item


def _true_or_false(text: str) -> bool:
    return text == "True" if text in ("True", "False") else _refuse()


def _mebibytes(text: str) -> int:
    size = int(text) * MIB
    return size if size >= LARGE_SEGMENT else _refuse()


def _share(text: str) -> float:
    share = float(text)
    return share if 0 < share < 1 else _refuse()


def _divisions(text: str) -> tuple[int, ...]:
    """`4`, or `[256:1,512:2,1024:4,>:8]`: sizes in MiB, each the start of an interval.

    The first entry also counts for all below it, `>` for the last interval named and all above.
    """
    if not text.startswith("["):
        return (_power_of_two(text),) * _INTERVALS
    if not text.endswith("]"):
        _refuse()
    divisions, last = [0] * _INTERVALS, None
    for entry in text[1:-1].split(","):
        start, _, value = entry.partition(":")
        count = int(value) and _power_of_two(value)
        if start == ">":
            divisions[last or 0 :] = [count] * (_INTERVALS - (last or 0))
            continue
        interval = min(_power_of_two(start).bit_length() - 1, _INTERVALS - 1)
        if last is None:
            divisions[:interval] = [count] * interval
        divisions[interval], last = count, interval
    return tuple(divisions)


def _power_of_two(text: str) -> int:
    number = int(text)
    return number if number > 0 and number.bit_count() == 1 else _refuse()


def _refuse() -> Any:
    raise ValueError


_READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "expandable_segments": ("expandable_segments", _true_or_false),
    "max_split_size_mb": ("max_split_size", _mebibytes),
    "max_non_split_rounding_mb": ("max_non_split_rounding", _mebibytes),
    "garbage_collection_threshold": ("garbage_collection_threshold", _share),
    "roundup_power2_divisions": ("roundup_power2_divisions", _divisions),
}
_EXAMPLES = {
    "expandable_segments": "give True or False",
    "max_split_size_mb": "give whole MiB, at least 20",
    "max_non_split_rounding_mb": "give whole MiB, at least 20",
    "garbage_collection_threshold": "give a number between 0 and 1",
    "roundup_power2_divisions": "give a power of two, or [256:1,512:2,>:8]",
}
