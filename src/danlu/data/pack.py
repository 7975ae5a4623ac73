"""Documents of any length -> rows of equally many tokens, in which no document sees another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch

from danlu.core.types import Documents
from danlu.data.loader import IGNORED


@dataclass(frozen=True)
class Packed:
    """Rows for `data.loader.Loader`; each is several pieces of documents behind one another.

    ids, targets: int32 [tokens]; a target is the token that follows in its document, or for a masked model the token itself, and
    IGNORED where nothing is to be learned. pieces: int64 [pieces + 1], where each begins. owners: int64 [pieces], the document's number.
    starts: int64 [rows + 1], the first piece of each row.
    """

    ids: np.ndarray
    targets: np.ndarray
    pieces: np.ndarray
    owners: np.ndarray
    starts: np.ndarray

    least: ClassVar[int] = 1
    timed: ClassVar[int] = 512

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def size(self) -> int:
        """Tokens of all rows."""
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return np.diff(self.pieces[self.starts])

    def batch(self, rows: Sequence[int]) -> Documents:
        """The rows joined without padding."""
        chosen = np.concatenate([np.arange(self.starts[row], self.starts[row + 1]) for row in rows])
        spans = [slice(self.pieces[self.starts[row]], self.pieces[self.starts[row + 1]]) for row in rows]
        return Documents(
            ids=torch.from_numpy(np.concatenate([self.ids[span] for span in spans]).astype(np.int64)),
            lengths=tuple((self.pieces[chosen + 1] - self.pieces[chosen]).tolist()),
            targets=torch.from_numpy(np.concatenate([self.targets[span] for span in spans]).astype(np.int64)),
            rows=tuple(self.owners[chosen].tolist()),
        )

    def batches(self, rows: Sequence[int], tokens: int) -> list[Documents]:
        """Cut rows into micro-batches of at most `tokens` (a longer row goes alone), in their order."""
        groups: list[list[int]] = []
        lengths, filled = self.lengths, tokens + 1
        for row in rows:
            if filled + lengths[row] > tokens:
                groups.append([])
                filled = 0
            groups[-1].append(row)
            filled += int(lengths[row])
        return [self.batch(group) for group in groups]


def stream(documents: Sequence[np.ndarray], numbers: Sequence[int], context: int, aligned: bool = False) -> Packed:
    """For predicting the next token: all documents one behind the other, cut every `context` tokens, so that rows are equally long.

    documents: int32 ids of each, with whatever begins and ends it; none is empty. A document that a cut goes through continues in the
    next row without what was before; its target at the cut is still its next token, so each token is learned once a pass.
    aligned: each document begins a row of its own, for measuring: what a document gets does not depend on its neighbours.
    """
    lengths = np.array([len(each) for each in documents], np.int64)
    begins = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.concatenate([*documents, np.empty(0, np.int32)]).astype(np.int32)
    targets = np.append(ids[1:], IGNORED).astype(np.int32)
    targets[begins[1:] - 1] = IGNORED  # nothing follows the end of a document
    if aligned:
        cuts = np.concatenate([begins[:0], *(np.arange(begin, end, context) for begin, end in pairwise(begins))])
    else:
        cuts = np.arange(0, len(ids), context)
    pieces = np.unique(np.concatenate([begins, cuts])).astype(np.int64)
    owners = np.asarray(numbers, np.int64)[np.searchsorted(begins, pieces[:-1], side="right") - 1]
    starts = np.append(np.searchsorted(pieces, cuts), len(pieces) - 1).astype(np.int64)
    return Packed(ids, targets, pieces, owners, starts)


def whole(
    documents: Sequence[np.ndarray], numbers: Sequence[int], context: int, before: Sequence[int], behind: Sequence[int]
) -> Packed:
    """For filling in masks: each document, or piece of a longer one, stands between `before` and `behind` ([CLS] and [SEP]).

    Rows hold as many whole pieces as fit into `context` tokens, in their order. Targets are the tokens themselves, those around a piece
    IGNORED.
    """
    room = context - len(before) - len(behind)
    parts = [
        (n, each[at : at + room])
        for n, each in zip(numbers, documents, strict=True)
        for at in range(0, len(each), room)
    ]
    around = np.array(before, np.int32), np.array(behind, np.int32)
    ids = [np.concatenate([around[0], part, around[1]]) for _, part in parts]
    ignored = tuple(np.full(len(each), IGNORED, np.int32) for each in around)
    targets = [np.concatenate([ignored[0], part, ignored[1]]) for _, part in parts]
    pieces = np.cumsum([0, *map(len, ids)])
    starts, filled = [], context + 1
    for place, each in enumerate(ids):
        if filled + len(each) > context:
            starts.append(place)
            filled = 0
        filled += len(each)
    nothing = np.empty(0, np.int32)
    return Packed(
        np.concatenate([*ids, nothing]).astype(np.int32),
        np.concatenate([*targets, nothing]).astype(np.int32),
        pieces.astype(np.int64),
        np.array([n for n, _ in parts], np.int64),
        np.array([*starts, len(ids)], np.int64),
    )
