"""Figure 2 of the paper: slices of real volumes above generated ones.

The quality run draws it, because it has the volumes; a report shows the file.
"""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .figures import COLUMN_INCHES, Picture, styled

PLANES = ("axial", "coronal", "sagittal")
_LABEL_INCHES, _GAP_INCHES, _HEAD_INCHES = 0.62, 0.02, 0.28


def write_figure2(
    real: np.ndarray,
    generated: Mapping[str, np.ndarray],
    out: Path,
    modalities: tuple[str, ...] = ("t1",),
    most: int = 2,
    conditions: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> list[Path]:
    """`figure2.png` and `.pdf` in `out`; the arguments of `figure2`."""
    return figure2(real, generated, modalities, most, conditions).save(out)


@styled()
def figure2(
    real: np.ndarray,
    generated: Mapping[str, np.ndarray],
    modalities: tuple[str, ...] = ("t1",),
    most: int = 2,
    conditions: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Picture:
    """Figure 2: middle slices of real volumes in the first row, of generated ones below.

    All in one grey scale, 0 black and 1 white, as radiologists look at them: the patient's right
    at the left of axial and coronal slices, the face to the left of sagittal ones, the crown up.
    Slices, which are axial, are shown as they are.

    Args:
        real: (N, C, D, H, W) in [0, 1], or slices (N, C, D, H).
        generated: by method, of the same C, D, H, W. A method's row is empty where it has fewer
            volumes than are shown.
        modalities: what the C channels show; each has rows of its own.
        most: volumes in a row, of the first ones.
        conditions: by name, (N, D, H, W) in [0, 1]: what the real volumes have, and the generated
            ones were drawn from. They stand above all.
    """
    rows = [(name, volumes[:most]) for name, volumes in conditions.items()]
    rows += [
        (f"{name}, {modality.upper()}" if len(modalities) > 1 else name, volumes[:most, channel])
        for channel, modality in enumerate(modalities)
        for name, volumes in {"real": real, **generated}.items()
    ]
    shown = max(len(volumes) for _, volumes in rows)
    planes, noun = (PLANES, "volume") if real.ndim == 5 else (PLANES[:1], "slice")
    columns = shown * len(planes)
    tile = (COLUMN_INCHES - _LABEL_INCHES) / columns
    height = _HEAD_INCHES + len(rows) * tile
    figure = Figure(figsize=(COLUMN_INCHES, height))
    figure.set_layout_engine("none")

    def write(x: float, y: float, text: str, **how: Any) -> None:
        """At inches from the lower left corner."""
        figure.text(x / COLUMN_INCHES, y / height, text, **how)

    for number, (label, volumes) in enumerate(rows):
        bottom = height - _HEAD_INCHES - (number + 1) * tile
        write(
            _LABEL_INCHES - 0.0525, bottom + tile / 2, _in_lines(label), ha="right", va="center",
            fontsize=7,
        )  # fmt: skip
        for index, volume in enumerate(volumes):
            for plane, cut in enumerate(middle_slices(volume)):
                left = _LABEL_INCHES + (index * len(planes) + plane) * tile
                side = tile - _GAP_INCHES
                axes = figure.add_axes(
                    (left / COLUMN_INCHES, bottom / height, side / COLUMN_INCHES, side / height)
                )
                axes.imshow(cut, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axes.set_axis_off()
                axes.set_label(f"{label}, {index + 1}, {PLANES[plane]}")
    centred = {"ha": "center", "va": "bottom"}
    top = height - _HEAD_INCHES
    for index in range(columns):
        middle = _LABEL_INCHES + (index + 0.5) * tile
        write(middle, top + 0.02, planes[index % len(planes)], fontsize=6, **centred)
    for index in range(shown):
        middle = _LABEL_INCHES + (index + 0.5) * len(planes) * tile
        write(middle, top + 0.13, f"{noun} {index + 1}", fontsize=7, **centred)
    size = " × ".join(map(str, real.shape[2:]))
    shown_of = "Middle slices of volumes" if noun == "volume" else "Axial slices"
    return Picture(
        "figure2", f"Figure 2. Real and generated {noun}s",
        f"{shown_of} of {size} voxels, all in one grey scale. The patient's right is at the left; "
        "sagittal slices face left.",
        "Rows: " + ", ".join(label for label, _ in rows), figure,
    )  # fmt: skip


def middle_slices(volume: np.ndarray) -> list[np.ndarray]:
    """Axial, coronal and sagittal slice of (D, H, W), as an image's rows from the top.

    Of (D, H), which is axial, itself.

    The axes run left → right, posterior → anterior, inferior → superior: each slice is turned so
    that up is the face or the crown, and left the patient's right or the face.
    """
    if volume.ndim == 2:
        return [volume.T[::-1, ::-1]]
    d, h, w = (side // 2 for side in volume.shape)
    return [cut.T[::-1, ::-1] for cut in (volume[:, :, w], volume[:, h], volume[d])]


def _in_lines(label: str) -> str:
    """The column of names is ten letters wide, and a row three lines high."""
    return "\n".join(textwrap.wrap(label, 10, max_lines=3, placeholder="…"))
