"""Attention over joined documents that never see each other, and the cache of those that are being continued.

Only attention lays documents out in rectangles, and only inside `attend`; everything else works on `[tokens, …]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from danlu.models import kernels
from danlu.models.dropout import dropout as drop


LONG = 1536
"""Tokens above which a document's scores are never held in memory as a whole (memory stays linear in its length)."""
ROUND = 16
"""Rectangles are a multiple of this many tokens long: matrix kernels like it, and few shapes come up."""
FILL = 0.6
"""A document shares a rectangle with a longer one if it fills at least this part of it."""


@dataclass(frozen=True)
class Rectangle:
    """Documents of similar length, padded to one length: `documents * length` rows of the padded buffer."""

    members: tuple[int, ...]
    length: int

    @property
    def long(self) -> bool:
        return self.length > LONG


class Layout:
    """Where joined documents go in padded rectangles. Made once for a forward pass and used by all its layers.

    positions: int64 [tokens], each token's place in its document.
    last: int64 [documents], the row of each document's last token.
    ends: int32 [documents + 1], the rows at which documents end, behind a zero.
    """

    def __init__(self, lengths: Sequence[int], causal: bool, device: torch.device) -> None:
        self.lengths = tuple(lengths)
        self.causal = causal
        self.device = device
        self.rectangles = arrange(self.lengths)
        counts = torch.tensor(self.lengths)
        ends = counts.cumsum(0)
        self.positions = (torch.arange(int(ends[-1])) - (ends - counts).repeat_interleave(counts)).to(device)
        self.last = (ends - 1).to(device)
        self.first = (ends - counts).to(device)
        self.ends = F.pad(ends, (1, 0)).to(device, torch.int32)
        starts, sizes, self.padded = [0] * len(lengths), [0] * len(lengths), 0
        for rectangle in self.rectangles:
            for document in rectangle.members:
                starts[document], sizes[document] = self.padded, rectangle.length
                self.padded += rectangle.length
        self._start = torch.tensor(starts).repeat_interleave(counts).to(device)
        self._size = torch.tensor(sizes).repeat_interleave(counts).to(device)
        self._slots: dict[int, Tensor] = {}
        self._masks: dict[tuple[Any, ...], Tensor | None] = {}

    def slots(self, heads: int) -> Tensor:
        """[tokens * heads]: the row of (token, head) in a buffer whose rectangles are [documents, heads, length]."""
        if heads not in self._slots:
            head = torch.arange(heads, device=self.device)
            rows = (heads * self._start + self.positions)[:, None] + self._size[:, None] * head
            self._slots[heads] = rows.flatten()
        return self._slots[heads]

    def mask(
        self, rectangle: Rectangle, heads: int, groups: int, window: int | None, dtype: torch.dtype
    ) -> Tensor | None:
        """What is added to scores [documents * heads, groups * length, length]: 0 or -inf, broadcastable; None if all is seen."""
        window = None if window is None or window >= rectangle.length else window
        key = (rectangle, heads, groups, window, dtype)
        if key not in self._masks:
            self._masks[key] = self._mask(rectangle, heads, groups, window, dtype)
        return self._masks[key]

    def _mask(
        self, rectangle: Rectangle, heads: int, groups: int, window: int | None, dtype: torch.dtype
    ) -> Tensor | None:
        place = torch.arange(rectangle.length, device=self.device)
        if self.causal:  # padding comes last, so no token sees it
            unseen = place > place[:, None]
            if window is not None:
                unseen |= place <= place[:, None] - window
            unseen = unseen.repeat(groups, 1)[None]
        else:
            sizes = torch.tensor([self.lengths[document] for document in rectangle.members], device=self.device)
            if bool((sizes == rectangle.length).all()):
                return None
            unseen = (place >= sizes[:, None]).repeat_interleave(heads, 0)[:, None]
        return torch.zeros(unseen.shape, dtype=dtype, device=self.device).masked_fill_(unseen, -math.inf)


