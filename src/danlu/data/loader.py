"""Tokenized rows -> windows of unpadded micro-batches, from any position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from danlu.core.errors import UserError
from danlu.core.types import Batch, Documents, Position


IGNORED = -100
"""The target of a token that is not learned (PyTorch's own convention)."""


@dataclass(frozen=True)
class Rows:
    """Tokenized rows as flat arrays.

    ids: int32 [tokens]. targets: int32 [tokens] (language), or [rows] when `labelled`. starts: int64 [rows + 1], where each row
    begins. numbers: int64 [rows], the row's number in its source.
    """

    ids: np.ndarray
    targets: np.ndarray
    starts: np.ndarray
    numbers: np.ndarray
    labelled: bool

    least: ClassVar[int] = 1
    timed: ClassVar[int] = 512
    """Tokens that are enough to time a step by."""

    @classmethod
    def build(cls, ids: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], numbers: Iterable[int]) -> Rows:
        """One list of ids and one list of targets a row."""
        return cls(joined(ids), joined(targets), starts_of(ids), np.asarray(list(numbers), np.int64), labelled=False)

    @classmethod
    def with_labels(cls, ids: Sequence[Sequence[int]], labels: Sequence[int], numbers: Iterable[int]) -> Rows:
        """One list of ids and one label a row."""
        return replace(cls.build(ids, (), numbers), targets=np.asarray(labels, np.int32), labelled=True)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def size(self) -> int:
        """Tokens of all rows."""
        return len(self.ids)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return np.diff(self.starts)

    def take(self, rows: Sequence[int]) -> Rows:
        """These labelled rows alone."""
        ids = [self.ids[self.starts[row] : self.starts[row + 1]].tolist() for row in rows]
        return Rows.with_labels(ids, self.targets[list(rows)].tolist(), self.numbers[list(rows)])

    def batch(self, rows: Sequence[int]) -> Documents:
        """The rows joined without padding."""
        spans = [slice(self.starts[row], self.starts[row + 1]) for row in rows]
        ids = np.concatenate([self.ids[span] for span in spans])
        targets = self.targets[list(rows)] if self.labelled else np.concatenate([self.targets[span] for span in spans])
        return Documents(
            ids=torch.from_numpy(ids.astype(np.int64)),
            lengths=tuple(int(span.stop - span.start) for span in spans),
            targets=torch.from_numpy(targets.astype(np.int64)),
            rows=tuple(int(self.numbers[row]) for row in rows),
        )

    def batches(self, rows: Sequence[int], tokens: int) -> list[Documents]:
        """Cut rows into micro-batches of at most `tokens` (a longer row goes alone), rows of like length together."""
        ordered = sorted(rows, key=lambda row: (self.lengths[row], row))
        return [self.batch(group) for group in grouped(ordered, self.lengths, tokens)]


def grouped(rows: Iterable[int], lengths: np.ndarray, most: int) -> list[list[int]]:
    """Rows, in their order, in groups of at most `most` tokens; a longer row is a group alone. lengths: int64 [all rows]."""
    groups: list[list[int]] = []
    filled = most + 1
    for row in rows:
        if filled + lengths[row] > most:
            groups.append([])
            filled = 0
        groups[-1].append(row)
        filled += int(lengths[row])
    return groups


def joined(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Rows of numbers one behind the other: int32."""
    return np.fromiter((value for row in rows for value in row), np.int32, sum(map(len, rows)))


def starts_of(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Where each row begins in `joined`, and where the last one ends: int64 [rows + 1]."""
    return np.cumsum([0, *map(len, rows)])


@dataclass(frozen=True)
class Loader:
    """Endless passes over the rows, each in an order of its own drawn from (seed, epoch).

    A position is {"epoch": e, "row": r}: r rows of epoch e are behind. The last window of an epoch is as small as it comes out,
    but not below `rows.least`. rows: `Rows`, or `data.pictures.Pictures`. most: of a micro-batch, in tokens or images.
    With several processes each takes every `processes`-th row of the window.
    """

    rows: Any
    batch_size: int
    most: int
    seed: int
    process: int = 0
    processes: int = 1

    def __call__(self, start: Position | None = None) -> Iterator[tuple[list[Batch], Position]]:
        if not len(self.rows):
            raise UserError("there are no rows to learn from", "`danlu preflight` says what became of them")
        epoch, row = (start.get("epoch"), start.get("row")) if start else (0, 0)
        if type(epoch) is not int or type(row) is not int or epoch < 0 or not 0 <= row < len(self.rows):
            raise UserError(
                f"the checkpoint's position in the data is {start}, expected an epoch from 0 and a row from 0 to {len(self.rows) - 1:,}",
                "delete the newest folder in checkpoints/, then `danlu resume` the run: it goes on from the one before",
            )
        while True:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
            while row < len(order):
                end = row + self.batch_size
                end = end if len(order) - end >= self.rows.least else len(order)
                window, row = order[row:end], end
                after = {"epoch": epoch, "row": row} if row < len(order) else {"epoch": epoch + 1, "row": 0}
                mine = [int(each) for each in window[self.process :: self.processes]]
                yield self.rows.batches(mine, self.most), after
            epoch, row = epoch + 1, 0

    @property
    def steps_per_epoch(self) -> int:
        return windows(len(self.rows), self.batch_size, self.rows.least)


def windows(rows: int, batch_size: int, least: int) -> int:
    """Windows in a pass over the rows; a last one of fewer than `least` rows joins the one before it."""
    full, rest = divmod(rows, batch_size)
    return max(1, full + (rest >= least and rest > 0))
