"""A training on latents: the autoencoder first, then the network, then volumes again."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.commands import QualityCommand
from bench.data import load, open_source, prepare
from bench.data.nifti import read_nifti
from bench.ddpm.step import Training
from bench.harness.environment import describe_environment
from bench.methods import METHODS
from bench.presets import Overrides
from bench.quality import from_run
from bench.quality.autoencoder import AutoencoderStep
from bench.records.files import to_json
from bench.records.folder import QualityRun
from tests.bench.quality.trainings import tiny_plan, train

WORK = METHODS["latent"].workload("small", Overrides(volume=16, batch_size=2, channels=(8, 16)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run, what it told, its plan) of two steps of the autoencoder and four of the network."""
    folder = tmp_path_factory.mktemp("latents")
    run = QualityRun.create(folder, "quality-small")
    volumes = prepare(open_source("phantom", None, ("t1",), 16, 0, 7), folder / "cache")
    plan = tiny_plan(run, method="latent", work=WORK, samples=2, sampler="ddpm-mean",
                     volumes=str(volumes))  # fmt: skip
    configuration = {"configuration": to_json(QualityCommand())}
    run.write_environment(describe_environment(["bench"], [plan]) | configuration)
    return run, train(plan), plan


def columns(events):
    found = {}
    for event in events:
        found |= event["columns"] if event["event"] == "columns" else {}
    return found


def test_both_trainings_count_and_the_first_is_told_apart(trained):
    _, events, _ = trained
    stages = list(dict.fromkeys(e["name"] for e in events if e["event"] == "stage"))
    assert stages[1] == "training the autoencoder"
    assert stages[2] == "encoding training volumes: 20%"  # of five: a volume is a word
    assert stages.index("encoding validation volumes: 100%") + 1 == stages.index("training")
    row = columns(events)
    assert (row["steps"], row["autoencoder_steps"]) == (6, 2)
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3, 4, 5, 6]
    assert row["autoencoder_s"] == steps[1]["elapsed_s"] < steps[2]["elapsed_s"] < row["elapsed_s"]
    assert row["autoencoder_peak_bytes"] > 0 < row["peak_memory_bytes"]
    built = METHODS["latent"].build(WORK)
    assert row["parameters"] == sum(p.numel() for p in built.parameters())
    encoder = built.latents.autoencoder
    assert row["autoencoder_parameters"] == sum(p.numel() for p in encoder.parameters())


def test_the_error_is_of_latents_and_said_to_be(trained):
    run, _, _ = trained
    curve = run.learning()
    assert curve["step"].tolist() == [2, 4, 6]
    assert (curve["val_of"] == "latents").all()
    assert np.allclose(curve["learning_rate"], [2e-4, 1e-4, 0])
    scores = run.scores()
    eps = scores[scores["column"].isin(["mae", "mse"])]
    assert (eps["note"] == "of latents").all()
    assert {"psnr", "ssim", "psnr_noisy", "psnr_decoded"} <= set(scores["column"])


def test_samples_are_volumes(trained):
    run, _, _ = trained
    samples = read_nifti(run.samples_of("latent", 0), 1)
    assert samples.shape == (2, 1, 16, 16, 16)
    assert (samples >= 0).all()
    assert (samples <= 1).all()


def test_a_trained_network_brings_its_autoencoder(trained):
    """Its latents of the training volumes fill [0, 1]; decoded, they are what was scored."""
    run, _, plan = trained
    network = from_run(run.folder)
    cpu, volumes = torch.device("cpu"), load(Path(plan.volumes))
    found = network.latents.encode(volumes[list(plan.train)], cpu)
    assert (found.min(axis=(0, 2, 3, 4)) == 0).all()
    assert (found.max(axis=(0, 2, 3, 4)) == 1).all()
    val = torch.from_numpy(volumes[list(plan.val)])
    back = network.latents.decode(torch.from_numpy(network.latents.encode(val.numpy(), cpu)), cpu)
    psnr = [-10 * math.log10(e) for e in (back - val).square().flatten(1).mean(1).tolist()]
    scores = run.scores().query("column == 'psnr_decoded' and protocol == 'validation'")
    assert np.allclose(scores["value"], np.mean(psnr), atol=1e-3)


def test_an_autoencoder_learns_from_patches():
    torch.manual_seed(0)
    autoencoder = METHODS["latent"].build(WORK).latents.autoencoder
    step = AutoencoderStep(autoencoder, WORK, Training(), torch.device("cpu"))
    brains = torch.rand(2, 1, 80, 8, 8)
    patch = step.cut(brains)
    assert patch.shape == (2, 1, 64, 8, 8)
    first = next(n for n in range(17) if torch.equal(patch, brains[:, :, n : n + 64]))
    assert first != 0
    batch = step.cut(torch.zeros(2, 1, 8, 8, 8))
    losses = [float(step(batch)) for _ in range(6)]
    assert losses[-1] < 0.9 * losses[0]
