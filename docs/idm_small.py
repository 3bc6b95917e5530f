"""Small trainings of variations of IDM, and of a U-Net beside them: docs/idm_small.csv, idm.md.

    python -m docs.idm_small idm unet                                # the seeds that it lacks
    python -m docs.idm_small "couplings 4-2-1, no attention" --seeds 4
    python -m docs.idm_small --times                                 # a minute, on an idle core

16³, T1, 102 embedded brains, 300 steps of batch 4: a training takes a minute or two on one core. A
training in the table is not made again. What each is for, and what came out: docs/idm.md.
"""

import argparse
import csv
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from baselines import unet
from bench.data import open_source
from bench.ddpm.diffusion import Denoiser, Diffusion, cosine_alpha_bar
from bench.ddpm.samplers import denoiser
from bench.ddpm.step import Training, TrainingStep
from bench.presets import PRESETS, Workload
from bench.probes.cost import StepProbe
from bench.report.grid import Cell, Grid, markdown
from models.idm import IDM, resampling
from models.idm.coupling import ActivatedConvolution, AdditiveCoupling, ConvolutionBlock

from .rows import read_rows, write_rows

TABLE = Path(__file__).with_suffix(".csv")
TIMES_TABLE = TABLE.with_name("idm_small_times.csv")
PAGE = TABLE.with_name("idm.md")
SMALL = "<!-- small -->", "<!-- end of small -->"
TARGETS = "<!-- targets -->", "<!-- end of targets -->"
CHANNELS = (16, 32, 64)
SIDE, STEPS, BATCH, LEARNING_RATE = 16, 300, 4, 1e-3
BRAINS, TRAINED_ON = 118, 102
WITHOUT_ATTENTION = (
    (3, 2, 2), (3, 3, 2), (4, 1, 1), (4, 2, 1), (4, 2, 2), (6, 2, 2), (6, 4, 2), (8, 2, 2),
)  # fmt: skip
"""Couplings of a branch, level by level, finest first."""
FINE: dict[str, Any] = {"couplings": (4, 2, 1), "attention_levels": 0}
TIMES = (20, 100, 250, 500, 1000, 1500, 1900)
NOISY = (1000, 1500, 1900)


