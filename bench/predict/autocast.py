"""CUDA's autocast on the fake card: which operators run in 16 bits, and which in float32.

The lists are those of the installed PyTorch: they are macros in a header that every build of it
ships (`ATen/autocast_mode.h`), and what follows does with them what that header does for CUDA.
"""

import re
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"

_KEY = torch._C.DispatchKey.AutocastPrivateUse1  # type: ignore[attr-defined]
_WITHOUT_AUTOCAST = torch._C.DispatchKeySet(_KEY)


def operators(policy: str) -> list[str]:
    """Names such as `conv3d` or `pow.Tensor_Scalar` of the header's list `AT_FORALL_<policy>`.

    Raises ValueError if the header has no such list.
    """
    _, found, rest = _header().partition(f"#define AT_FORALL_{policy}(_)")
    if not found:
        raise ValueError(f"{HEADER}: no list AT_FORALL_{policy}; this PyTorch is not known here")
    macro = re.match(r"(.*\\\n)*.*\n", rest)
    assert macro is not None
    if policy == "DIFFERENT_REDISPATCH_SIGNATURE":
        return re.findall(r'"([\w.]+)"', macro[0])
    entries = re.findall(r"_\((\w+)(?:, *(\w+))?\)", macro[0])
    return [f"{name}.{overload}" if overload else name for name, overload in entries]


def register(device: str) -> list[torch.library.Library]:
    """Give the device of PyTorch's key PrivateUse1 CUDA's autocast; keep what is returned."""
    rest = torch.library.Library("_", "IMPL", _KEY.name)
    rest.fallback(torch.library.fallthrough_kernel)
    library = torch.library.Library("aten", "IMPL", _KEY.name)
    rules: dict[str, Callable[[str, Any], Callable[..., Any]]] = {
        "LOWER_PRECISION_FP": _in_16_bits,
        "FP32": _in_float32,
        "FP32_SET_OPT_DTYPE": _returning_float32,
        "DIFFERENT_REDISPATCH_SIGNATURE": _returning_float32,
        "PROMOTE": _in_widest,
    }
    for policy, rule in rules.items():
        for name in operators(policy):
            library.impl(name, rule(device, _operator(name)))
    library.impl("binary_cross_entropy", _refuse_binary_cross_entropy)
    return [rest, library]


def forget_casts() -> None:
    """At the end of the outermost autocast."""
    _casts.clear()


def _in_16_bits(device: str, operator: Any) -> Callable[..., Any]:
    def cast(tensor: Tensor) -> Tensor:
        if not _eligible(device, tensor):
            return tensor
        return _cast_once(tensor, torch.get_autocast_dtype(device))

    return _with_casts(operator, cast)


def _in_float32(device: str, operator: Any) -> Callable[..., Any]:
    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(torch.float32) if _eligible(device, tensor) else tensor

    return _with_casts(operator, cast)


def _in_widest(device: str, operator: Any) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        eligible = [tensor for tensor in _tensors((args, kwargs)) if _eligible(device, tensor)]
        wide = any(tensor.dtype == torch.float32 for tensor in eligible)
        dtype = torch.float32 if wide else torch.get_autocast_dtype(device)

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(dtype) if _eligible(device, tensor) else tensor

        return _with_casts(operator, cast)(*args, **kwargs)

    return kernel


def _returning_float32(device: str, operator: Any) -> Callable[..., Any]:
    """16-bit inputs stay, the result is float32, unless the caller names another type."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_WITHOUT_AUTOCAST):
            if _eligible(device, args[0]) and _type_asked_for(operator, args, kwargs) is None:
                args = args[: _place_of_type(operator)]
                if operator is torch.ops.aten.norm.Scalar and len(args) == 1:
                    args = *args, 2  # its default, which the overload with a type does not have
                return operator.overloadpacket(*args, **{**kwargs, "dtype": torch.float32})
            return operator(*args, **kwargs)

    return kernel


def _place_of_type(operator: Any) -> int | None:
    names = [each.name for each in operator._schema.arguments if not each.kwarg_only]
    return names.index("dtype") if "dtype" in names else None


def _type_asked_for(operator: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    place = _place_of_type(operator)
    if place is not None and len(args) > place:
        return args[place]
    return kwargs.get("dtype")


def _refuse_binary_cross_entropy(*args: Any, **kwargs: Any) -> Tensor:
    raise RuntimeError(
        "binary_cross_entropy is not allowed under CUDA's autocast; "
        "use binary_cross_entropy_with_logits"
    )


def _with_casts(operator: Any, cast: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_WITHOUT_AUTOCAST):
            # The last argument first: in C++ these are arguments of one call, which GCC evaluates
            # in this order. A card was seen to cast bias, weight, input.
            named = {key: _mapped(kwargs[key], cast) for key in reversed(kwargs)}
            positional = [_mapped(each, cast) for each in reversed(args)]
            return operator(*reversed(positional), **named)

    return kernel


# A 16-bit copy of a weight serves every layer and step inside one autocast, and lives as long.
_casts: dict[int, tuple[weakref.ref, Tensor]] = {}


def _cast_once(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """By the rule of `cached_cast` in the header's source (`aten/src/ATen/autocast_mode.cpp`)."""
    if tensor.dtype == dtype:
        return tensor
    keeps = (
        tensor.dtype == torch.float32
        and tensor.requires_grad
        and tensor.is_leaf
        and not tensor._is_view()
        and torch.is_autocast_cache_enabled()
        and not torch.is_inference_mode_enabled()
    )
    if not keeps:
        return tensor.to(dtype)
    known = _casts.get(id(tensor))
    if known is None or known[0]() is not tensor or known[1].dtype != dtype:
        _casts[id(tensor)] = known = weakref.ref(tensor), tensor.to(dtype)
    return known[1]


def _eligible(device: str, value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.device.type == device
        and value.is_floating_point()
        and value.dtype != torch.float64
    )


def _mapped(value: Any, cast: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return cast(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(each, cast) for each in value)
    if isinstance(value, dict):
        return {key: _mapped(each, cast) for key, each in value.items()}
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _operator(name: str) -> Any:
    base, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, base), overload or "default")


@cache
def _header() -> str:
    return HEADER.read_text(encoding="utf-8")
