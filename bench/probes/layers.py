"""Which layer of a network is running: in the forward pass, the backward pass, a recomputation."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks


class RunningLayer:
    """`current()` names the running layer between `start` and `stop`.

    While a module's forward runs, also when a backward pass calls it again, it is that module. In
    the rest of the backward pass it is the module that was running when autograd made the node
    that now runs. Names are as in `network.named_modules()`; the network itself, and what runs
    outside of it, is "".

    Hooks here take names and never a tensor, so that nothing lives longer for being watched.
    """

    def __init__(self, network: nn.Module) -> None:
        self._names = {id(module): name for name, module in network.named_modules()}
        self._owners = {
            id(parameter): name
            for name, module in network.named_modules()
            for parameter in module.parameters(recurse=False)
        }
        self._stack: list[str] = []
        self._makers: dict[int, str] = {}  # sequence number of an autograd node -> layer
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def start(self) -> None:
        self._handles = [
            hooks.register_module_forward_pre_hook(self._enter),
            # Also when forward raises: checkpointing leaves a recomputation by an exception.
            hooks.register_module_forward_hook(self._leave, always_call=True),
        ]

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._makers.clear()

    def owner(self, parameter: nn.Parameter) -> str:
        """The layer whose parameter this is."""
        return self._owners.get(id(parameter), "")

    def current(self) -> str:
        """The layer that is running. To be asked at each operator: asking is how it learns."""
        layer = self._stack[-1] if self._stack else self._of_node()
        self._remember_maker(layer)
        return layer

    def _of_node(self) -> str:
        node: Any = torch._C._current_autograd_node()
        if node is None:
            return ""
        if type(node).__name__ == "AccumulateGrad":  # where a gradient reaches its parameter
            return self._owners.get(id(node.variable), "")
        return self._makers.get(node._sequence_nr(), "")

    def _remember_maker(self, layer: str) -> None:
        # An operator's node is made, and numbered, just before the operator is dispatched. If this
        # one made none, the number is an older node's, whose maker is known.
        self._makers.setdefault(torch._C._autograd._get_sequence_nr() - 1, layer)

    def _enter(self, module: nn.Module, _: object) -> None:
        name = self._names.get(id(module))
        if name is None:  # not of this network: it works for the layer that calls it
            name = self._stack[-1] if self._stack else ""
        # The node of a custom autograd function is made before the layer inside it is called.
        self._remember_maker(name)
        self._stack.append(name)

    def _leave(self, module: nn.Module, _: object, __: object) -> None:
        self._stack.pop()
