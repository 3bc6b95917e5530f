"""Samplers against a distribution that is known, MONAI's steps, and files read back."""

import itertools
import math
import random
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.networks.schedulers import DDIMScheduler
from torch import Tensor, nn

from bench.data.geometry import centred_affine
from bench.data.nifti import read_image, write_nifti
from bench.ddpm.diffusion import TIMESTEPS, Diffusion, cosine_alpha_bar
from bench.ddpm.samplers import (
    Conditions,
    Start,
    ancestral,
    clipped,
    denoiser,
    find_start,
    generate,
    given,
    sampler_steps,
    strided,
)
from bench.methods import METHODS
from bench.presets import Overrides, Workload
from bench.probes.memory import MemoryProbe
from bench.quality.evaluation import sampling_memory
from bench.sizes import Shape

MEAN, SD = 0.2, 0.15
"""Of x_0 in [−1, 1]: 0.6 and 0.075 in [0, 1], where nothing is clamped."""


def best_eps(x_t: Tensor, t: Tensor) -> Tensor:
    """E[eps | x_t] for x_0 ~ N(MEAN, SD²), in closed form."""
    alpha_bar = cosine_alpha_bar()[t].float().view(-1, *[1] * (x_t.dim() - 1))
    variance = alpha_bar * SD**2 + 1 - alpha_bar
    return (1 - alpha_bar).sqrt() * (x_t - alpha_bar.sqrt() * MEAN) / variance


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [("ddpm", None), ("ddpm-clipped", 2000), ("ddpm-clipped", 250), ("ddim", 400)],
)
def test_a_sampler_recovers_a_known_gaussian(sampler, steps):
    volumes = generate(best_eps, (2, 1, 20, 20, 20), sampler, steps, seed=1)
    # 16,000 draws: standard errors 0.0006 and 0.0004, and what the steps are too coarse by.
    assert volumes.mean().item() == pytest.approx(0.6, abs=0.003)
    assert volumes.std().item() == pytest.approx(0.075, abs=0.002)
    standard = (volumes - volumes.mean()) / volumes.std()
    assert standard.pow(4).mean().item() == pytest.approx(3, abs=0.15)  # a Gaussian's


