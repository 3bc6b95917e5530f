"""What pyproject.toml promises of a wheel, compared with what stands on the disk."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import bench
from bench.methods import METHODS

ROOT = Path(__file__).parents[2]
SHIPPED = {"bench": "idm_bench", "models": "idm_bench.models", "baselines": "idm_bench.baselines"}
"""Folder of the checkout -> the package that it is in a wheel."""
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_room_is_named_as_a_package():
    rooms = {"idm_bench.results"}  # a folder of CSVs
    for folder, package in SHIPPED.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            rooms.add(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(rooms)


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for path in _sources()}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_every_library_that_is_imported_is_a_dependency():
    """Not that of another dependency, which may drop it; or a method says that it requires it."""
    named = _names(PYPROJECT["project"]["dependencies"])
    required = {_normal(each) for method in METHODS.names.values() for each in method.requires}
    assert required <= _names(PYPROJECT["project"]["optional-dependencies"]["peers"])
    owners = packages_distributions()
    missing = {
        (path.relative_to(ROOT).as_posix(), module)
        for path in _sources()
        for module in _imported(path)
        if module not in sys.stdlib_module_names
        and not (named | required) & {_normal(owner) for owner in owners.get(module, [module])}
    }
    assert not missing


def test_the_version_can_be_asked_without_an_installation():
    assert re.fullmatch(r"\d+\.\d+\.\d+", bench.__version__)
    assert "version" in PYPROJECT["project"]["dynamic"]  # bench.__version__ is the one place
    citation = ROOT / "CITATION.cff"
    assert f"version: {bench.__version__}" in citation.read_text().splitlines()


def _names(requirements: list[str]) -> set[str]:
    return {_normal(re.split(r"[<>=\[; ]", line)[0]) for line in requirements}


def _sources() -> list[Path]:
    return [path for folder in SHIPPED for path in (ROOT / folder).rglob("*.py")]


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
