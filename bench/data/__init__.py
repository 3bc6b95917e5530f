"""Where the volumes come from: embedded brains, BraTS folders, SynapseMNIST3D.

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
from ..sizes import Shape
from .cache import load, prepare
from .source import Source
from .split import split

SOURCES = ("phantom", "brats", "synapse")

__all__ = ["SOURCES", "Source", "load", "open_source", "prepare", "split"]


def open_source(
    name: str,
    data_dir: Path | None = None,
    modality: tuple[str, ...] = ("t1",),
    volume: Shape | int = 64,
    seed: int = 0,
    subjects: int | None = None,
    content: Shape | int | None = None,
    condition: tuple[str, ...] = (),
) -> Source:
    """The source called `name`, ready to be indexed.

    Args:
        name: one of `SOURCES`.
        data_dir: the BraTS folder, or the SynapseMNIST3D `.npz` (or its folder); None for phantom.
        modality: channels, in order: of `t1`, `t2` (brats: also `t1ce`, `flair`); synapse has one
            channel and ignores it.
        volume: shape, in voxels; a number is the side of a cube.
        seed: draws the phantoms; the other sources do not depend on it.
        subjects: at most this many; by default all, of phantom 32 up to 64³ and fewer above.
        content: shape of the data, which has zeros around it up to `volume`; None: `volume`.
        condition: what a network is given, channels after those of the modalities: other contrasts,
            of phantom also `seg`, a mask of each tissue.

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
    if not modality or len(set(modality)) != len(modality):
        raise UserError(f"--modality {' '.join(modality) or '(none)'}: name each modality once")
    if len({*modality, *condition}) < len(modality) + len(condition):
        raise UserError(f"--condition {' '.join(condition)}: each once, and no modality")

    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"--data {name}: unknown; known are {', '.join(SOURCES)}{hint}")

    # Imported here: a phantom run need not load nibabel, nor a BraTS run torch.
    if name == "phantom":
        from .phantom import Phantom

        source: Source = Phantom(modality, content, seed, subjects, condition)
    elif name == "brats":
        from .brats import BraTS

        source = BraTS(data_dir, (*modality, *condition), content, subjects)
        source.channels, source.condition = modality, condition
    else:
        from .medmnist import SynapseMNIST3D

        if condition:
            raise UserError(
                f"--condition {condition[0]}: SynapseMNIST3D has nothing beside its image"
            )
        source = SynapseMNIST3D(data_dir, content, subjects)
    source.volume = volume
    return source
