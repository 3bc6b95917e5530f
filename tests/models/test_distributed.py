"""DDP over gloo, two processes: each layer's gradient is reduced as soon as it is made."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from models.idm import IDM
from tests.models.test_network import NARROW, batch, perturbed


def _train(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    # Small buckets, so that several are reduced while the backward pass goes on.
    net = DistributedDataParallel(_network(), bucket_cap_mb=0.01)
    x, t = batch(2, 1, 8, 8, 8, dtype=torch.float64)
    own = slice(rank, rank + 1)
    net(x[own], t[own]).square().mean().backward()
    torch.save([p.grad for p in net.module.parameters()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _network() -> IDM:
    torch.manual_seed(0)
    return perturbed(IDM(channels=NARROW).double())


def test_two_processes_get_the_gradients_of_the_whole_batch(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_train, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    net = _network()
    net.backward = "stored"
    x, t = batch(2, 1, 8, 8, 8, dtype=torch.float64)
    net(x, t).square().mean().backward()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    for rank in range(2):
        for ours, p in zip(torch.load(tmp_path / f"{rank}.pt"), net.parameters(), strict=True):
            torch.testing.assert_close(ours, p.grad, rtol=1e-9, atol=1e-12)
