"""DDP and FSDP2 over gloo, two processes, against one process with the whole batch."""

from __future__ import annotations

import faulthandler
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from models.idm import IDM
from models.idm.coupling import AdditiveCoupling
from models.idm.reversible import Backward
from tests.models.test_network import NARROW, batch, perturbed


def _ddp(net: IDM) -> nn.Module:
    # Small buckets, so that several are reduced while the backward pass goes on.
    return DistributedDataParallel(net, bucket_cap_mb=0.01)


def _fsdp(net: IDM) -> nn.Module:
    """Each coupling gathers its own weights and frees them; the root does it for the others."""
    for layer in net.body.values():
        if isinstance(layer, AdditiveCoupling):
            fully_shard(layer)
    return fully_shard(net)


def _fsdp_layers_only(net: IDM) -> nn.Module:
    for layer in net.body.values():
        if isinstance(layer, AdditiveCoupling):
            fully_shard(layer)
    return net


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


CASES: list[tuple[Callable[[IDM], nn.Module], Backward]] = [
    (_ddp, "inverse"), (_fsdp, "inverse"), (_fsdp, "stored"), (_fsdp_layers_only, "inverse")
]  # fmt: skip


def _train_all(rank: int, folder: str) -> None:
    faulthandler.dump_traceback_later(100, exit=True)  # a process that hangs says where
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for number, (wrap, backward) in enumerate(CASES):
        torch.save(_train(rank, wrap, backward), f"{folder}/{number}-{rank}.pt")
    dist.barrier()  # neither leaves while the other still waits for its part
    dist.destroy_process_group()


def _train(rank: int, wrap: Callable[[IDM], nn.Module], backward: Backward) -> list[torch.Tensor]:
    """Gradients of the whole batch, of which this rank has one sample."""
    net = _network(backward)
    trained = wrap(net)
    x, t = batch(2, 1, 8, 8, 8, dtype=torch.float64)
    own = slice(rank, rank + 1)
    sharded = [isinstance(p, DTensor) for p in net.parameters()]
    for _ in range(2):  # the second time, weights have been freed and gathered again
        trained.zero_grad()
        trained(x[own], t[own]).square().mean().backward()
    if wrap is not _ddp:
        assert sharded == [isinstance(p, DTensor) for p in net.parameters()]  # freed again
    if wrap is _fsdp_layers_only:  # the others are nobody's business but the user's
        for p in net.parameters():
            if not isinstance(p, DTensor):
                dist.all_reduce(p.grad)
                p.grad /= 2
    return [_whole(p.grad) for p in net.parameters()]


def _network(backward: Backward = "inverse") -> IDM:
    torch.manual_seed(0)
    return perturbed(IDM(channels=NARROW, backward=backward).double())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the gradients of each case and rank: two processes train them all."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_train_all, args=(rank, str(folder))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{w.__name__}-{b}" for w, b in CASES])
def test_two_processes_get_the_gradients_of_the_whole_batch(trained: Path, case: int):
    net = _network("stored")
    net(*batch(2, 1, 8, 8, 8, dtype=torch.float64)).square().mean().backward()
    for rank in range(2):
        gradients = torch.load(trained / f"{case}-{rank}.pt")
        for ours, p in zip(gradients, net.parameters(), strict=True):
            torch.testing.assert_close(ours, p.grad, rtol=1e-9, atol=1e-12)


def test_sharding_inside_a_layer_is_refused():
    """The second evaluation of F would differentiate with respect to weights that are not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        net = _network()
        fully_shard(net.body["level1_encode0"].function)
        with pytest.raises(RuntimeError, match=r"level1_encode0 are sharded.*fully_shard on the"):
            net(*batch(2, 1, 8, 8, 8, dtype=torch.float64))
    finally:
        dist.destroy_process_group()
