"""Every network with every technique: docs/techniques.md, its picture, and the CSV of both.

    python -m docs.techniques    # six minutes on two cores

Needs the packages of the extra `peers`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from bench.ddpm.step import TrainingStep, random_batch
from bench.errors import UserError
from bench.methods import METHODS, TECHNIQUES, Method, find_methods
from bench.predict import predict_method
from bench.predict.parallel import in_processes
from bench.presets import Overrides, Workload
from bench.probes.cost import StepCost, StepProbe
from bench.probes.memory import tensors_in
from bench.report.grid import Cell, Grid, markdown
from bench.sizes import GIB

from .rows import read_rows, write_rows

PAGE = Path(__file__).with_suffix(".md")
TABLE = Path(__file__).with_suffix(".csv")
PICTURE = PAGE.parent / "images" / "techniques.png"
BEGIN, END = "<!-- tables -->", "<!-- end of the tables -->"

COMPILED = "compile"
"""Predicted as not compiled, and compiled in a minute a network: measured elsewhere."""
SEEN_IN_OTHERS = {
    "checkpoint": "unet", "idm-fine": "idm", "idm-fine-lean": "idm-lean",
    "idm-fine-stored": "idm-stored",
}  # fmt: skip
"""`checkpoint` is unet+checkpoint; with a form of idm-fine goes what goes with that of idm."""
NETWORKS = tuple(name for name in METHODS.names if name not in SEEN_IN_OTHERS)
ADDED = tuple(name for name in TECHNIQUES if name != COMPILED)
ON_CARD = partial(Method.workload, preset="equal", overrides=Overrides(match="flops"))
ON_CPU = partial(
    Method.workload, preset="small",
    overrides=Overrides(volume=16, batch_size=2, channels=(8, 16), couplings=1),
)  # fmt: skip
"""Small enough for two real steps of each."""


@dataclass(frozen=True)
class Way:
    """A network with a technique, or as it is; bytes and FLOPs of one step."""

    network: str
    technique: str
    kind: str = ""
    refused: str = ""
    """Why it cannot be; then there are no numbers."""
    card_peak_bytes: int = 0
    card_host_bytes: int = 0
    card_flops: int = 0
    cpu_predicted_bytes: int = 0
    cpu_measured_bytes: int = 0
    """0 where it was not measured."""


def refusal(network: str, technique: str, work: Callable[..., Any] = ON_CARD) -> str:
    """Why the two cannot be combined, for this workload; empty where they can."""
    name = f"{network}+{technique}"
    try:
        work(*find_methods([name]))
    except UserError as error:
        return str(error).removeprefix(f"--models {name}: ")
    return ""


def measured(method: Method, work: Workload) -> StepCost:
    """The second of two real steps on this CPU."""
    torch.manual_seed(0)
    network = method.build(work)
    step = TrainingStep(network, work)
    batch = step.cut(*random_batch(work, network))
    step(batch)
    probe = StepProbe(network, step.optimizer, "cpu", tensors_in(step.held(batch)))
    probe.start()
    step(batch)
    return probe.stop()


def way(pair: tuple[str, str]) -> Way:
    network, technique = pair
    if technique and (why := refusal(network, technique)):
        return Way(network, technique, refused=why)
    (method,) = find_methods([f"{network}+{technique}".rstrip("+")])
    card = predict_method(method, ON_CARD(method), count_forward=False)
    cpu = predict_method(method, ON_CPU(method), device="cpu", count_forward=False)
    here = (
        0 if technique == "fp16" else measured(method, ON_CPU(method)).peak_memory_bytes
    )  # it takes minutes
    return Way(
        network, technique, method.kind, "", card.peak_memory_bytes, card.host_bytes,
        card.flops_step, cpu.peak_memory_bytes, here,
    )  # fmt: skip


def pairs() -> Iterator[tuple[str, str]]:
    for network in NETWORKS:
        yield from ((network, technique) for technique in ("", *ADDED))


def read() -> dict[tuple[str, str], Way]:
    return {(row.network, row.technique): row for row in read_rows(TABLE, Way)}


def in_order() -> list[str]:
    """Techniques, the exact ones first."""
    kinds = ["exact", "rounded", "another task"]
    return sorted(ADDED, key=lambda name: kinds.index(TECHNIQUES[name].kind))


def draw(ways: dict[tuple[str, str], Way]) -> None:
    """What is left of a network's peak, technique by technique."""
    techniques = in_order()
    left = np.full((len(techniques), len(NETWORKS)), np.nan)
    figure, axes = plt.subplots(figsize=(7.5, 6.5), dpi=150, layout="constrained")
    for x, network in enumerate(NETWORKS):
        bare = ways[network, ""]
        for y, technique in enumerate(techniques):
            found = ways[network, technique]
            if found.refused:
                axes.text(x, y, "–", ha="center", va="center", color="0.6")
                continue
            left[y, x] = ratio = found.card_peak_bytes / bare.card_peak_bytes
            flops = found.card_flops / bare.card_flops
            text = f"{ratio:.2f}" + (f"\n{flops:.2f} F" if abs(flops - 1) >= 0.005 else "")
            axes.text(x, y, text, ha="center", va="center", fontsize=7,
                      color="w" if ratio < 0.35 else "k")  # fmt: skip
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="0.95")
    shown = axes.imshow(left, cmap=colours, vmin=0, vmax=1, aspect="auto")
    names = [
        "\n".join([*name.split("-"), f"{ways[name, ''].card_peak_bytes / GIB:.3g} GiB"])
        for name in NETWORKS
    ]
    axes.set_xticks(range(len(NETWORKS)), names, fontsize=7)
    axes.set_yticks(range(len(techniques)), techniques, fontsize=8)
    axes.xaxis.tick_top()
    for kind in ("exact", "rounded", "another task"):
        rows = [y for y, name in enumerate(techniques) if TECHNIQUES[name].kind == kind]
        axes.axhline(rows[-1] + 0.5, color="w", lw=3)
        axes.text(len(NETWORKS) - 0.4, sum(rows) / len(rows), kind, rotation=270, va="center",
                  fontsize=8)  # fmt: skip
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    label = "peak memory, of that of the network alone (F: FLOPs, likewise)"
    figure.colorbar(shown, ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.02, label=label)
    figure.savefig(PICTURE, metadata={"Software": None})
    plt.close(figure)


