"""Cards by name: memory, and the figures of an ideal card of that kind. They stand in cards.csv.

Memory is what the driver reports (nvidia-smi's total); where only the installed size is known,
`memory_source` says so. Card makers write GB for 2³⁰ bytes of installed memory; the driver's total
can be less (an H100's 80 GB are 79.65 GiB), and what CUDA gives to programs is less again
(79.19 GiB), which is `usable_bytes`. A context takes its part of that.

TFLOP/s are peaks with dense operands; those of 16 bits sum in float32, as PyTorch does. `source` is
where the maker gives them, `compared` the public texts that they were compared with:
docs/predict.md says which figures, and what differed.
"""

import csv
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from ..errors import UserError
from ..sizes import GIB

_TERA, _GIGA, _MIB = 10**12, 10**9, 2**20
_PCIE_BYTES_PER_LANE = {3: 0.985e9, 4: 1.969e9, 5: 3.938e9}
"""A second and direction, after the encoding of 128 in 130 bits (PCI Express 3.0 to 5.0)."""


@dataclass(frozen=True)
class Gpu:
    """None: the card has no such units (TF32, bfloat16), or nobody published the figure."""

    name: str
    memory_bytes: int
    """As the driver reports it."""
    usable_bytes: int
    """What CUDA can give out, "total capacity" in PyTorch's messages; else `memory_bytes`."""
    memory_source: str
    """Where the two were published."""
    bytes_per_s: float
    """Of its memory."""
    fp32: float
    """FLOP/s; the same for the three below."""
    tf32: float | None
    fp16: float | None
    bf16: float | None
    pcie_generation: int
    pcie_lanes: int
    source: str
    """Where the maker says so, memory aside."""

    @property
    def pcie_bytes_per_s(self) -> float:
        """To or from the host, one direction."""
        return _PCIE_BYTES_PER_LANE[self.pcie_generation] * self.pcie_lanes

    def flops_per_s(self, precision: str) -> float:
        """Of matrix products in `fp32`, `tf32`, `fp16`, `bf16`; fp32's where it has no units."""
        found = {"fp32": self.fp32, "tf32": self.tf32, "fp16": self.fp16, "bf16": self.bf16}
        return found[precision] or self.fp32


def _read(row: dict[str, str]) -> Gpu:
    def tera(kind: str) -> float | None:
        return float(row[f"{kind}_tflops"]) * _TERA if row[f"{kind}_tflops"] else None

    memory = int(row["memory_mib"]) * _MIB
    fp32 = tera("fp32")
    assert fp32 is not None
    return Gpu(
        name=row["product"],
        memory_bytes=memory,
        usable_bytes=int(float(row["usable_gib"]) * GIB) if row["usable_gib"] else memory,
        memory_source=row["memory_source"],
        bytes_per_s=float(row["bandwidth_gb_s"]) * _GIGA,
        fp32=fp32,
        tf32=tera("tf32"),
        fp16=tera("fp16"),
        bf16=tera("bf16"),
        pcie_generation=int(row["pcie_generation"]),
        pcie_lanes=int(row["pcie_lanes"]),
        source=row["source"],
    )


def _read_all(path: Path) -> dict[str, Gpu]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row["name"]: _read(row) for row in csv.DictReader(file)}


GPUS = _read_all(Path(__file__).with_name("cards.csv"))


def find_gpu(name: str) -> Gpu:
    """The card of this name, however it is spaced; UserError with the known ones for another."""
    names = {_squeezed(known): known for known in GPUS}
    key = _squeezed(name)
    if key in names:
        return GPUS[names[key]]
    near = [known for squeezed, known in names.items() if key and squeezed.startswith(key)]
    near = near or [names[match] for match in get_close_matches(key, names, n=3)]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(f"--gpu {name}: unknown; {hint}known are {', '.join(GPUS)}; or give --memory")


def _squeezed(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
