"""Small trainings of variations of IDM, and of a U-Net beside them: docs/idm_small.csv, idm.md.

    python -m docs.idm_small idm unet                                # the seeds that it lacks
    python -m docs.idm_small "couplings 4-2-1, no attention" --seeds 4

16³, T1, 102 embedded brains, 300 steps of batch 4: a training takes a minute or two on one core. A
training in the table is not made again. What each is for, and what came out: docs/idm.md.
"""

import argparse
import csv
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from baselines import unet
from bench.data import open_source
from bench.ddpm.step import Training, TrainingStep
from bench.presets import PRESETS, Workload
from bench.probes.cost import StepProbe
from bench.report.grid import Cell, Grid, markdown
from models.idm import IDM, resampling

from .rows import read_rows

TABLE = Path(__file__).with_suffix(".csv")
PAGE = TABLE.with_name("idm.md")
BEGIN, END = "<!-- small -->", "<!-- end of small -->"
CHANNELS = (16, 32, 64)
STEPS, BATCH, LEARNING_RATE = 300, 4, 1e-3
BRAINS, TRAINED_ON = 118, 102
WITHOUT_ATTENTION = (
    (3, 2, 2), (3, 3, 2), (4, 1, 1), (4, 2, 1), (4, 2, 2), (6, 2, 2), (6, 4, 2), (8, 2, 2),
)  # fmt: skip
"""Couplings of a branch, level by level, finest first."""
TIMES = (20, 100, 250, 500, 1000, 1500, 1900)


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
    "unet": lambda: unet.build(in_channels=1, channels=(8, 16, 32)),
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


def train(name: str, seed: int) -> Row:
    source = open_source("phantom", volume=16, subjects=BRAINS)
    brains = torch.stack([torch.as_tensor(volume) for volume in source])
    trained_on, others = brains[:TRAINED_ON], brains[TRAINED_ON:]
    torch.manual_seed(seed)
    network = VARIATIONS[name]().train()
    work = Workload(
        volume=16, patch=16, batch_size=BATCH, channels=CHANNELS,
        **{key: PRESETS["small"].common[key] for key in ("couplings", "precision")},
    )  # fmt: skip

    def batch() -> Tensor:
        return trained_on[torch.randint(len(trained_on), (BATCH,))]

    training = Training(learning_rate=LEARNING_RATE, anneal_steps=STEPS, seed=seed)
    step = TrainingStep(network, work, training)
    for _ in range(STEPS - 1):
        step(batch())
    probe = StepProbe(network, step.optimizer, "cpu")
    probe.start()
    step(batch())
    peak = probe.stop().peak_memory_bytes
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        network(others[:1], torch.tensor([TIMES[0]]))
    errors = [error(step, others, t) for t in TIMES]
    return Row(
        name, seed, round(counted.get_total_flops() / 1e9, 2),
        round(sum(p.numel() for p in network.parameters()) / 1e3), peak,
        *(round(each, 4) for each in (sum(errors) / len(errors), *errors)),
    )  # fmt: skip


@torch.no_grad()
def error(step: TrainingStep, brains: Tensor, time: int) -> float:
    """ε-MSE at one t; the noise is the same for every network."""
    t = torch.full((len(brains),), time)
    eps = torch.randn(brains.shape, generator=torch.Generator().manual_seed(time))
    x_t = step.diffusion.q_sample(step.diffusion.scale_in(brains), t, eps)
    return (step.network(x_t, t) - eps).square().mean().item()


def read() -> dict[tuple[str, int], Row]:
    return {(row.network, row.seed): row for row in read_rows(TABLE, Row)}


def grid(rows: list[Row]) -> Grid:
    """A line for each network, in the order of VARIATIONS, with its seeds."""
    seeds = sorted({row.seed for row in rows})
    lines = []
    for name in VARIATIONS:
        own = {row.seed: row for row in rows if row.network == name}
        if not own:
            continue
        any_row = next(iter(own.values()))
        at_20 = [row.mse_t20 for row in own.values()]
        cells = (
            name, f"{any_row.gflop_forward:.2f}", str(any_row.parameters_thousands),
            f"{any_row.peak_bytes / 2**20:.1f}",
            *(f"{own[seed].mse_mean_of_7:.3f}" if seed in own else "" for seed in seeds),
            f"{sum(row.mse_mean_of_7 for row in own.values()) / len(own):.3f}",
            " to ".join(dict.fromkeys(f"{each:.2f}" for each in (min(at_20), max(at_20)))),
        )  # fmt: skip
        lines.append(tuple(map(Cell, cells)))
    columns = (
        "network", "GFLOP", "parameters (k)", "peak (MiB)", *(f"seed {seed}" for seed in seeds),
        "mean", "at t = 20",
    )  # fmt: skip
    return Grid("Small trainings", "ε-MSE, mean over 7 t", columns, tuple(lines))


def page(text: str, rows: list[Row]) -> str:
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{markdown(grid(rows))}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Small trainings: a row of the table each.")
    parser.add_argument(
        "networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(VARIATIONS)}"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    chosen = parser.parse_args()
    if unknown := set(chosen.networks) - VARIATIONS.keys():
        parser.error(f"no such network: {min(unknown)}; there are {', '.join(VARIATIONS)}")
    torch.set_num_threads(1)
    done = read()
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
