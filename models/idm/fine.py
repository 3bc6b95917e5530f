"""IDM with its couplings where the volume is fine: what learns most for its FLOPs (docs/idm.md).

Not the paper's network: the number of couplings halves from level to level, 4, 2, 1, 1, …, and
nothing attends. It trains, and is inverted, as IDM is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import PUBLISHED as PUBLISHED
from .lean import LeanIDM
from .network import IDM


def tapered(couplings: int, levels: int) -> tuple[int, ...]:
    """Couplings of each level, finest first: twice as many, and half of that at each next one."""
    return tuple(max(1, 2 * couplings >> level) for level in range(levels))


def build(
    *,
    in_channels: int = 1,
    channels: Sequence[int],
    couplings: int = 2,
    dims: int = 3,
    lean: bool = False,
    **options: Any,
) -> IDM:
    """The network by keywords, for registries.

    Args:
        couplings: per branch of the second level.
        lean: with the techniques of `LeanIDM`.
    """
    network = LeanIDM if lean else IDM
    tapering = tapered(couplings, len(channels))
    return network(in_channels, channels, tapering, attention_levels=0, dims=dims, **options)
