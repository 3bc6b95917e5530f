"""Scores of denoisers whose scores are known."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from bench.data import open_source
from bench.ddpm.diffusion import Diffusion
from bench.quality import metrics
from bench.quality.evaluation import sampling_memory
from bench.quality.scoring import HEADLINE, TIMES, best_batch, score, score_samples
from bench.records.files import read_table, write_rows
from bench.records.rows import Score
from tests.bench.ddpm.test_samplers import TwoConvolutions


@pytest.fixture(scope="module")
def brains() -> Tensor:
    """T1 and T2 of 5 people, (5, 2, 16, 16, 16)."""
    source = open_source("phantom", modality=("t1", "t2"), volume=16, subjects=5)
    return torch.from_numpy(np.stack([source[index] for index in range(5)]))


class Oracle:
    """Knows the volumes, so that it finds the noise, and scales it by `share`."""

    def __init__(self, volumes: Tensor, share: float = 1.0) -> None:
        self.diffusion, self.volumes, self.share = Diffusion(), volumes, share
        self.shown: list[Tensor] = []

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        first = sum(len(x) for x in self.shown) % len(self.volumes)
        self.shown.append(x_t.clone())
        x_0 = Diffusion.scale_in(self.volumes[first : first + len(x_t)])
        alpha_bar = self.diffusion.alpha_bar[t].float().view(-1, 1, 1, 1, 1)
        return self.share * (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()


def nothing(x_t: Tensor, t: Tensor) -> Tensor:
    return torch.zeros_like(x_t)


def table(scores: list[Score]) -> pd.DataFrame:
    columns = ["protocol", "timestep", "modality", "column"]
    return pd.DataFrame(scores).set_index(columns).sort_index()


def test_a_perfect_denoiser_has_perfect_scores(brains):
    scores = table(score(Oracle(brains), brains, ("t1", "t2"), seed=0))
    for protocol in ("validation", "best-batch"):
        for modality in ("t1", "t2"):
            for step in TIMES:
                of = scores.loc[(protocol, step, modality)]["value"]
                noise = math.sqrt(1 - Diffusion().alpha_bar[step].item())  # divides the rounding
                assert of["mae"] < 1e-6 / noise
                assert of["mse"] < 1e-9
                assert of["ssim"] == pytest.approx(1, abs=1e-3)
                assert of["psnr"] > 80  # rounding of float32 is all that is left


def test_predicting_no_noise_is_the_noisy_input(brains):
    scores = pd.DataFrame(score(nothing, brains, ("t1", "t2"), seed=0))
    validation = scores[scores["protocol"] == "validation"].pivot_table(
        index=["timestep", "modality"], columns="column", values="value"
    )
    assert validation["mae"].to_numpy() == pytest.approx(math.sqrt(2 / math.pi), abs=0.01)
    assert validation["mse"].to_numpy() == pytest.approx(1, abs=0.02)
    assert (validation["psnr"] == validation["psnr_noisy"]).all()
    # T/10: before the clamp the error is √((1 − ᾱ)/ᾱ)/2 in [0, 1]; a voxel at 0, which most are,
    # keeps only the positive half of it.
    alpha_bar = Diffusion().alpha_bar[TIMES[0]].item()
    variance = (1 - alpha_bar) / alpha_bar / 4
    dark = (brains[:, 0] == 0).float().mean().item()
    expected = -10 * math.log10(variance * (1 - dark / 2))
    assert validation.loc[(TIMES[0], "t1"), "psnr_noisy"] == pytest.approx(expected, abs=0.4)
    assert list(validation.loc[(slice(None), "t1"), "psnr_noisy"]) == sorted(
        validation.loc[(slice(None), "t1"), "psnr_noisy"], reverse=True
    )


def test_half_of_the_noise_has_its_closed_form(brains):
    scores = table(score(Oracle(brains, 0.5), brains, ("t1", "t2"), seed=0))["value"]
    at = scores.loc[("validation", HEADLINE, "t2")]
    assert at["mae"] == pytest.approx(0.5 * math.sqrt(2 / math.pi), rel=0.02)
    assert at["mse"] == pytest.approx(0.25, rel=0.03)
    assert at["psnr_noisy"] + 4 < at["psnr"] < at["psnr_noisy"] + 6.1  # twice less error: 6.02 dB


def test_every_method_sees_the_same_noise_whatever_its_batch(brains):
    first, second, third, other = (Oracle(brains) for _ in range(4))
    score(first, brains, ("t1", "t2"), seed=7)
    torch.rand(11)  # what else a method draws
    score(second, brains, ("t1", "t2"), seed=7)
    score(third, brains, ("t1", "t2"), seed=7, batch_size=3)
    score(other, brains, ("t1", "t2"), seed=8)
    shown = [torch.cat(oracle.shown) for oracle in (first, second, third, other)]
    assert torch.equal(shown[0], shown[1])
    assert torch.equal(shown[0], shown[2])
    assert not torch.equal(shown[0], shown[3])
    by_time = shown[0].view(len(TIMES), 5, *shown[0].shape[1:])
    assert not torch.allclose(by_time[0, 0] - by_time[1, 0], by_time[0, 1] - by_time[1, 1])


def test_validation_is_mean_and_deviation_over_all_volumes(brains):
    rows = table(score(Oracle(brains, 0.5), brains, ("t1", "t2"), seed=0))
    oracle = Oracle(brains, 0.5)
    score(oracle, brains, ("t1", "t2"), seed=0)
    diffusion = Diffusion()
    turn = TIMES.index(HEADLINE)
    x_t = torch.cat(oracle.shown).view(len(TIMES), 5, 2, 16, 16, 16)[turn]
    t = torch.full((5,), HEADLINE)
    oracle.shown.clear()
    x_0_hat = diffusion.scale_out(diffusion.predict_x_0(x_t, t, oracle(x_t, t)))
    each = metrics.psnr(x_0_hat[:, :1], brains[:, :1]).numpy()
    row = rows.loc[("validation", HEADLINE, "t1", "psnr")]
    assert row["value"] == pytest.approx(each.mean(), abs=1e-3)
    assert row["sd"] == pytest.approx(each.std(ddof=1), abs=1e-3)
    assert row["count"] == 5
    best = rows.loc[("best-batch", HEADLINE, "t1", "psnr")]
    assert best["value"] == pytest.approx(max(each[:2].mean(), each[2:4].mean()), abs=1e-3)
    assert best["count"] == 2
    assert pd.isna(best["sd"])


def test_the_best_batch_is_that_of_the_highest_psnr():
    assert best_batch(torch.tensor([1.0, 2.0, 5.0, 3.0, 99.0]), 2) == slice(2, 4)
    assert best_batch(torch.tensor([7.0]), 2) == slice(0, 2)  # one volume: a batch of what is there


def test_the_numbers_of_the_best_batch_are_of_one_batch(brains):
    """SSIM and MAE of that batch, though another may have better ones."""
    noise = torch.randn_like(brains)

    def good_for_the_second_batch(x_t: Tensor, t: Tensor) -> Tensor:
        return oracle(x_t, t) + (0.0 if len(oracle.shown) % 3 == 2 else noise[: len(x_t)])

    oracle = Oracle(brains)
    rows = table(score(good_for_the_second_batch, brains, ("t1", "t2"), seed=0))["value"]
    best = rows.loc[("best-batch", HEADLINE, "t1")]
    assert best["mae"] < 1e-5
    assert best["ssim"] == pytest.approx(1, abs=1e-3)
    assert rows.loc[("validation", HEADLINE, "t1", "mae")] > 0.3


def test_progress_ends_at_the_whole(brains):
    told: list[float] = []
    score(nothing, brains, ("t1", "t2"), seed=0, progress=told.append)
    assert len(told) == len(TIMES) * 3
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)


@pytest.mark.parametrize("modalities", [("t1",), ("t1", "t2", "flair")])
def test_channels_without_a_name_are_refused(brains, modalities):
    with pytest.raises(ValueError, match="modalities"):
        score(nothing, brains, modalities, seed=0)


def test_samples_are_scored_beside_real_volumes(brains):
    copies = brains[:1].expand(3, -1, -1, -1, -1)
    memory = sampling_memory(TwoConvolutions(), (3, 1, 8, 8, 8))
    rows = pd.DataFrame(
        score_samples(
            copies, brains, ("t1", "t2"), "ddim", 20, method="idm", training_seed=1, memory=memory
        )
    )
    assert set(rows["protocol"]) == {"ddim-20"}
    values = rows.set_index(["modality", "column"])
    assert values.loc[("t1", "ms_ssim"), "value"] == pytest.approx(1, abs=1e-4)
    assert values.loc[("t1", "ms_ssim"), "count"] == 3
    assert values.loc[("t1", "ms_ssim_real"), "value"] < 0.95
    assert values.loc[("t1", "ms_ssim_real"), "count"] == 10
    expected = metrics.histogram_distance(brains[:1, 1:], brains[:, 1:])
    assert values.loc[("t2", "histogram_distance"), "value"] == pytest.approx(expected)
    assert values.loc[("t2", "histogram_distance_real"), "value"] > 0
    peak = values.loc[("all", "sampling_peak_memory_bytes"), "value"]
    assert peak == memory.peak_memory_bytes
    assert values.loc[("all", "sampling_start"), "value"] == 1999


def test_one_sample_of_nothing_has_no_numbers_rather_than_wrong_ones(brains):
    rows = score_samples(torch.zeros_like(brains[:1]), brains, ("t1", "t2"), "ddpm")
    known = {"ms_ssim_real", "histogram_distance_real", "sampling_start"}
    assert {row.column for row in rows} == known


def test_the_file_is_read_back_as_it_was(brains, tmp_path: Path):
    path = tmp_path / "quality.csv"
    scores = score(nothing, brains, ("t1", "t2"), 0, method="idm", training_seed=3, data="phantom")
    more = score(Oracle(brains, 0.5), brains, ("t1", "t2"), 0, method="unet")
    write_rows(path, Score, [*scores, *more])
    read = read_table(path, Score)
    assert list(read.columns[:7]) == [
        "source", "method", "modality", "column", "value", "unit", "note"
    ]  # fmt: skip
    assert len(read) == 2 * len(scores) == 2 * 2 * len(TIMES) * 2 * 5
    assert read["value"].tolist() == [row.value for row in (*scores, *more)]
    assert read["seed"].tolist()[: len(scores)] == [3] * len(scores)
    assert read["seed"].isna().sum() == len(more)
    assert set(read["timestep"]) == set(TIMES)