class AffineCoupling(nn.Module):
    """x_b ⊙ 2^tanh(s) + F(x_a): a scale between 1/2 and 2 (Dinh et al. 2017, arXiv:1605.08803).

    One network gives s and F. Without a `rewind`, it is inverted first and computed again after.
    """

    def __init__(self, channels: int, changes: int) -> None:
        super().__init__()
        self.first = ActivatedConvolution(channels, channels)
        self.second = ActivatedConvolution(channels, 2 * channels)
        nn.init.zeros_(self.second.weight)
        self.changes = changes

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        x = [x1, x2]
        factor, shift = self.terms(x[1 - self.changes])
        x[self.changes] = x[self.changes] * factor + shift
        return x[0], x[1]

    def inverse(self, y1: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
        y = [y1, y2]
        factor, shift = self.terms(y[1 - self.changes])
        y[self.changes] = (y[self.changes] - shift) / factor
        return y[0], y[1]

    def terms(self, a: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.second(self.first(a)).chunk(2, 1)
        return torch.exp2(scale.tanh()), shift


def with_affine_couplings(**options: Any) -> IDM:
    network = IDM(channels=CHANNELS, **options)
    for name, layer in network.body.items():
        if isinstance(layer, AdditiveCoupling):
            width = len(layer.function.first.scale)
            network.body[name] = AffineCoupling(width, layer.changes)
    return network


class NonlinearLift(nn.Module):
    """A lift, and after it z + F(z) over all its channels. Its activations are stored."""

    def __init__(self, lift: nn.Module, channels: int) -> None:
        super().__init__()
        self.lift, self.function = lift, ConvolutionBlock(channels)

    def forward(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.cat(self.lift(x, embedding), 1)
        first, second = (z + self.function(z)).chunk(2, 1)
        return first, second


def with_nonlinear_lift(**options: Any) -> IDM:
    network = IDM(channels=CHANNELS, **options)
    network.lift = NonlinearLift(network.lift, CHANNELS[0])
    return network


def in_blocks_of(largest: int) -> IDM:
    """IDM mixes all channels of these widths in one block."""
    usual, resampling.LARGEST_BLOCK = resampling.LARGEST_BLOCK, largest
    try:
        return IDM(channels=CHANNELS)
    finally:
        resampling.LARGEST_BLOCK = usual


VARIATIONS: dict[str, Callable[[], nn.Module]] = {
    "idm": lambda: IDM(channels=CHANNELS),
    "no attention": lambda: IDM(channels=CHANNELS, attention_levels=0),
    "t in every F": lambda: IDM(channels=CHANNELS, time_in_couplings=True),
    "channels x 3/2": lambda: IDM(channels=(24, 48, 96)),
    "4 couplings, channels x 3/4": lambda: IDM(channels=(12, 24, 48), couplings=4),
    **{
        f"couplings {'-'.join(map(str, couplings))}{words}": partial(
            IDM, channels=CHANNELS, couplings=couplings, attention_levels=levels
        )
        for couplings, levels, words in (
            ((4, 2, 1), 2, ""),
            *((each, 0, ", no attention") for each in WITHOUT_ATTENTION),
        )
    },
    "mixing in blocks of 16": lambda: in_blocks_of(16),
    "affine couplings": with_affine_couplings,
    "affine couplings 4-2-1, no attention": partial(with_affine_couplings, **FINE),
    "non-linear lift": with_nonlinear_lift,
    "non-linear lift, couplings 4-2-1, no attention": partial(with_nonlinear_lift, **FINE),
    "unet": lambda: unet.build(in_channels=1, channels=(8, 16, 32)),
}
PREDICTS_V = ", target v"
"""At the end of a name: the same network, which predicts v in place of ε."""
VARIATIONS |= {
    name + PREDICTS_V: VARIATIONS[name] for name in ("couplings 4-2-1, no attention", "unet")
}


@dataclass(frozen=True)
class Row:
    network: str
    seed: int
    gflop_forward: float = 0
    parameters_thousands: int = 0
    peak_bytes: int = 0
    """Of live tensors in a step, the data apart."""
    mse_mean_of_7: float = 0
    mse_t20: float = 0
    mse_t100: float = 0
    mse_t250: float = 0
    mse_t500: float = 0
    mse_t1000: float = 0
    mse_t1500: float = 0
    mse_t1900: float = 0


@dataclass(frozen=True)
class Time:
    network: str
    to_idm: float
    """Seconds of a step, to those of one of `idm`: the median of pairs, one after the other."""


def new_step(name: str, seed: int = 0) -> TrainingStep:
    torch.manual_seed(seed)
    network = VARIATIONS[name]().train()
    work = Workload(
        volume=SIDE, patch=SIDE, batch_size=BATCH, channels=CHANNELS,
        target="v" if name.endswith(PREDICTS_V) else "eps",
        **{key: PRESETS["small"].common[key] for key in ("couplings", "precision")},
    )  # fmt: skip
    training = Training(learning_rate=LEARNING_RATE, anneal_steps=STEPS, seed=seed)
    return TrainingStep(network, work, training)


def time(name: str, pairs: int = 15) -> Time:
    batch = torch.rand(BATCH, 1, SIDE, SIDE, SIDE)

    def seconds(step: TrainingStep) -> float:
        start = perf_counter()
        step(batch)
        return perf_counter() - start

    both = new_step(name), new_step("idm")
    _, *ratios = [seconds(both[0]) / seconds(both[1]) for _ in range(1 + pairs)]
    return Time(name, round(median(ratios), 2))


def brains() -> tuple[Tensor, Tensor]:
    """Those that are trained on, and others; (N, 1, 16, 16, 16) in [0, 1]."""
    source = open_source("phantom", volume=SIDE, subjects=BRAINS)
    both = torch.stack([torch.as_tensor(volume) for volume in source])
    return both[:TRAINED_ON], both[TRAINED_ON:]


def train(name: str, seed: int) -> Row:
    trained_on, others = brains()
    step = new_step(name, seed)
    network = step.network

    def batch() -> Tensor:
        return trained_on[torch.randint(len(trained_on), (BATCH,))]

    for _ in range(STEPS - 1):
        step(batch())
    probe = StepProbe(network, step.optimizer, "cpu")
    probe.start()
    step(batch())
    peak = probe.stop().peak_memory_bytes
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        network(others[:1], torch.tensor([TIMES[0]]))
    denoise = denoiser(network, step.work, torch.device("cpu"))
    errors = [error(denoise, step.diffusion, others, t) for t in TIMES]
    return Row(
        name, seed, round(counted.get_total_flops() / 1e9, 2),
        round(sum(p.numel() for p in network.parameters()) / 1e3), peak,
        *(round(each, 4) for each in (sum(errors) / len(errors), *errors)),
    )  # fmt: skip


@torch.no_grad()
def error(denoise: Denoiser, diffusion: Diffusion, volumes: Tensor, time: int) -> float:
    """ε-MSE at one t; the noise is the same for every network."""
    t = torch.full((len(volumes),), time)
    eps = torch.randn(volumes.shape, generator=torch.Generator().manual_seed(time))
    x_t = diffusion.q_sample(diffusion.scale_in(volumes), t, eps)
    return (denoise(x_t, t) - eps).square().mean().item()


def read() -> dict[tuple[str, int], Row]:
    return {(row.network, row.seed): row for row in read_rows(TABLE, Row)}


def grid(rows: list[Row]) -> Grid:
    """A line for each network, in the order of VARIATIONS, with its seeds."""
    seeds = sorted({row.seed for row in rows})
    times = {row.network: f"{row.to_idm:.2f}" for row in read_rows(TIMES_TABLE, Time)}
    lines = []
    for name in VARIATIONS:
        own = {row.seed: row for row in rows if row.network == name}
        if not own:
            continue
        any_row = next(iter(own.values()))
        at_20 = [row.mse_t20 for row in own.values()]
        cells = (
            name, f"{any_row.gflop_forward:.2f}", times.get(name, ""),
            str(any_row.parameters_thousands),
            f"{any_row.peak_bytes / 2**20:.1f}",
            *(f"{own[seed].mse_mean_of_7:.3f}" if seed in own else "" for seed in seeds),
            f"{sum(row.mse_mean_of_7 for row in own.values()) / len(own):.3f}",
            " to ".join(dict.fromkeys(f"{each:.2f}" for each in (min(at_20), max(at_20)))),
        )  # fmt: skip
        lines.append(tuple(map(Cell, cells)))
    columns = (
        "network", "GFLOP", "time", "parameters (k)", "peak (MiB)",
        *(f"seed {seed}" for seed in seeds), "mean", "at t = 20",
    )  # fmt: skip
    return Grid("Small trainings", "ε-MSE, mean over 7 t", columns, tuple(lines))


def grid_of_targets(rows: list[Row]) -> Grid:
    """The networks that predict v, each below itself predicting ε: means over the seeds."""
    alpha_bar = cosine_alpha_bar().tolist()

    def line(name: str) -> tuple[Cell, ...]:
        own = [row for row in rows if row.network == name]
        errors = {t: fmean(getattr(row, f"mse_t{t}") for row in own) for t in (20, 500, *NOISY)}
        of_volume = [math.sqrt(errors[t] * (1 / alpha_bar[t] - 1)) for t in NOISY]  # eq. (6)
        numbers = [f"{each:.4f}" for each in errors.values()], [f"{each:.2f}" for each in of_volume]
        return tuple(map(Cell, (name, *numbers[0], *numbers[1])))

    both = [
        each
        for name in VARIATIONS
        if name.endswith(PREDICTS_V)
        for each in (name.removesuffix(PREDICTS_V), name)
    ]
    columns = (
        "network", *(f"ε, t = {t:,}" for t in (20, 500, *NOISY)),
        *(f"x₀, t = {t:,}" for t in NOISY),
    )  # fmt: skip
    caption = "mean squared error of ε, and root mean squared error of x₀, whose range is 2"
    return Grid("What the network predicts", caption, columns, tuple(map(line, both)))


def page(text: str, rows: list[Row]) -> str:
    for (begin, end), made in ((SMALL, grid(rows)), (TARGETS, grid_of_targets(rows))):
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n\n{markdown(made)}\n{end}{after}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="Small trainings: a row of the table each.")
    parser.add_argument(
        "networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(VARIATIONS)}"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--times", action="store_true", help="measure those of a step of each")
    chosen = parser.parse_args()
    if unknown := set(chosen.networks) - VARIATIONS.keys():
        parser.error(f"no such network: {min(unknown)}; there are {', '.join(VARIATIONS)}")
    torch.set_num_threads(1)
    done = read()
    if chosen.times:
        trained = dict.fromkeys(network for network, _ in done if network in VARIATIONS)
        write_rows(TIMES_TABLE, [time(name) for name in trained if PREDICTS_V not in name])
    for name in chosen.networks:
        for seed in chosen.seeds:
            if (name, seed) not in done:
                append(train(name, seed))
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page(text, list(read().values())), encoding="utf-8")


def append(row: Row) -> None:
    with TABLE.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerow(asdict(row).values())
    print(row, flush=True)


if __name__ == "__main__":
    main()
