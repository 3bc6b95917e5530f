"""Sizes as people type and read them."""

import re

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


def show_cube(volume: int, patch: int) -> str:
    """What a step sees of a volume, by their sides: "64³", "128³ of 256³"."""
    return f"{patch}³" if patch == volume else f"{patch}³ of {volume}³"


def show_size(nbytes: int | float) -> str:
    """Three digits and a binary unit: "6.03 GiB", "512 KiB", "17 bytes"."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(nbytes) >= size:
            return f"{nbytes / size:.{2 if abs(nbytes) < 100 * size else 0}f} {unit}"
    return f"{nbytes:.0f} bytes"
