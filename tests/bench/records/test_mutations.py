"""A run folder with bytes that changed: reported, or refused in one line; never a traceback.

BENCH_MUTANTS=500 makes as many of each kind, for docs/measurement.md.
"""

import os
import random
import shutil
from pathlib import Path

import pytest

from bench.errors import UserError
from bench.records.folder import QualityRun, Run
from bench.report.claims import judge
from bench.report.reading import read_evidence
from bench.report.table1 import score_rows, score_table, table1_grids
from bench.run.command import Benchmark

MUTANTS = int(os.environ.get("BENCH_MUTANTS", "12"))
RESULTS = Path(__file__).parents[3] / "results"
RUNS = {
    "measured": next((RESULTS / "reference").glob("*-small")),
    "predicted": RESULTS / "reference" / "equal",
    "scale": RESULTS / "reference" / "scale",
    "fit": RESULTS / "reference" / "fit-24",
    "quality": next((RESULTS / "quality" / "vtarget").glob("*/")),
}


def mutate(content: bytes, chance: random.Random) -> bytes:
    """One of the ways in which files change: bits, cuts, insertions, lines twice or elsewhere."""
    data = bytearray(content or b"\n")
    at = chance.randrange(len(data))
    match chance.randrange(6):
        case 0:
            data[at] ^= 1 << chance.randrange(8)
        case 1:
            del data[at:]
        case 2:
            data[at:at] = chance.randbytes(chance.randrange(1, 40))
        case 3:
            del data[at : at + chance.randrange(1, 200)]
        case 4:
            lines = bytes(data).splitlines(keepends=True)
            lines.insert(chance.randrange(len(lines) + 1), chance.choice(lines))
            data = bytearray(b"".join(lines))
        case _:
            cells = (b"", b"nan", b"inf", b"-1", b"1e999", b'"', b"\x00", b"9" * 50, b"<b>")
            data = bytearray(bytes(data).replace(b"1", chance.choice(cells), 3))
    return bytes(data)


@pytest.mark.parametrize("kind", RUNS)
def test_mutated_run_folders(tmp_path, kind):
    """A fresh seed each time; it is in the message of a failure."""
    for number in range(MUTANTS):
        seed = int.from_bytes(os.urandom(8))
        chance = random.Random(seed)
        folder = tmp_path / str(number)
        shutil.copytree(RUNS[kind], folder)
        victim = chance.choice(sorted(path for path in folder.iterdir() if path.is_file()))
        victim.write_bytes(mutate(victim.read_bytes(), chance))
        said = ""
        try:
            look_at(folder)
        except UserError as refusal:
            said = str(refusal)
        except Exception as error:
            raise AssertionError(f"seed {seed}, {victim.name}: {error!r}") from error
        assert "\n" not in said, (seed, victim.name)
        shutil.rmtree(folder)


def look_at(folder: Path) -> None:
    """All that a report reads and computes, but the pictures; and what a resumption reads."""
    evidence = read_evidence([folder])
    for group in evidence.groups:
        group.costs.grid(), group.costs.by_method(), group.costs.beside_paper()
    judge(evidence)
    table1_grids(score_rows(score_table(evidence.side_tables.get("quality.csv"))))
    for run, name in ((Run(folder), "runs.csv"), (QualityRun(folder), "trained.csv")):
        if (folder / name).exists():
            run.environment()
            Benchmark.read(folder, run.environment())
