"""What CI installs: everything pinned as in constraints.txt, with hashes; actions by commit."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / ".ci").glob("*.txt"))


def pins(path):
    found = re.findall(r"^([\w.-]+)==([\w.]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


CONSTRAINTS = pins(ROOT / "constraints.txt")


def test_both_files_together_are_the_constraints():
    """A change of constraints.txt wants `make lock`."""
    locked = {name: version for path in LOCKS for name, version in pins(path).items()}
    extras = locked.keys() - CONSTRAINTS.keys()
    assert {name: CONSTRAINTS[name] for name in locked.keys() - extras} == {
        name: version for name, version in locked.items() if name not in extras
    }
    assert not extras


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_package_has_a_hash(path):
    packages = re.split(r"^(?=[\w.-]+==)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert packages
    assert all("--hash=sha256:" in package for package in packages)


def test_torch_is_the_cpu_build():
    assert "\ntorch==2.13.0+cpu" in (ROOT / ".ci" / "requirements.txt").read_text(encoding="utf-8")


def test_actions_are_pinned_by_commit():
    workflows = list((ROOT / ".github" / "workflows").glob("*.yml"))
    assert workflows
    for path in workflows:
        for action in re.findall(r"uses: *(\S+)", path.read_text(encoding="utf-8")):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), (path.name, action)
