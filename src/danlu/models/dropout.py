"""Dropout whose random numbers are drawn two at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.core.errors import UserError


LEVELS = 1 << 32
"""A number is dropped if 32 random bits are below so many times the probability."""


class _Dropout(torch.autograd.Function):
    """One draw of 64 bits is two decisions, of which a byte each is kept for the way back: the same on every CPU.

    PyTorch's draws depend on whose CPU it is (Intel's library draws for Intel's); elsewhere it makes a double for each number.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        draws = torch.empty(-(-x.numel() // 2), dtype=torch.int64).random_(-(1 << 63), None)
        keep = (draws.view(torch.int32)[: x.numel()] >= round(LEVELS * probability) - LEVELS // 2).view(x.shape)
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - probability)
        return keep.to(x.dtype).mul_(ctx.scale).mul_(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return keep.to(grad.dtype).mul_(ctx.scale).mul_(grad), None


_dropout: Callable[[Tensor, float], Tensor] = _Dropout.apply


def dropout(x: Tensor, probability: float) -> Tensor:
    """Zeros with this probability, the rest divided by one minus it (Srivastava et al. 2014); any shape, drawn from torch's generator."""
    if x.device.type != "cpu" or not 0 < round(LEVELS * probability) < LEVELS:
        return F.dropout(x, probability)
    return _dropout(x, probability)


def chance(config: Mapping[str, Any], key: str) -> float:
    """The probability of a `config.json`; null is 0.

    Raises:
        UserError: it is none.
    """
    found = config[key] or 0.0
    if not isinstance(found, (int, float)) or not 0 <= found <= 1:
        raise UserError(
            f"config.json: {key} is {found!r}, expected 0 to 1", "take the file from where the model came from"
        )
    return float(found)


class Dropout(nn.Dropout):
    """`dropout` while training."""

    def forward(self, x: Tensor) -> Tensor:
        """[…] -> […]"""
        return dropout(x, self.p) if self.training and self.p else x