def measured_grid(ways: dict[tuple[str, str], Way]) -> Grid:
    """Predicted bytes, and those of two real steps where they are others."""
    rows = []
    for technique in ("", *in_order()):
        cells = [Cell(technique or "as it is")]
        for network in NETWORKS:
            found = ways[network, technique]
            off = found.cpu_measured_bytes - found.cpu_predicted_bytes
            text = f"{found.cpu_predicted_bytes:,}"
            if not found.cpu_measured_bytes:
                text += " (not measured)"
            elif off:
                text += f" (measured {off:+,})"
            cells.append(Cell("–" if found.refused else text))
        rows.append(tuple(cells))
    caption = (
        "Peak of a step at 16³, batch 2, on a CPU: predicted, and measured in the second of two "
        "real steps, which is the same number where none is beside it"
    )
    return Grid("Bytes", caption, ("", *NETWORKS), tuple(rows))


def host_grid(ways: dict[tuple[str, str], Way]) -> Grid:
    rows = tuple(
        tuple(map(Cell, (
            network, f"{ways[network, ''].card_peak_bytes / GIB:.3g}",
            f"{found.card_peak_bytes / GIB:.3g}", f"{found.card_host_bytes / GIB:.3g}",
        )))
        for network in NETWORKS
        if not (found := ways[network, "offload"]).refused
    )  # fmt: skip
    columns = ("network", "as it is (GiB)", "offload (GiB)", "then on the host (GiB)")
    return Grid("Offloading", "Peaks on the card, and what the host holds", columns, rows)


def refusals(ways: dict[tuple[str, str], Way]) -> list[str]:
    """Why a pair is not there, each reason once."""
    reasons: dict[str, list[str]] = {}
    for found in ways.values():
        if found.refused:
            reasons.setdefault(found.refused, []).append(f"`{found.network}+{found.technique}`")
    return [f"- {', '.join(names)}: {why}" for why, names in reasons.items()]


def page(text: str) -> str:
    """The page with its tables made anew, of what `TABLE` holds."""
    ways = read()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    left_out = ["**What cannot be combined**, in the words of the command:\n", *refusals(ways)]
    parts = [markdown(measured_grid(ways)), markdown(host_grid(ways)), *left_out]
    return f"{before}{BEGIN}\n\n" + "\n".join(parts) + f"\n\n{END}{after}"


if __name__ == "__main__":
    write_rows(TABLE, list(in_processes(way, list(pairs()))))
    draw(read())
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
