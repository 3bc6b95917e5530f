"""Nobody who validates or tests has trained, and it is written down who is who."""

import itertools

import pytest

from bench.data import open_source
from bench.data.split import PHANTOMS, describe_split, divide, patient
from bench.errors import UserError
from bench.sizes import Shape


class Clinic:
    """A source whose patients come twice."""

    name = "clinic"

    def __init__(self, patients: int) -> None:
        self.left_out = {"lacks t2": ["BraTS-GLI-99999-000"]}
        self.subjects = [
            f"BraTS-GLI-{number:05d}-{visit:03d}" for visit in (0, 1) for number in range(patients)
        ]

    def __len__(self) -> int:
        return len(self.subjects)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_parts_are_disjoint_by_patient_and_cover_all(seed):
    source = Clinic(23)
    split = divide(source, seed)
    parts = [split.train, split.val, split.test]
    assert sorted(index for part in parts for index in part) == list(range(46))
    people = [{patient(source.subjects[index]) for index in part} for part in parts]
    for one, other in itertools.combinations(people, 2):
        assert not one & other
    assert [len(each) for each in people] == [19, 2, 2]


def test_the_file_says_the_same():
    source = Clinic(10)
    split = divide(source, 3)
    written = describe_split({Shape(32): source}, 3)
    assert written["seed"] == 3
    (parts,) = written["splits"]
    assert parts["volume"] == 32
    assert parts["left_out"] == {"lacks t2": ["BraTS-GLI-99999-000"]}
    for part in ("train", "val", "test"):
        assert parts[part] == [source.subjects[index] for index in getattr(split, part)]


def test_one_patient_cannot_validate_himself():
    with pytest.raises(UserError, match="single patient"):
        divide(Clinic(1), 0)


def test_a_default_split_has_a_validation_worth_the_name():
    split = divide(open_source("phantom", None, ("t1",), 32, 0, PHANTOMS), 0)
    assert (len(split.train), len(split.val), len(split.test)) == (102, 13, 13)
