"""What each of several cards holds, as PyTorch's own FSDP2 and DDP have it in real processes."""

from __future__ import annotations

import faulthandler
import multiprocessing
import sys
from collections import Counter
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from bench.commands import FitCommand, PredictCommand, ScaleCommand
from bench.ddpm.step import TrainingStep
from bench.errors import UserError
from bench.methods import METHODS
from bench.predict import predict, predict_method
from bench.predict.cluster import Cluster, gathered, units_of
from bench.predict.fit import run_fit
from bench.predict.peaks import run_predict
from bench.predict.scale import predict_point, run_scale, sweep
from bench.presets import Overrides
from bench.probes.cost import StepProbe
from bench.probes.memory import Part, tensors_in
from bench.records.files import read_table
from bench.records.rows import Fit, Record

TINY = Overrides(volume=16, batch_size=1, channels=(16, 32), couplings=1)


# ---- beside real processes -----------------------------------------------------------------------

SPREAD = [
    (name, shard)
    for name in ("unet", "patchddm", "idm", "idm-stored")
    for shard in ((True, False) if name in ("unet", "idm") else (True,))
]


def measure(rank: int, folder: str) -> None:
    faulthandler.dump_traceback_later(300, exit=True)  # a process that hangs says where
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    torch.save([measured(name, shard, mesh) for name, shard in SPREAD], f"{folder}/{rank}.pt")
    dist.barrier()  # neither leaves while the other still waits for its part
    dist.destroy_process_group()


def measured(name: str, shard: bool, mesh) -> tuple:
    """A step of one of two processes, when all that first steps make is there."""
    work = METHODS[name].workload("small", TINY)
    network = METHODS[name].build(work)
    with Cluster(2, shard, mesh).sharded(network):
        step = TrainingStep(network, work)
        batch = step.cut(torch.rand(1, 1, 16, 16, 16))
        buckets = {}
        if not shard:

            def reduce(_, bucket):
                buckets[bucket.index()] = bucket.buffer()
                return allreduce_hook(None, bucket)

            step.network = DistributedDataParallel(network)
            step.network.register_comm_hook(None, reduce)
        for _ in range(2):
            step(batch)
        others = [*tensors_in(step.held(batch)), *buckets.values()]
        probe = StepProbe(network, step.optimizer, "cpu", others, gathered(network))
        probe.start()
        step(batch)
        cost = probe.stop()
    # gloo copies what it reduces, for as long as its thread needs.
    others = [change for change in probe.changes if change.storage.part is Part.OTHER]
    copies = {id(change.storage) for change in others if change.nbytes < 0}
    probe.changes = [c for c in probe.changes if id(c.storage) not in copies]
    return probe.peak_parts(), cost.flops_step, of_the_step(probe.changes)


def of_the_step(changes) -> Counter[tuple[int, str]]:
    """Bytes and part of what it allocates and releases; gloo's thread is not always as quick."""
    return Counter(
        (change.nbytes, str(change.storage.part)) for change in changes if change.operator
    )


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> list[dict]:
    """Of each process, what it held, by method and way."""
    folder: Path = tmp_path_factory.mktemp("two")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=measure, args=(r, str(folder))) for r in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    found = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
    return [dict(zip(SPREAD, each, strict=True)) for each in found]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shard"), SPREAD)
def test_the_first_of_two_processes_holds_what_was_predicted(real, name, shard):
    """To the byte and by part, and so is each allocation; the second holds no more."""
    work = METHODS[name].workload("small", TINY)
    prediction = predict_method(METHODS[name], work, device="cpu", gpus=2, shard=shard)
    (parts, flops, changes), (of_second, _, _) = (process[name, shard] for process in real)

    assert prediction.parts == parts
    assert prediction.flops_step == flops
    assert of_the_step(prediction.changes) == changes
    assert sum(of_second.values()) <= sum(parts.values())


# ---- what follows from the sizes -----------------------------------------------------------------


