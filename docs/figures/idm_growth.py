"""How the error of inversion grows: over the depth of the network, and over training.

    python -m docs.figures.idm_growth    # ten minutes; writes docs/images/idm_growth.{csv,png}

At the depth of `paper` (six levels, 24 couplings), narrow, in float32. Depth: the body's output is
inverted layer by layer, and every value met on the way is compared with that of the forward pass.
Training: the same at the end of the way back, and the gradients against stored activations in
float64, while the network learns to denoise smooth random volumes.
"""

from __future__ import annotations

import argparse
import copy
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.idm.network import IDM
from models.idm.resampling import OrthogonalLayer

CHANNELS = (8, 16, 16, 16, 16, 16)
Row = tuple[str, int, str, float]  # kind, position, name, error


@torch.no_grad()
def error_by_layer(net: IDM, x: Tensor, t: Tensor) -> list[tuple[str, float]]:
    """Layers in the order of the way back, each with the relative error of its rebuilt inputs."""
    embedding = net.time(t)
    state = dict(zip(("x1", "x2"), net.lift(x, embedding), strict=True))
    trace = []
    for wire in net.wiring:
        inputs = {key: state.pop(key) for key in wire.inputs}
        layer = net.body[wire.layer]
        side = (layer.matrices(),) if isinstance(layer, OrthogonalLayer) else ()
        outputs = layer(*inputs.values(), *side)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        state.update(zip(wire.outputs, outputs, strict=True))
        trace.append((wire, layer, side, inputs))
    errors = []
    for wire, layer, side, inputs in reversed(trace):
        rebuilt = layer.inverse(*(state.pop(key) for key in wire.outputs), *side)
        rebuilt = (rebuilt,) if isinstance(rebuilt, Tensor) else rebuilt
        state.update(zip(wire.inputs, rebuilt, strict=True))
        errors.append((wire.layer, _relative(list(rebuilt), list(inputs.values()))))
    return errors


def gradient_error(net: IDM, x: Tensor, t: Tensor, noise: Tensor, backward: str) -> float:
    """Relative error of all gradients in float32 against stored activations in float64."""
    gradients = []
    for kind, dtype in ((backward, torch.float32), ("stored", torch.float64)):
        twin = copy.deepcopy(net).to(dtype)
        twin.backward = kind  # type: ignore[assignment]
        loss = F.mse_loss(twin(x.to(dtype), t), noise.to(dtype))
        gradients.append(torch.autograd.grad(loss, list(twin.parameters())))
    return _relative(*gradients)


def train(steps: int, every: int) -> Iterator[Row]:
    """Rows of idm_growth.csv."""
    torch.manual_seed(0)
    net = IDM(channels=CHANNELS)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-4)
    probe = _noised(2)
    for step in range(steps + 1):
        if step % every == 0:
            layers = error_by_layer(net, *probe[:2])
            yield "inversion", step, "", layers[-1][1]
            yield "gradient", step, "inverse", gradient_error(net, *probe, "inverse")
            yield "gradient", step, "stored", gradient_error(net, *probe, "stored")
            if step in (0, steps):
                for position, (name, error) in enumerate(layers, start=1):
                    yield f"depth at step {step}", position, name, error
        x, t, noise = _noised(1)
        optimizer.zero_grad()
        F.mse_loss(net(x, t), noise).backward()
        optimizer.step()


def draw(rows: Sequence[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for kind in sorted({row[0] for row in rows if row[0].startswith("depth")}):
        points = [(row[1], row[3]) for row in rows if row[0] == kind]
        left.semilogy(*zip(*points, strict=True), label=kind.removeprefix("depth "))
    left.set(xlabel="layers undone, from the output", ylabel="relative error of rebuilt values")
    left.set_title("Over depth")
    for kind, name, label in (
        ("inversion", "", "rebuilt values, first layer"),
        ("gradient", "inverse", "gradients, inverse"),
        ("gradient", "stored", "gradients, stored"),
    ):
        points = [(row[1], row[3]) for row in rows if (row[0], row[2]) == (kind, name)]
        right.semilogy(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    right.set(xlabel="training steps", ylabel="relative error", title="Over training")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _noised(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth random volumes (count, 1, 32, 32, 32), noised by a cosine schedule: x_t, t, noise."""
    volume = F.interpolate(torch.randn(count, 1, 4, 4, 4), size=(32,) * 3, mode="trilinear")
    t = torch.randint(0, 2000, (count,))
    angle = (t / 2000 * torch.pi / 2).reshape(-1, 1, 1, 1, 1)
    noise = torch.randn_like(volume)
    return angle.cos() * volume + angle.sin() * noise, t, noise


def _relative(ours: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    apart, size = 0.0, 0.0
    for a, b in zip(ours, exact, strict=True):
        apart += float((a.double() - b.double()).square().sum())
        size += float(b.double().square().sum())
    return (apart / size) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "images")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = list(train(options.steps, options.every))
    with open(options.out / "idm_growth.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("kind", "position", "name", "relative_error"))
        writer.writerows(rows)
    draw(rows, options.out / "idm_growth.png")


if __name__ == "__main__":
    main()
