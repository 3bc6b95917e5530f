"""What a technique may change of the training of a network.

A technique is a file that states its `KIND` and offers some of these; the rest it leaves alone:

- `build(network, **options) -> nn.Module`: the network, or what it sees of a volume. `network` is
  the `build` of the network inside and takes the same options (`in_channels`, `channels`, …). A
  wrapper that shows the network something else gives back ε of the volume, so that samplers and
  scores need to know nothing of it. Or the network gets `latents` (`ddpm/step.py`);
- `saving(work, device) -> context manager`: what autograd saves, entered around the forward pass;
- `make_optimizer(network, *, learning_rate, lambda_l2) -> Optimizer`. One that adds the λ_L2 term
  itself has an attribute `lambda_l2`;
- `WORK`: values of the workload that come with it: the precision, the micro-batch;
- `DIMS`: those of the networks that it is for; (2, 3) unless it says so;
- `HALVINGS`: how often it halves the sides before the network does;
- `EXCLUDES`: the technique that it cannot be combined with -> why;
- `ON_CPU`: what is to be said where it trains on a CPU;
- `ASSUMED`: what a prediction takes for granted of it;
- `OUTSIDE`: what it costs outside of the steps that are measured and predicted.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

Kind = Literal["exact", "rounded", "another task"]
"""The same gradients; the same function in fewer bits; the network learns something else."""
KINDS: tuple[Kind, ...] = ("exact", "rounded", "another task")


@dataclass(frozen=True)
class Technique:
    """A change to how a network is trained, by name; None and empty: left alone."""

    name: str
    kind: Kind
    build: Callable[..., nn.Module] | None = None
    saving: Callable[..., AbstractContextManager[Any]] | None = None
    make_optimizer: Callable[..., torch.optim.Optimizer] | None = None
    work: Mapping[str, Any] = field(default_factory=dict)
    dims: tuple[int, ...] = (2, 3)
    halvings: int = 0
    excludes: Mapping[str, str] = field(default_factory=dict)
    on_cpu: str = ""
    assumed: str = ""
    outside: str = ""

    @classmethod
    def of(cls, name: str, module: Any, **options: Any) -> "Technique":
        """What a file, or any object with these names, offers; `options` go to its functions."""
        if module.KIND not in KINDS:
            raise ValueError(f"KIND is {module.KIND!r}, not one of {', '.join(KINDS)}")

        def offered(function: str) -> Any:
            found = getattr(module, function, None)
            return partial(found, **options) if found is not None and options else found

        return cls(
            name, module.KIND, offered("build"), offered("saving"), offered("make_optimizer"),
            getattr(module, "WORK", {}), getattr(module, "DIMS", (2, 3)),
            getattr(module, "HALVINGS", 0),
            getattr(module, "EXCLUDES", {}), getattr(module, "ON_CPU", ""),
            getattr(module, "ASSUMED", ""), getattr(module, "OUTSIDE", ""),
        )  # fmt: skip


def worst_kind(techniques: Sequence[Technique]) -> Kind:
    """Of all of them together; a network alone is exact."""
    return max((each.kind for each in techniques), key=KINDS.index, default="exact")


def conflict(techniques: Sequence[Technique]) -> str | None:
    """Why these cannot be combined, in a line; None where they can."""
    names = [each.name for each in techniques]
    for each in techniques:
        if names.count(each.name) > 1:
            return f"has {each.name} twice"
        for other, why in each.excludes.items():
            if other in names:
                return f"{each.name} and {other} cannot be combined: {why}"
    for one, two in itertools.combinations(techniques, 2):
        if both := one.work.keys() & two.work.keys():
            return f"{one.name} and {two.name} both set the {min(both)}"
        if one.build and _function(one.build) is _function(two.build):
            return f"{one.name} and {two.name} are one or the other"
        makes = one.make_optimizer, two.make_optimizer
        if all(makes) and _function(makes[0]) is not _function(makes[1]):
            return f"{one.name} and {two.name} both bring an optimizer"
    return None


def optimizer_of(techniques: Sequence[Technique]) -> Callable[..., torch.optim.Optimizer] | None:
    """The `make_optimizer` of these; options of one function for several techniques add up."""
    found: Any = None
    for each in techniques:
        make: Any = each.make_optimizer
        if make is not None:
            options = make.keywords if isinstance(make, partial) else {}
            found = make if found is None else partial(found, **options)
    return found


def saving(techniques: Sequence[Technique], work: Any, device: torch.device) -> ExitStack:
    """What autograd saves, as all of these have it."""
    stack = ExitStack()
    for each in techniques:
        if each.saving is not None:
            stack.enter_context(each.saving(work, device))
    return stack


def _function(offered: Any) -> Any:
    """Without its options: several techniques may be ways to call one function."""
    return offered.func if isinstance(offered, partial) else offered
