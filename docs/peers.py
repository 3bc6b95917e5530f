"""Peaks of a training step beside those of the packages that people would take instead.

    python -m docs.peers    # the table of docs/peers.md; half a minute

Needs the packages of the extra `peers`. All are trained by the same step on the same volumes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets.unet import CheckpointUNet, UNet
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from baselines import unet
from baselines.patchddm import sinusoidal_embedding
from bench.ddpm.technique import Technique
from bench.methods import METHODS, Method
from bench.predict import Prediction, predict_method
from bench.presets import Workload
from bench.probes.cost import StepCost
from bench.report.grid import Cell, Grid, markdown
from bench.sizes import GIB

from . import techniques

PAGE = Path(__file__).with_suffix(".md")
BEGIN, END = "<!-- table -->", "<!-- end of the table -->"


class Sequential(nn.Module):
    """MONAI's U-Net as a list of functions of (h, time, skips): that is what torch's takes."""

    def __init__(self, network: DiffusionModelUNet, segments: int) -> None:
        super().__init__()
        self.network, self.segments = network, segments

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        net = self.network
        time = net.time_embed(sinusoidal_embedding(timesteps, net.block_out_channels[0]))

        def enter(x: Tensor) -> Any:
            h = net.conv_in(x)
            return h, [h]

        def descend(level: nn.Module, state: Any) -> Any:
            h, skips = state
            h, made = level(hidden_states=h, temb=time)
            return h, [*skips, *made]

        def turn(state: Any) -> Any:
            return net.middle_block(hidden_states=state[0], temb=time), state[1]

        def ascend(level: nn.Module, state: Any) -> Any:
            h, skips = state
            own = len(level.resnets)  # type: ignore[arg-type]
            h = level(hidden_states=h, res_hidden_states_list=skips[-own:], temb=time)
            return h, skips[:-own]

        functions = [
            enter, *(partial(descend, level) for level in net.down_blocks), turn,
            *(partial(ascend, level) for level in net.up_blocks), lambda state: net.out(state[0]),
        ]  # fmt: skip
        return checkpoint_sequential(
            functions, self.segments, x, use_reentrant=False, preserve_rng_state=False
        )


class Timeless(nn.Module):
    """A segmentation network as a denoiser, for its memory: it is not told t."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return self.network(x)


def sequential(segments: int, **options: Any) -> nn.Module:
    return Sequential(unet.build(**options), segments)  # type: ignore[arg-type]


def segmentation(
    kind: type[UNet], *, in_channels: int, channels: tuple[int, ...], **_: Any
) -> nn.Module:
    strides = (2,) * (len(channels) - 1)
    return Timeless(
        kind(3, in_channels, in_channels, channels, strides, num_res_units=2, norm="instance")
    )


def save_on_cpu(work: Workload, device: torch.device) -> Any:
    return torch.autograd.graph.save_on_cpu(pin_memory=device.type == "cuda")


@dataclass(frozen=True)
class Peer:
    network: str
    way: str
    package: str
    method: Method


def _other(build: Callable[..., nn.Module], *techniques: Technique) -> Method:
    return Method("peer", build, unet.PUBLISHED, techniques=techniques)


def peers() -> Iterator[Peer]:
    """What others' packages offer, and ours below, network by network."""
    standard = "U-Net of Ho et al., MONAI's"
    yield Peer(standard, "as it is", "monai", METHODS["unet"])
    for segments in (3, 10):
        way = f"checkpoint_sequential, {segments} segments"
        yield Peer(standard, way, "torch", _other(partial(sequential, segments)))
    moved = Technique("save_on_cpu", "exact", saving=save_on_cpu)
    yield Peer(standard, "save_on_cpu", "torch", _other(unet.build, moved))
    for name in ("checkpoint", "checkpoint-all", "checkpoint-selective", "offload"):
        yield Peer(standard, name, "ours", METHODS[f"unet+{name}"])
    residual = "U-Net for segmentation, MONAI's"
    for kind in (UNet, CheckpointUNet):
        way = kind.__name__
        yield Peer(residual, way, "monai", _other(partial(segmentation, kind)))
    yield Peer("invertible", "iUNet", "iunets, memcnn", METHODS["iunet"])
    for name in ("idm", "idm-lean"):
        yield Peer("invertible", name, "ours", METHODS[name])


def predicted(peer: Peer, preset: str, device: Any = "cuda") -> Prediction:
    work = peer.method.workload(preset)
    return predict_method(peer.method, work, device=device, count_forward=False)


def measured(peer: Peer, preset: str) -> StepCost:
    """The second of two real steps on this CPU."""
    return techniques.measured(peer.method, peer.method.workload(preset))


def grid(preset: str) -> Grid:
    rows, plain = [], 0
    for peer in peers():
        found = predicted(peer, preset)
        if peer.way in ("as it is", "UNet", "iUNet"):
            plain = found.flops_step
        cells = (
            peer.network, peer.way, peer.package, f"{found.parameters / 1e6:.1f}",
            f"{found.peak_memory_bytes / GIB:.3g}",
            f"{found.host_bytes / GIB:.3g}" if found.host_bytes > 2**20 else "",
            f"{found.flops_step / plain:.2f}",
        )  # fmt: skip
        rows.append(tuple(map(Cell, cells)))
    columns = (
        "network", "way", "of", "parameters (M)", "peak (GiB)", "on the host (GiB)", "FLOPs, ratio",
    )  # fmt: skip
    caption = (
        f"One training step at {preset}, predicted for a card. FLOPs: of the whole step, to those "
        "of the network's first row"
    )
    return Grid("Peers", caption, columns, tuple(rows))


def page(text: str) -> str:
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{markdown(grid('equal'))}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
