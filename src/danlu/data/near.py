"""Texts that are nearly the same: MinHash signatures (Broder 1997) in bands (Leskovec et al., Mining of Massive Datasets, 3.4).

Alike are texts of which `threshold` of all runs of five words stand in both (Jaccard). What is alike through others is one cluster, and
its first text is the one that the rest repeats. In memory (`clusters`), or over files of any number of documents (`write`, `repeats`).
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from danlu.data.clean import normal_form
from danlu.data.shingles import runs


WORDS = 5
"""In a run: usual for near duplicates of documents (Penedo et al. 2024, FineWeb)."""
PERMUTATIONS = 128
THRESHOLD = 0.8
PARTITION = 1 << 16
"""Documents whose hashes of one band are in memory at a time."""
COMPARED = 1 << 12
"""Pairs whose signatures are in memory at a time."""
LEADERS = 16
"""A document is compared with at most so many others of a bucket that are unlike each other: what they share is a boilerplate."""

_EMPTY = np.uint32(0xFFFFFFFF)
_PLACE = np.uint64((1 << 24) - 1)  # the low bits of a band's hash give way to the place in the chunk
_LAST = ~_PLACE  # where a band's hashes end: what is like nothing stands behind it
_ENTRY = np.dtype([("hash", np.uint64), ("number", np.int64)])


# ----------------------------------------------------------------------------------------------------------- signatures


def signatures(texts: Sequence[str], permutations: int = PERMUTATIONS) -> np.ndarray:
    """uint32 [texts, permutations]: the share of equal columns of two rows estimates the Jaccard similarity of two texts.

    Its standard error is sqrt(s (1 - s) / permutations): 0.035 at 0.8 of 128. A text without words has 2**32 - 1 everywhere.
    Permutations are x -> a x + b modulo 2**32, a odd, of a hash that is mixed already (`affine32` of datasketch 2).
    """
    # Raw, they are the same in every version of numpy.
    a, b = np.random.PCG64(permutations).random_raw((2, permutations)).astype(np.uint32)
    a |= np.uint32(1)
    found = []
    for hashes, starts in runs(texts, WORDS):
        each = np.full((permutations, len(starts) - 1), _EMPTY)
        filled = np.flatnonzero(np.diff(starts))
        values = (hashes >> np.uint64(32)).astype(np.uint32)
        for row in range(permutations if len(filled) else 0):
            each[row, filled] = np.minimum.reduceat(values * a[row] + b[row], starts[filled])
        found.append(each.T)
    return np.concatenate([*found, np.empty((0, permutations), np.uint32)])


@cache
def bands(threshold: float = THRESHOLD, permutations: int = PERMUTATIONS) -> tuple[int, int]:
    """(bands, rows): how to cut a signature so that texts alike by `threshold` share a band, and others seldom.

    The least sum of the areas under the curve left of the threshold and above it on its right. A miss weighs nineteen times what a
    candidate in vain does, since candidates are looked at again.
    """
    at = (np.arange(1000) + 0.5) / 1000
    right = at >= threshold
    choices = [(b, r) for r in range(1, permutations + 1) for b in range(1, permutations // r + 1)]
    return min(
        choices, key=lambda each: float(np.where(right, 19 * (1 - _caught(at, *each)), _caught(at, *each)).sum())
    )


def curve(bands: int, rows: int) -> dict[float, float]:
    """Similarity -> the probability that two such texts share a band: 1 - (1 - s^rows)^bands, at 0.5, 0.6 … 1."""
    return {s / 10: float(_caught(np.array(s / 10), bands, rows)) for s in range(5, 11)}


def _caught(similarity: np.ndarray, bands: int, rows: int) -> np.ndarray:
    caught: np.ndarray = 1 - (1 - similarity**rows) ** bands
    return caught


def band_hashes(signatures: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """uint64 [bands, texts]: one hash of `rows` columns each, equal where all of them are."""
    hashes = np.zeros((bands, len(signatures)), np.uint64)
    for row in range(rows):
        hashes = (hashes ^ signatures[:, row : bands * rows : rows].T) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    return hashes


# --------------------------------------------------------------------------------------------------------------- chunks


_FILES = ("bands", "keys", "signatures")


@dataclass(frozen=True)
class Chunk:
    """Documents as they are looked for and compared; arrays in memory, or in files that are opened each time and of which parts are read.

    bands: uint64 [1 + bands, documents], of each band the hashes in order, the lowest 24 bits replaced by the document's place in the
    chunk; the first band is that of the exact text. keys: uint64 [documents, 2], 128 bits of the normal form. signatures: uint32
    [documents, permutations], or [0, permutations] where exact copies alone are looked for.
    """

    count: int
    bands: Callable[[], np.ndarray]
    keys: Callable[[], np.ndarray]
    signatures: Callable[[], np.ndarray]


def chunk(texts: Sequence[str], threshold: float | None = THRESHOLD) -> Chunk:
    """At most 2**24 texts. threshold: None looks for exact copies only."""
    if len(texts) > _PLACE:
        raise ValueError(f"{len(texts)} texts in one chunk")
    digests = (hashlib.blake2b(normal_form(text).encode("utf-8", "surrogatepass"), digest_size=16) for text in texts)
    keys = np.frombuffer(b"".join(each.digest() for each in digests), "<u8").reshape(-1, 2)
    made = signatures(texts if threshold else ())
    near = [band_hashes(made, *bands(threshold))] if threshold else []
    hashes = np.minimum(np.concatenate([keys[None, :, 0], *near]), _LAST - np.uint64(1))
    hashes[1:, np.flatnonzero(made[:, 0] == _EMPTY)] = _LAST
    ordered = np.sort(hashes & ~_PLACE | np.arange(len(texts), dtype=np.uint64), axis=1)
    return Chunk(len(texts), lambda: ordered, lambda: keys, lambda: made)


def write(stem: Path, texts: Sequence[str], threshold: float | None = THRESHOLD) -> None:
    """A chunk's texts as `STEM.bands.npy`, `STEM.keys.npy` and `STEM.signatures.npy`."""
    made = chunk(texts, threshold)
    for name in _FILES:
        array = getattr(made, name)()
        _save(Path(f"{stem}.{name}.npy"), array.dtype, array.shape, [array])


