"""Every technique with every network that it applies to."""

import random
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from baselines.techniques.wavelet import coefficients, volume
from bench.ddpm.step import TrainingStep
from bench.methods import METHODS, TECHNIQUES, Method, find_methods
from bench.predict import predict
from bench.predict.prediction import predict_method
from bench.probes.cost import StepProbe
from bench.probes.flops import forward_flops
from docs.techniques import ADDED, COMPILED, ON_CPU, measured, refusal
from models.idm.optimizer import AdamWInBackward
from tests.baselines.training import nudge

NETWORKS = ("unet", "unet-attention", "patchddm", "idm", "idm-stored", "idm-lean", "revunet")
EXACT = [name for name, technique in TECHNIQUES.items() if technique.kind == "exact"]
FUSED = "fused-backward"
"""It leaves no gradients that could be compared: its updates are, below."""


GRID = [(n, t) for n in NETWORKS for t in ADDED if not refusal(n, t, ON_CPU)]
OTHERS = [("wdm", "checkpoint"), ("wdm", "checkpoint-level")]
"""Of networks whose parts are those of the networks above."""


def test_the_grid_is_as_wide_as_it_should_be():
    """What is left out is left out for a reason that is said."""
    missing = {(n, t) for n in NETWORKS for t in ADDED} - set(GRID)
    checkpoints = {t for t in TECHNIQUES if t.startswith("checkpoint")}
    assert missing == {
        *((n, t) for n in ("idm", "idm-stored", "idm-lean", "revunet") for t in checkpoints),
        ("patchddm", "patch"), ("patchddm", "wavelet"), ("patchddm", "latent"),
        *(("idm-lean", t) for t in ("accumulate", "fused-backward", "adam8bit", "adafactor")),
        ("idm-lean", "fp16"), ("idm-lean", "channels-last"),
    }  # fmt: skip


def pairs(grid: list[tuple[str, str]], *techniques: str) -> list[Any]:
    """Of a grid: `unet` every day; networks that are like another one the least often."""
    marks = {"unet": (), "idm": pytest.mark.slow, "idm-lean": pytest.mark.slow}
    return [
        pytest.param(n, t, marks=marks.get(n, pytest.mark.thorough))
        for n, t in grid
        if t in techniques
    ]


def step_of(name: str, double: bool = False) -> TrainingStep:
    torch.manual_seed(0)
    work = ON_CPU(METHODS[name])
    network = nudge(METHODS[name].build(work))
    return TrainingStep(network.double() if double else network, work)


