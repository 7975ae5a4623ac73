"""Texts as hashes of so many words in a row, for near duplicates and for what a corpus has in common with a test set."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise

import numpy as np

from danlu.data.clean import UNSPACED, normal_form


BATCH = 1 << 20
"""Characters, and runs of one text, that are hashed at once: many short texts cost as little as one long one, and a few arrays of 8 MB are
all it takes beside the hashes themselves."""

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2**64
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))


@cache
def _kinds() -> np.ndarray:
    """uint8 [code points]: 0 between words, 1 in a word, 2 a word of its own (scripts that put no space between words)."""
    kinds = np.zeros(sys.maxunicode + 1, np.uint8)
    for point in range(sys.maxunicode + 1):
        character = chr(point)
        if unicodedata.category(character)[0] in "LMN":
            kinds[point] = 2 if UNSPACED.match(character) else 1
    return kinds


def shingles(texts: Sequence[str], count: int) -> Iterator[np.ndarray]:
    """Of each text the different runs of `count` words, as sorted hashes: uint64 [shingles]. A shorter text is one run of all its words.

    A word is letters, digits and marks in a row; in scripts without spaces, a character. Case, width and punctuation make no difference.
    Hashes are the same in every process and on every machine.
    """
    for hashes, starts in runs(texts, count):
        for start, end in pairwise(starts):
            yield np.unique(hashes[start:end])


def runs(texts: Sequence[str], count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same as they stand, for some texts at a time: hashes uint64 [runs], and int64 [texts + 1] where each text's begin."""
    batch: list[str] = []
    filled = 0
    for text in texts:
        if batch and filled + len(text) > BATCH:
            yield _runs(batch, count)
            batch, filled = [], 0
        batch.append(normal_form(text))
        filled += len(text)
    if batch:
        yield _runs(batch, count)


def _runs(texts: Sequence[str], count: int) -> tuple[np.ndarray, np.ndarray]:
    together, firsts, hashed = "\n".join(texts), [], []
    for begin, end in _pieces(together):
        points = np.frombuffer(together[begin:end].encode("utf-32-le", "surrogatepass"), "<u4")
        first, behind = _words(points)
        firsts.append(first + begin)
        hashed.append(_mixed(_spans(points.astype(np.uint64) + np.uint64(1), first, behind)))
    words = np.concatenate([np.empty(0, np.uint64), *hashed])
    starts = np.searchsorted(
        np.concatenate([np.empty(0, np.int64), *firsts]), np.cumsum([0, *(len(text) + 1 for text in texts)])
    )
    if len(texts) > 1 or len(words) < BATCH:
        return _windows(words, starts, count)
    parts = (words[at : at + BATCH + count - 1] for at in range(0, len(words) - count + 1, BATCH))
    found = np.concatenate([_windows(part, np.array([0, len(part)]), count)[0] for part in parts])
    return found, np.array([0, len(found)])


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Where a text is cut, BATCH characters or so apart, and no word is."""
    begin, kinds = 0, _kinds()
    while begin < len(text):
        end = begin + BATCH
        while end < len(text) and kinds[ord(text[end - 1])] == kinds[ord(text[end])] == 1:
            end += 1
        yield begin, end
        begin = end


def _windows(words: np.ndarray, starts: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of words, and where each text's begin, int64 [texts + 1] -> the same of runs."""
    lengths = np.diff(starts)
    each = np.where(lengths > count, lengths - count + 1, np.minimum(lengths, 1))  # runs of a text
    begun = np.concatenate([[0], np.cumsum(each)])
    at = np.repeat(starts[:-1] - begun[:-1], each) + np.arange(begun[-1])
    return _mixed(_spans(words, at, np.minimum(at + count, np.repeat(starts[1:], each)))), begun


def _words(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where words begin, and where the characters behind them stand: int64 [words] each."""
    kinds = _kinds()[points]
    begins = (kinds == 2) | ((kinds == 1) & np.append(True, kinds[:-1] != 1))
    ends = (kinds == 2) | ((kinds == 1) & np.append(kinds[1:] != 1, True))
    return np.flatnonzero(begins), np.flatnonzero(ends) + 1


def places_of_words(text: str) -> list[tuple[int, int]]:
    """Of a text in its normal form the words, as (first character, behind the last)."""
    first, behind = _words(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4"))
    return list(zip(first.tolist(), behind.tolist(), strict=True))


def jaccard(one: np.ndarray, two: np.ndarray) -> float:
    """Shared shingles / all shingles of two texts (Jaccard 1901); 1 for two texts without any."""
    shared = len(np.intersect1d(one, two, assume_unique=True))
    return shared / (len(one) + len(two) - shared) if len(one) + len(two) else 1.0


def _spans(values: np.ndarray, first: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The polynomial sum(values[first + i] * BASE ** i) of each span, modulo 2**64 (Karp & Rabin 1987), by differences of a running sum."""
    powers, inverses = _powers(_BASE, len(values)), _powers(_INVERSE, len(values) + 1)
    sums = np.append(np.uint64(0), np.cumsum(values * powers, dtype=np.uint64))
    found: np.ndarray = (sums[ends] - sums[first]) * inverses[first]
    return found


def _powers(base: np.uint64, count: int) -> np.ndarray:
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    running: np.ndarray = np.cumprod(powers, dtype=np.uint64)
    return running


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """All bits of a hash depend on all of its bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = hashes ^ (hashes >> np.uint64(31))
    return mixed