class BestOfTarget(nn.Module):
    """Predicts v or x0 where `best_eps` predicts ε."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target, self.diffusion = target, Diffusion()

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        eps = best_eps(x_t, t)
        return self.diffusion.wanted(self.target, self.diffusion.predict_x_0(x_t, t, eps), t, eps)


@pytest.mark.parametrize("target", ["v", "x0"])
@pytest.mark.parametrize("sampler", ["ddpm-clipped", "ddim"])
def test_a_network_of_another_target_draws_the_same(target, sampler):
    work = METHODS["idm"].workload("small", Overrides(target=target))
    denoise = denoiser(BestOfTarget(target), work, torch.device("cpu"))
    found = generate(denoise, (1, 1, 4, 4, 4), sampler, 50, seed=1)
    assert torch.allclose(
        found, generate(best_eps, (1, 1, 4, 4, 4), sampler, 50, seed=1), atol=5e-3
    )


class MeanOfCondition(nn.Module):
    """ε of volumes that are what their condition and their label say, and nothing otherwise."""

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        said = x[:, 1:] + torch.where(class_labels == 2, 0.0, 0.25 * class_labels).view(
            -1, 1, 1, 1, 1
        )
        alpha_bar = cosine_alpha_bar()[t].float().view(-1, 1, 1, 1, 1)
        return (x[:, :1] - alpha_bar.sqrt() * said) / (1 - alpha_bar).sqrt()


def test_what_is_drawn_is_what_was_given_and_guidance_goes_beyond():
    work = Workload(Shape(4), Shape(4), 1, (8,), 1, "fp32", condition=("seg",), classes=2)
    prepared = torch.cat([torch.rand(3, 1, 4, 4, 4), torch.full((3, 1, 4, 4, 4), 0.25)], dim=1)
    conditions = Conditions.of(work, prepared, torch.tensor([0, 1, 2])).some(slice(None), "cpu")
    denoise = denoiser(MeanOfCondition(), work, torch.device("cpu"))
    drawn = {
        guidance: generate(given(denoise, conditions, guidance), (3, 1, 4, 4, 4), "ddim", 20)
        for guidance in (0, 1, 2)
    }
    assert torch.allclose(drawn[0], torch.zeros(()), atol=1e-3)  # an empty condition: −1
    for index, said in enumerate((0.25, 0.375, 0.25)):
        assert torch.allclose(drawn[1][index], torch.tensor(said), atol=1e-3)
        assert torch.allclose(drawn[2][index], torch.tensor(2 * said), atol=1e-3)


@pytest.mark.parametrize("timestep", [1000, 1999])
def test_a_chain_from_the_mean_recovers_it_too(timestep):
    """A Gaussian around its mean is what the start of `ddpm-mean` takes the volumes for."""
    start = Start(timestep, torch.full((1, 20, 20, 20), 0.6))
    volumes = generate(best_eps, (2, 1, 20, 20, 20), "ddpm-mean", seed=1, start=start)
    alpha_bar = cosine_alpha_bar()[timestep].item()
    # The start lacks the spread of the volumes themselves: √alpha_bar · 0.15 beside the noise.
    lacking = alpha_bar * SD**2 / (alpha_bar * SD**2 + 1 - alpha_bar)
    assert lacking < 0.06
    assert volumes.mean().item() == pytest.approx(0.6, abs=0.003)
    assert volumes.std().item() == pytest.approx(0.075, rel=0.06)


def test_a_chain_starts_where_the_denoiser_knows_more_than_the_mean():
    """The mean of many volumes, since that of sixteen is nearer to those than the truth is."""
    volumes = 0.6 + SD / 2 * torch.randn(256, 1, 10, 10, 10, generator=torch.Generator())

    def lost_above(limit: int):
        return lambda x_t, t: best_eps(x_t, t) + (1.0 if t[0] > limit else 0.0)

    assert find_start(best_eps, volumes).timestep > 1300
    for limit in (1200, 700):
        start = find_start(lost_above(limit), volumes)
        assert limit - 50 <= start.timestep <= limit
        assert torch.equal(start.volume, volumes.mean(0))


def test_only_a_chain_from_the_mean_has_a_start():
    start = Start(600, torch.zeros(1, 2, 2, 2))
    for sampler, wrong in (("ddpm-mean", None), ("ddpm-clipped", start)):
        with pytest.raises(ValueError, match="ddpm-mean begins at a start"):
            generate(best_eps, (1, 1, 2, 2, 2), sampler, start=wrong)


@pytest.mark.parametrize("steps", [10, 50])
def test_few_ddim_steps_shrink_the_deviation_as_much_as_they_must(steps):
    """Each step is linear in the distance from the mean: its factor, in float64, step by step."""
    alpha_bar = np.append(cosine_alpha_bar().numpy(), 1.0)
    times = np.append(np.rint(np.linspace(TIMESTEPS - 1, 0, steps)).astype(int), TIMESTEPS)
    deviation = 1.0
    for now, after in itertools.pairwise(alpha_bar[times]):
        variance = now * SD**2 + 1 - now
        deviation *= (np.sqrt(now * after) * SD**2 + np.sqrt((1 - now) * (1 - after))) / variance
    volumes = generate(best_eps, (2, 1, 20, 20, 20), "ddim", steps, seed=1)
    assert deviation < SD
    assert volumes.std().item() == pytest.approx(deviation / 2, rel=0.02)
    assert volumes.mean().item() == pytest.approx(0.6, abs=0.003)


@pytest.mark.parametrize("sampler", ["ddpm", "ddpm-clipped", "ddim"])
def test_the_seed_decides_the_samples(sampler):
    one, same, other = (generate(best_eps, (1, 1, 4, 4, 4), sampler, seed=s) for s in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    assert one.min() >= 0
    assert one.max() <= 1


def test_ddim_in_all_steps_is_monais():
    """With every timestep MONAI's stride is what it says; elsewhere it is not (see `strided`)."""
    theirs = DDIMScheduler(TIMESTEPS, "cosine", clip_sample=False)
    ours = Diffusion()
    known = cosine_alpha_bar()
    assert torch.allclose(theirs.alphas_cumprod.double(), known, rtol=5e-4, atol=0)
    x_T = torch.randn(1, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0))
    x_t = x_T
    mine = strided(ours, best_eps, x_T, TIMESTEPS)
    for step, x in zip(theirs.timesteps.tolist(), mine, strict=True):
        x_t, _ = theirs.step(best_eps(x_t, torch.tensor([step])), step, x_t)
        if step % 250 == 0:
            assert torch.allclose(x_t, x, atol=2e-3), step