def keys(stem: Path) -> np.ndarray:
    """uint64 [documents, 2]: the keys of what `write` wrote."""
    found: np.ndarray = np.load(f"{stem}.keys.npy")
    return found


def read(stem: Path) -> Chunk:
    """What `write` wrote."""
    maps = [np.load(f"{stem}.{name}.npy", mmap_mode="r") for name in _FILES]
    again = [partial(np.memmap, each.filename, each.dtype, "r", each.offset, each.shape) for each in maps]
    return Chunk(len(maps[1]), *again)


# -------------------------------------------------------------------------------------------------------------- repeats


def clusters(texts: Sequence[str], threshold: float = THRESHOLD) -> np.ndarray:
    """int64 [texts]: for each the position of the first one alike, directly or through others; its own where there is none before it."""
    made, file, runs = chunk(texts, threshold), io.BytesIO(), io.BytesIO()
    forest = _Forest(file, len(texts))
    _join([made], 0, forest, threshold, PARTITION, runs)
    exact = np.concatenate([np.empty(0, bool), *(above != own for own, above in forest.pieces())])
    for band in range(1, 1 + bands(threshold)[0]):
        _join([made], band, forest, threshold, PARTITION, runs, exact)
    forest.flatten()
    return np.frombuffer(file.getvalue(), np.int64)


def repeats(
    stems: Sequence[Path], out: Path, threshold: float | None = THRESHOLD, partition: int = PARTITION
) -> tuple[np.ndarray, np.ndarray]:
    """Over the chunks that `write` wrote, documents counted through: the files `OUT.first.npy` and `OUT.exact.npy`, mapped.

    threshold: what they were written with. first: int64 [documents], the first document that each repeats, or -1. exact: bool
    [documents], whether an earlier document has the same normal form. Both are the same for any cut into chunks and of the hashes.
    Memory is bounded: by `partition` hashes or the largest bucket of texts that share a band, and by one chunk's file, of which parts
    are mapped.
    """
    chunks = [read(stem) for stem in stems]
    first, exact, trees, ordered = (Path(f"{out}.{name}") for name in ("first.npy", "exact.npy", "trees", "sorted"))
    with trees.open("w+b", buffering=0) as file, ordered.open("w+b") as runs:
        forest = _Forest(file, sum(each.count for each in chunks))
        _join(chunks, 0, forest, threshold, partition, runs)
        _save(exact, np.bool_, (forest.count,), (above != own for own, above in forest.pieces()))
        skipped = np.load(exact, mmap_mode="r")
        for band in range(1, 1 + bands(threshold)[0] if threshold else 1):
            _join(chunks, band, forest, threshold, partition, runs, skipped)
        forest.flatten()
        _save(first, np.int64, (forest.count,), (np.where(above == own, -1, above) for own, above in forest.pieces()))
    trees.unlink()
    ordered.unlink()
    return np.load(first, mmap_mode="r"), np.load(exact, mmap_mode="r")


def _save(path: Path, kind: Any, shape: tuple[int, ...], pieces: Iterable[np.ndarray]) -> None:
    """An array that comes in pieces; its file is whole or not there."""
    aside = path.with_suffix(".partial")
    with aside.open("wb") as file:
        described = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, described)
        file.writelines(piece.data for piece in pieces)
    aside.replace(path)


