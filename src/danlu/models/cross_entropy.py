"""Cross-entropy over a large vocabulary without ever holding all its logits."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from danlu.models.blocks import compute_dtype


CHUNK = 256
"""Rows of logits held at a time: 25 MB in bfloat16 at a vocabulary of 49,152."""
KEPT = 1 << 24
"""Of at most so many logits, the slopes are kept for the backward pass (64 MB in float32) where the output matrix is trained."""


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float, dtype: torch.dtype, learns: bool
    ) -> Tensor:
        """The slopes are made here, while a chunk's logits are still at hand: those of `hidden` where the output matrix is frozen, those
        of the logits where it is trained and they are not too many to keep."""
        matrix = weight.to(dtype)
        wants_hidden, wants_weight = (learns and wanted for wanted in ctx.needs_input_grad[:2])
        made = wants_hidden and not wants_weight
        keeps = wants_weight and len(targets) * len(weight) <= KEPT
        losses = torch.empty(len(targets), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        slopes = matrix.new_empty(hidden.shape if made else (len(targets), len(weight))) if made or keeps else None
        for span in chunks(len(targets)):
            room = slopes[span] if slopes is not None and not made else None  # logits become slopes where they are kept
            logits = torch.mm(hidden[span].to(dtype), matrix.T, out=room)
            losses[span], part = loss_and_slope(logits.to(losses.dtype), targets[span], smoothing)
            if slopes is not None and made:
                slopes[span] = part.to(dtype) @ matrix
            elif slopes is not None and part is not logits:
                slopes[span] = part
        ctx.smoothing, ctx.dtype, ctx.made = smoothing, dtype, made
        ctx.save_for_backward(hidden, weight, targets, slopes)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, slopes = ctx.saved_tensors
        if ctx.made:
            return (slopes * grad[:, None]).to(hidden.dtype), *[None] * 5
        matrix = weight.to(ctx.dtype)
        dhidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        dweight = torch.zeros(
            weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device
        )
        for span in chunks(len(targets)) if slopes is None else [slice(None)]:
            rows, by = hidden[span].to(ctx.dtype), grad[span, None]
            part = slopes
            if part is None:
                logits = (rows @ matrix.T).to(grad.dtype)
                part = loss_and_slope(logits, targets[span], ctx.smoothing)[1].to(ctx.dtype)
            if dhidden is not None:
                dhidden[span] = (part @ matrix) * by
            dweight += part.T @ (rows * by).to(ctx.dtype)
        return dhidden, dweight.to(weight.dtype), *[None] * 4


def loss_and_slope(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """-log softmax(logits)[target] of each row [n], and its slope by the logits, softmax - smoothed one-hot target [n, vocabulary].

    The slopes take the place of the logits. The likeliest token's share is 1 / sum(exp(logits - largest)), so one softmax gives both.
    """
    wanted, largest = logits.gather(1, targets[:, None])[:, 0], logits.amax(-1)
    wanted = (1 - smoothing) * wanted + smoothing * logits.mean(-1) if smoothing else wanted
    shares = torch.softmax(logits, -1, out=logits)
    losses = (largest - wanted) - shares.amax(-1).log()
    if smoothing:
        shares -= smoothing / shares.shape[1]
    shares[torch.arange(len(targets), device=targets.device), targets] -= 1 - smoothing
    return losses, shares


def chunks(rows: int) -> list[slice]:
    """Spans of at most CHUNK rows."""
    return [slice(start, min(start + CHUNK, rows)) for start in range(0, rows, CHUNK)]


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log softmax(hidden @ weight.T)[target] of each row, float32 at least: [n].

    hidden [n, width], weight [vocabulary, width], targets int64 [n]. Products in autocast's type, sums in float32.
    smoothing spreads that share of the target evenly over the vocabulary (Szegedy et al. 2016).
    """
    dtype = compute_dtype(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        learns = torch.is_grad_enabled()
        return cast(Tensor, _TokenLoss.apply(hidden, weight, targets, smoothing, dtype, learns))  # type: ignore[no-untyped-call]
