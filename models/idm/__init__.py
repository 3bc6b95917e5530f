"""IDM: the invertible diffusion model, and the reversible backward pass that it trains with."""

from collections.abc import Sequence
from typing import Any

from .network import IDM
from .padding import pad_to_multiple
from .reversible import ReconstructionError, Region, ReversibleSequential

__all__ = [
    "IDM",
    "PUBLISHED",
    "ReconstructionError",
    "Region",
    "ReversibleSequential",
    "build",
    "pad_to_multiple",
]

# The setting of the paper's experiments (§5.2).
PUBLISHED = {
    "volume": 64,
    "batch_size": 4,
    "channels": (64, 128, 256, 512, 1024, 2048),
    "couplings": 2,
    "precision": "fp32",
}


def build(
    *,
    in_channels: int = 1,
    channels: Sequence[int],
    couplings: int = 2,
    dims: int = 3,
    **options: Any,
) -> IDM:
    """An IDM by keywords, for registries: `partial(build, backward="stored")` is a method, too."""
    return IDM(in_channels, channels, couplings, dims=dims, **options)
