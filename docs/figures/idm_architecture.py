"""The figure of the architecture, drawn from a network's own wiring.

python -m docs.figures.idm_architecture    # writes docs/images/idm_architecture.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch._subclasses import FakeTensorMode

from models.idm import PUBLISHED, build
from models.idm.attention import InvertibleAttention
from models.idm.coupling import AdditiveCoupling
from models.idm.network import IDM

COUPLING, MIXING, RESAMPLING, ATTENTION, OUTER = (
    "#4c78a8",
    "#9ecae9",
    "#f2b701",
    "#e45756",
    "#b8b8b8",
)


def draw(net: IDM, volume: int, path: Path) -> None:
    """The U, level by level: couplings, splits, skips, attention, with channels and sizes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    depth = len(net.channels)
    figure, axes = plt.subplots(figsize=(11, 1.15 * depth + 1.2), layout="constrained")
    axes.axis("off")
    bottom = depth - 1

    def box(x: float, y: float, width: float, color: str, text: str, light: bool = False) -> None:
        height = 0.34 if color == RESAMPLING else 0.54
        corner = (x, y - height / 2)
        axes.add_patch(plt.Rectangle(corner, width, height, color=color, linewidth=0))
        color = "white" if light else "black"
        axes.text(x + width / 2, y, text, ha="center", va="center", fontsize=8, color=color)

    def arrow(start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
        style: dict[str, Any] = {"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.1}
        axes.annotate("", end, start, arrowprops=style)
        if text:
            x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
            axes.text(x, y + 0.06, text, ha="center", va="bottom", fontsize=8, color="#444444")

    for level, width in enumerate(net.channels):
        y, inset = float(-level), 0.55 * level
        left, right = inset, 13 - inset
        names = [w.layer for w in net.wiring if w.layer.startswith(f"level{level}_")]
        couplings = [n for n in names if isinstance(net.body[n], AdditiveCoupling)]
        down = sum("encode" in n for n in couplings)
        up = len(couplings) - down
        axes.text(
            -2.7, y, f"level {level}: {width} × {volume // 2**level}$^{net.dims}$",
            va="center", fontsize=9,
        )  # fmt: skip
        box(left, y, 1.5, COUPLING, f"{down} couplings", light=True)
        box(right - 1.5, y, 1.5, COUPLING, f"{up} couplings", light=True)
        if level == bottom:
            box(6.0, y, 1.0, MIXING, "mix")
            arrow((left + 1.5, y), (6.0, y))
            arrow((7.0, y), (right - 1.5, y))
            continue
        sent = net.channels[level + 1] // 2**net.dims
        box(left + 1.6, y, 0.9, MIXING, "mix, split")
        box(right - 2.65, y, 1.05, MIXING, "concat, mix")
        attention = f"level{level}_attention"
        has_attention = isinstance(dict(net.body.items()).get(attention), InvertibleAttention)
        skip = f"skip, {width - sent} channels"
        if has_attention:
            box(6.0, y, 1.0, ATTENTION, "iTrans", light=True)
            arrow((left + 2.5, y), (6.0, y), str(width - sent))
            arrow((7.0, y), (right - 2.65, y))
        else:
            arrow((left + 2.5, y), (right - 2.65, y), skip)
        box(left + 1.75, y - 0.5, 0.6, RESAMPLING, f"↓ {sent}")
        box(right - 2.42, y - 0.5, 0.6, RESAMPLING, f"↑ {sent}")
    box(0, 1, 1.5, OUTER, "lift($x_t$, t)")
    box(11.5, 1, 1.5, OUTER, "project → ε")
    arrow((0.75, 0.73), (0.75, 0.27))
    arrow((12.25, 0.27), (12.25, 0.73))
    legend = (
        (COUPLING, "additive coupling"),
        (MIXING, "orthogonal mixing"),
        (RESAMPLING, "orthogonal down-/upsampling, stride 2"),
        (ATTENTION, "invertible attention"),
        (OUTER, "not invertible: stored"),
    )
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color, _ in legend]
    axes.legend(
        handles, [text for _, text in legend], loc="lower center", ncol=5, frameon=False,
        fontsize=8, bbox_to_anchor=(0.5, -0.08),
    )  # fmt: skip
    axes.set(xlim=(-2.8, 13.1), ylim=(-depth + 0.4, 1.4))
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "images")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    channels, volume = PUBLISHED["channels"], PUBLISHED["volume"]
    assert isinstance(channels, tuple)
    assert isinstance(volume, int)
    with FakeTensorMode():  # only its structure is wanted
        net = build(channels=channels)
    draw(net, volume, out / "idm_architecture.png")


if __name__ == "__main__":
    main()
