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
            logits = hidden[span].to(dtype) @ matrix.T
            inner = logits.to(losses.dtype)
            normal = inner.logsumexp(-1)
            wanted = inner.gather(1, targets[span, None])[:, 0]
            losses[span] = normal - (1 - smoothing) * wanted
            if smoothing:
                losses[span] -= smoothing * inner.mean(-1)
            if slopes is not None:
                part = slope(inner, normal, targets[span], smoothing).to(dtype)
                slopes[span] = part @ matrix if made else part
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
            rows = hidden[span].to(ctx.dtype)
            if slopes is None:
                inner = (rows @ matrix.T).to(grad.dtype)
                part = slope(inner, inner.logsumexp(-1), targets[span], ctx.smoothing)
            else:
                part = slopes
            part = (part * grad[span, None]).to(ctx.dtype)
            if dhidden is not None:
                dhidden[span] = (part @ matrix).to(hidden.dtype)
            dweight += part.T @ rows
        return dhidden, dweight.to(weight.dtype), *[None] * 4


def slope(logits: Tensor, normal: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """d loss / d logits = softmax(logits) - smoothed one-hot target; [n, vocabulary], in place of the logits."""
    result = logits.sub_(normal[:, None]).exp_()
    if smoothing:
        result -= smoothing / logits.shape[1]
    result[torch.arange(len(targets), device=targets.device), targets] -= 1 - smoothing
    return result


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
