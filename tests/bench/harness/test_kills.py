"""`run`, `quality` and `check` as a person types them, killed until they are through.

The benchmark, its worker, or both; at random moments from the first import to the report, and
while the cache, a checkpoint or the report is written. BENCH_KILLS=30 kills each command as often,
for docs/measurement.md.
"""

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from bench.records.folder import QualityRun, Run
from tests.bench.trials import small_disk_of

ROOT = Path(__file__).parents[3]
KILLS = int(os.environ.get("BENCH_KILLS", "1"))
pytestmark = pytest.mark.timeout(240 + 60 * KILLS)
TINY = ["--volume", "16", "--batch-size", "1", "--channels", "4", "8"]
COMMANDS = {
    "run": ["--models", "idm", "unet", "--repeats", "2", "--steps", "20", "--idle", "0", *TINY],
    "quality": ["--models", "idm", "idm-lean", "--steps", "24", "--validations", "6", *TINY,
                "--checkpoint-minutes", "0.005", "--samples", "1", "--sampler-steps", "5"],
}  # fmt: skip
WRITTEN = {
    "run": {"cache": "cache/*.tmp", "report": "out/*/*.md"},
    "quality": {
        "cache": "cache/*.tmp", "checkpoint": "out/*/checkpoints/*.part", "report": "out/*/*.md"
    },
}  # fmt: skip
"""What is being written -> the file that tells."""
TABLE = {"run": ("runs.csv", ["method", "repeat"], 4), "quality": ("trained.csv", ["method"], 2)}


def is_worker(process: psutil.Process) -> bool:
    """Not Python's own process that watches over semaphores."""
    with suppress(psutil.Error):
        return "resource_tracker" not in " ".join(process.cmdline())
    return False


def strike(
    process: subprocess.Popen[str], victim: str, after_s: float, outputs: list[str],
    survivors: list[int],
) -> bool:  # fmt: skip
    """SIGKILL; whether it met anything. Adds to what was printed, and to who lived on."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(after_s)
    children = psutil.Process(process.pid).children() if process.poll() is None else []
    workers = [child for child in children if is_worker(child)]
    hit = process.poll() is None if victim != "worker" else bool(workers)
    for worker in workers if victim != "parent" else []:
        with suppress(psutil.Error):
            worker.kill()
    if victim != "worker":
        process.kill()
    outputs.append(process.communicate()[0])
    _, alive = psutil.wait_procs(children, timeout=5)
    survivors += [child.pid for child in alive]
    return hit


class Killed:
    """A command that is started again, or resumed, after each kill."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.outputs: list[str] = []
        self.survivors: list[int] = []
        self.through = False
        self.kept = b""
        """What the table of rows held after the last kill."""

    @property
    def run_folder(self) -> Path | None:
        found = sorted(self.folder.glob("out/*/environment.json"))
        assert len(found) <= 1
        return found[0].parent if found else None

    def start(self) -> subprocess.Popen[str]:
        resumed = self.run_folder
        flags = COMMANDS[self.name] + ["--subjects", "12", "--device", "cpu"]
        flags += ["--out", str(self.folder / "out"), "--cache-dir", str(self.folder / "cache")]
        if resumed is not None:
            flags = ["--resume", str(resumed)]
        return subprocess.Popen(
            [sys.executable, "-m", "bench", self.name, *flags],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def kill(self, victim: str, after_s: float, written: str | None) -> bool:
        """Whether there was anything to kill: it may have ended before.

        Args:
            after_s: of its start, or of the moment when what is `written` is there.
        """
        process = self.start()
        while (
            written
            and process.poll() is None
            and not any(self.folder.glob(WRITTEN[self.name][written]))
        ):
            pass
        hit = strike(process, victim, after_s, self.outputs, self.survivors)
        self.through = process.returncode == 0
        self.check()
        return hit

    def finish(self) -> None:
        """To the end: a row of a killed worker is left out, and made again."""
        for _ in range(3):
            if self.through:
                break
            process = self.start()
            self.outputs.append(process.communicate()[0])
            self.through = process.returncode == 0
            self.check()
        assert self.through, self.outputs
        assert self.survivors == []
        assert not [text for text in self.outputs if "Traceback" in text]
        assert self.run_folder is not None
        table, _, count = TABLE[self.name]
        rows = (self.run_folder / table).read_text().splitlines()
        assert len(rows) == count + 1
        assert all(",ok," in row for row in rows[1:])
        assert not list((self.folder / "cache").glob("**/*.part"))

    def check(self) -> None:
        """No row that was there is gone; what is there can be read."""
        if self.run_folder is None:
            return
        table, key, _ = TABLE[self.name]
        path = self.run_folder / table
        now = path.read_bytes() if path.exists() else b""
        if self.name == "run":  # a training that is not ok is continued, and its row written anew
            finished = [line for line in self.kept.splitlines() if b",ok," in line]
            assert set(finished) <= set(now.splitlines())
        self.kept = now[: now.rfind(b"\n") + 1]
        run = Run(self.run_folder) if self.name == "run" else QualityRun(self.run_folder)
        records = run.records() if isinstance(run, Run) and self.name == "run" else run.trained()
        assert not records.duplicated(key).any()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("run", marks=pytest.mark.slow),
        # What it ends as, compared with one that was not killed: quality/test_command.py.
        pytest.param("quality", marks=pytest.mark.thorough),
    ],
)
def test_killed_until_it_is_through(tmp_path, name):
    chance, kills, rounds = random.Random(os.urandom(8)), Counter[str](), 0
    while kills.total() < KILLS:
        (tmp_path / str(rounds)).mkdir()
        command = Killed(name, tmp_path / str(rounds))
        while kills.total() < KILLS and not command.through:
            victim = chance.choice(["parent", "worker", "both"])
            written = chance.choice([None, None, *WRITTEN[name]])
            after_s = chance.uniform(0, 10 if written is None else 1 if written == "report" else 0)
            kills[str(written)] += command.kill(victim, after_s, written)
        command.finish()
        rounds += 1
    print(f"{name}: {dict(kills)} kills in {rounds} runs")


