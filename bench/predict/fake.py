"""Fake tensors, as this project needs them: faithful to the byte, and quick.

A fake tensor has a shape, a type and a storage of so many bytes that is never allocated; values
are all that is missing. In `faking` a step on fake tensors dispatches the operators of a real one.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import compute_elementwise_output_strides
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.optim import optimizer
from torch.utils import _foreach_utils

from ..probes import memory
from . import attention

_ITEM = torch.ops.aten._local_scalar_dense.default
_TO_COPY = torch.ops.aten._to_copy.default
_UNSCALE = torch.ops.aten._amp_foreach_non_finite_check_and_unscale_.default
_OURS = (Path(__file__).parent, Path(memory.__file__).parent)
_TORCH = Path(torch.__file__).parent

# Nothing but another view of the first argument's storage, on the same device.
_VIEWS = frozenset(
    {
        torch.ops.aten._unsafe_view.default,
        torch.ops.aten.alias.default,
        torch.ops.aten.detach.default,
        torch.ops.aten.expand.default,
        torch.ops.aten.permute.default,
        torch.ops.aten.select.int,
        torch.ops.aten.slice.Tensor,
        torch.ops.aten.split.Tensor,
        torch.ops.aten.split_with_sizes.default,
        torch.ops.aten.squeeze.dim,
        torch.ops.aten.t.default,
        torch.ops.aten.transpose.int,
        torch.ops.aten.unbind.int,
        torch.ops.aten.unsqueeze.default,
        torch.ops.aten.view.default,
    }
)

# They write to the first argument, which keeps its shape, and return it.
_IN_PLACE = frozenset(
    {
        torch.ops.aten.abs_.default,
        torch.ops.aten.add_.Tensor,
        torch.ops.aten.addcdiv_.default,
        torch.ops.aten.addcmul_.default,
        torch.ops.aten.clamp_.default,
        torch.ops.aten.clamp_min_.default,
        torch.ops.aten.copy_.default,
        torch.ops.aten.div_.Tensor,
        torch.ops.aten.exp2_.default,
        torch.ops.aten.gt_.Tensor,
        torch.ops.aten.lerp_.Scalar,
        torch.ops.aten.log2_.default,
        torch.ops.aten.mul_.Tensor,
        torch.ops.aten.pow_.Scalar,
        torch.ops.aten.sqrt_.default,
        torch.ops.aten.sub_.Tensor,
    }
)

# The kernels of these losses write the loss of every element and reduce it in place: the scalar
# that they return keeps the storage of all elements for as long as it lives (PyTorch's Loss.cpp,
# on CPU and CUDA).
_REDUCED_IN_PLACE = frozenset(
    {
        torch.ops.aten.mse_loss.default,
        torch.ops.aten.smooth_l1_loss.default,
        torch.ops.aten.binary_cross_entropy.default,
        torch.ops.aten.soft_margin_loss.default,
    }
)

# A CPU's norms of 16 bits by float32 weights, as its autocast has them: mean and deviation are of
# the weights' type, a gradient is of its input's. PyTorch's rules for fake tensors say otherwise.
_NORMS: dict[Any, int] = {
    torch.ops.aten.native_group_norm.default: 1,
    torch.ops.aten.native_layer_norm.default: 2,
    torch.ops.aten.native_batch_norm.default: 1,
}
"""Norm -> which argument is the weights."""
_GROUP_NORM_BACKWARD = torch.ops.aten.native_group_norm_backward.default

# Elementwise kernels for which PyTorch's rules for fake tensors are those of other operators that
# compute the same, and lay out the result otherwise where one input is channels-last.
_OF_ACTIVATIONS = frozenset(
    {
        torch.ops.aten.elu_backward.default,
        torch.ops.aten.hardsigmoid_backward.default,
        torch.ops.aten.hardswish_backward.default,
        torch.ops.aten.hardtanh_backward.default,
        torch.ops.aten.softplus_backward.default,
    }
)
_OF_LOSSES = frozenset(
    {
        torch.ops.aten.huber_loss_backward.default,
        torch.ops.aten.mse_loss_backward.default,
        torch.ops.aten.smooth_l1_loss_backward.default,
    }
)

# Their values follow from their arguments: `torch.arange(2, 5).tolist()` is how MONAI's losses name
# the axes of a volume.
_COUNTING = frozenset(
    {
        torch.ops.aten.arange.default,
        torch.ops.aten.arange.start,
        torch.ops.aten.arange.start_step,
    }
)
_FEW = 16


class FaithfulFakeMode(FakeTensorMode):
    """A `FakeTensorMode` whose storages are as large as those of the real kernels.

    The commonest operators skip what they do not need: a view of a fake tensor is the same view of
    the meta tensor inside it, and what is written in place has no values to be written.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the guard costs as much as a view

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.assumptions: list[str] = []

    @property
    def avoid_device_init(self) -> bool:
        return True  # `torch.tensor([…], device="card")` too is made fake, there is no other

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _VIEWS and self._is_plain(args, kwargs):
            with in_kernel_invocation_manager(self):
                view = func(*args, **kwargs)
            pieces = [view] if isinstance(view, Tensor) else view
            fakes = [FakeTensor(self, piece, args[0].fake_device) for piece in pieces]
            if "_known" in vars(args[0]):
                known = func(args[0]._known, *args[1:])
                known = [known] if isinstance(view, Tensor) else known
                for fake, values in zip(fakes, known, strict=True):
                    fake._known = values  # type: ignore[attr-defined]
            return fakes[0] if isinstance(view, Tensor) else fakes
        if func in _IN_PLACE and not kwargs.keys() - {"alpha", "value"} and self._is_simple(args):
            vars(args[0]).pop("_known", None)
            return args[0]
        if func is _ITEM and isinstance(args[0], FakeTensor) and args[0].constant is None:
            return self._assumed(args[0])
        if func is attention.ATTENTION and args[0].device.type != "cpu":
            return attention.attend(*args, **kwargs)  # arrives whole under inference mode
        if func is _UNSCALE:
            args[1]._says = 0.0  # nothing overflowed, so the optimizer steps
        out: Any = self.dispatch(func, types, args, kwargs)
        if func in _OF_ACTIVATIONS:
            out = _laid_out(out, args)
        if func in _OF_LOSSES:
            out = out.contiguous()  # Loss.cpp begins with zeros that are
        if func is attention.EFFICIENT:
            out = attention.with_seeds_on_the_host(out)
        if func is attention.CUDNN:
            out = attention.with_what_cudnn_keeps(out, is_differentiated=args[4])
        if func in _NORMS and args[0].device.type == "cpu":
            out = _with_statistics_of(args[_NORMS[func]], out)
        if func is _GROUP_NORM_BACKWARD and out[0] is not None:
            out = out[0].to(args[1].dtype), *out[1:]
        if func in _COUNTING and out.numel() <= _FEW:
            out._known = func(*args, **{**kwargs, "device": "cpu"})
        if func is _TO_COPY and "_known" in vars(args[0]):
            out._known = args[0]._known.to(out.dtype)
        if func in _REDUCED_IN_PLACE and out.dim() == 0:
            elements = torch.broadcast_shapes(args[0].shape, args[1].shape).numel()
            out.untyped_storage().resize_(max(1, elements) * out.element_size())
        return out

    def _assumed(self, tensor: Any) -> bool | int | float:
        """What is read of a tensor without values; noted with the line that asks."""
        if "_known" in vars(tensor):
            return tensor._known.item()
        known = getattr(tensor, "_says", None)
        if known is not None:
            return known
        value = {torch.bool: False}.get(tensor.dtype, 1.0 if tensor.is_floating_point() else 1)
        frame = _who_asks()
        if frame is None and isinstance(value, float):
            return 0.5  # for itself, PyTorch divides by it and by what it lacks to 1 (NAdam)
        if frame is not None:
            place = f"{frame.filename}, line {frame.lineno}"
            self.assumptions.append(f"a value is read in {place}: {value} was taken for it")
        return value

    def _is_plain(self, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether the only tensor is args[0], fake, of this mode, and of no known value."""
        return not kwargs and bool(args) and self._is_ours(args[0])

    def _is_simple(self, args: tuple) -> bool:
        """Whether the tensors among args are ours, on one device, of one shape or single numbers.

        Whatever else it is, PyTorch's own rules are asked, which may refuse it.
        """
        first = args[0]
        if not self._is_ours(first):
            return False
        for other in args[1:]:
            if isinstance(other, Tensor) and not (
                self._is_ours(other)
                and other.device == first.device
                and (other.shape == first.shape or other.dim() == 0)
            ):
                return False
        return True

    def _is_ours(self, tensor: Any) -> bool:
        return type(tensor) is FakeTensor and tensor.fake_mode is self and tensor.constant is None


def _laid_out(out: Tensor, args: tuple) -> Tensor:
    """The result of an elementwise kernel, in the order in which its inputs lie in memory."""
    whole = [each for each in args if isinstance(each, Tensor) and each.shape == out.shape]
    strides = compute_elementwise_output_strides(*whole)
    if strides == out.stride():
        return out
    return out.new_empty_strided(out.shape, strides)


def _with_statistics_of(weights: Tensor | None, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    normed, *statistics = results
    dtype = normed.dtype if weights is None else weights.dtype
    return normed, *(torch.empty_like(each, dtype=dtype) for each in statistics)


def _who_asks() -> traceback.FrameSummary | None:
    """The line outside of PyTorch that reads a tensor's value; None where PyTorch does for itself.

    An optimizer reads its count of steps, say, which changes nothing.
    """
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        between = path.parent in _OURS and path.name != "prediction.py"
        if not between and _TORCH not in path.parents:
            return None if path.parent in _OURS else frame
    return None


@contextmanager
def faking(mode: FakeTensorMode) -> Iterator[None]:
    """Enter `mode` for a whole step."""
    # PyTorch takes its `_foreach_` kernels, whose temporaries differ, for types that it knows.
    lists = (_foreach_utils._foreach_supported_types, optimizer._foreach_supported_types)
    for types in lists:
        types.append(FakeTensor)
    try:
        # A compiled network runs as it was written: what the compiler makes of it needs values.
        with mode, torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for types in lists:
            types.remove(FakeTensor)