class Net(nn.Module):
    """Four layers in a list and one outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 64, bias=False) for _ in range(4)])
        self.last = nn.Linear(64, 8, bias=False)

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.last(x)


LAYER, LAST = 4 * 64 * 64, 4 * 64 * 8
WEIGHTS = 4 * LAYER + LAST


def square(network, batch):
    return network(batch).square().mean()


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def batch():
    return torch.randn(8, 64)


def test_a_card_holds_its_share_and_what_it_has_gathered(net, batch):
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    classes = [type(module) for module in net.modules()]
    weights, hook = list(net.parameters()), sys.excepthook
    alone, spread = (predict(net, batch, optimizer, square, **way) for way in (
        {}, {"gpus": 4, "shard": True}))  # fmt: skip

    counts = alone.parts[Part.OPTIMIZER] - 2 * WEIGHTS
    assert spread.parts[Part.OPTIMIZER] == 2 * WEIGHTS // 4 + counts
    gathered_bytes = spread.parts[Part.PARAMETER] - WEIGHTS // 4
    assert gathered_bytes in (LAYER + LAST, 2 * LAYER + LAST)  # a layer, and one ahead of it
    assert spread.parameters == alone.parameters == WEIGHTS // 4
    assert spread.flops_step == alone.flops_step
    assert spread.flops_forward == alone.flops_forward
    # Nothing of it stays.
    assert [type(module) for module in net.modules()] == classes
    assert all(a is b for a, b in zip(weights, net.parameters(), strict=True))
    assert optimizer.param_groups[0]["params"][0] is weights[0]
    assert not optimizer.state
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert not dist.is_initialized()
    assert sys.excepthook is hook


def test_what_is_gathered_at_a_time_can_be_said(net, batch):
    parts = [
        predict(net, batch, torch.optim.SGD, square, gpus=2, shard=shard).parts[Part.PARAMETER]
        for shard in (True, lambda network: [])
    ]
    assert parts[1] == WEIGHTS // 2 + WEIGHTS > parts[0]


def test_the_buckets_of_ddp_are_as_large_as_the_gradients(net, batch):
    optimizer = torch.optim.AdamW(net.parameters())
    alone, spread = (predict(net, batch, optimizer, square, gpus=gpus) for gpus in (1, 8))

    assert spread.parts == alone.parts | {Part.OTHER: alone.parts[Part.OTHER] + WEIGHTS}
    assert spread.cuda_pool.peak_allocated == alone.cuda_pool.peak_allocated + WEIGHTS


@pytest.mark.parametrize("shard", [True, False])
def test_a_step_of_ones_own(net, batch, shard):
    def step(network, batch, optimizer):
        optimizer.zero_grad()
        for part in batch.split(4):
            (square(network, part) / 2).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    found = predict(net, batch, optimizer, step=step, gpus=2, shard=shard)
    assert found.parts[Part.OTHER] == batch.nbytes + (0 if shard else WEIGHTS)


def test_what_fsdp_gathers_comes_from_a_stream_of_its_own(net, batch):
    """Blocks of one stream do not serve another: a card's pool is larger for it."""
    spread = predict(net, batch, torch.optim.SGD, square, gpus=2, shard=True)
    streams = {change.storage.stream for change in spread.changes}
    assert len(streams) == 3  # the usual one, of gathering, of reducing


def test_units_are_members_of_lists_or_what_the_network_says(net):
    assert units_of(nn.Sequential(net, nn.Linear(8, 8))) == list(net.layers)
    idm = METHODS["idm"].build(METHODS["idm"].workload("small", TINY))
    kinds = {type(unit).__name__ for unit in units_of(idm)}
    assert kinds == {"AdditiveCoupling", "InvertibleAttention"}


LINES = {
    "--shard: over how many cards": ("idm", {"shard": True}),
    "--gpus 0: at least 1": ("idm", {"gpus": 0}),
    "idm-lean applies each gradient": ("idm-lean", {"gpus": 2}),
    "unet.adam8bit cannot be sharded": ("unet+adam8bit", {"gpus": 2, "shard": True}),
    "FSDP2 refuses the network": ("idm+channels-last", {"gpus": 2, "shard": True}),
}


@pytest.mark.parametrize(("line", "asked"), LINES.items(), ids=LINES)
def test_what_cannot_be_spread_is_said_in_a_line(line, asked):
    name, way = asked
    with pytest.raises(UserError, match=line) as error:
        predict_method(METHODS[name], METHODS[name].workload("small", TINY), **way)
    assert "\n" not in str(error.value)


def test_a_loss_that_passes_ddp_by_is_said_in_a_line(net, batch):
    with pytest.raises(UserError, match="not the one that it is given"):
        predict(net, batch, torch.optim.SGD, lambda _, b: net(b).mean(), gpus=2)


def test_drawing_is_not_spread(net, batch):
    with pytest.raises(UserError, match="drawing is not spread"):
        predict(net, batch, gpus=2)


# ---- the commands --------------------------------------------------------------------------------


def spread(folder: Path) -> dict:
    return {"models": ("idm",), "preset": "small", "overrides": TINY, "gpus": 2, "shard": True,
            "out": folder}  # fmt: skip


def test_the_rows_of_predict_and_scale_say_so(tmp_path):
    page = StringIO()
    command = PredictCommand(**spread(tmp_path))
    assert run_predict(command, Console(file=page, width=200)) == 0
    assert "one of 2 cards (FSDP2)" in page.getvalue()
    row = read_table(tmp_path / "runs.csv", Record).iloc[0]
    assert (row["gpus"], row["shard"]) == (2, "True")

    scale = ScaleCommand(**spread(tmp_path))
    ((_, work), *_) = sweep("idm", "batch_size", scale)
    point = predict_point(("idm", "small", "batch_size", 1, work, 2, True))
    assert (point.gpus, point.shard) == (2, True)
    assert point.peak_memory_bytes == row["peak_memory_bytes"]
    with pytest.raises(UserError, match="over how many cards"):
        run_scale(replace(scale, gpus=1), Console(file=page))


@pytest.mark.thorough
def test_what_fits_a_card_is_of_its_share(tmp_path):
    command = FitCommand(memory="32MiB", margin="1MiB", **spread(tmp_path))
    assert run_fit(command, Console(file=StringIO())) == 0
    row = read_table(tmp_path / "fit.csv", Fit).iloc[0]
    assert (row["gpus"], row["shard"]) == (2, "True")
    work = METHODS["idm"].workload("small", replace(TINY, batch_size=int(row["batch_size"])))
    prediction = predict_method(METHODS["idm"], work, gpus=2, shard=True)
    assert prediction.cuda_pool.peak_allocated == row["batch_needs"]
