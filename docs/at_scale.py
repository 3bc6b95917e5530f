"""IDM in large volumes, with many parameters, in depth: docs/at_scale.md, .csv, its figure.

    python -m docs.at_scale    # half an hour on two cores for a table without rows

Nothing is measured: each row is a prediction for a card (docs/predict.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.methods import METHODS
from bench.predict import predict_method
from bench.predict.gpus import find_gpu
from bench.predict.parallel import in_processes
from bench.presets import Overrides
from bench.report.grid import Cell, Grid, markdown
from bench.sizes import GIB

from .rows import read_rows, write_rows

PAGE = Path(__file__).with_suffix(".md")
TABLE = PAGE.with_suffix(".csv")
FIGURE = PAGE.parent / "images" / "at_scale.png"

SIDES = (128, 256, 512)
WIDTHS = (1.0, 1.75, 3.0)
"""Times the published ones, 64 to 2048: 0.34, 1.05 and 3.1 billion parameters."""
COUPLINGS = (2, 4, 8)
PUBLISHED = (64, 128, 256, 512, 1024, 2048)
ONE, EIGHT = 1, 8
"""Cards. On eight, weights, gradients and moments are sharded (FSDP2), each with its own volume."""
NETWORKS = "idm", "idm-fine"
WAYS = {
    ("idm-lean", ONE): "idm-lean", ("idm", ONE): "idm", ("idm", EIGHT): "idm, a card of 8",
    ("idm-fine-lean", ONE): "idm-fine-lean", ("idm-fine", ONE): "idm-fine",
    ("idm-fine", EIGHT): "idm-fine, a card of 8",
}  # fmt: skip
CARDS = ("rtx4090", "h100", "h200")


@dataclass(frozen=True)
class Row:
    method: str
    side: int
    width: float
    couplings: int
    gpus: int
    parameters: int = 0
    peak_bytes: int = 0
    activation_bytes: int = 0
    flops: int = 0
    attention_share: float = 0

    @property
    def key(self) -> tuple[str, int, float, int, int]:
        return self.method, self.side, self.width, self.couplings, self.gpus


def questions() -> Iterator[Row]:
    for side in SIDES:
        for width in WIDTHS:
            for method, gpus in WAYS:
                yield Row(method, side, width, COUPLINGS[0], gpus)
    for couplings in COUPLINGS[1:]:
        yield Row("idm-lean", SIDES[0], WIDTHS[0], couplings, ONE)


def answer(row: Row) -> Row:
    channels = tuple(int(width * row.width) for width in PUBLISHED)
    work = METHODS[row.method].workload(
        "full-volume",
        Overrides(volume=row.side, batch_size=1, channels=channels, couplings=row.couplings),
    )
    found = predict_method(
        METHODS[row.method], work, count_forward=False, gpus=row.gpus, shard=row.gpus > 1
    )
    return Row(
        *row.key, found.parameters, found.peak_memory_bytes, found.cost.activation_bytes or 0,
        found.flops_step, round(found.attention_share, 4),
    )  # fmt: skip


def read() -> dict[tuple[str, int, float, int, int], Row]:
    return {row.key: row for row in read_rows(TABLE, Row)}


def sizes(rows: dict[tuple[str, int, float, int, int], Row]) -> Grid:
    lines = []
    for side in SIDES:
        for width in WIDTHS:
            found = [rows[method, side, width, COUPLINGS[0], gpus] for method, gpus in WAYS]
            idm, fine = (rows[method, side, width, COUPLINGS[0], ONE] for method in NETWORKS)
            cells = (
                f"{side}³", f"× {width:g}",
                " / ".join(f"{each.parameters / 1e9:.2f}" for each in (idm, fine)),
                *(f"{each.peak_bytes / GIB:.1f}" for each in found),
                " / ".join(f"{each.flops / 1e15:.3f}" for each in (idm, fine)),
                f"{idm.attention_share:.0%}",
            )  # fmt: skip
            lines.append(tuple(map(Cell, cells)))
    columns = (
        "volume", "widths", "parameters (billions)",
        *(f"{name} (GiB)" for name in WAYS.values()), "PFLOP a step", "of idm's attention",
    )  # fmt: skip
    return Grid(
        "At scale",
        "Peak of a training step, one volume a card, fp32; parameters and FLOPs of idm / idm-fine",
        columns,
        tuple(lines),
    )


def depths(rows: dict[tuple[str, int, float, int, int], Row]) -> Grid:
    lines = []
    for couplings in COUPLINGS:
        row = rows["idm-lean", SIDES[0], WIDTHS[0], couplings, ONE]
        cells = (
            str(couplings), f"{row.parameters / 1e9:.2f}", f"{row.peak_bytes / GIB:.2f}",
            f"{row.activation_bytes / GIB:.2f}", f"{row.flops / 1e12:.0f}",
        )  # fmt: skip
        lines.append(tuple(map(Cell, cells)))
    columns = ("couplings a level and branch", "parameters (billions)", "peak (GiB)",
               "activations at the peak (GiB)", "TFLOP a step")  # fmt: skip
    return Grid("Depth", f"idm-lean at {SIDES[0]}³", columns, tuple(lines))


def page(text: str, rows: dict[tuple[str, int, float, int, int], Row]) -> str:
    for name, grid in (("sizes", sizes(rows)), ("depths", depths(rows))):
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n\n{markdown(grid)}\n{end}{after}"
    return text


def draw(rows: dict[tuple[str, int, float, int, int], Row]) -> None:
    """Peak over widths, a line for each volume and way; what cards have."""
    import matplotlib.pyplot as plt

    cards = [find_gpu(name) for name in CARDS]
    figure, axes = plt.subplots(
        1, len(SIDES), figsize=(9.4, 3.6), sharey=True, layout="constrained"
    )
    for side, axis in zip(SIDES, axes, strict=True):
        for index, (method, gpus) in enumerate(WAYS):
            line = [rows[method, side, width, COUPLINGS[0], gpus] for width in WIDTHS]
            axis.plot(
                WIDTHS, [row.peak_bytes / GIB for row in line], color=f"C{index % 3}", marker="o",
                ls="--" if method.startswith("idm-fine") else "-", label=WAYS[method, gpus],
            )  # fmt: skip
        for card in cards:
            axis.axhline(card.usable_bytes / GIB, color="0.6", lw=0.8, ls=":")
        axis.set(title=f"{side}³", xlabel="widths, times the published", yscale="log")
        axis.set_xticks(WIDTHS)
    for card in cards:
        axes[-1].annotate(
            card.name, (1.02, card.usable_bytes / GIB), xycoords=("axes fraction", "data"),
            color="0.4", va="center", fontsize=8,
        )  # fmt: skip
    axes[0].set_ylabel("peak of a step (GiB)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6,
                  frameon=False, fontsize=8)  # fmt: skip
    figure.savefig(FIGURE, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    known = read()  # delete a row, and it is made again
    asked = list(questions())
    made = in_processes(answer, [row for row in asked if row.key not in known])
    known |= {row.key: row for row in made}
    write_rows(TABLE, [known[row.key] for row in asked])
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), read()), encoding="utf-8")
    draw(read())