class _Forest:
    """Disjoint sets (Tarjan 1975) of documents, each under its first one: an int64 a document in a file, so that memory stays as it is."""

    def __init__(self, file: BinaryIO, count: int) -> None:
        self.file, self.count = file, count
        file.writelines(np.arange(at, min(at + PARTITION, count)).tobytes() for at in range(0, count, PARTITION))

    def pieces(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Documents in order, and the one above each."""
        for at in range(0, self.count, PARTITION):
            self.file.seek(8 * at)
            above = np.frombuffer(self.file.read(8 * PARTITION), np.int64)
            yield np.arange(at, at + len(above)), above

    def above(self, one: int) -> int:
        self.file.seek(8 * one)
        return int.from_bytes(self.file.read(8), sys.byteorder)

    def put(self, one: int, above: int) -> None:
        self.file.seek(8 * one)
        self.file.write(above.to_bytes(8, sys.byteorder))

    def root(self, one: int) -> int:
        path = []
        while (above := self.above(one)) != one:
            path.append(one)
            one = above
        for each in path[:-1]:
            self.put(each, one)
        return one

    def join(self, one: int, two: int) -> None:
        one, two = sorted((self.root(one), self.root(two)))
        if one != two:
            self.put(two, one)

    def flatten(self) -> None:
        """Every document directly under the first of its set."""
        for own, above in self.pieces():
            for one in own[above != own].tolist():
                self.root(one)


def _join(
    chunks: Sequence[Chunk],
    band: int,
    forest: _Forest,
    threshold: float | None,
    partition: int,
    runs: BinaryIO,
    skipped: np.ndarray | None = None,
) -> None:
    """What shares a hash of this band and is alike becomes one set; a part of all hashes at a time.

    runs: for sorting. skipped: bool [documents], those that are in a set with one that has the same signature.
    """
    starts = np.cumsum([0, *(each.count for each in chunks)])

    def alike(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        found = np.empty(len(one), bool)
        for at in range(0, len(one), COMPARED):
            piece = slice(at, at + COMPARED)
            left, right = (_rows(chunks, starts, each[piece], "signatures" if band else "keys") for each in (one, two))
            found[piece] = (left == right).mean(axis=1) >= (threshold if band else 1)
        return found

    def rows() -> Iterator[np.ndarray]:
        for start, each in zip(starts.tolist(), chunks, strict=False):
            row = np.array(each.bands()[band])
            row = row[: np.searchsorted(row, _LAST)]
            if skipped is not None:
                row = row[~skipped[start : start + each.count][row & _PLACE]]
            found = np.empty(len(row), _ENTRY)
            found["hash"], found["number"] = row & ~_PLACE, (row & _PLACE).astype(np.int64) + start
            yield found

    for part in _sorted(rows(), forest.count, partition, runs):
        for one, two in _pairs(part["hash"], part["number"], alike):
            for pair in zip(one.tolist(), two.tolist(), strict=True):
                forest.join(*pair)


def _sorted(rows: Iterable[np.ndarray], count: int, partition: int, file: BinaryIO) -> Iterator[np.ndarray]:
    """At most `count` entries, those of equal hashes in the order they came, about `partition` at a time; equal hashes come together.

    Sorted runs of so many go to the file, and of each run a part of all hashes comes back: files are read as often as there are runs,
    however many chunks there are.
    """
    parts = max(1, -(-count // partition))
    edges = np.array([(int(_LAST) * at // parts) & int(_LAST) for at in range(parts + 1)], np.uint64)
    cuts, waiting, filled, written = list[np.ndarray](), list[np.ndarray](), 0, 0
    file.seek(0)
    for row in chain(rows, [None]):
        if filled and (row is None or filled + len(row) > partition):
            run = _in_order(waiting)
            cuts.append(written + np.searchsorted(run["hash"], edges))
            file.write(run.data)
            waiting, filled, written = [], 0, written + filled
        if row is not None:
            waiting.append(row)
            filled += len(row)
    for begins, ends in pairwise(np.transpose(cuts).tolist()):
        pieces = []
        for begin, end in zip(begins, ends, strict=True):
            file.seek(_ENTRY.itemsize * begin)
            pieces.append(np.frombuffer(file.read(_ENTRY.itemsize * (end - begin)), _ENTRY))
        yield _in_order(pieces)


def _in_order(pieces: Sequence[np.ndarray]) -> np.ndarray:
    together = np.concatenate(pieces)
    found: np.ndarray = together[np.argsort(together["hash"], kind="stable")]
    return found


def _pairs(
    hashes: np.ndarray, numbers: np.ndarray, alike: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each bucket of equal hashes the first is compared with all others, then the first of those that are unlike it, and so on."""
    for _ in range(LEADERS):
        if not len(hashes):
            return
        leads = np.append(True, hashes[1:] != hashes[:-1])
        leaders = numbers[leads][np.cumsum(leads) - 1]
        rest = np.flatnonzero(~leads)
        same = alike(leaders[rest], numbers[rest])
        yield leaders[rest[same]], numbers[rest[same]]
        hashes, numbers = hashes[rest[~same]], numbers[rest[~same]]


def _rows(chunks: Sequence[Chunk], starts: np.ndarray, numbers: np.ndarray, name: str) -> np.ndarray:
    """Keys or signatures of these documents, one or more, wherever they are."""
    owners = np.searchsorted(starts, numbers, side="right") - 1
    order, pieces = np.argsort(owners, kind="stable"), []
    at, sizes = np.unique(owners, return_counts=True)
    for owner, here in zip(at.tolist(), np.split(order, np.cumsum(sizes)[:-1]), strict=True):
        pieces.append(getattr(chunks[owner], name)()[numbers[here] - starts[owner]])
    return np.concatenate(pieces)[np.argsort(order)]
