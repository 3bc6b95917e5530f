"""Predictions beside published figures: docs/validation.md, its picture, and the CSV of both.

    python -m docs.validation    # two minutes on two cores

Needs the packages of the extra `peers`. One rule for all rows decides which prediction a figure is
compared with; nothing is fitted to a row.
"""

import csv
import statistics
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from torch import nn

from bench.predict import Prediction
from bench.predict.parallel import in_processes
from bench.sizes import GIB

from .cases import CASES, Key
from .revnets import activation_bytes
from .setup import Setup

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "results" / "published_memory.csv"
PREDICTED = Path(__file__).with_name("predicted.csv")
PICTURE = ROOT / "docs" / "images" / "validation.png"
PAGE = ROOT / "docs" / "validation.md"
BEGIN, END = "<!-- table -->", "<!-- end of the table -->"

CONTEXT = GIB // 2
"""Of a process beside its pool; where it comes from: docs/validation.md."""


@dataclass(frozen=True)
class Predicted:
    """Bytes."""

    id: str
    variant: str
    allocated: int
    reserved: int
    """As `predict` counts them: tensors, in the blocks of PyTorch's allocator."""
    allocated_with_workspaces: int
    reserved_with_workspaces: int
    """And with what cuDNN is expected to take for 16-bit convolutions."""
    activations: int | None = None

    def counted(self, kind: str) -> int:
        """What a figure of this kind is compared with; unstated ones with the pool."""
        return {
            "allocated": self.allocated_with_workspaces,
            "unstated": self.reserved_with_workspaces,
            "process": self.reserved_with_workspaces + CONTEXT,
            "activations": self.activations or 0,
        }[kind]


def predict_case(key: Key) -> Predicted:
    setup = CASES[key].build()
    prediction = setup if isinstance(setup, Prediction) else setup.predict()
    activations = None
    if published()[key]["counted"] == "activations":
        assert isinstance(setup, Setup)
        assert isinstance(setup.network, nn.Module)
        activations = activation_bytes(prediction, setup.network)
    counted, expected = prediction.cuda_pool, prediction.cuda_pool_with_workspaces
    return Predicted(
        *key, counted.peak_allocated, counted.reserved,
        expected.peak_allocated, expected.reserved, activations,
    )  # fmt: skip


def published() -> dict[Key, dict[str, str]]:
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        return {(row["id"], row["variant"]): row for row in csv.DictReader(file)}


def read_predicted() -> dict[Key, Predicted]:
    with PREDICTED.open(newline="", encoding="utf-8") as file:
        return {
            (id_, variant): Predicted(id_, variant, *(int(each) if each else None for each in rest))  # type: ignore[arg-type]
            for id_, variant, *rest in list(csv.reader(file))[1:]
        }


def write_predicted(rows: list[Predicted]) -> None:
    with PREDICTED.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Predicted)])
        writer.writerows(astuple(row) for row in rows)


def deviation(row: dict[str, str], found: Predicted) -> float | None:
    """Of the prediction from the figure, as a share; None where the figure is a bound."""
    return _ratio(row, found) - 1 if row["relation"] == "=" else None


def holds(row: dict[str, str], found: Predicted) -> bool:
    """Whether a prediction keeps to a published bound."""
    ratio = _ratio(row, found)
    return ratio > 1 if row["relation"] == ">" else ratio <= 1


def table(rows: dict[Key, dict[str, str]], predicted: dict[Key, Predicted]) -> list[str]:
    lines = [
        "| | setting | published | counts | allocated | reserved | with workspaces | compared "
        "| deviation |",
        "|---|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for key, found in predicted.items():
        row = rows[key]
        share = deviation(row, found)
        verdict = f"{share:+.1%}" if share is not None else "holds" if holds(row, found) else "no"
        name = " ".join(part for part in (row["model"], row["variant"]) if part)
        relation = {"=": "", "<=": "≤ ", ">": "> "}[row["relation"]]
        lines.append(
            f"| {row['id']} | {name}, {row['volume_or_patch']} × {row['batch']}, "
            f"{row['precision']} | {relation}{float(row['gib']):.3g} | {row['counted']} | "
            f"{found.allocated / GIB:.3g} | {found.reserved / GIB:.3g} | "
            f"{found.allocated_with_workspaces / GIB:.3g}, "
            f"{found.reserved_with_workspaces / GIB:.3g} | "
            f"{found.counted(row['counted']) / GIB:.3g} | {verdict} |"
        )
    shares = [abs(each) for each in deviations(rows, predicted).values()]
    within = sum(share <= 0.1 for share in shares)
    lines += [
        "",
        f"{len(shares)} figures: median deviation {statistics.median(shares):.1%}, "
        f"{within} within 10 %, largest {max(shares):.1%}. "
        f"{len(predicted) - len(shares)} bounds.",
        "",
        "Not predicted:",
        "",
        "| | setting | published | reason |",
        "|---|---|---|---|",
    ]
    for key, row in rows.items():
        if key not in predicted:
            name = " ".join(part for part in (row["model"], row["variant"]) if part)
            figure = f"{row['figure']} {row['unit_as_written']}"
            lines.append(f"| {row['id']} | {name} | {figure} | {row['not_predicted']} |")
    return lines


def deviations(
    rows: dict[Key, dict[str, str]], predicted: dict[Key, Predicted]
) -> dict[Key, float]:
    found = {key: deviation(rows[key], each) for key, each in predicted.items()}
    return {key: share for key, share in found.items() if share is not None}


def draw(rows: dict[Key, dict[str, str]], predicted: dict[Key, Predicted]) -> None:
    """Deviations from figures; bounds; what lies beyond a tenth has its name."""
    figure, axes = plt.subplots(figsize=(6.5, 4), dpi=150, layout="constrained")
    axes.axhspan(-10, 10, color="0.93", lw=0)
    axes.axhline(0, color="0.5", lw=0.8)
    markers = {"=": ("o", "figure"), "<=": ("v", "upper bound"), ">": ("^", "lower bound")}
    for relation, (marker, label) in markers.items():
        keys = [key for key in predicted if rows[key]["relation"] == relation]
        x = [float(rows[key]["gib"]) for key in keys]
        y = [100 * (_ratio(rows[key], predicted[key]) - 1) for key in keys]
        filled = "C0" if relation == "=" else "none"
        axes.plot(x, y, marker, color="C0", markerfacecolor=filled, ls="", ms=5, label=label)
        beyond = [place for place in zip(keys, x, y, strict=True) if abs(place[2]) > 10]
        for number, (key, left, height) in enumerate(beyond):
            side = number % 2  # neighbours on either side
            axes.annotate(
                f"{key[0]} {rows[key]['model'].split(',')[0]}", (left, height), (5 - 10 * side, -2),
                textcoords="offset points", ha=("left", "right")[side], fontsize=6,
            )  # fmt: skip
    axes.set(xscale="log", xlim=(0.05, 400), xlabel="published (GiB)",
             ylabel="deviation of the prediction (%)")  # fmt: skip
    axes.legend(frameon=False, fontsize=8, loc="lower left", title="grey: within 10 %",
                title_fontsize=8)  # fmt: skip
    figure.savefig(PICTURE, metadata={"Software": None})


def _ratio(row: dict[str, str], found: Predicted) -> float:
    return found.counted(row["counted"]) / GIB / float(row["gib"])


def main() -> None:
    write_predicted(list(in_processes(predict_case, CASES)))
    rows, predicted = published(), read_predicted()
    draw(rows, predicted)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    lines = [BEGIN, "", *table(rows, predicted), "", END]
    PAGE.write_text(before + "\n".join(lines) + after, encoding="utf-8")