def arrange(lengths: Sequence[int]) -> tuple[Rectangle, ...]:
    """Documents -> rectangles, longest first. A long document goes alone, at its own length."""
    rectangles: list[tuple[list[int], int]] = []
    for document in sorted(range(len(lengths)), key=lambda document: -lengths[document]):
        length = lengths[document]
        if (
            rectangles
            and rectangles[-1][1] <= LONG
            and length >= min(FILL * rectangles[-1][1], rectangles[-1][1] - ROUND)
        ):
            rectangles[-1][0].append(document)
        else:
            rectangles.append(([document], length if length > LONG else -(-length // ROUND) * ROUND))
    return tuple(Rectangle(tuple(members), length) for members, length in rectangles)


class _Spread(torch.autograd.Function):
    """Rows into a larger buffer of zeros. Plain indexing is right too, but its gradient is a slow sum over duplicates."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, slots: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(slots)
        return rows.new_zeros(size, rows.shape[1]).index_copy_(0, slots, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class _Collect(torch.autograd.Function):
    """The opposite of `_Spread`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.size = len(rows)
        return rows.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_zeros(ctx.size, grad.shape[1]).index_copy_(0, ctx.saved_tensors[0], grad), None


spread: Callable[[Tensor, Tensor, int], Tensor] = _Spread.apply
collect: Callable[[Tensor, Tensor], Tensor] = _Collect.apply


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, dropout: float = 0.0, window: int | None = None) -> Tensor:
    """Softmax attention within each document (Vaswani et al. 2017), with fewer key than query heads (Ainslie et al. 2023).

    q [tokens, heads, d], k and v [tokens, kv_heads, d] -> [tokens, heads, d].
    window: a token sees only itself and the `window - 1` tokens before it (causal only); None sees all.

    Padding is zeros, its probabilities are exactly 0, and each document has its own rows: another document's tokens can
    change neither a result nor a gradient, not by one bit. The query heads of a group are folded into rows, so that keys
    and values are never repeated. (On a CPU, PyTorch's fused attention is quick forward but slow backward; a card uses it.)
    """
    if kernels.flash(q, dropout):
        return kernels.attend(q, k, v, layout.ends, max(layout.lengths), layout.causal, window)
    heads, kv, d = q.shape[1], k.shape[1], q.shape[2]
    groups = heads // kv
    buffers = []
    for x in (q, k, v):
        size = layout.padded * x.shape[1]
        rows = spread(x.reshape(-1, d), layout.slots(x.shape[1]), size)
        buffers.append(rows.split([len(r.members) * r.length * x.shape[1] for r in layout.rectangles]))
    outs = []
    for rectangle, query, key, value in zip(layout.rectangles, *buffers, strict=True):
        if rectangle.long:
            outs.append(_attend_long(query, key, value, rectangle.length, layout.causal, dropout, window))
            continue
        n = len(rectangle.members) * kv
        query, key, value = query.view(n, -1, d), key.view(n, -1, d).transpose(1, 2), value.view(n, -1, d)
        mask = layout.mask(rectangle, kv, groups, window, query.dtype)
        if mask is None:
            scores = torch.bmm(query * d**-0.5, key)
        else:
            scores = torch.baddbmm(mask, query, key, alpha=d**-0.5)
        weights = drop(scores.softmax(-1), dropout) if dropout else scores.softmax(-1)
        outs.append(torch.bmm(weights, value).view(-1, d))
    out = outs[0] if len(outs) == 1 else torch.cat(outs)
    return collect(out, layout.slots(heads)).view(q.shape)


def _attend_long(
    q: Tensor, k: Tensor, v: Tensor, length: int, causal: bool, dropout: float, window: int | None
) -> Tensor:
    """One document, rows [heads * length, d], without ever holding all its scores."""
    d = q.shape[1]
    q, k, v = (x.view(1, -1, length, d) for x in (q, k, v))
    mask = None
    if window is not None and window < length:
        place = torch.arange(length, device=q.device)
        mask = (place <= place[:, None]) & (place > place[:, None] - window)
    if k.shape[1] != q.shape[1]:  # the CPU's fused kernel wants as many key heads as query heads
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    with sdpa_kernel([*fused, SDPBackend.MATH] if dropout or q.dtype == torch.float64 else fused):
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal and mask is None)
    return out.reshape(-1, d)


# ---------------------------------------------------------------------------------------------------------------- cache


class Cache:
    """Keys and values of documents being continued, so that a new token costs one token.

    lengths: tokens seen of each document. Rows are documents; `keep` drops those that are done. Room grows as it is needed.
    """

    def __init__(self, documents: int, layers: int) -> None:
        self.lengths = [0] * documents
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self._masks: dict[tuple[Any, ...], Tensor] = {}

    def advance(self, lengths: Sequence[int]) -> None:
        """All layers have seen so many tokens of each document."""
        self.lengths = list(lengths)
        self._masks.clear()

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these documents only, in this order."""
        self.advance([self.lengths[row] for row in rows])
        for store in (self.keys, self.values):
            store[:] = [x if x is None else x[torch.tensor(rows, dtype=torch.long, device=x.device)] for x in store]

    def fill(self, layer: int, k: Tensor, v: Tensor, lengths: Sequence[int]) -> None:
        """Keep the keys and values [tokens, kv_heads, d] of whole documents."""
        for store, x in ((self.keys, k), (self.values, v)):
            room = x.new_zeros(len(lengths), x.shape[1], max(lengths) + 64, x.shape[2])
            for row, document in enumerate(x.split(list(lengths))):
                room[row, :, : len(document)] = document.transpose(0, 1)
            store[layer] = room

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
        """One new token a document: q [documents, heads, d], k and v [documents, kv_heads, d] -> [documents, heads, d]."""
        (n, heads, d), kv, top = q.shape, k.shape[1], max(self.lengths) + 1
        rows, lengths = torch.arange(n, device=q.device), torch.tensor(self.lengths, device=q.device)
        seen = []
        for store, x in ((self.keys, k), (self.values, v)):
            room = store[layer]
            if room is None:
                raise ValueError("the cache is empty: the documents themselves come first")
            if top > room.shape[2]:
                room = F.pad(room, (0, 0, 0, room.shape[2] // 2))
            room[rows, :, lengths] = x.to(room.dtype)
            store[layer] = room
            seen.append(room[:, :, :top].flatten(0, 1))
        mask = self._mask(lengths, kv, window, q.dtype)
        scores = torch.baddbmm(mask, q.reshape(n * kv, heads // kv, d), seen[0].transpose(1, 2), alpha=d**-0.5)
        return torch.bmm(scores.softmax(-1), seen[1]).view(n, heads, d)

    def _mask(self, lengths: Tensor, kv: int, window: int | None, dtype: torch.dtype) -> Tensor:
        key = (kv, window, dtype)
        if key not in self._masks:
            place = torch.arange(max(self.lengths) + 1, device=lengths.device)
            unseen = place > lengths[:, None]
            if window is not None:
                unseen |= place <= lengths[:, None] - window
            mask = torch.zeros(unseen.shape, dtype=dtype, device=lengths.device).masked_fill_(unseen, -math.inf)
            self._masks[key] = mask.repeat_interleave(kv, 0)[:, None]
        return self._masks[key]
