"""README.md: its method and its technique, added to a copy of the checkout as they are written."""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PARTS = ("bench", "models", "baselines", "run_bench.py", "pyproject.toml")


def section(title: str) -> str:
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def add(checkout: Path, title: str, table: str) -> None:
    """The file that a section shows, and its line in the registry's `table`."""
    text = section(title)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (file,) = re.findall(r"`(baselines/[\w/]+\.py)`:\n\n```", text)
    (line,) = re.findall(r"the line `(_\w+\(.*?\),)` (?:to|in) `bench/methods\.py`", text)
    (checkout / file).write_text(code, encoding="utf-8")
    registry = checkout / "bench" / "methods.py"
    before, rest = registry.read_text(encoding="utf-8").split(table)
    registry.write_text(f"{before}{table}{line}\n{rest}", encoding="utf-8")


@pytest.mark.slow
def test_a_method_and_a_technique_are_a_file_and_a_line(tmp_path):
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    (tmp_path / "results").mkdir()
    for path in (ROOT / "results").glob("published*.csv"):
        shutil.copy(path, tmp_path / "results")
    add(tmp_path, "Add a method", "METHODS = _Methods(\n")
    add(tmp_path, "Add a technique", "for technique in (\n")
    names = ["mine", "unet", "unet+half"]
    done = subprocess.run(
        [sys.executable, "run_bench.py", "--models", *names, "--steps", "2", "--preset", "small",
         "--volume", "16", "--channels", "8", "16", "--device", "cpu", "--idle", "0"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (table,) = (tmp_path / "results").glob("*/runs.csv")
    with table.open(encoding="utf-8") as file:
        mine, unet, half = csv.DictReader(file)
    assert [row["method"] for row in (mine, unet, half)] == names
    assert [row["kind"] for row in (mine, unet, half)] == ["exact", "exact", "rounded"]
    assert int(half["activation_bytes"]) < 0.8 * int(unet["activation_bytes"])
    assert float(half["loss_last"]) == pytest.approx(float(unet["loss_last"]), rel=1e-2)
