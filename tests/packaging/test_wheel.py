"""The wheel in a fresh environment, used by a project with `models/` and `bench/` of its own."""

import csv
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import bench

from .test_contents import SHIPPED

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DEPENDENCIES = sysconfig.get_path("purelib")
"""Where this interpreter has PyTorch and the rest, which are not installed a second time."""
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@dataclass(frozen=True)
class Project:
    """A person's repository, with the environment that they work in."""

    folder: Path

    @property
    def programs(self) -> Path:
        return self.folder / ".venv" / "bin"

    def run(self, *command: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        """A program of the environment, from the root of the project."""
        program, *arguments = map(str, command)
        process = subprocess.run(
            [self.programs / program, *arguments],
            cwd=self.folder,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        assert process.returncode == status, process.stdout + process.stderr
        return process

    def python(self, code: str) -> str:
        return self.run("python", "-c", code).stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built of a copy: setuptools would take what an earlier build left in build/."""
    source = tmp_path_factory.mktemp("source")
    for name in ("bench", "models", "baselines"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "results").mkdir()
    names = ("pyproject.toml", "README.md", "LICENSE", "run_bench.py")
    for path in [*(ROOT / name for name in names), *(ROOT / "results").glob("*.csv")]:
        shutil.copy(path, source / path.relative_to(ROOT))
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", out, source], check=True, env=ENVIRONMENT)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def project(wheel: Path, tmp_path_factory) -> Project:
    project = Project(tmp_path_factory.mktemp("project"))
    venv.create(project.folder / ".venv", symlinks=True)
    (packages,) = project.folder.glob(".venv/lib/python*/site-packages")
    # Of a folder that is named here Python reads no .pth files: the checkout stays out of sight.
    (packages / "dependencies.pth").write_text(f"{DEPENDENCIES}\n")
    pip = [sys.executable, "-m", "pip", "--python", project.programs / "python"]
    subprocess.run([*pip, "install", "-q", "--no-deps", wheel], check=True, env=ENVIRONMENT)
    for file, text in {
        "models/__init__.py": "",
        "models/net.py": "WIDTH = 7\n",
        "bench/__init__.py": "MINE = True\n",
        ".gitignore": ".venv\n",
    }.items():
        path = project.folder / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", project.folder]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "Mine"]):
        subprocess.run([*git, *arguments], check=True)
    return project


def test_it_claims_one_name(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    information = f"idm_bench-{bench.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"idm_bench", information}
    expected = {"idm_bench/results/published.csv", "idm_bench/results/baseline.csv"}
    for folder, package in SHIPPED.items():
        place = package.replace(".", "/")
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                expected.add(f"{place}/{path.relative_to(ROOT / folder).as_posix()}")
    assert {name for name in expected - names if not name.endswith("README.md")} == set()
    assert "idm_bench/py.typed" in names


def test_nothing_of_the_checkout_is_in_sight(project: Project):
    isolated = "import sys; sys.path.remove('')\n"
    where = project.python(isolated + "import idm_bench; print(idm_bench.__file__)")
    assert Path(where).is_relative_to(project.folder / ".venv")
    for name in ("bench", "models", "baselines", "run_bench"):
        code = f"from importlib.util import find_spec; print(find_spec({name!r}))"
        assert project.python(isolated + code) == "None"


def test_it_is_imported_beside_folders_of_the_same_names(project: Project):
    code = """
import importlib.metadata
import torch
import bench, models.net
import idm_bench
from idm_bench.methods import METHODS
from idm_bench.models.idm import IDM, ReversibleSequential
from idm_bench.predict import predict

assert bench.MINE and models.net.WIDTH == 7
assert idm_bench.__version__ == importlib.metadata.version("idm-bench")
net = IDM(in_channels=1, channels=(4, 8), couplings=1, dims=3, backward="inverse")
assert issubclass(ReversibleSequential, torch.nn.Module)
t = torch.zeros(1, dtype=torch.long)
eps = net(torch.randn(1, 1, 8, 8, 8), t)
eps.square().mean().backward()
batch = torch.empty(1, 1, 8, 8, 8), t
print(predict(net, batch, torch.optim.AdamW(net.parameters())).peak_memory_bytes)
assert "idm" in METHODS
"""
    peak = int(project.python(code))
    assert 10_000 < peak < 10_000_000


def test_predict(project: Project):
    out = project.folder / "predicted"
    project.run("idm-bench", "predict", "--models", "idm", "--preset", "small", "--out", out)
    (row,) = _rows(out / "runs.csv")
    baseline = _rows(ROOT / "results" / "baseline.csv")
    (known,) = [each for each in baseline if (each["preset"], each["method"]) == ("small", "idm")]
    assert row["peak_memory_bytes"] == known["peak_memory_bytes"]
    assert json.loads((out / "environment.json").read_text())["command"][0] == "idm-bench"


def test_a_benchmark_of_two_steps(project: Project):
    out = project.folder / "runs"
    project.run(
        *("run-bench", "--models", "idm", "--steps", 2, "--preset", "small", "--volume", 16),
        *("--subjects", 4, "--idle", 0, "--cooldown", 0, "--device", "cpu"),
        *("--cache-dir", project.folder / "volumes", "--out", out),
    )
    (folder,) = out.iterdir()
    (row,) = _rows(folder / "runs.csv")
    assert (row["status"], row["steps"]) == ("ok", "2")
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["command"][0] == "run-bench"
    assert environment["versions"]["idm-bench"] == bench.__version__
    # The environment lies in the project's own repository, whose commit says nothing of this code.
    assert environment["git"] == {"commit": None, "dirty": None}


@pytest.mark.thorough
def test_a_report_has_the_bytes_of_one_made_in_the_checkout(project: Project, tmp_path: Path):
    runs = []
    for folder in sorted(path for path in (ROOT / "results" / "reference").iterdir()):
        if folder.is_dir():
            runs.append(tmp_path / folder.name)
            derived = shutil.ignore_patterns("*.png", "*.pdf", "*.html", "table*", "claims*")
            shutil.copytree(folder, runs[-1], ignore=derived)
    here, there = tmp_path / "checkout", tmp_path / "wheel"
    command = [sys.executable, "-m", "bench", "report", *runs, "--out", here]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    project.run("idm-bench", "report", *runs, "--out", there)
    names = sorted(path.name for path in here.iterdir())
    assert names == sorted(path.name for path in there.iterdir())
    assert {"table1.csv", "table2.md", "report.html"} <= set(names)
    for name in names:
        assert (here / name).read_bytes() == (there / name).read_bytes(), name
    assert "| IDM, T1 | published |" in (there / "table1.md").read_text()
    assert "PatchDDM-3D, paper" in (there / "table2.md").read_text()


@pytest.mark.thorough  # `bench check` itself is a part of CI
def test_check_compares_with_the_baseline_that_is_shipped(project: Project):
    process = project.run("idm-bench", "check", "--models", "idm", "idm-lean", "--presets", "small")
    assert "2 peaks compared, 0 grew" in process.stdout


def test_the_shipped_baseline_is_not_written(project: Project):
    (shipped,) = project.folder.glob(".venv/lib/python*/site-packages/idm_bench/results/*base*.csv")
    before = shipped.read_bytes()
    update = ("idm-bench", "check", "--models", "idm", "--presets", "small", "--update")
    error = project.run(*update, status=2).stderr
    assert error == "error: --update: name the file to write with --baseline\n"
    assert shipped.read_bytes() == before
    assert not (project.folder / "results").exists()
    project.run(*update, "--baseline", "mine.csv")
    assert len(_rows(project.folder / "mine.csv")) == 1


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (("idm-bench",), "idm-bench"),
        (("idm-bench", "fit"), "idm-bench fit"),
        (("run-bench",), "run-bench"),
        (("python", "-m", "idm_bench"), "python -m idm_bench"),
    ],
)
def test_the_usage_names_the_command_that_was_typed(project: Project, command, shown):
    text = project.run(*command, "--help").stdout
    assert text.startswith(f"usage: {shown} [-h]")
    assert "python -m bench" not in text
    assert "run_bench.py" not in text


@pytest.mark.parametrize(
    "typed",
    [("idm-bench",), pytest.param(("python", "-m", "idm_bench"), marks=pytest.mark.thorough)],
)
def test_an_error_names_the_command_to_type(project: Project, typed):
    error = project.run(*typed, "predict", "--models", "nope", status=2).stderr
    assert error.startswith("error: --models nope: unknown method")
    assert len(error.splitlines()) == 1
    error = project.run(*typed, "check", "--baseline", "nowhere.csv", status=2).stderr
    command = f"`{' '.join(typed)} check --update --baseline FILE`"
    assert error == f"error: --baseline nowhere.csv: missing; {command} makes it anew\n"


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
