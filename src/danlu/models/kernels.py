"""What a graphics card computes attention and norms with, where it can; a CPU and the rest go the ways of `attention.py` and `blocks.py`.

None of it has been run on a card: what is tested is which way is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from inspect import signature
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor


WIDEST = 256
"""Of a head, for FlashAttention (Dao 2023)."""


def flash(q: Tensor, dropout: float) -> bool:
    """Whether PyTorch's attention over joined documents (`varlen_attn`, FlashAttention) takes these queries [tokens, heads, d]: half precision
    on a card from Ampere on; it drops nothing out."""
    if q.device.type != "cuda" or q.dtype not in (torch.float16, torch.bfloat16) or dropout or not _varlen():
        return False
    return q.shape[-1] <= WIDEST and q.shape[-1] % 8 == 0 and torch.cuda.get_device_capability(q.device) >= (8, 0)


@cache
def _varlen() -> Callable[..., Any] | None:
    """PyTorch's function, if this one has it with all that is asked of it."""
    try:
        found: Callable[..., Any] = import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    return found if {"scale", "window_size", "enable_gqa"} <= signature(found).parameters.keys() else None


def attend(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int, causal: bool, window: int | None) -> Tensor:
    """`attention.attend` without rectangles. ends: int32 [documents + 1], the first is 0; longest: tokens of a document."""
    varlen_attn = cast(Callable[..., Tensor], _varlen())
    seen = (-1 if window is None else window - 1, 0 if causal else -1)
    scale, grouped = q.shape[-1] ** -0.5, q.shape[1] != k.shape[1]
    return varlen_attn(q, k, v, ends, ends, longest, longest, scale=scale, window_size=seen, enable_gqa=grouped)


@cache
def _installed() -> ModuleType | None:
    try:
        return import_module("liger_kernel.transformers.functional")
    except ImportError:
        return None


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor | None:
    """Liger's fused norm (Hsu et al. 2024) in float32, for a tensor on a card and if the package liger-kernel is installed; else None.

    Its SwiGLU writes the gradients over what it was given, which is wrong where a graph is gone through twice; so it is not taken.
    """
    fused = _installed() if x.device.type == "cuda" and x.dtype != torch.float64 else None
    if fused is None:
        return None
    return cast(Tensor, fused.liger_rms_norm(x, weight, epsilon, casting_mode="gemma", in_place=False))
