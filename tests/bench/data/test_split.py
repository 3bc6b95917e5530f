from itertools import chain

import pytest

from bench.data import split
from bench.data.split import patient

BRATS2020 = [f"BraTS20_Training_{i:03d}" for i in range(1, 370)]


def test_80_10_10_of_brats2020():
    parts = split(BRATS2020, seed=0)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 295,
        "val": 37,
        "test": 37,
    }


def test_everyone_is_in_exactly_one_part():
    parts = split(BRATS2020, seed=3)
    assert sorted(chain(*parts.values())) == BRATS2020


def test_the_same_for_the_same_seed_whatever_the_order():
    assert split(BRATS2020, 1) == split(BRATS2020[::-1], 1)
    assert split(BRATS2020, 1) != split(BRATS2020, 2)


def test_two_visits_of_a_patient_stay_together():
    visits = [f"BraTS-GLI-{i:05d}-{visit:03d}" for i in range(40) for visit in range(1 + i % 3)]
    for seed in range(20):
        parts = split(visits, seed)
        people = {name: {patient(s) for s in part} for name, part in parts.items()}
        assert sum(map(len, people.values())) == 40
        assert sorted(chain(*parts.values())) == sorted(visits)


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (32, (26, 3, 3))]
)
def test_few_subjects(count, sizes):
    parts = split([f"phantom-{i:04d}" for i in range(count)], seed=0)
    assert tuple(len(parts[name]) for name in ("train", "val", "test")) == sizes
