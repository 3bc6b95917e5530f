"""Train, validation and test subjects, so that no patient is in two of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

# BraTS 2023 names a visit: BraTS-GLI-00012-001 is the second visit of patient BraTS-GLI-00012.
VISIT = re.compile(r"^(BraTS-[A-Za-z]+-\d+)-\d+$")


def patient(subject: str) -> str:
    """The person behind a subject id."""
    match = VISIT.match(subject)
    return match.group(1) if match else subject


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
