"""Dropout whose random numbers are drawn four at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.core.errors import UserError


LEVELS = 1 << 32
"""A number is dropped if 32 random bits are below so many times the probability."""


class _Dropout(torch.autograd.Function):
    """A byte each is kept for the way back; the same on every CPU.

    The bits are those of SFC64 (Doty-Humphrey 2013, PractRand), begun anew from one draw of torch's generator, which makes them several
    times slower. The upper 16 of a number's 32 bits settle it but for once in 65,536 times: four numbers a draw of 64 bits, and the lower
    ones are drawn for ties alone. A byte is made a float in vectors, a bool is not (torch 2.13: five times as slow).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        upper, lower = divmod(round(LEVELS * probability), 1 << 16)
        bits = np.random.SFC64(int(torch.empty((), dtype=torch.int64).random_()))
        draws = _halves(bits, x.numel())
        kept = draws > upper
        ties = np.flatnonzero(draws == upper)
        kept[ties] = _halves(bits, len(ties)) >= lower
        keep = torch.from_numpy(kept.view(np.uint8)).view(x.shape)
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - probability)
        return keep.to(x.dtype).mul_(ctx.scale).mul_(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return keep.to(grad.dtype).mul_(ctx.scale).mul_(grad), None


def _halves(bits: np.random.SFC64, size: int) -> np.ndarray:
    """uint16 [size]: four of each draw."""
    return bits.random_raw(-(-size // 4)).view(np.uint16)[:size]


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
