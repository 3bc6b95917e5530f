"""IDM against stored activations, and against iUNets on MemCNN. Ratios of interleaved pairs."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from models.idm import IDM, PUBLISHED, build, lean
from models.idm.coupling import AdditiveCoupling, ConvolutionBlock
from tests.models.live_storages import LiveStorages, cost_of_step
from tests.models.test_network import GIB, PAPER

SMALL = (32, 64, 128, 256)
VOLUMES = (2, 1, 32, 32, 32)


def seconds(run: Callable[[], None]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def ratio_of_times(ours: Callable[[], None], theirs: Callable[[], None], pairs: int = 9) -> float:
    """Median of theirs / ours, one after the other, so that the machine's moods hit both."""
    ours()
    theirs()
    return statistics.median(seconds(theirs) / seconds(ours) for _ in range(pairs))


def train(net: nn.Module, *inputs: Tensor) -> Callable[[], None]:
    def step() -> None:
        net.zero_grad()
        net(*inputs).square().mean().backward()

    return step


def test_flops_of_inverse_over_stored(report_bound):
    costs = [
        cost_of_step(lambda b=b: build(channels=PUBLISHED["channels"], backward=b), PAPER)
        for b in ("inverse", "stored")
    ]
    report_bound("FLOPs of a step, inverse / stored, paper", costs[0].flops / costs[1].flops, 1.34)
    report_bound("peak of a step, paper, GiB", costs[0].peak / GIB, 6.71)
    report_bound("activations at the peak, paper, GiB", costs[0].activations / GIB, 1.0)


def test_time_of_inverse_over_stored(report_bound):
    net = IDM(channels=SMALL)
    stored = copy.deepcopy(net)
    stored.backward = "stored"
    inputs = (torch.randn(VOLUMES), torch.tensor([5, 1500]))
    ratio = ratio_of_times(train(stored, *inputs), train(net, *inputs))
    report_bound("time of a step, inverse / stored, small", ratio, 1.33)


@pytest.mark.parametrize("level", range(6))
def test_bytes_of_one_more_coupling(level, report_bound):
    channels = PUBLISHED["channels"]

    def make(extra: int) -> IDM:
        net = build(channels=channels)
        for branch in ("encode", "decode")[:extra]:
            place = [w.layer for w in net.wiring].index(f"level{level}_{branch}1")
            net.body[f"more_{branch}"] = AdditiveCoupling(ConvolutionBlock(channels[level] // 2))
            net.wiring.insert(place, net.wiring[place]._replace(layer=f"more_{branch}"))
        return net

    base, more = (cost_of_step(lambda n=n: make(n), PAPER).activations for n in (0, 2))
    report_bound(f"bytes added by a coupling at level {level}, paper", more - base, 0)


class Peer(nn.Module):
    """The public pair, with our lift's and project's counterparts around it."""

    def __init__(self) -> None:
        super().__init__()
        iunets = pytest.importorskip("iunets")
        self.lift = nn.Conv3d(1, SMALL[0], 3, padding=1)
        # Two couplings a level and branch, two convolutions in each, widths doubling: as ours.
        self.body = iunets.iUNet(
            in_channels=SMALL[0], architecture=(2,) * 4, dim=3, verbose=0,
            module_kwargs={"block_depth": 2},
        )  # fmt: skip
        self.project = nn.Conv3d(SMALL[0], 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.body(self.lift(x)))


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
def test_against_iunets_on_memcnn(report_bound, capsys):
    """Like with like: the pair has no attention, so ours goes without. With it: for information."""
    peer = Peer()
    assert tuple(peer.body.channels) == SMALL
    x, t = torch.randn(VOLUMES), torch.tensor([5, 1500])
    ratios = {}
    for levels in (2, 0):
        net = IDM(channels=SMALL, attention_levels=levels)
        speed = ratio_of_times(train(net, x, t), train(peer, x))
        ratios[levels] = speed, activations(net, x, t) / activations(peer, x)
    with capsys.disabled():
        print("\nwith attention: {:.2f} × the speed, {:.2f} × the peak".format(*ratios[2]))
    speed, memory = ratios[0]
    report_bound("speed over iUNets + MemCNN, small", speed, 1.5, at_least=True)
    report_bound("peak above parameters over iUNets + MemCNN, small", memory, 0.6)


def activations(net: nn.Module, *inputs: Tensor) -> int:
    """The peak of a real step above parameters and input, gradients included."""
    step = train(net, *inputs)
    step()
    net.zero_grad()
    with LiveStorages() as watch:
        step()
    return watch.peak


@pytest.mark.timeout(1800)
def test_lean(report_bound, capsys):
    """The goals of issue 3 (its bounds are 3 and 24 GiB).

    Every technique of idm-lean taken away, one at a time, and 16 bits added.
    """
    bounds = {"paper": (PAPER, 2.5), "full-volume": ((1, 1, 256, 256, 256), 16.0)}
    changes = {
        "idm-lean": {},
        "without streaming": {"stream_bytes": None},
        "without slices of F": {"slice_bytes": None},
        "with moments in float32": {"eight_bit": False},
        "with F in bfloat16": {"half_precision": True},
    }
    for preset, (shape, bound) in bounds.items():
        for name, change in changes.items():
            peak, flops = lean_step(shape, **change)
            with capsys.disabled():
                print(f"\n{preset:<12}{name:<26}{peak:6.2f} GiB{flops / 1e12:8.2f} TFLOP", end="")
            if not change:
                report_bound(f"peak of a step, idm-lean, {preset}, GiB", peak, bound)


def lean_step(shape: tuple[int, ...], **options) -> tuple[float, int]:
    """GiB and FLOPs of one step on fake tensors."""
    with FakeTensorMode(), LiveStorages() as watch:
        net = lean.build(channels=PUBLISHED["channels"], **options)
        optimizer = net.make_optimizer(learning_rate=2e-4, lambda_l2=1e-4)
        x, t = torch.randn(shape), torch.zeros(shape[0], dtype=torch.long)
        (net(x, t) - torch.randn(shape)).square().mean().backward()
        optimizer.step()
        return watch.peak / GIB, watch.flops
