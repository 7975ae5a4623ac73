"""Gradients written by hand are the true ones; attention in rectangles is attention one document at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from danlu.models.attention import LONG, Layout, arrange, attend
from danlu.models.blocks import Rotary, rms_norm, rotate, swiglu


def draw(*shape: int) -> Tensor:
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))
    ).requires_grad_()


def test_gradients_written_by_hand_are_true() -> None:
    x, weight = draw(5, 3, 8), draw(8)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-6, torch.float64), (x, weight))
    assert torch.autograd.gradcheck(swiglu, (draw(4, 6), draw(4, 7)[:, :6]))
    cos, sin = (table.double() for table in Rotary(8, {})(torch.arange(5), 5, x))
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos, sin), (x,))


@pytest.mark.parametrize("causal", [True, False])
def test_gradients_of_attention_are_true(causal: bool) -> None:
    layout = Layout((3, 1, 40), causal, torch.device("cpu"))
    q, k, v = draw(44, 4, 2), draw(44, 2, 2), draw(44, 2, 2)
    assert torch.autograd.gradcheck(lambda *qkv: attend(*qkv, layout), (q, k, v), fast_mode=True)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("lengths", [(7,), (3, 64, 10, 31, 33, 1, 65), (LONG + 1, 20)])
def test_attention_is_that_of_each_document_alone(lengths: tuple[int, ...], causal: bool, window: int | None) -> None:
    if window is not None and not causal:
        window = None
    tokens = sum(lengths)
    q, k, v = draw(tokens, 6, 8), draw(tokens, 2, 8), draw(tokens, 2, 8)
    with torch.no_grad():
        got = attend(q, k, v, Layout(lengths, causal, torch.device("cpu")), window=window).split(list(lengths))
        for found, *parts in zip(got, *(x.split(list(lengths)) for x in (q, k, v)), strict=True):
            query, key, value = (x.repeat_interleave(6 // x.shape[1], 1).transpose(0, 1) for x in parts)
            scores = query @ key.transpose(1, 2) / math.sqrt(8)
            place = torch.arange(len(found))
            unseen = (place > place[:, None]) if causal else torch.zeros(len(found), len(found), dtype=torch.bool)
            if window is not None:
                unseen = unseen | (place <= place[:, None] - window)
            want = scores.masked_fill(unseen, -torch.inf).softmax(-1) @ value
            torch.testing.assert_close(found, want.transpose(0, 1), rtol=1e-10, atol=1e-10)


def test_rectangles_hold_every_document_once_and_waste_little() -> None:
    lengths = [5, 130, 128, 90, 2000, 31, 64, 1536]
    rectangles = arrange(lengths)
    assert sorted(document for r in rectangles for document in r.members) == list(range(len(lengths)))
    assert all(lengths[document] <= r.length for r in rectangles for document in r.members)
    assert [r.length for r in rectangles if r.long] == [2000]
    assert sum(r.length * len(r.members) for r in rectangles) < 1.2 * sum(lengths)
