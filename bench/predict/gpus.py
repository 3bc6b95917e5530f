"""Memory of common cards, for `fit --gpu`.

Card makers write GB for 2³⁰ bytes of installed memory. Driver and firmware keep some of it,
which the margin of `fit` has to cover.
"""

from dataclasses import dataclass

from ..errors import UserError
from ..sizes import GIB


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_bytes: int
    source: str
    """Where the maker says so."""


_NVIDIA = "https://www.nvidia.com/en-us"
_GEFORCE = f"{_NVIDIA}/geforce/graphics-cards"

GPUS = {
    "rtx3090": Gpu("GeForce RTX 3090", 24 * GIB, f"{_GEFORCE}/30-series/rtx-3090-3090ti/"),
    "rtx4090": Gpu("GeForce RTX 4090", 24 * GIB, f"{_GEFORCE}/40-series/rtx-4090/"),
    "rtx5090": Gpu("GeForce RTX 5090", 32 * GIB, f"{_GEFORCE}/50-series/rtx-5090/"),
    "a4000": Gpu("RTX A4000", 16 * GIB, f"{_NVIDIA}/design-visualization/rtx-a4000/"),
    "a5000": Gpu("RTX A5000", 24 * GIB, f"{_NVIDIA}/design-visualization/rtx-a5000/"),
    "a6000": Gpu("RTX A6000", 48 * GIB, f"{_NVIDIA}/design-visualization/rtx-a6000/"),
    "v100-16gb": Gpu("Tesla V100 16 GB", 16 * GIB, f"{_NVIDIA}/data-center/v100/"),
    "v100-32gb": Gpu("Tesla V100 32 GB", 32 * GIB, f"{_NVIDIA}/data-center/v100/"),
    "a100-40gb": Gpu("A100 40 GB", 40 * GIB, f"{_NVIDIA}/data-center/a100/"),
    "a100-80gb": Gpu("A100 80 GB", 80 * GIB, f"{_NVIDIA}/data-center/a100/"),
    "h100": Gpu("H100 80 GB", 80 * GIB, f"{_NVIDIA}/data-center/h100/"),
}


def find_gpu(name: str) -> Gpu:
    """The card of this name; UserError with the known ones for another."""
    key = name.lower().replace("_", "-").replace(" ", "-")
    if key not in GPUS:
        raise UserError(f"--gpu {name}: unknown; known are {', '.join(GPUS)}; or give --memory")
    return GPUS[key]
