"""Where the volumes come from: embedded brains, BraTS folders, SynapseMNIST3D, any NIfTI scans.

    source = open_source("brats", Path("BraTS2020"), ("t1",), volume=64, seed=0)
    path = prepare(source, Path("cache"))   # every volume read, checked, resampled, once
    volumes = load(path)                    # (N, C, D, H, W) float32, memory-mapped

Whatever is wrong with a file is found by `open_source` (headers, sizes) or `prepare` (content),
so before any trial starts; a trial gets only the path.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from ..errors import UserError
from ..presets import name_columns
from ..sizes import Shape
from .cache import load, load_affines, load_typical_affine, prepare
from .source import Source
from .split import split

SOURCES = ("phantom", "brats", "synapse", "nifti")

__all__ = [
    "SOURCES", "Source", "load", "load_affines", "load_typical_affine", "open_source", "prepare",
    "split",
]  # fmt: skip


def open_source(
    name: str,
    data_dir: Path | None = None,
    modality: tuple[str, ...] = ("t1",),
    volume: Shape | int = 64,
    seed: int = 0,
    subjects: int | None = None,
    content: Shape | int | None = None,
    condition: tuple[str, ...] = (),
    *,
    window: tuple[float, float] | None = None,
    spacing: tuple[float, ...] | None = None,
) -> Source:
    """The source called `name`, ready to be indexed.

    Args:
        name: one of `SOURCES`.
        data_dir: the folder, the SynapseMNIST3D `.npz`, the manifest or dataset.json; None for
            phantom.
        modality: channels that are learned, in order: of phantom `t1`, `t2`; brats also `t1ce`,
            `flair`; nifti any name, `t1=*_T1w.nii.gz` with the glob of its files; synapse has one
            channel and ignores it.
        volume: shape, in voxels; a number is the side of a cube.
        seed: draws the phantoms; the other sources do not depend on it.
        subjects: at most this many; by default all, of phantom 32 up to 64³ and fewer above.
        content: shape of the data, which has zeros around it up to `volume`; None: `volume`.
        condition: channels that follow, which are given: images as in `modality`, and masks (of
            phantom and brats `seg`), which become a channel for each label.
        window: of nifti: intensities that become 0 and 1, in place of percentiles of the head.
        spacing: of brats and nifti: mm of a voxel along each axis; None: the head fills the volume.

    Raises:
        UserError: a name, flag or file that cannot be used, in one line.
    """
    volume, content = Shape(volume), Shape(volume if content is None else content)
    for shape in (volume, content):
        if not (shape >= 8 and shape <= 512):
            raise UserError(f"--volume {shape}: the sides of a volume are between 8 and 512 voxels")
    if not content <= volume:
        raise UserError(f"--volume {volume}: smaller than its content, {content}")
    if seed < 0:
        raise UserError(f"--seed {seed}: a seed is 0 or larger")
    if subjects is not None and subjects < 1:
        raise UserError(f"--subjects {subjects}: at least one subject is needed")
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"--data {name}: unknown; known are {', '.join(SOURCES)}{hint}")
    learned, given = name_columns(modality, "--modality"), name_columns(condition, "--condition")
    if not learned:
        raise UserError("--modality (none): name at least one")
    if both := learned.keys() & given.keys():
        raise UserError(f"--condition {min(both)}: is a modality, too; name it once")
    columns = {**learned, **given}
    if name != "nifti" and (with_glob := [each for each, glob in columns.items() if glob]):
        raise UserError(f"--modality {with_glob[0]}=…: files are named with --data nifti only")
    if window is not None and not window[0] < window[1]:
        raise UserError(f"--window {window[0]:g} {window[1]:g}: the second has to be larger")
    for flag, value in (("--window", window), ("--spacing", spacing)):
        if value is not None and name not in ("brats", "nifti"):
            raise UserError(f"{flag}: only scans have it, --data brats or nifti")

    # Imported here: a phantom run need not load nibabel, nor a BraTS run torch.
    if name == "phantom":
        from .phantom import Phantom

        source: Source = Phantom(tuple(learned), content, seed, subjects, tuple(given))
    elif name == "synapse":
        from .medmnist import SynapseMNIST3D

        if given:
            raise UserError("--condition: SynapseMNIST3D has only its images")
        source = SynapseMNIST3D(data_dir, content, subjects)
    else:
        from .brats import list_brats
        from .listing import list_scans
        from .scans import Scans

        listing = (
            list_brats(data_dir, tuple(columns))
            if name == "brats"
            else list_scans(data_dir, columns)
        )
        source = Scans(
            name, listing, tuple(learned), tuple(given), content, Path(data_dir or ""),
            subjects=subjects, window=window, spacing=spacing,
        )  # fmt: skip
    source.volume = volume
    return source
