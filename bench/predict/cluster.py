"""One card of several: what it holds of a training that is spread over them.

A process group that sends nothing (PyTorch's `fake` one) stands for the other cards; this process
is the first, whose share is the largest. What is gathered, freed, reduced and kept in buckets is
then PyTorch's own doing, by FSDP2 (`fully_shard`) or by DistributedDataParallel.

No run here trains on several cards: these predictions are compared with processes on a CPU
(`tests/bench/predict/test_cluster.py`), not with cards.
"""

import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import UserError, last_line
from ..presets import Cards, check_ranges

Units = Callable[[nn.Module], Iterable[nn.Module]]
"""Of a network: the modules whose weights are gathered, and freed, one by one."""


@dataclass
class Cluster:
    """So many cards, each with a batch of its own.

    Args:
        gpus: how many.
        shard: whether each holds a share of weights, gradients and optimizer state (FSDP2), or all
            of them (DDP). A function says which modules are units of FSDP2; by default `units_of`.
    """

    gpus: Cards = 1
    shard: bool | Units = False
    mesh: Any = None
    _buckets: dict[int, Tensor] = field(default_factory=dict)

    def buckets(self) -> list[Tensor]:
        """Of DDP, after its first step; UserError where that passed it by."""
        if self.gpus > 1 and not self.shard and not self._buckets:
            raise UserError(
                f"gpus={self.gpus}: the loss calls a network of its own, not the one that it is "
                "given: write it as loss=lambda network, batch: …"
            )
        return list(self._buckets.values())

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """While it lasts, this process is the first card's. Enter it before fake tensors are made.

        Raises:
            UserError: the process is one of a real group.
        """
        if self.gpus == 1:
            yield
            return
        if not dist.is_available():
            raise UserError("this build of PyTorch has no torch.distributed: predict one card")
        if dist.is_initialized():
            raise UserError("this process is one of a group: predict in one that is not")
        # Loaded here, because it takes a second: the fake group, and what is made of a collective
        # on fake tensors.
        import torch.distributed._tools.fake_collectives  # noqa: F401, it registers them (2.10)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.testing._internal.distributed.fake_pg import FakeStore

        excepthook = sys.excepthook
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=self.gpus)
        try:
            self.mesh = init_device_mesh(device.type, (self.gpus,))
            with warnings.catch_warnings():  # of views that nobody changes in place
                warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
                yield
        finally:
            dist.destroy_process_group()
            sys.excepthook = excepthook

    @contextmanager
    def sharded(self, network: nn.Module) -> Iterator[None]:
        """FSDP2 on the network, in place, where `shard` says so; forgotten afterwards."""
        if self.gpus == 1 or not self.shard:
            yield
            return
        from torch.distributed._composable_state import _module_state_mapping
        from torch.distributed.fsdp import fully_shard

        units = self.shard if callable(self.shard) else units_of
        modules = [*dict.fromkeys(units(network)), network]
        classes = [(module, type(module)) for module in modules]
        try:
            try:
                for module in modules:
                    fully_shard(module, mesh=self.mesh)
            except (NotImplementedError, ValueError) as error:
                raise UserError(
                    f"--shard: FSDP2 refuses the network ({last_line(error)})"
                ) from None
            yield
        finally:
            for module, kind in classes:
                module.__class__ = kind
                _module_state_mapping.pop(module, None)

    @contextmanager
    def spread(
        self,
        network: nn.Module,
        parameters: Sequence[nn.Parameter],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> Iterator[list[nn.Parameter]]:
        """`sharded`, where optimizers are there already: they get shares, and make state anew.

        Yields the parameters as they then are.
        """
        if self.gpus > 1 and any(getattr(p, "_post_accumulate_grad_hooks", 0) for p in parameters):
            raise UserError(
                f"gpus={self.gpus}: hooks use up gradients in the backward pass, before they are "
                "summed over the cards"
            )
        names = {id(p): name for name, p in network.named_parameters()}
        with self.sharded(network):
            now = dict(network.named_parameters())

            def shares(whole: Iterable[nn.Parameter]) -> list[nn.Parameter]:
                return [now.get(names.get(id(p), ""), p) for p in whole]

            if self.shard:
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["params"] = shares(group["params"])
                    optimizer.state = defaultdict(dict)
            yield shares(parameters)

    def replicated(self, network: nn.Module) -> nn.Module:
        """The network as it is to be called: in DDP where `shard` does not say otherwise.

        Nothing is compared across cards, and the buckets stay as they are made, in one piece;
        PyTorch cuts them anew after the first step, to the same sum.
        """
        if self.gpus == 1 or self.shard or not any(p.requires_grad for p in network.parameters()):
            return network

        def reduce(_: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
            self._buckets[bucket.index()] = bucket.buffer()
            done: torch.futures.Future[Tensor] = torch.futures.Future()
            done.set_result(bucket.buffer())
            return done

        with torch._C.DisableTorchFunction():  # a default device is not meant for what DDP makes
            replicated = _Replicated(network, init_sync=False)
        replicated.register_comm_hook(None, reduce)
        inner: Any = replicated
        inner.reducer = _Without(inner.reducer, _rebuild_buckets=False)
        inner.logger = _Without(inner.logger, set_runtime_stats_and_log=None)
        return replicated


def units_of(network: nn.Module) -> list[nn.Module]:
    """The modules that the network names (`shard_units`), or the members of its lists of modules.

    A list is a ModuleList or a ModuleDict; inner ones come first, and those without weights not.
    """
    found: list[nn.Module] = []
    if hasattr(network, "shard_units"):
        return list(network.shard_units())  # type: ignore[operator]
    listed = isinstance(network, (nn.ModuleList, nn.ModuleDict))
    for child in network.children():
        found += units_of(child)
        if listed and any(True for _ in child.parameters()):
            found.append(child)
    holders = (nn.ModuleList, nn.ModuleDict)  # which have no forward pass of their own
    return [module for module in found if not isinstance(module, holders)]


def gathered(network: nn.Module) -> list[Tensor]:
    """The whole weights of a network under FSDP2, whose storages are empty between two uses."""
    from torch.distributed.fsdp import FSDPModule

    groups: list[Any] = []
    for module in network.modules():
        if isinstance(module, FSDPModule):
            state: Any = module._get_fsdp_state()
            groups += getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
    return [p._unsharded_param for group in groups if group for p in group.fsdp_params]


class _Replicated(nn.parallel.DistributedDataParallel):
    __call__ = nn.Module.__call__  # a person's own is passed by (`own.inside`)


class _Without:
    """An object but for some of its functions, which return what is given here."""

    def __init__(self, inner: Any, **answers: Any) -> None:
        self._inner, self._answers = inner, answers

    def __getattr__(self, name: str) -> Any:
        if name in self._answers:
            return lambda *_: self._answers[name]
        return getattr(self._inner, name)


def spread_columns(gpus: int, shard: bool) -> dict[str, Any]:
    """As in `runs.csv` (`bench.records.rows.Spread`)."""
    return {"gpus": gpus, "shard": shard} if gpus > 1 else {}


def in_words(gpus: int, shard: bool) -> str:
    """For the title of a table; nothing for one card."""
    return f", on one of {gpus} cards ({'FSDP2' if shard else 'DDP'})" if gpus > 1 else ""


def refuse_what_cannot_be(
    gpus: int,
    shard: bool | Units,
    name: str = "",
    techniques: Sequence[str] = (),
    *,
    sampling: bool = False,
) -> None:
    """UserError for a training that cannot be spread in this way, in a line."""
    check_ranges(Cluster(gpus))
    if shard and gpus == 1:
        raise UserError("--shard: over how many cards? Give --gpus 2 or more")
    if gpus > 1 and sampling:
        raise UserError("--gpus: drawing is not spread, each card draws by itself; leave it out")
    if gpus > 1 and "fused-backward" in techniques:
        raise UserError(
            f"--gpus {gpus}: {name} applies each gradient in the backward pass, before it is "
            "summed over the cards"
        )
    if sampling and "latent" in techniques:
        raise UserError(
            f"--sampling: {name} draws latents, and what needs most is to decode them; "
            "docs/latent.md has both"
        )
    for technique, why in _ON_WHOLE_WEIGHTS.items():
        if shard and technique in techniques:
            raise UserError(f"--shard: {name} cannot be sharded: {why}")


_ON_WHOLE_WEIGHTS = {
    "adam8bit": "its bytes are of whole weights, not of shares",
    "adafactor": "PyTorch's Adafactor does not work on shares",
}
"""Technique -> why FSDP2 cannot have it."""
