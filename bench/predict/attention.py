"""The attention kernel that a CUDA card would take, with what that kernel keeps.

`scaled_dot_product_attention` chooses among PyTorch's kernels by type and shape
(`aten/src/ATen/native/transformers/cuda/sdp_utils.cpp`). Here the choice of a card of compute
capability 8.0 or later (Ampere, Ada, Hopper, Blackwell), in PyTorch's order: flash,
memory-efficient, and the plain formula, which is the only one that keeps the matrix of all pairs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default

EFFICIENT = torch.ops.aten._scaled_dot_product_efficient_attention.default

_FLASH_WIDTH = 256
"""Most channels of a head in the flash kernel."""
_MASK_ALIGNMENT = 16
"""The memory-efficient kernel reads rows of a mask in so many elements."""


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
    differentiated = torch.is_grad_enabled() and any(
        each.requires_grad for each in (query, key, value)
    )
    out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, differentiated, dropout, causal, scale=scale
    )[0]
    return out


def _added(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of booleans as what is added to the scores."""
    mask: Any = torch.zeros_like(allowed, dtype=dtype)
    return mask.masked_fill_(allowed.logical_not(), -torch.inf)


def _four_axes(*tensors: Tensor) -> bool:
    return all(tensor.dim() == 4 for tensor in tensors)
