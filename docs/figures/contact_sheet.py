"""A page of embedded brains, to be looked at.

python -m docs.figures.contact_sheet [PATH]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bench.data.phantom import Phantom


def slices(volume: np.ndarray) -> list[np.ndarray]:
    """Axial, coronal and sagittal slice of (D, H, W), off the midline, to be shown head up."""
    side = volume.shape[0]
    cuts = volume[:, :, int(side * 0.54)], volume[:, int(side * 0.5)], volume[int(side * 0.42)]
    return [cut.T[::-1] for cut in cuts]


def write_contact_sheet(path: Path, volume: int = 64, count: int = 12, seed: int = 0) -> None:
    """PNG with `count` brains, T1 above T2 of the same person, three slices each."""
    source = Phantom(("t1", "t2"), volume, seed, count)
    columns = 3
    tiles = []
    for index in range(count):
        rows = [np.hstack([np.pad(s, 1) for s in slices(image)]) for image in source[index]]
        tiles.append((source.subjects[index], np.vstack(rows)))

    height, width = tiles[0][1].shape
    rows_shown = -(-count // columns)
    figure = Figure(figsize=(12, 12 / columns * height / width * rows_shown * 1.08), dpi=110)
    for place, (name, tile) in enumerate(tiles):
        axes = figure.add_subplot(rows_shown, columns, place + 1)
        axes.imshow(tile, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(f"{name}   T1 above T2", fontsize=8, color="white", pad=3)
        axes.axis("off")
    figure.set_facecolor("black")
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.975, wspace=0.02, hspace=0.09)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="black")


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/contact_sheet.png")
    write_contact_sheet(target)
    print(target)
