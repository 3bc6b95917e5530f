"""Train, validation and test subjects, so that no patient is in two of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from ..sizes import Shape
from .source import Source

# How a visit is named: since BraTS 2023 BraTS-GLI-00012-001, in BIDS sub-01_ses-2 or sub-01/ses-2.
VISIT = re.compile(r"^(BraTS-[A-Za-z]+-\d+)-\d+$|^(?:.*/)?(sub-[A-Za-z0-9]+)[_/].*$")


def patient(subject: str) -> str:
    """The person behind a subject id."""
    match = VISIT.match(subject)
    return match.group(1) or match.group(2) if match else subject


def split(subjects: Sequence[str], seed: int) -> dict[str, list[str]]:
    """80 / 10 / 10 by patient, the same for the same ids and seed whatever their order.

    Validation and test get at least one patient each as soon as there are three; of two patients
    one validates; a single one trains.

    Returns:
        `{"train": [...], "val": [...], "test": [...]}`, each sorted; together all of `subjects`.
    """
    patients = sorted({patient(subject) for subject in subjects})
    shuffled = [patients[i] for i in np.random.default_rng(seed).permutation(len(patients))]
    tenth = max(1, round(len(patients) / 10))
    val = shuffled[:tenth] if len(patients) >= 2 else []
    test = shuffled[tenth : 2 * tenth] if len(patients) >= 3 else []
    part_of = dict.fromkeys(val, "val") | dict.fromkeys(test, "test")

    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for subject in sorted(set(subjects)):
        parts[part_of.get(patient(subject), "train")].append(subject)
    return parts


PHANTOMS = 128
"""How many embedded brains there are unless told, up to 64³. A tenth of them validates: 13 people,
of whom about 4 have a lesion. At a quarter of the timesteps the error of ε differs by 5 % from
person to person (standard deviation, `idm` after 300 steps at `small`), so that a mean over 13 is
good to 1.5 %, and one over the 3 that 32 brains would give to 3 %."""


@dataclass(frozen=True)
class Split:
    """Which volumes of a source do what, by their index in it."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]


def default_subjects(data: str, volume: Shape) -> int | None:
    """Number of volumes without --subjects; None: as many as the source has."""
    return PHANTOMS if data == "phantom" and volume.voxels <= 64**3 else None


def divide(source: Source, seed: int) -> Split:
    """80 / 10 / 10 by patient (`split`).

    Raises:
        UserError: there are too few patients for one to train and another to validate.
    """
    parts = split(source.subjects, seed)
    if not parts["val"]:
        raise UserError(
            f"--data {source.name}: of {len(source)} volumes of a single patient none can "
            "validate; give volumes of at least two"
        )
    index = {subject: i for i, subject in enumerate(source.subjects)}
    return Split(
        **{part: tuple(index[subject] for subject in parts[part]) for part in parts}  # type: ignore[arg-type]
    )


def describe_split(sources: Mapping[Shape, Source], seed: int) -> dict[str, Any]:
    """What `split.json` holds: for each shape of volume the names of the subjects of each part."""
    return {
        "seed": seed,
        "splits": [
            {
                "data": source.name,
                "volume": shape.as_json(),
                **split(source.subjects, seed),
                **({"left_out": source.left_out} if source.left_out else {}),
            }
            for shape, source in sources.items()
        ],
    }
