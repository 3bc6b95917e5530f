"""FLOPs, two ways, because each sees what the other cannot.

`flops_forward` is fvcore's count of the forward pass, as the literature quotes it. fvcore counts a
multiply-add as one and sees no backward pass. `flops_step` counts what is really dispatched in one
training step: forward, backward, recomputation, inversion, a multiply-add as two.

Where fvcore's rule for a product is wrong or missing, ours stands in for it (`_OWN_RULES`), so that
of the products of a forward pass the one count is half the other.
"""

import math
import re
import warnings
from collections.abc import Callable
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

# torch registers the attention kernels of CUDA only; the CPU's own does the same products.
_CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query.shape, key.shape, value.shape)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, query, key, value, *_, **__: sdpa_backward_flop_count(
            grad.shape, query.shape, key.shape, value.shape
        )
    ),
}


def flops_of(func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> int:
    """FLOPs of one dispatched operator, a multiply-add as two; 0 for what is not a product."""
    packet = func._overloadpacket
    if packet in flop_registry:
        count = cast(Any, flop_registry)[packet]
        return count(*args, **kwargs, out_val=out)
    if packet in _CPU_ATTENTION:
        return _CPU_ATTENTION[packet](*args, **kwargs)
    return 0


def forward_flops(network: nn.Module, x_t: Tensor, t: Tensor, **keywords: Tensor) -> int:
    """fvcore's count for one forward pass on these inputs, a multiply-add as one.

    fvcore traces one real forward pass; under `no_grad`, where every method's is its plain one.
    """
    from fvcore.nn import FlopCountAnalysis

    class Called(nn.Module):  # the tracer knows no keywords
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x_t: Tensor, t: Tensor, *values: Tensor) -> Tensor:
            # As it is written: what is compiled cannot be traced.
            return self.network.forward(x_t, t, **dict(zip(keywords, values, strict=True)))

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about shapes turned into constants
        analysis = FlopCountAnalysis(Called(), (x_t, t, *keywords.values()))
        analysis.set_op_handle(**_OWN_RULES)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.tracer_warnings("none")
        return int(analysis.total())


def dispatched_forward_flops(forward: Callable[[], Any]) -> int:
    """What `forward_flops` gives for the network that `forward` calls, also on fake tensors.

    fvcore's tracer turns sizes into tensors, which fake tensors cannot bear. So its own rules are
    applied to the operators as they are dispatched, at the level that the tracer sees: under
    inference mode a composite operator (`linear`, `matmul`, `group_norm`) arrives in one piece.
    """
    counter = _ForwardCounter()
    # A network that takes another path while it is traced takes that path here, too.
    tracing = mock.patch.object(torch.jit, "is_tracing", return_value=True)
    with torch.inference_mode(), tracing, counter:
        forward()
    return counter.flops


class _ForwardCounter(TorchDispatchMode):
    """Applies fvcore's rules to what is dispatched."""

    def __init__(self) -> None:
        from fvcore.nn.flop_count import _DEFAULT_SUPPORTED_OPS

        super().__init__()
        self.flops = 0
        self.rules = {**_DEFAULT_SUPPORTED_OPS, **_OWN_RULES}
        # What the tracer knows as `_convolution` is dispatched as `convolution`.
        self.rules["aten::convolution"] = self.rules["aten::_convolution"]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # a question, not an operator
            return args[0].device
        rule = self.rules.get(func._schema.name)
        if rule is None:
            with self:  # what a composite operator consists of
                out = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if out is NotImplemented else out
        out = func(*args, **kwargs)
        inputs = [
            args[i] if i < len(args) else kwargs.get(argument.name, argument.default_value)
            for i, argument in enumerate(func._schema.arguments)
        ]
        if func._schema.name == "aten::convolution":
            inputs += [None] * 3  # the switches of `_convolution`, which no rule reads
        count = rule([_Traced(value) for value in inputs], [_Traced(out)])
        self.flops += int(count if isinstance(count, (int, float)) else sum(count.values()))
        return out


class _Traced:
    """A value as fvcore's rules ask for it: like a node of a traced graph."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def isCompleteTensor(self) -> bool:
        return isinstance(self.value, Tensor)

    def type(self) -> "_Traced":
        return self

    def sizes(self) -> list[int]:
        return list(self.value.shape)

    def toIValue(self) -> Any:
        return self.value

    def node(self) -> "_Traced":
        return self

    def inputs(self) -> list["_Traced"]:
        return [_Traced(element) for element in self.value]


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of softmax(q kᵀ) v, as fvcore counts: q and v are (…, tokens, width)."""
    *heads, queries, width = _shape(inputs[0])
    keys, value_width = _shape(inputs[2])[-2:]
    return math.prod(heads) * queries * keys * (width + value_width)


def _matmul_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Also where batch axes are broadcast; fvcore looks at those of the first factor alone."""
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _baddbmm_macs(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_shape(outputs[0])) * _shape(inputs[1])[-1]


def _padded_convolution_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Of a convolution whose padding is a word ("same"), which fvcore does not know."""
    batch, _, *side = _shape(outputs[0])
    return batch * math.prod(side) * math.prod(_shape(inputs[1]))


def _einsum_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Of two factors: one for each combination of indices; fvcore rounds those to four digits.

    An index of one factor alone that the result does not have is summed before the product; a
    product that sums nothing is element-wise, and those count 0.
    """
    from fvcore.nn.jit_handles import einsum_flop_jit

    factors = [_shape(factor) for factor in inputs[1].node().inputs()]
    terms, _, result = inputs[0].toIValue().replace(" ", "").partition("->")
    terms = terms.split(",")
    if len(factors) != 2 or not result:
        return int(einsum_flop_jit(inputs, outputs))
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, factors, strict=True):
        for index, size in zip(_indices(term, len(shape)), shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))  # a size of 1 is broadcast
    one, other = (set(_indices(term, len(s))) for term, s in zip(terms, factors, strict=True))
    if not any(index.isalpha() and index not in result for index in one & other):
        return 0
    kept = (one & other) | {index for index in one ^ other if index in result or index.isdigit()}
    return math.prod(sizes[index] for index in kept)


def _indices(term: str, dims: int) -> list[str]:
    """A name for each axis of a factor: its letter or, under an ellipsis, its number from right."""
    letters = re.sub(r"[^A-Za-z]", "", term)
    before = term.partition("...")[0] if "..." in term else letters
    unnamed = [str(number) for number in range(dims - len(letters), 0, -1)]
    return [*before, *unnamed, *letters[len(before) :]]


def _shape(value: Any) -> list[int]:
    """Of a node of a traced graph, or of what `_Traced` makes look like one."""
    return value.type().sizes()


_OWN_RULES: dict[str, Callable[[list[Any], list[Any]], int]] = {
    "aten::scaled_dot_product_attention": _attention_macs,
    "aten::matmul": _matmul_macs,
    "aten::baddbmm": _baddbmm_macs,
    "aten::einsum": _einsum_macs,
    "aten::_convolution_mode": _padded_convolution_macs,
}
