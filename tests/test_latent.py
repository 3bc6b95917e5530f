"""docs/latent.md: a small step of each of its kinds is predicted to the byte."""

from functools import partial

import pytest
import torch

from bench.predict import predict
from bench.predict.own import AllOptimizers
from bench.probes.cost import StepProbe
from docs import latent
from docs.validation import maisi

SMALL = {"widths": (32, 64, 64), "norm_float16": False}


def watched(network, optimizer, batch, step):
    probe = StepProbe(network, optimizer, "cpu", [batch])
    probe.start()
    kept = step()
    cost = probe.stop()
    del kept
    return cost


@pytest.mark.thorough
def test_an_adversarial_step_takes_the_bytes_that_were_predicted():
    patch = torch.rand(1, 1, 24, 24, 24)
    networks = latent.Adversarial(maisi.autoencoder(1, **SMALL))
    optimizers = latent.optimizers(networks)
    found = predict(networks, patch, optimizers, step=latent.adversarial_step, device="cpu")
    latent.adversarial_step(networks, patch, optimizers)
    step = partial(latent.adversarial_step, networks, patch, optimizers)
    cost = watched(networks, AllOptimizers(optimizers), patch, step)
    assert found.peak_memory_bytes == cost.peak_memory_bytes
    assert found.flops_step == cost.flops_step


@pytest.mark.slow
def test_decoding_in_parts_takes_the_bytes_that_were_predicted_and_gives_the_same():
    z, drawn = torch.rand(1, maisi.LATENT_CHANNELS, 4, 8, 4), []
    for splits in (1, 2):
        torch.manual_seed(0)
        decoder = maisi.autoencoder(splits, **SMALL).eval()
        found = predict(decoder, z, loss=latent.decode, device="cpu")
        nothing = torch.optim.SGD(decoder.parameters())
        with torch.no_grad():
            cost = watched(decoder, nothing, z, partial(latent.decode, decoder, z))
            drawn.append(latent.decode(decoder, z))
        assert found.peak_memory_bytes == cost.peak_memory_bytes
        assert found.flops_step == cost.flops_step
    assert drawn[0].shape == (1, 1, 16, 32, 16)
    torch.testing.assert_close(*drawn, rtol=1e-4, atol=1e-5)


def test_the_page_shows_its_windows():
    text = latent.PAGE.read_text(encoding="utf-8")
    for side, _ in latent.WINDOWS:
        assert f"| {side}³ latents |" in text
