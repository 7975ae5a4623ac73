"""Documents of any length -> rows of equally many tokens, in which no document sees another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch

from danlu.core.types import Documents
from danlu.data.loader import IGNORED, grouped


@dataclass(frozen=True)
class Tokens:
    """Documents, one behind the other.

    ids: integers [tokens], on the disk perhaps (`np.load(…, mmap_mode="r")`): nothing here reads all of them. begins: int64
    [documents + 1], where each begins, and the end. numbers: int64 [documents], what each is called, no two alike.
    """

    ids: np.ndarray
    begins: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(cls, documents: Sequence[np.ndarray], numbers: Sequence[int]) -> Tokens:
        """Documents in memory: int32 ids of each; none is empty."""
        ids = np.concatenate([*documents, np.empty(0, np.int32)]).astype(np.int32)
        begins = np.cumsum([0, *map(len, documents)], dtype=np.int64)
        return cls(ids, begins, np.asarray(numbers, np.int64))


@dataclass(frozen=True)
class Packed:
    """Rows for `data.loader.Loader`; each is several pieces of documents behind one another. No token is copied before a batch is made.

    ids: integers [tokens]. pieces: int64 [pieces + 1], where each begins in them. owners: int64 [pieces], the document's number.
    starts: int64 [rows + 1], the first piece of each row. around: what stands before and behind each piece ([CLS] and [SEP]).
    causal: a target is the token that follows in its document; otherwise it is the token itself. IGNORED where nothing is to be learned.
    """

    ids: np.ndarray
    pieces: np.ndarray
    owners: np.ndarray
    starts: np.ndarray
    around: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    causal: bool = True

    least: ClassVar[int] = 1
    timed: ClassVar[int] = 512

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def size(self) -> int:
        """Tokens of all rows."""
        return int(self.piece_lengths.sum())

    @property
    def learned(self) -> int:
        """Tokens that are to be predicted: of a document all but the first, or all but those around a piece."""
        return len(self.ids) - (int((np.diff(self.owners) != 0).sum()) + 1 if self.causal and len(self.ids) else 0)

    @cached_property
    def piece_lengths(self) -> np.ndarray:
        """Tokens of each piece with those around it."""
        lengths: np.ndarray = np.diff(self.pieces) + sum(map(len, self.around))
        return lengths

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        filled = np.concatenate([[0], np.cumsum(self.piece_lengths)])
        lengths: np.ndarray = np.diff(filled[self.starts])
        return lengths

    def batch(self, rows: Sequence[int]) -> Documents:
        """The rows joined without padding."""
        chosen = np.concatenate([np.arange(self.starts[row], self.starts[row + 1]) for row in rows])
        before, behind = (np.array(each, np.int64) for each in self.around)
        ids, targets = [], []
        for piece in chosen:
            begin, end = self.pieces[piece : piece + 2]
            own = self.ids[begin : end + 1].astype(np.int64)  # one more, to be predicted
            ids += [before, own[: end - begin], behind]
            if not self.causal:
                targets += [np.full_like(before, IGNORED), own[: end - begin], np.full_like(behind, IGNORED)]
            elif piece + 1 < len(self.owners) and self.owners[piece] == self.owners[piece + 1]:
                targets.append(own[1:])
            else:  # nothing follows the end of a document
                targets.append(np.append(own[1 : end - begin], IGNORED))
        return Documents(
            ids=torch.from_numpy(np.concatenate(ids)),
            lengths=tuple(self.piece_lengths[chosen].tolist()),
            targets=torch.from_numpy(np.concatenate(targets)),
            rows=tuple(self.owners[chosen].tolist()),
        )

    def batches(self, rows: Sequence[int], tokens: int) -> list[Documents]:
        """Cut rows into micro-batches of at most `tokens` (a longer row goes alone), in their order."""
        return [self.batch(group) for group in grouped(rows, self.lengths, tokens)]


def stream(documents: Tokens, context: int, aligned: bool = False) -> Packed:
    """For predicting the next token: all documents one behind the other, cut every `context` tokens, so that rows are equally long.

    A document has whatever begins and ends it. One that a cut goes through continues in the next row without what was before; its target
    at the cut is still its next token, so each token is learned once a pass.
    aligned: each document begins a row of its own, for measuring: what a document gets does not depend on its neighbours.
    """
    begins, end = documents.begins, len(documents.ids)
    if aligned:
        cuts = np.concatenate([begins[:0], *(np.arange(one, two, context) for one, two in pairwise(begins))])
    else:
        cuts = np.arange(0, end, context)
    pieces = np.unique(np.concatenate([begins, cuts])).astype(np.int64)
    owners = documents.numbers[np.searchsorted(begins, pieces[:-1], side="right") - 1]
    starts = np.append(np.searchsorted(pieces, cuts), len(pieces) - 1).astype(np.int64)
    return Packed(documents.ids, pieces, owners, starts)


def whole(documents: Tokens, context: int, before: Sequence[int], behind: Sequence[int]) -> Packed:
    """For filling in masks: each document, or piece of a longer one, stands between `before` and `behind` ([CLS] and [SEP]).

    Rows hold as many whole pieces as fit into `context` tokens, in their order.
    """
    room, begins = context - len(before) - len(behind), documents.begins
    lengths = np.diff(begins)
    each = -(-lengths // room)  # pieces of a document
    within = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
    pieces = np.append(np.repeat(begins[:-1], each) + room * within, begins[-1]).astype(np.int64)
    owners = np.repeat(documents.numbers, each)
    ends = np.concatenate([[0], np.cumsum(np.diff(pieces) + context - room)])  # with what stands around each

    def starts() -> Iterator[int]:
        place = 0
        while place < len(owners):
            yield place
            place = int(np.searchsorted(ends, ends[place] + context, side="right")) - 1
        yield place

    around = tuple(before), tuple(behind)
    return Packed(documents.ids, pieces, owners, np.fromiter(starts(), np.int64), around, causal=False)
