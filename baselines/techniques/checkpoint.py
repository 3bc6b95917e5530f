"""Gradient checkpointing: what a part of the network computes, it computes twice.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv:1604.06174: a part keeps
its input only, and computes the rest once more when the backward pass needs it. Parts are

- the residual blocks (`checkpoint`);
- these, each down- and upsampling, and the output head (`checkpoint-all`);
- the levels, and the output head (`checkpoint-level`);
- the levels, and in them the blocks: of n blocks the inputs of about √n, and of √n more while one
  level works, are alive (`checkpoint-nested`). A U-Net's finest level has most of what there is,
  so that there it loses to `checkpoint`;
- the residual blocks, but for the results of their convolutions, which are kept: norms and
  activations, about half of what is stored, cost about 1 % of the FLOPs (`checkpoint-selective`).
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

KIND = "exact"

Scope = Literal["block", "all", "level", "nested"]

_BLOCK = re.compile(r"Res\w*Block$", re.IGNORECASE)
"""Names of the classes of residual blocks: ResidualBlock, ResBlock, DiffusionUNetResnetBlock."""


def build(
    network: Callable[..., nn.Module],
    *,
    scope: Scope = "block",
    keep_convolutions: bool = False,
    **options: Any,
) -> nn.Module:
    """The network, parts of which forget their activations in training.

    Raises:
        ValueError: it has no such parts.
    """
    built = network(**options)
    blocks, levels = blocks_of(built), levels_of(built)
    parts = {
        "block": blocks,
        "all": [part for level in levels for part in _outermost(level, _computes)],
        "level": levels,
        "nested": [*blocks, *levels],
    }[scope]
    if not parts:
        raise ValueError(
            f"there is nothing to compute again: {type(built).__name__} has no modules of a class "
            "called like ResBlock"
        )
    for part in dict.fromkeys(parts):  # a block outside of all levels is in both
        recompute(part, keep_convolutions)
    return built


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The outermost residual blocks, known by the name of their class."""
    return list(_outermost(network, _is_block))


def levels_of(network: nn.Module) -> list[nn.Module]:
    """The modules whose parts residual blocks are, but for the U-Net itself; and its head, `out`.

    In MONAI's U-Net the members of `down_blocks` and `up_blocks` and `middle_block`; in
    PatchDDM-3D those of `encoder` and `decoder`. Blocks that belong to no level count as one.
    """
    names = {module: name for name, module in network.named_modules()}
    modules = dict(network.named_modules())
    parents: dict[nn.Module, list[nn.Module]] = {}
    for block in blocks_of(network):
        path = names[block]
        while isinstance(modules[path := path.rpartition(".")[0]], nn.ModuleList):
            pass
        parents.setdefault(modules[path], []).append(block)
    found = []
    for parent, blocks in parents.items():
        is_level = not any(other in parents for other in parent.modules() if other is not parent)
        found += [parent] if is_level else blocks
    for whole in reversed(modules.values()):  # the innermost that has all levels
        head = getattr(whole, "out", None)
        if isinstance(head, nn.Module) and set(found) <= set(whole.modules()):
            return [*found, head]
    return found


def _outermost(module: nn.Module, wanted: Callable[[nn.Module], bool]) -> Iterator[nn.Module]:
    if wanted(module):
        yield module
        return
    for child in module.children():
        yield from _outermost(child, wanted)


def _computes(module: nn.Module) -> bool:
    """A block, or a layer; not what only holds them."""
    holds_blocks = any(map(_is_block, module.modules()))
    return _is_block(module) or not (holds_blocks or isinstance(module, nn.ModuleList))


def _is_block(module: nn.Module) -> bool:
    return bool(_BLOCK.search(type(module).__name__))


def recompute(part: nn.Module, keep_convolutions: bool = False) -> None:
    """Let `part` compute its activations again in the backward pass instead of keeping them.

    It stays the same object under another class, as in PyTorch's own `fully_shard`: a wrapper
    around it would rename its parameters.
    """
    kind = type(part)
    part.__class__ = type(
        f"Recomputed{kind.__name__}", (Recomputed, kind), {"keep_convolutions": keep_convolutions}
    )


class Recomputed(nn.Module):
    """Mixed into the class of a part that draws no random numbers."""

    keep_convolutions: ClassVar[bool] = False

    def forward(self, *inputs: Any, **named: Any) -> Any:
        forward = super().forward
        if not (self.training and torch.is_grad_enabled()):
            return forward(*inputs, **named)  # nothing is kept, so there is nothing to forget

        def run(*given: Any, **named: Any) -> Any:
            own = [_copy(value) for value in given]
            out = forward(*own, **named)
            for value, left in zip(inputs, own, strict=True):
                if isinstance(value, list):  # of skips: what was taken from it is gone
                    del value[len(left) :]
            return out

        return checkpoint(
            run,
            *map(_copy, inputs),
            use_reentrant=False,
            # Without dropout there is no random state to restore before computing again.
            preserve_rng_state=False,
            context_fn=_keep_convolutions if self.keep_convolutions else noop_context_fn,
            **named,
        )


def _copy(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def _keep_convolutions() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    def policy(_: Any, operator: Any, *args: Any, **named: Any) -> CheckpointPolicy:
        is_convolution = operator is torch.ops.aten.convolution.default
        return CheckpointPolicy.MUST_SAVE if is_convolution else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
