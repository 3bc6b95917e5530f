"""What trains on latents: they are made beforehand, and a step is that of the network alone."""

import numpy as np
import pytest
import torch

from baselines import maisi
from baselines.techniques import latent
from bench.ddpm.step import TrainingStep, prepared, random_batch
from bench.errors import UserError
from bench.methods import METHODS, find_methods
from bench.predict import predict
from bench.presets import Overrides
from bench.sizes import Shape
from tests.baselines.training import parameters_of
from tests.bench.trials import Watcher, new_run, run_trials, tiny_plan, volumes

TINY = Overrides(volume=16, batch_size=2, channels=(8, 16), couplings=1)


def latents(image_channels: int = 1) -> latent.Latents:
    torch.manual_seed(0)
    return latent.Latents(image_channels, (8, 8, 8))


def test_a_quarter_of_the_sides_four_channels_and_the_range_of_volumes():
    brains = np.random.default_rng(0).random((3, 2, 16, 24, 8), dtype=np.float32)
    found = latents(2).encode(brains, torch.device("cpu"))
    assert found.shape == latent.Latents.shape(brains.shape) == (3, 4, 4, 6, 2)
    assert (found.min(axis=(0, 2, 3, 4)) == 0).all()
    assert (found.max(axis=(0, 2, 3, 4)) == 1).all()
    again = latents(2).encode(brains, torch.device("cpu"))
    assert np.array_equal(found, again)


def test_what_is_larger_than_a_window_is_encoded_in_several(monkeypatch):
    asked = latents()
    shown = []
    asked.autoencoder.encoder.register_forward_pre_hook(
        lambda _, given: shown.append(Shape(given[0].shape[2:]))
    )
    monkeypatch.setattr(latent, "WINDOW", 16)
    found = asked.encode(np.ones((1, 1, 28, 16, 8), np.float32), torch.device("cpu"))
    assert shown == [Shape((16, 16, 8))] * 2
    assert found.shape == (1, 4, 7, 4, 2)


def test_the_autoencoder_is_no_part_of_the_network():
    """Neither its weights nor its buffers, nor in a checkpoint: a step holds none of it."""
    work = METHODS["latent"].workload("small", TINY)
    network = METHODS["latent"].build(work)
    assert latent.autoencoder(1, (8, 16, 16)).state_dict()
    assert not any("encode" in name for name in network.state_dict())
    alone = parameters_of(lambda: maisi.build(in_channels=4, channels=(8, 16)))
    assert sum(p.numel() for p in network.parameters()) == alone


def test_the_widths_are_maisis_where_the_network_is_maisis():
    with torch.device("meta"):
        network = METHODS["latent"].build(METHODS["latent"].workload("paper"))
    assert network.latents.widths == (64, 128, 256)


@pytest.mark.parametrize("modality", [("t1",), ("t1", "t2")])
def test_it_trains_on_latents_of_any_contrasts(modality):
    (method,) = find_methods(["idm+latent"])
    work = method.workload("small", Overrides(**vars(TINY) | {"modality": modality}))
    step = TrainingStep(method.build(work), work)
    brains = np.random.default_rng(0).random((2, len(modality), 16, 16, 16), dtype=np.float32)
    found = prepared(step.network, work, brains, step.device)
    assert found.shape == random_batch(work, step.network)[0].shape == (2, 4, 4, 4, 4)
    x_t, _, eps, _ = step.noised(torch.from_numpy(found))
    assert x_t.shape == eps.shape == (2, 4, 4, 4, 4)
    assert torch.isfinite(step(torch.from_numpy(found)))


def test_others_train_on_the_volumes_themselves():
    work = METHODS["unet"].workload("small", TINY)
    brains = np.zeros((1, 1, 16, 16, 16), np.float32)
    assert prepared(METHODS["unet"].build(work), work, brains, torch.device("cpu")) is brains


@pytest.mark.slow
def test_a_trial_is_as_predicted_and_says_what_is_not_in_it(tmp_path):
    work = METHODS["latent"].workload("small", TINY)
    plan = tiny_plan(tmp_path, method="latent", work=work, probes=("memory", "flops"),
                     volumes=str(volumes(tmp_path, 16)))  # fmt: skip
    watcher = Watcher()
    run_trials(new_run(tmp_path, [plan]), [plan], watcher)
    (record,) = watcher.records
    assert (record.status, record.steps) == ("ok", 3)
    assert latent.OUTSIDE in record.warnings
    found = predict("latent", preset="small", volume=16, batch_size=2, channels=(8, 16),
                    device="cpu")  # fmt: skip
    assert record.peak_memory_bytes == found.peak_memory_bytes
    assert (record.flops_step, record.flops_forward) == (found.flops_step, found.flops_forward)
    assert record.parameters == found.parameters


@pytest.mark.parametrize(
    ("name", "overrides", "why"),
    [
        ("latent", {"condition": ("seg",)}, "latents of images, and of no condition"),
        ("patchddm+latent", {}, "latents are of whole volumes"),
        ("unet+latent+wavelet", {}, "each changes what the network sees"),
        ("unet+latent+patch", {}, "latents are of whole volumes"),
        ("latent", {"volume": 20}, "multiples of 8"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(name, overrides, why):
    with pytest.raises(UserError, match=why) as refusal:
        find_methods([name])[0].workload("small", Overrides(**vars(TINY) | overrides))
    assert "\n" not in str(refusal.value)


def test_drawing_is_not_predicted_without_decoding():
    with pytest.raises(UserError, match="draws latents, and what needs most is to decode them"):
        predict("latent", sampling=True, preset="small")
