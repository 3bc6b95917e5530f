"""The rooms of the package, and which of them may know which."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "bench"
BELOW = {
    "records": {"records"},
    "ddpm": {"ddpm"},
    "probes": {"probes", "records"},
    "data": {"data"},
    "report": {"report", "records"},
}
"""Room -> the rooms that it may import from; the root of the package counts as none."""


def imports(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, from the root of the checkout."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


def test_few_files_stand_in_the_root():
    assert len(list(BENCH.glob("*.py"))) <= 8


def test_the_map_names_every_room_and_file_of_the_root():
    text = ast.get_docstring(ast.parse((BENCH / "__init__.py").read_text(encoding="utf-8")))
    assert text is not None
    assert len(text.splitlines()) <= 40
    rooms = [path.parent.name for path in BENCH.glob("*/__init__.py")]
    assert len(rooms) >= 9
    for name in (*(f"{room}/" for room in rooms), *(p.name for p in BENCH.glob("[!_]*.py"))):
        assert name in text, name


@pytest.mark.parametrize("folder", ["models", "baselines"])
def test_methods_know_nothing_of_the_harness(folder):
    assert not [p for p in files(folder) if any(m.startswith("bench") for m in imports(p))]


def test_only_the_registry_knows_methods_by_name():
    knows = {
        str(path.relative_to(ROOT))
        for path in files("bench")
        if any(module.split(".")[0] in ("models", "baselines") for module in imports(path))
        or any(f'"{top}.' in path.read_text(encoding="utf-8") for top in ("models", "baselines"))
    }
    assert knows == {"bench/methods.py"}


@pytest.mark.parametrize("room", BELOW)
def test_arrows_point_one_way(room):
    rooms = {path.name for path in BENCH.iterdir() if path.is_dir()}
    for path in files(f"bench/{room}"):
        used = {m.split(".")[1] for m in imports(path) if m.startswith("bench.")} & rooms
        assert used <= BELOW[room], path


def test_the_report_reads_files_alone():
    """No registry and no preset of today, no live trial."""
    for path in files("bench/report"):
        for module in imports(path):
            assert not module.startswith(("bench.methods", "bench.presets", "torch")), path


def test_names_do_not_repeat():
    """A name says one thing: no two rooms have a file of the same name."""
    names = [p.name for p in files("bench") if p.name != "__init__.py"]
    repeated = {name for name in names if names.count(name) > 1}
    assert repeated <= {"plan.py", "recorder.py"}  # what every kind of run has


def test_no_document_refers_to_what_a_clone_does_not_have():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *files("bench"), *files("models")]:
        assert "DESIGN" not in path.read_text(encoding="utf-8"), path


def without_encoding(tree: ast.AST) -> list[str]:
    """Calls that read or write text in whatever encoding the machine has."""

    def is_bare(call: ast.Call) -> bool:
        if any(keyword.arg == "encoding" for keyword in call.keywords):
            return False
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "write_text"):
            return True
        modes = {getattr(argument, "value", None) for argument in call.args}
        return ast.unparse(call.func).endswith("open") and bool(modes & {"r", "w", "a"})

    return [
        ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call) and is_bare(node)
    ]


@pytest.mark.parametrize("folder", ["bench", "models", "baselines", "docs"])
def test_text_has_its_encoding(folder):
    """Where a machine's own is ASCII, the name of a processor ended a benchmark."""
    for path in files(folder):
        assert without_encoding(ast.parse(path.read_text(encoding="utf-8"))) == [], path


def test_the_walk_finds_text_without_an_encoding():
    found = ["Path(name).read_text()", "(folder / name).write_text(text)", "open(name, 'w')"]
    others = ["path.read_text(encoding='utf-8')", "path.open('rb')", "read_text(path, 9)"]
    assert without_encoding(ast.parse("\n".join(found + others))) == found
