"""What a graphics card computes attention, norms and SwiGLU with, where it can; a CPU and the rest go the ways of `blocks.py`.

None of it has been run on a card: what is tested is which way is taken.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import cast

import torch
from torch import Tensor


WIDEST = 256
"""Of a head, for FlashAttention (Dao 2023)."""


def flash(q: Tensor, dropout: float) -> bool:
    """Whether PyTorch's attention over joined documents (`varlen_attn`, FlashAttention) takes these queries [tokens, heads, d]: half precision
    on a card from Ampere on; it drops nothing out."""
    if q.device.type != "cuda" or q.dtype not in (torch.float16, torch.bfloat16) or dropout:
        return False
    return q.shape[-1] <= WIDEST and q.shape[-1] % 8 == 0 and torch.cuda.get_device_capability(q.device) >= (8, 0)


def attend(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int, causal: bool, window: int | None) -> Tensor:
    """`blocks.attend` without rectangles. ends: int32 [documents + 1], the first is 0; longest: tokens of a document."""
    from torch.nn.attention.varlen import varlen_attn

    seen = (-1 if window is None else window - 1, 0 if causal else -1)
    scale, grouped = q.shape[-1] ** -0.5, q.shape[1] != k.shape[1]
    out = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scale, window_size=seen, enable_gqa=grouped)
    return cast(Tensor, out)


@cache
def _installed() -> ModuleType | None:
    try:
        return import_module("liger_kernel.transformers.functional")
    except ImportError:
        return None


def liger(x: Tensor) -> ModuleType | None:
    """Liger's fused functions (Hsu et al. 2024), for a tensor on a card and if the package liger-kernel is installed."""
    return _installed() if x.device.type == "cuda" and x.dtype != torch.float64 else None
