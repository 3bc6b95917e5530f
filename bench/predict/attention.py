"""The attention kernel that a CUDA card would take, with what that kernel keeps.

`scaled_dot_product_attention` chooses among PyTorch's kernels by type and shape
(`aten/src/ATen/native/transformers/cuda/sdp_utils.cpp`). Here the choice of a card of compute
capability 8.0 or later (Ampere, Ada, Hopper, Blackwell), in PyTorch's order: cuDNN's on data
centres' cards from Hopper on (as builds for CUDA 13 have it, with cuDNN after 9.15), flash,
memory-efficient, and the plain formula, which is the only one that keeps the matrix of all pairs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default

EFFICIENT = torch.ops.aten._scaled_dot_product_efficient_attention.default
CUDNN = torch.ops.aten._scaled_dot_product_cudnn_attention.default

CAPABILITY: ContextVar[tuple[int, int]] = ContextVar("compute capability", default=(8, 0))
"""Of the card that is predicted."""

_CUDNN_FIRST = (9, 10)
"""Cards of which major capability take cuDNN's kernel before any other."""
_CUDNN_WIDTH = 128
"""Most channels of a head in cuDNN's kernel, up to its version 9.22."""
_FLASH_WIDTH = 256
"""Most channels of a head in the flash kernel."""
_MASK_ALIGNMENT = 16
"""The memory-efficient kernel reads rows of a mask in so many elements."""


@contextmanager
def of_capability(capability: tuple[int, int]) -> Iterator[None]:
    """Predictions within are of a card of this compute capability, such as (9, 0) for Hopper."""
    token = CAPABILITY.set(capability)
    try:
        yield
    finally:
        CAPABILITY.reset(token)


def register() -> list[torch.library.Library]:
    """Let the device of PyTorch's key PrivateUse1 attend as CUDA does; keep what is returned."""
    library = torch.library.Library("aten", "IMPL", "AutogradPrivateUse1")
    library.impl("scaled_dot_product_attention", attend)
    return [library]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As `torch.nn.functional.scaled_dot_product_attention`: (…, tokens, channels of a head)."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = _added(attn_mask, query.dtype)
    if _cudnn_takes(query, key, value):
        return _cudnn(query, key, value, attn_mask, dropout_p, is_causal, scale)
    if _flash_takes(query, key, value, attn_mask, enable_gqa):
        return _flash(query, key, value, dropout_p, is_causal, scale)
    if _efficient_takes(query, key, value, enable_gqa):
        return _efficient(query, key, value, attn_mask, dropout_p, is_causal, scale)
    out: Tensor = torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]
    return out


def with_seeds_on_the_host(results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of the memory-efficient kernel: outside of a CUDA graph its random seed and offset lie there.

    Seen on a card, too (results/cards): the step allocates nothing for them.
    """
    attended, log_sum, *seeds = results
    return attended, log_sum, *(torch.empty_like(each, device="cpu") for each in seeds)


def with_what_cudnn_keeps(results: tuple[Any, ...], is_differentiated: bool) -> tuple[Any, ...]:
    """Of cuDNN's kernel: the logarithms of the sums are made for a backward pass only."""
    attended, log_sum, *rest = results
    return attended, log_sum if is_differentiated else log_sum.new_empty(0), *rest


def _cudnn_takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    strictly = not torch.is_deterministic_algorithms_warn_only_enabled()
    return (
        CAPABILITY.get()[0] in _CUDNN_FIRST
        and torch.backends.cuda.cudnn_sdp_enabled()
        and not (torch.are_deterministic_algorithms_enabled() and strictly)
        and query.dtype in (torch.float16, torch.bfloat16)
        and _four_axes(query, key, value)
        and query.shape[-1] % 8 == value.shape[-1] % 8 == 0
        and max(query.shape[-1], value.shape[-1]) <= _CUDNN_WIDTH
        and key.shape[-2] != 1
    )


def _flash_takes(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, grouped: bool
) -> bool:
    return (
        torch.backends.cuda.flash_sdp_enabled()
        and query.dtype in (torch.float16, torch.bfloat16)
        and mask is None
        and _four_axes(query, key, value)
        and query.shape[-1] == key.shape[-1] == value.shape[-1] <= _FLASH_WIDTH
        and (grouped or query.shape[1] == key.shape[1] == value.shape[1])
    )


def _efficient_takes(query: Tensor, key: Tensor, value: Tensor, grouped: bool) -> bool:
    alignment = 8 if query.dtype in (torch.float16, torch.bfloat16) else 4  # 16 bytes
    return (
        torch.backends.cuda.mem_efficient_sdp_enabled()
        and query.dtype in (torch.float16, torch.bfloat16, torch.float32)
        and _four_axes(query, key, value)
        and not grouped
        and query.shape[1] == key.shape[1] == value.shape[1]
        and query.shape[-1] % alignment == 0
        and value.shape[-1] % alignment == 0
    )


def _cudnn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
) -> Tensor:
    differentiated = _is_differentiated(query, key, value)
    out: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, mask, differentiated, dropout, causal, False, scale=scale
    )[0]
    return out


def _flash(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, causal: bool, scale: float | None
) -> Tensor:
    width = query.shape[-1]
    scale = width**-0.5 if scale is None else scale
    padded = [F.pad(each, (0, -width % 8)) if width % 8 else each for each in (query, key, value)]
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
        *padded, dropout, causal, False, scale=scale
    )[0]
    return out[..., :width] if width % 8 else out


def _efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
) -> Tensor:
    if mask is not None:
        mask = mask.expand(*query.shape[:2], query.shape[-2], key.shape[-2])
        if rest := -mask.shape[-1] % _MASK_ALIGNMENT:
            mask = F.pad(mask, (0, rest))[..., : mask.shape[-1]]
    differentiated = _is_differentiated(query, key, value)
    out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, differentiated, dropout, causal, scale=scale
    )[0]
    return out


def _is_differentiated(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _added(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of booleans as what is added to the scores."""
    mask: Any = torch.zeros_like(allowed, dtype=dtype)
    return mask.masked_fill_(allowed.logical_not(), -torch.inf)


def _four_axes(*tensors: Tensor) -> bool:
    return all(tensor.dim() == 4 for tensor in tensors)