def test_monais_strides_are_not_its_timesteps():
    """Why `strided` exists; when this fails, MONAI's scheduler serves and `strided` can go."""
    theirs = DDIMScheduler(TIMESTEPS, "cosine")
    theirs.set_timesteps(50)
    stride = TIMESTEPS // 50
    asked = theirs.timesteps.tolist()
    assert any(before - stride != after for before, after in itertools.pairwise(asked))


def test_ddim_clamps_what_its_steps_take_for_the_volume():
    """A denoiser that is off at t = T, where alpha_bar is 6e-10, must not blow the sample up."""

    def off(x_t: Tensor, t: Tensor) -> Tensor:
        return best_eps(x_t, t) + (0.1 if t[0] == TIMESTEPS - 1 else 0.0)

    for x in strided(Diffusion(), off, torch.randn(1, 1, 8, 8, 8), 50):
        assert x.abs().max() < 6


def test_clipping_changes_nothing_while_the_volume_lies_within():
    """Eq. (7) by its posterior is eq. (7): the same noise gives the same volumes."""
    plain, clamped = (
        generate(best_eps, (1, 1, 8, 8, 8), sampler, TIMESTEPS, seed=2)
        for sampler in ("ddpm", "ddpm-clipped")
    )
    assert torch.allclose(plain, clamped, atol=2e-3)


def test_an_error_at_the_first_step_throws_only_eq_7_as_it_stands_off():
    """eps wrong by 0.1 at t = T: its first step multiplies that by 0.999 / √0.001."""

    def off(x_t: Tensor, t: Tensor) -> Tensor:
        return best_eps(x_t, t) + (0.1 if t[0] == TIMESTEPS - 1 else 0.0)

    x_T, diffusion = torch.randn(1, 1, 8, 8, 8), Diffusion()
    plain, kept = (
        next(chain(torch.Generator().manual_seed(0)))
        for chain in (
            partial(ancestral, diffusion, off, x_T),
            partial(clipped, diffusion, off, x_T, TIMESTEPS),
        )
    )
    right = next(ancestral(diffusion, best_eps, x_T, torch.Generator().manual_seed(0)))
    assert (plain - right).mean().item() == pytest.approx(-0.1 * 0.999 / math.sqrt(1e-3), rel=0.01)
    assert (kept - right).abs().max() < 0.01


def test_noise_mends_the_errors_of_early_steps():
    """Why the default is not `ddim`: a young network errs most where there is most noise."""

    def off(x_t: Tensor, t: Tensor) -> Tensor:
        return best_eps(x_t, t) + (0.1 if t[0] >= 1500 else 0.0)

    def shift(sampler) -> float:
        wrong, right = (
            generate(denoiser, (1, 1, 16, 16, 16), sampler, 50, seed=1)
            for denoiser in (off, best_eps)
        )
        return abs((wrong - right).mean().item())

    assert shift("ddpm-clipped") < shift("ddim") / 10


def test_every_step_is_told_of():
    told: list[float] = []
    generate(best_eps, (1, 1, 2, 2, 2), "ddim", 5, progress=told.append)
    assert told == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_steps_that_a_sampler_does_not_have_are_refused():
    assert sampler_steps("ddpm") == sampler_steps("ddpm", 2000) == 2000
    assert sampler_steps("ddpm-clipped") == 250
    assert sampler_steps("ddim") == 50
    with pytest.raises(ValueError, match="ddpm samples in 2000 steps"):
        generate(best_eps, (1, 1, 2, 2, 2), "ddpm", 50)
    for sampler in ("ddpm-clipped", "ddim"):
        for steps in (0, 2001):
            with pytest.raises(ValueError, match=f"{sampler} samples in 1 to 2000"):
                sampler_steps(sampler, steps)


