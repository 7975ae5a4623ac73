"""Cross-entropy over a large vocabulary without ever holding all its logits."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


CHUNK = 256
"""Rows of logits held at a time: 25 MB in bfloat16 at a vocabulary of 49,152."""


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float, dtype: torch.dtype
    ) -> Tensor:
        """With a frozen output matrix the gradient is made here, while a chunk's logits are still at hand."""
        matrix = weight.to(dtype)
        eager = ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
        losses = torch.empty(len(targets), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        slopes = torch.empty(hidden.shape, dtype=dtype, device=hidden.device) if eager else None
        for span in chunks(len(targets)):
            logits = hidden[span].to(dtype) @ matrix.T
            inner = logits.to(losses.dtype)
            normal = inner.logsumexp(-1)
            wanted = inner.gather(1, targets[span, None])[:, 0]
            losses[span] = normal - (1 - smoothing) * wanted
            if smoothing:
                losses[span] -= smoothing * inner.mean(-1)
            if slopes is not None:
                slopes[span] = slope(inner, normal, targets[span], smoothing).to(dtype) @ matrix
        ctx.smoothing, ctx.dtype = smoothing, dtype
        ctx.save_for_backward(hidden, weight, targets, *([slopes] if slopes is not None else []))
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, targets, *kept = ctx.saved_tensors
        if kept:
            return (kept[0] * grad[:, None]).to(hidden.dtype), None, None, None, None
        matrix = weight.to(ctx.dtype)
        dhidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        dweight = torch.zeros(
            weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device
        )
        for span in chunks(len(targets)):
            rows = hidden[span].to(ctx.dtype)
            inner = (rows @ matrix.T).to(grad.dtype)
            part = (slope(inner, inner.logsumexp(-1), targets[span], ctx.smoothing) * grad[span, None]).to(ctx.dtype)
            if dhidden is not None:
                dhidden[span] = (part @ matrix).to(hidden.dtype)
            dweight += part.T @ rows
        return dhidden, dweight.to(weight.dtype), None, None, None


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
    kind = hidden.device.type
    autocast = torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64
    dtype = torch.get_autocast_dtype(kind) if autocast else hidden.dtype
    with torch.autocast(kind, enabled=False):
        return cast(Tensor, _TokenLoss.apply(hidden, weight, targets, smoothing, dtype))  # type: ignore[no-untyped-call]
