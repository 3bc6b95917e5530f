"""Rebuilds `bench/data/assets/icbm152.npz`, to the byte, from the ICBM152 maps of nilearn.

    python -m docs.figures.make_asset [PATH]

nilearn is a test dependency only; the benchmark itself reads the committed file. Where the maps
come from, and under which licence, is in `bench/data/assets/README.md`.
"""

from __future__ import annotations

import io
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from bench.data.phantom import ASSET

SPACING_MM = 1.75  # finer than a voxel of a 64³ head (2.9 mm), and the file stays under 1 MB
LEVELS = 64  # grey levels kept of each map: fewer compress better, more cannot be seen


def read_template(kind: str) -> np.ndarray:
    """One of nilearn's 1 mm maps, as float32 (197, 233, 189) in [0, 1], axes in RAS order.

    kind: `t1` (skull-stripped average), `gm` or `wm` (tissue probability).
    """
    package = find_spec("nilearn")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("nilearn is not installed: pip install nilearn")
    folder = Path(package.submodule_search_locations[0]) / "datasets" / "data"
    image = nib.load(folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
    return np.asarray(image.dataobj, dtype=np.float32) / 255  # type: ignore[attr-defined]


def build() -> dict[str, np.ndarray]:
    """The arrays of the asset: `gm`, `wm`, `csf`, `t1` as uint8, 255 = 1, and `spacing_mm`."""
    t1, gm, wm = read_template("t1"), read_template("gm"), read_template("wm")
    brain = t1 > 0
    gm, wm = gm * brain, wm * brain
    maps = {"gm": gm, "wm": wm, "csf": np.clip(brain - gm - wm, 0, 1), "t1": t1}

    inside = np.argwhere(brain)
    low, high = inside.min(0) - 2, inside.max(0) + 2
    counts = np.ceil((high - low) / SPACING_MM).astype(int) + 1
    axes = [start + SPACING_MM * np.arange(n) for start, n in zip(low, counts, strict=True)]
    points = np.meshgrid(*axes, indexing="ij")

    arrays = {}
    for name, values in maps.items():
        smooth = gaussian_filter(values, sigma=(SPACING_MM - 1) / 2)
        sampled = map_coordinates(smooth, points, order=1, mode="constant")
        level = np.rint(np.clip(sampled, 0, 1) * (LEVELS - 1))
        arrays[name] = np.rint(level * (255 / (LEVELS - 1))).astype(np.uint8)
    arrays["spacing_mm"] = np.float32(SPACING_MM)
    return arrays


def write(path: Path) -> None:
    """Writes the asset; np.savez would put the time of day into the archive."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in build().items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, buffer.getvalue(), compresslevel=9)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ASSET
    write(target)
    print(f"{target}: {target.stat().st_size:,} bytes")
