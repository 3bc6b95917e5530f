"""FLOPs, two ways, because each sees what the other cannot (DESIGN §7).

`flops_forward` is fvcore's count of the forward pass, as the literature quotes it. fvcore counts a
multiply-add as one and sees no backward pass. `flops_step` counts what is really dispatched in one
training step: forward, backward, recomputation, inversion, a multiply-add as two.
"""

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from bench.probes import Columns

# torch registers the attention kernels of CUDA only; the CPU's own does the same products.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query.shape, key.shape, value.shape)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, query, key, value, *_, **__: sdpa_backward_flop_count(
            grad.shape, query.shape, key.shape, value.shape
        )
    ),
}


class FlopProbe(TorchDispatchMode):
    """Adds up the FLOPs of every operator dispatched between `start` and `stop`.

    A plain dispatch mode: the module hooks of torch's own `FlopCounterMode` keep tensors alive,
    which would change the memory probe's number, and fail on `torch.autograd.grad` inside a custom
    backward pass (pytorch#131753).
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        elif packet in _CPU_ATTENTION:
            self.flops += _CPU_ATTENTION[packet](*args, **kwargs)
        return out

    def start(self) -> None:
        self.flops = 0
        self.__enter__()

    def stop(self) -> Columns:
        self.__exit__(None, None, None)
        return {"flops_step": int(self.flops)}


def forward_flops(network: nn.Module, x_t: Tensor, t: Tensor, **keywords: Tensor) -> int:
    """fvcore's count for one forward pass on these inputs, a multiply-add as one.

    fvcore traces one real forward pass; under `no_grad`, where every method's is its plain one.
    """
    from fvcore.nn import FlopCountAnalysis

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about shapes turned into constants
        analysis = FlopCountAnalysis(network, (x_t, t, *keywords.values()))
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.tracer_warnings("none")
        return int(analysis.total())


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of softmax(q kᵀ) v, as fvcore counts: q and v are (…, tokens, width)."""
    *heads, queries, width = inputs[0].type().sizes()
    keys, value_width = inputs[2].type().sizes()[-2:]
    return math.prod(heads) * queries * keys * (width + value_width)
