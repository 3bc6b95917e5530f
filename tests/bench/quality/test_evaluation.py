"""What follows a training, also when it is stopped on the way."""

from dataclasses import replace

import pytest

from bench.data.nifti import read_nifti
from bench.records.folder import QualityRun
from tests.bench.quality.trainings import tiny_plan, train


@pytest.fixture
def run(tmp_path):
    return QualityRun.create(tmp_path, "quality-small")


def key(scores):
    return scores[["method", "seed", "column", "protocol", "timestep", "modality"]]


def test_a_stop_while_sampling_is_made_good_by_the_next_time(run, tmp_path):
    plan = tiny_plan(run, samples=2, sampler_steps=3)
    stages = []

    def stop() -> bool:
        stages.append(None)
        # Four validations, 12 batches, but for the first twice; six steps; then, scoring.
        return len(stages) > 12 + 3 * 24 + 6 + 6

    events = train(plan, should_stop=stop)
    assert any(event.get("name", "").startswith("scoring") for event in events)
    assert run.scores().empty
    assert read_nifti(run.samples_of("idm", 0), 1) is None

    events = train(plan)
    assert not any(event["event"] == "step" for event in events)  # it is trained already
    assert not key(run.scores()).duplicated().any()
    assert read_nifti(run.samples_of("idm", 0), 1).shape == (2, 1, 8, 8, 8)


def test_done_again_it_replaces_what_it_left(run):
    plan = tiny_plan(run, samples=2, sampler_steps=3)
    train(plan)
    before, samples = run.scores(), read_nifti(run.samples_of("idm", 0), 1)
    train(plan)
    assert run.scores().equals(before)
    assert (read_nifti(run.samples_of("idm", 0), 1) == samples).all()


def test_another_seed_is_scored_on_the_same_noise_and_kept_beside(run):
    for seed in (0, 1):
        plan = tiny_plan(run, samples=0)
        train(replace(plan, training=replace(plan.training, seed=seed)))
    scores = run.scores()
    noisy = scores[scores["column"] == "psnr_noisy"]
    zero, one = (noisy[noisy["seed"] == seed]["value"].tolist() for seed in (0, 1))
    assert zero == one  # the noisy input knows no network
    drawn = scores[scores["protocol"].str.startswith("dd")]
    assert drawn.empty  # no samples were asked for


def test_nothing_that_takes_long_is_silent(run):
    """A process without a word for --timeout seconds is given up, also one that validates."""
    plan = tiny_plan(run, samples=2, sampler="ddpm-mean", sampler_steps=3)
    events = train(plan)
    names = [event.get("name", event["event"]) for event in events]
    first = names[: names.index("step")]
    assert sum(name.startswith("validating: ") for name in first) == 12  # of 24 pairs, by two
    assert not any("averaged" in name for name in first)  # they are the weights
    assert names.count("validating averaged weights: 100%") == plan.validations
    assert any(name.startswith("finding a start: ") for name in names)
    row = run.learning().iloc[0]
    assert (row["step"], row["val_mse"]) == (0, row["val_mse_ema"])
