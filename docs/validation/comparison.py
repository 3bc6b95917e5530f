"""Predictions beside published figures: docs/validation.md, its picture, and the CSV of both.

    python -m docs.validation    # a minute on two cores

Needs the packages of the extra `peers`. One rule for all rows decides which prediction a figure is
compared with; nothing is fitted to a row.
"""

import csv
import statistics
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bench.predict import Prediction
from bench.predict.parallel import in_processes
from bench.sizes import GIB

from .cases import CASES, Key
from .revnets import activation_bytes

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "results" / "published_memory.csv"
PREDICTED = Path(__file__).with_name("predicted.csv")
PICTURE = ROOT / "docs" / "images" / "validation.png"
PAGE = ROOT / "docs" / "validation.md"
BEGIN, END = "<!-- table -->", "<!-- end of the table -->"

CONTEXT = GIB // 2
"""Of a process beside its pool; where it comes from: docs/validation.md."""
CARD_RULES = False
"""Whether `predict` follows a card: CUDA's autocast lists, sampling. Rows that need it wait."""


@dataclass(frozen=True)
class Predicted:
    """Bytes."""

    id: str
    variant: str
    allocated: int
    reserved: int
    activations: int | None = None

    def counted(self, kind: str) -> int:
        """What a figure of this kind is compared with; unstated ones with the pool."""
        return {
            "allocated": self.allocated,
            "unstated": self.reserved,
            "process": self.reserved + CONTEXT,
            "activations": self.activations or 0,
        }[kind]


def predict_case(key: Key) -> Predicted:
    setup = CASES[key].build()
    if isinstance(setup, Prediction):
        pool, activations = setup.cuda_pool, None
    else:
        prediction = setup.predict()
        pool = prediction.cuda_pool
        counts = published()[key]["counted"] == "activations"
        activations = activation_bytes(prediction, setup.network) if counts else None
    return Predicted(*key, pool.peak_allocated, pool.reserved, activations)


def predictable() -> list[Key]:
    return [key for key, case in CASES.items() if CARD_RULES or not case.card_rules]


def published() -> dict[Key, dict[str, str]]:
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        return {(row["id"], row["variant"]): row for row in csv.DictReader(file)}


def read_predicted() -> dict[Key, Predicted]:
    with PREDICTED.open(newline="", encoding="utf-8") as file:
        return {
            (row["id"], row["variant"]): Predicted(
                row["id"], row["variant"], int(row["allocated_bytes"]), int(row["reserved_bytes"]),
                int(row["activation_bytes"]) if row["activation_bytes"] else None,
            )
            for row in csv.DictReader(file)
        }  # fmt: skip


def write_predicted(rows: list[Predicted]) -> None:
    with PREDICTED.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = ("id", "variant", "allocated_bytes", "reserved_bytes", "activation_bytes")
        writer.writerow(names)
        for row in rows:
            writer.writerow([row.id, row.variant, row.allocated, row.reserved, row.activations])


def deviation(row: dict[str, str], found: Predicted) -> float | None:
    """Of the prediction from the figure, as a share; None where the figure is a bound."""
    if row["relation"] != "=":
        return None
    figure = float(row["gib"])
    return found.counted(row["counted"]) / GIB / figure - 1


def holds(row: dict[str, str], found: Predicted) -> bool:
    """Whether a prediction keeps to a published bound."""
    needed, bound = found.counted(row["counted"]) / GIB, float(row["gib"])
    return needed > bound if row["relation"] == ">" else needed <= bound


def table(rows: dict[Key, dict[str, str]], predicted: dict[Key, Predicted]) -> list[str]:
    lines = [
        "| | setting | published (GiB) | counts | allocated | reserved | compared | deviation |",
        "|---|---|--:|---|--:|--:|--:|--:|",
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
            f"{found.counted(row['counted']) / GIB:.3g} | {verdict} |"
        )
    shares = [abs(each) for each in deviations(rows, predicted).values()]
    within = sum(share <= 0.1 for share in shares)
    lines += [
        "",
        f"{len(shares)} figures: median deviation {statistics.median(shares):.1%}, "
        f"largest {max(shares):.1%}, {within} within 10 %. "
        f"{len(predicted) - len(shares)} bounds.",
        "",
        "Not predicted:",
        "",
        "| | setting | published | reason |",
        "|---|---|---|---|",
    ]
    for key, row in rows.items():
        if key not in predicted:
            reason = row["not_predicted"] or (
                "needs a card's rules: "
                + ("sampling" if row["kind"] == "sample" else "CUDA's autocast")
            )
            name = " ".join(part for part in (row["model"], row["variant"]) if part)
            figure = f"{row['figure']} {row['unit_as_written']}"
            lines.append(f"| {row['id']} | {name} | {figure} | {reason} |")
    return lines


def deviations(
    rows: dict[Key, dict[str, str]], predicted: dict[Key, Predicted]
) -> dict[Key, float]:
    found = {key: deviation(rows[key], each) for key, each in predicted.items()}
    return {key: share for key, share in found.items() if share is not None}


def draw(rows: dict[Key, dict[str, str]], predicted: dict[Key, Predicted]) -> None:
    figure, axes = plt.subplots(figsize=(5.5, 5), dpi=150, layout="constrained")
    sizes = [float(rows[key]["gib"]) for key in predicted]
    ends = (min(sizes) / 1.6, max(sizes) * 1.6)
    axes.fill_between(ends, [0.9 * e for e in ends], [1.1 * e for e in ends], color="0.9", lw=0)
    axes.plot(ends, ends, color="0.5", lw=0.8)
    markers = {"=": ("o", "figure"), "<=": ("v", "upper bound"), ">": ("^", "lower bound")}
    for relation, (marker, label) in markers.items():
        keys = [key for key in predicted if rows[key]["relation"] == relation]
        x = [float(rows[key]["gib"]) for key in keys]
        y = [predicted[key].counted(rows[key]["counted"]) / GIB for key in keys]
        filled = "C0" if relation == "=" else "none"
        axes.plot(x, y, marker, color="C0", markerfacecolor=filled, ls="", ms=5, label=label)
    for key, found in predicted.items():
        needed = found.counted(rows[key]["counted"]) / GIB
        axes.annotate(key[0], (float(rows[key]["gib"]), needed), (4, -9), fontsize=6,
                      textcoords="offset points")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal",
             xlabel="published (GiB)", ylabel="predicted, as the figure counts (GiB)")  # fmt: skip
    axes.legend(frameon=False, title="grey: within 10 %")
    figure.savefig(PICTURE, metadata={"Software": None})


def main() -> None:
    write_predicted(list(in_processes(predict_case, predictable())))
    rows, predicted = published(), read_predicted()
    draw(rows, predicted)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    lines = [BEGIN, "", *table(rows, predicted), "", END]
    PAGE.write_text(before + "\n".join(lines) + after, encoding="utf-8")