class TwoConvolutions(nn.Module):
    """Widens to 8 channels and back: 9 volumes are alive beside the input when it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(1, 8, 1, bias=False), nn.Conv3d(8, 1, 1, bias=False))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(x)


def test_peak_memory_of_sampling_is_weights_state_and_what_a_layer_holds():
    network = TwoConvolutions()
    network(torch.randn(1, 1, 4, 4, 4), torch.zeros(1)).sum().backward()
    peak = sampling_memory(network, (2, 1, 16, 16, 16))
    volume = 2 * 16**3 * 4
    assert peak.parameter_bytes == 16 * 4
    assert peak.gradient_bytes == peak.optimizer_bytes == 0
    assert peak.other_bytes == volume  # x_T
    assert 0 <= peak.activation_bytes - 9 * volume < 100  # t and numbers of eq. (7)
    parts = ("parameter", "gradient", "optimizer", "activation", "other")
    assert peak.peak_memory_bytes == sum(getattr(peak, f"{part}_bytes") for part in parts)
    assert network.training


@pytest.mark.parametrize("method", ["idm", "idm-lean", "patchddm", "unet"])
def test_sampling_needs_less_than_training(method):
    work = METHODS[method].workload("small", Overrides(volume=16, channels=(16, 32)))
    torch.manual_seed(0)
    network = METHODS[method].build(work)
    peak = sampling_memory(network, (2, 1, 16, 16, 16))
    assert peak.gradient_bytes == 0
    optimizer = torch.optim.AdamW(network.parameters())
    x = torch.randn(2, 1, 16, 16, 16)
    probe = MemoryProbe(network, optimizer, "cpu", [x])
    probe.start()
    network(x, torch.tensor([5, 5])).square().mean().backward()
    assert peak.peak_memory_bytes < probe.stop().peak_memory_bytes


def test_patchddm_samples_whole_volumes_at_their_own_coordinates():
    """Called without its crop's keywords, it is told the coordinates of the whole volume."""
    work = METHODS["patchddm"].workload("small", Overrides(volume=16, channels=(8, 16)))
    assert work.patch == 8
    torch.manual_seed(0)
    network = METHODS["patchddm"].build(work).eval()
    for parameter in network.parameters():  # its last convolution starts at zero
        nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(1, 1, 16, 16, 16), torch.tensor([700])
    whole, keywords = network.crop(x, 16, random.Random(0))
    with torch.no_grad():
        assert torch.equal(whole, x)
        assert torch.equal(network(x, t), network(x, t, **keywords))
        moved = {"coordinates": keywords["coordinates"] / 2}
        assert not torch.allclose(network(x, t), network(x, t, **moved))


def test_nifti_files_lie_as_the_volumes_do(tmp_path: Path):
    volumes = torch.rand(2, 1, 4, 5, 6)
    paths = write_nifti(
        tmp_path / "idm.nii.gz", volumes, centred_affine([2.5, 2, 1], Shape((4, 5, 6)))
    )
    assert [path.name for path in paths] == ["idm_0.nii.gz", "idm_1.nii.gz"]
    for path, volume in zip(paths, volumes, strict=True):
        image = nib.load(path)
        assert image.shape == (4, 5, 6)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert image.header.get_zooms() == (2.5, 2, 1)
        assert image.header.get_xyzt_units()[0] == "mm"
        assert image.get_data_dtype() == np.float32
        np.testing.assert_array_equal(np.asarray(image.dataobj), volume[0].numpy())
        np.testing.assert_allclose(
            image.affine @ [1.5, 2.0, 2.5, 1], [0, 0, 0, 1], atol=1e-9
        )  # the middle
        np.testing.assert_array_equal(read_image(path).voxels, volume[0].numpy())
        np.testing.assert_array_equal(read_image(path).affine, image.affine)


def test_each_channel_has_a_file_of_its_own(tmp_path: Path):
    volumes = np.random.default_rng(0).random((1, 2, 4, 4, 4), dtype=np.float32)
    paths = write_nifti(tmp_path / "idm.nii", volumes, np.eye(4))
    assert [path.name for path in paths] == ["idm_0_0.nii", "idm_0_1.nii"]
    np.testing.assert_array_equal(nib.load(paths[1]).get_fdata(dtype=np.float32), volumes[0, 1])