def gradients(step: TrainingStep) -> dict[str, torch.Tensor]:
    """Of a step on the same volumes, in the same noise; also where they are used up at once."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in step.network.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: found.update({name: p.grad.clone()})
        )
    if isinstance(step.optimizer, AdamWInBackward):
        step.optimizer.detach()
    step.adds_l2_itself = True  # nobody adds it: the gradients are those of the network
    step.optimizer = torch.optim.SGD(step.parameters, lr=0.0)
    step.schedule = torch.optim.lr_scheduler.ConstantLR(step.optimizer)
    torch.manual_seed(1)
    step(torch.rand(2, 1, 16, 16, 16, dtype=torch.float64))
    return found


@cache
def gradients_of(name: str) -> dict[str, torch.Tensor]:
    return gradients(step_of(name, double=True))


@pytest.mark.parametrize(
    ("network", "technique"), pairs(GRID + OTHERS, *(t for t in EXACT if t != FUSED))
)
def test_an_exact_technique_gives_the_gradients_of_the_bare_network(network, technique):
    bare = gradients_of(network)
    changed = gradients(step_of(f"{network}+{technique}", double=True))
    assert bare.keys() == changed.keys()
    most = max(gradient.norm() for gradient in bare.values())
    for name, gradient in bare.items():  # a bias before a norm has none, but for rounding
        assert (gradient - changed[name]).norm() <= 1e-10 * max(gradient.norm(), 1e-4 * most), name


@pytest.mark.parametrize(
    ("network", "technique"), pairs([*GRID, *OTHERS, ("wdm", ""), ("iunet", "")], *TECHNIQUES, "")
)
def test_two_steps_take_the_bytes_that_were_predicted(network, technique):
    if technique == "fp16":
        pytest.skip("a CPU's float16 convolutions take minutes")
    name = f"{network}+{technique}".rstrip("+")
    (method,) = find_methods([name])
    cost = measured(method, ON_CPU(method))
    found = predict_method(method, ON_CPU(method), device="cpu", count_forward=False)
    assert found.peak_memory_bytes == cost.peak_memory_bytes
    assert found.flops_step == cost.flops_step


@pytest.mark.parametrize(("network", "technique"), pairs(GRID, FUSED))
def test_updates_in_the_backward_pass_are_those_after_it(network, technique):
    def weights(name):
        step = step_of(name, double=True)
        torch.manual_seed(2)
        for volumes in torch.rand(3, 2, 1, 16, 16, 16, dtype=torch.float64):
            step(volumes)
        return dict(step.network.named_parameters())

    bare, fused = weights(network), weights(f"{network}+{technique}")
    assert bare.keys() == fused.keys()
    for name, weight in bare.items():
        torch.testing.assert_close(fused[name], weight, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("technique", ["wavelet", "patch", "latent"])
def test_a_network_that_sees_something_else_keeps_its_own_optimizer(technique):
    assert isinstance(step_of(f"idm-lean+{technique}").optimizer, AdamWInBackward)


def test_offloading_is_predicted_on_a_card_with_what_the_host_then_holds():
    """What leaves the card is on the host: no byte is lost on the way."""
    here, there = (
        predict(name, preset="small", volume=16, channels=(16, 32))
        for name in ("unet", "unet+offload")
    )
    assert here.host_bytes == 0
    assert there.peak_memory_bytes < here.peak_memory_bytes
    assert there.host_bytes > 2**23
    assert there.stored_bytes + there.host_bytes == here.stored_bytes
    assert there.flops_step == here.flops_step


def test_wavelets_lose_nothing_and_keep_the_length():
    x = torch.randn(2, 3, 8, 6, 4, dtype=torch.float64)
    w = coefficients(x)
    assert w.shape == (2, 24, 4, 3, 2)
    torch.testing.assert_close(volume(w), x, rtol=0, atol=1e-14)
    torch.testing.assert_close(w.norm(), x.norm(), rtol=1e-14, atol=0)
    means = torch.nn.functional.avg_pool3d(x, 2) * 8**0.5
    torch.testing.assert_close(w[:, :3], means, rtol=0, atol=1e-14)


def test_a_patch_brings_the_places_of_its_voxels():
    """A ramp along each axis, cropped, is what the coordinates of the patch say."""
    network = METHODS["unet+patch"].build(ON_CPU(METHODS["unet+patch"]))
    ramps = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 16)] * 3, indexing="ij"))
    for seed in range(4):
        patch, keywords = network.crop(ramps[None], 8, random.Random(seed))
        torch.testing.assert_close(keywords["coordinates"], patch)


@pytest.mark.parametrize(
    "budget",
    [pytest.param(1.0, marks=pytest.mark.thorough), pytest.param(0.5, marks=pytest.mark.slow)],
)
def test_compiled_it_gives_the_same_gradients_and_stores_less(budget):
    """Of a network small enough to be compiled in seconds, by the default compiler."""

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Conv3d(w, 1, 1) for w in (1, 1, 1, 1))

        def forward(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = torch.sin(layer(torch.sin(x)))
            return x

    def trained(*techniques: str) -> tuple[dict[str, torch.Tensor], int]:
        method = Method(
            "small", lambda **_: Small(), {}, techniques=tuple(map(TECHNIQUES.get, techniques))
        )
        work = replace(ON_CPU(METHODS["unet"]), memory_budget=budget)
        torch.manual_seed(0)
        step = TrainingStep(method.build(work).double(), work)
        found = gradients(step)
        volumes = torch.rand(2, 1, 16, 16, 16, dtype=torch.float64)
        probe = StepProbe(step.network, step.optimizer, "cpu", [volumes])
        probe.start()
        step(volumes)
        return found, probe.stop().peak_memory_bytes

    (bare, most), (compiled, peak) = trained(), trained(COMPILED)
    torch.testing.assert_close(compiled, bare, rtol=1e-10, atol=1e-12)
    assert peak < most


def test_compiled_it_is_predicted_and_counted_as_it_is_written():
    compiled = find_methods([f"unet+{COMPILED}"])[0]
    work = ON_CPU(compiled)
    found, bare = (predict_method(each, work) for each in (compiled, METHODS["unet"]))
    assert found.peak_memory_bytes == bare.peak_memory_bytes
    assert found.assumptions == ("compile: predicted as not compiled",)
    x_t, t = torch.rand(2, 1, 16, 16, 16), torch.tensor([1, 2])
    assert forward_flops(compiled.build(work), x_t, t) == bare.cost.flops_forward
