"""Who trains, who validates and who is kept for the test: fixed by a seed, written down."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.data import Source, split
from bench.errors import UserError

PHANTOMS = 128
"""How many embedded brains there are unless told, up to 64³. A tenth of them validates: 13 people,
of whom about 4 have a lesion. At a quarter of the timesteps the error of ε differs by 5 % from
person to person (standard deviation, `idm` after 300 steps at `small`), so that a mean over 13 is
good to 1.5 %, and one over the 3 that 32 brains would give to 3 %."""


@dataclass(frozen=True)
class Cohort:
    """Which volumes of a source do what, by their index in it."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]


def default_subjects(data: str, volume: int) -> int | None:
    """How many volumes, if nobody said; None: as many as the source has or makes by itself."""
    return PHANTOMS if data == "phantom" and volume <= 64 else None


def divide(source: Source, seed: int) -> Cohort:
    """80 / 10 / 10 by patient (`bench.data.split`).

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
    return Cohort(
        **{part: tuple(index[subject] for subject in parts[part]) for part in parts}  # type: ignore[arg-type]
    )


def describe_split(sources: Mapping[int, Source], seed: int) -> dict[str, Any]:
    """What `split.json` holds: for each side of volume the names of the subjects of each part."""
    return {
        "seed": seed,
        "splits": [
            {"data": source.name, "volume": side, **split(source.subjects, seed)}
            for side, source in sources.items()
        ],
    }