@pytest.mark.thorough
@pytest.mark.parametrize("round_", range(-(-KILLS // 10)))
def test_a_disk_that_is_too_small(tmp_path, round_):
    """It fills up in the cache, a table, a checkpoint or the report; with room, it goes on."""
    chance = random.Random(os.urandom(8))
    name, kib = chance.choice([*COMMANDS]), chance.randrange(60, 1400)
    with small_disk_of(kib, tmp_path / "disk") as disk:
        command = Killed(name, disk)
        process = command.start()
        command.outputs.append(process.communicate()[0])
        command.through = process.returncode == 0
        assert command.through or "No space left on device" in command.outputs[-1], (name, kib)
        command.check()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        command.finish()


@pytest.mark.slow
def test_check_is_killed_and_repeated():
    """It writes nothing: a worker that is gone is a line, and nothing lives on."""
    chance, kills = random.Random(os.urandom(8)), 0
    outputs: list[str] = []
    survivors: list[int] = []
    for _ in range(4 * KILLS):
        victim = chance.choice(["parent", "worker", "both"])
        process = subprocess.Popen(
            [sys.executable, "-m", "bench", "check", "--presets", "equal"],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if hit := strike(process, victim, chance.uniform(0, 8), outputs, survivors):
            ends = (0, 2) if victim == "worker" else (-signal.SIGKILL,)  # 0: they had done theirs
            assert process.returncode in ends, outputs[-1]
            if process.returncode == 2:
                assert outputs[-1].startswith("error: one of the"), outputs[-1]
                assert outputs[-1].count("\n") == 1
        kills += hit
        if kills == KILLS:
            break
    assert survivors == []
    assert not [text for text in outputs if "Traceback" in text]
    print(f"check: {kills} kills")
