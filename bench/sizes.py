"""Sizes as people type and read them."""

import math
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from .errors import UserError

GIB = 2**30
MARGIN = "1GiB"
"""Of a card, kept free for what is no tensor: the CUDA context, cuDNN's workspaces."""
_UNITS = {
    "B": 1,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip


def parse_size(text: str, flag: str) -> int:
    """Bytes of "24GiB" (24 · 2³⁰), "24GB" (24 · 10⁹), "512MiB"; UserError for what is no size."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]+)\s*", text)
    unit = match and _UNITS.get(match[2].upper())
    if not match or not unit:
        raise UserError(
            f"{flag} {text}: not a size; give 24GiB (24 · 2³⁰ bytes), 24GB (24 · 10⁹) or 512MiB"
        )
    return int(float(match[1]) * unit)


class Shape:
    """Sides in voxels of a volume or a patch, D, H, W. A cube is written as, and equals, its side.

    `Shape("160x192x160")`, `Shape((160, 192, 160))`, `Shape(64) == Shape("64") == 64`. It is at
    least or at most as large as another, or as a number, if each of its sides is.

    Raises:
        ValueError: for what is no shape.
    """

    __slots__ = ("sides",)

    def __init__(self, sides: "Shape | int | str | Iterable[int]") -> None:
        if isinstance(sides, str):
            if not re.fullmatch(r"[0-9]{1,19}(x[0-9]{1,19}){2}|[0-9]{1,19}", sides):
                raise ValueError(f"{sides:.60}: not a shape; give 64 (a cube) or 160x192x160")
            sides = tuple(map(int, sides.split("x")))
        self.sides: tuple[int, ...] = (sides,) if isinstance(sides, int) else tuple(sides)
        if len(self.sides) == 1:
            self.sides *= 3
        if len(self.sides) != 3:
            raise ValueError(f"{'x'.join(map(str, self.sides))}: a shape has three sides, or one")

    @property
    def is_cube(self) -> bool:
        return len(set(self.sides)) == 1

    @property
    def voxels(self) -> int:
        return math.prod(self.sides)

    def rounded_up(self, multiple: int, dims: int = 3) -> "Shape":
        """The smallest shape that holds this one and whose first `dims` sides are multiples."""
        up = (-(-side // multiple) * multiple for side in self.sides[:dims])
        return Shape((*up, *self.sides[dims:]))

    def scaled(self, longest: int, multiple: int = 1) -> "Shape":
        """These proportions, the longest side `longest` multiples long, the others rounded."""
        whole = max(self.sides)
        return Shape(max(1, round(side * longest / whole)) * multiple for side in self.sides)

    def as_json(self) -> int | str:
        return self.sides[0] if self.is_cube else str(self)

    def __str__(self) -> str:
        return str(self.sides[0]) if self.is_cube else "x".join(map(str, self.sides))

    def __repr__(self) -> str:
        return f"Shape({str(self)!r})"

    def __index__(self) -> int:
        if not self.is_cube:
            raise TypeError(f"{self}: not a cube")
        return self.sides[0]

    def __iter__(self) -> Iterator[int]:
        return iter(self.sides)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Shape):
            return self.sides == other.sides
        return self.is_cube and self.sides[0] == other

    def __hash__(self) -> int:
        return hash(self.as_json())

    def __ge__(self, other: "Shape | int") -> bool:
        return all(a >= b for a, b in zip(self, Shape(other), strict=True))

    def __le__(self, other: "Shape | int") -> bool:
        return Shape(other) >= self

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, handler: Any) -> Any:
        from pydantic import AfterValidator, PlainSerializer

        written = Annotated[int | str, AfterValidator(cls), PlainSerializer(cls.as_json)]
        return handler.generate_schema(written)


def show_shape(shape: Shape) -> str:
    """As people read it: "64³", "160 × 192 × 160"."""
    return f"{shape}³" if shape.is_cube else " × ".join(map(str, shape))


def show_volume(volume: Shape, patch: Shape) -> str:
    """What a step sees of a volume: "64³", "128³ of 256³"."""
    seen = show_shape(patch)
    return seen if patch == volume else f"{seen} of {show_shape(volume)}"


def show_size(nbytes: int | float) -> str:
    """Three digits and a binary unit: "6.03 GiB", "512 KiB", "17 bytes"."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(nbytes) >= size:
            return f"{nbytes / size:.{2 if abs(nbytes) < 100 * size else 0}f} {unit}"
    return f"{nbytes:.0f} bytes"
