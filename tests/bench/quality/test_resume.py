"""A training that was killed goes on as if nothing had happened, to the last bit."""

import itertools
import os
import signal
from dataclasses import replace

import psutil
import pytest
import torch
from safetensors.torch import load_file

from bench.harness.window import Window
from bench.methods import METHODS
from bench.presets import Workload
from bench.records.folder import QualityRun
from tests.bench.quality.trainings import Watcher, losses, run_trainings, tiny_plan, train
from tests.related import slow_but

EVERYDAY = ("patchddm",)
"""A generator and an optimizer of their own."""
EXACT = ["step", "loss_train", "val_mse", "val_mse_ema", "learning_rate"]


@pytest.fixture
def runs(tmp_path) -> tuple[QualityRun, QualityRun]:
    return QualityRun.create(tmp_path, "whole"), QualityRun.create(tmp_path, "killed")


def worker() -> psutil.Process:
    (found,) = (
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "bench.quality.trainer" in child.cmdline()
    )
    return found


def assert_same_training(one: QualityRun, other: QualityRun, method: str) -> None:
    """Curves and every tensor of the last checkpoint, to the last bit."""
    curves = [run.learning()[EXACT] for run in (one, other)]
    assert curves[0].equals(curves[1])
    parts = ("autoencoder", "") if method == "latent" else ("",)
    assert curves[0]["step"].tolist() == ([2, 4, 6] if len(parts) == 2 else [0, 2, 4, 6])
    for part in parts:
        first, second = (load_file(run.checkpoint(method, 0, part)) for run in (one, other))
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["idm", pytest.param("idm-lean", marks=pytest.mark.thorough)])
def test_killed_by_sigkill(runs, method, tmp_path):
    """Its process is killed at step 5, and its last checkpoint is that of step 1 or 2."""
    whole, killed = runs
    plan = tiny_plan(whole, method=method)
    expected = losses(train(plan))
    plan = replace(plan, folder=str(killed.folder))
    path, kept = killed.checkpoint(method, 0), tmp_path / "kept"

    def act(fraction: float) -> None:
        if fraction == 2 / 6:
            kept.write_bytes(path.read_bytes())
        if fraction == 5 / 6:
            os.kill(worker().pid, signal.SIGKILL)

    run_trainings(killed, [plan], Watcher(act))
    (record,) = killed.trained().to_dict("records")
    assert record["status"] == "failed"
    assert "SIGKILL" in record["error"]
    os.replace(kept, path)
    assert killed.learning()["step"].max() == 4
    with (killed.folder / "learning.csv").open("a") as file:
        file.write(f"{method},0,6,0.")

    redone = losses(train(plan))
    assert len(redone) in (4, 5)  # step 2 was told of before its checkpoint was written
    assert all(expected[step] == loss for step, loss in redone.items())
    assert_same_training(whole, killed, method)


@pytest.mark.parametrize("method", slow_but(EVERYDAY, METHODS))
def test_stopped_and_gone_on_with(runs, method):
    """As after Ctrl-C; the patches of patchddm come from a generator of their own."""
    whole, stopped = runs
    plan = tiny_plan(whole, method=method)
    if method == "patchddm":
        plan = replace(plan, work=Workload(8, 4, 2, (8, 32), 1, "fp32"))
    if method == "iunet":  # each level of it has twice the channels
        plan = replace(plan, work=replace(plan.work, channels=(16, 32)))
    expected = losses(train(plan))
    plan = replace(plan, folder=str(stopped.folder))
    found = losses(train(plan, stop_after=3))
    assert list(found) == [1, 2, 3]
    assert stopped.learning()["step"].tolist() == ([2] if method == "latent" else [0, 2])
    found |= losses(train(plan))
    assert found == expected
    assert_same_training(whole, stopped, method)


@pytest.mark.parametrize(
    ("asked", "steps"),
    [pytest.param(5, 0, id="before the first step"), pytest.param(2 + 12 + 5, 2, id="raw"),
     pytest.param(2 + 12 + 12 + 5, 2, id="averaged")],
)  # fmt: skip
def test_stopped_in_the_midst_of_a_validation(runs, asked, steps):
    """It went on to the end of the validation: minutes, of large volumes. It is made good."""
    whole, stopped = runs
    plan = tiny_plan(whole)
    expected = losses(train(plan))
    plan = replace(plan, folder=str(stopped.folder))
    questions = itertools.count(1)
    found = losses(train(plan, should_stop=lambda: next(questions) >= asked))
    assert list(found) == list(range(1, steps + 1))
    assert stopped.learning()["step"].tolist() == [0][:steps]
    assert stopped.checkpoint("idm", 0).exists() == (steps > 0)

    cut = losses(train(plan, stop_after=1))  # what was left out comes first
    assert stopped.learning()["step"].tolist() == [0, 2][: 1 + steps]
    assert found | cut | losses(train(plan)) == expected
    assert_same_training(whole, stopped, "idm")


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_stopped_before_the_latents_are_made(runs, after):
    """In the midst of the autoencoder's training, and at its end."""
    whole, stopped = runs
    plan = tiny_plan(whole, method="latent")
    expected = losses(train(plan))
    plan = replace(plan, folder=str(stopped.folder))
    events = train(plan, stop_after=after)
    assert list(found := losses(events)) == list(range(1, after + 1))
    assert not stopped.checkpoint("latent", 0).exists()
    assert found | losses(train(plan)) == expected
    assert_same_training(whole, stopped, "latent")


@pytest.mark.slow
def test_killed_before_the_first_checkpoint(runs):
    whole, killed = runs
    plan = tiny_plan(whole)
    train(plan)
    plan = replace(plan, folder=str(killed.folder))
    train(plan, stop_after=3)
    killed.checkpoint("idm", 0).unlink()
    train(plan)
    assert_same_training(whole, killed, "idm")


def test_a_training_that_is_over_is_not_trained_on(runs):
    run, _ = runs
    plan = tiny_plan(run)
    train(plan)
    before = (run.folder / "learning.csv").read_bytes()
    assert losses(train(plan)) == {}
    assert (run.folder / "learning.csv").read_bytes() == before


@pytest.mark.slow
def test_minutes_go_on_where_they_were(runs):
    """The time of a training in minutes is that of all its processes."""
    run, _ = runs
    plan = tiny_plan(run, window=Window(seconds=1.0))
    first = [event for event in train(plan, stop_after=2) if event["event"] == "step"]
    second = [event for event in train(plan) if event["event"] == "step"]
    assert second[0]["step"] == 3
    assert second[0]["elapsed_s"] > first[-1]["elapsed_s"]
    assert second[-1]["elapsed_s"] >= 1 > second[-2]["elapsed_s"]
