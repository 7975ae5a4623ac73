"""Decoded images as rows of pixels, in memory or in a file, and as micro-batches."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from danlu.core.device import machine
from danlu.core.errors import UserError
from danlu.core.types import Examples
from danlu.data.processor import Processor
from danlu.data.rows import Rejected, Source


@dataclass(frozen=True)
class Pictures:
    """Decoded rows; a `data.loader.Loader` reads them as it reads texts.

    pixels: uint8 [images, channels, size, size], shared by every part of a split. index: int64 [rows], a row's place in it.
    numbers: int64 [rows], the row's number in its source. targets: int64 [rows], -1 where there is no label.
    """

    pixels: np.ndarray
    index: np.ndarray
    numbers: np.ndarray
    targets: np.ndarray
    processor: Processor

    least: ClassVar[int] = 2
    """Rows in the smallest window: batch normalisation has no variance over one."""
    timed: ClassVar[int] = 64
    """Images that are enough to time a step by."""

    @classmethod
    def of(cls, pixels: np.ndarray, numbers: Any, targets: Any, processor: Processor) -> Pictures:
        """One row for each image."""
        return cls(
            pixels, np.arange(len(pixels)), np.asarray(numbers, np.int64), np.asarray(targets, np.int64), processor
        )

    @classmethod
    def read(
        cls, source: Source, processor: Processor, bad_rows: str = "error"
    ) -> tuple[Pictures, tuple[Rejected, ...]]:
        """Decode every row, targets -1; rows whose pixels cannot be decoded are an error, or rejected (`bad_rows=skip`).

        The pixels lie in memory, or in a temporary file without a name when they would take more than half of what is free.
        """
        pixels = _room((len(source.rows), processor.channels, processor.size, processor.size))
        numbers: list[int] = []
        rejected: list[Rejected] = []
        for row in source.rows:
            try:
                pixels[len(numbers)] = processor.prepare([row.values["image"]], [row.place])[0]
                numbers.append(row.number)
            except UserError as error:
                if bad_rows != "skip":
                    raise
                rejected.append(Rejected(row.place, error.message.removeprefix(f"{row.place}: ")))
        if not numbers:
            first = f"{rejected[0].place}: {rejected[0].reason}"
            raise UserError(f"{source.name}: no image can be decoded; the first, {first}", "export them again")
        return cls.of(pixels[: len(numbers)], numbers, [-1] * len(numbers), processor), tuple(rejected)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def where(self) -> str:
        """Where the pixels are, to be said aloud."""
        return f"a temporary file in {tempfile.gettempdir()}" if isinstance(self.pixels, np.memmap) else "memory"

    @property
    def size(self) -> int:
        """Images of all rows."""
        return len(self)

    @property
    def chosen(self) -> np.ndarray:
        """The pixels of the rows: uint8 [rows, channels, size, size]."""
        return np.asarray(self.pixels[self.index])

    def take(self, rows: Sequence[int]) -> Pictures:
        """A part of the rows, on the same pixels."""
        chosen = np.asarray(rows, np.int64)
        return replace(self, index=self.index[chosen], numbers=self.numbers[chosen], targets=self.targets[chosen])

    def keys(self) -> list[str]:
        """Equal for images with equal pixels: the SHA-256 of each."""
        return [hashlib.sha256(self.pixels[place].tobytes()).hexdigest() for place in self.index]

    def batch(self, rows: Sequence[int]) -> Examples:
        """The rows normalised, as one micro-batch."""
        import torch

        chosen = np.asarray(rows, np.int64)
        return Examples(
            inputs=self.processor.normalise(np.asarray(self.pixels[self.index[chosen]])),
            targets=torch.from_numpy(self.targets[chosen]),
            rows=tuple(self.numbers[chosen].tolist()),
        )

    def batches(self, rows: Sequence[int], limit: int) -> list[Examples]:
        """Micro-batches of at most `limit` rows, in the given order."""
        return [self.batch(rows[start : start + limit]) for start in range(0, len(rows), limit)]

    def save(self, path: Path, labels: Sequence[str] = ()) -> None:
        """An npz that `read_images` reads too: `images` [rows, size, size(, 3)], `numbers`, and `labels` by their names if given."""
        images = np.moveaxis(self.chosen, 1, -1)
        columns = {"images": images[..., 0] if self.processor.channels == 1 else images, "numbers": self.numbers}
        if (self.targets >= 0).all():
            columns["labels"] = np.asarray(labels)[self.targets] if len(labels) else self.targets
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **columns)


def _room(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 in memory, or past half of what is free in a temporary file that is gone with the process."""
    needed = math.prod(shape)
    if needed <= machine().memory_available // 2:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:
        try:
            os.posix_fallocate(file.fileno(), 0, needed)  # a full disk is an error now, and not a bus error later
        except OSError as error:
            raise UserError(
                f"{needed / 1e9:,.1f} GB of pixels fit neither into half of the free memory nor into {tempfile.gettempdir()}"
                f" ({error.strerror})",
                "set a smaller size or max_rows, or name a larger disk: TMPDIR=FOLDER",
            ) from None
        return np.memmap(file, np.uint8, "r+", shape=shape)
