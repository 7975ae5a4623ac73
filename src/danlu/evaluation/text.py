"""Written answers beside the expected ones: words, the longest common subsequence, edits, BLEU and chrF."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from danlu.core.errors import UserError


Array = NDArray[Any]

# One token for each character of the scripts written without spaces, otherwise runs of letters and digits.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """Words without case or punctuation; scripts without spaces give one token a character."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def token_f1(answers: Sequence[str], expected: Sequence[str]) -> Array:
    """[rows] F1 of the bags of words of answer and expected text, 0 to 1 (Rajpurkar et al. 2016).

    Words are those of `words`; unlike SQuAD's script no English articles are removed. Two texts without a word match (1).
    """
    scores = []
    for answer, wanted in zip(answers, expected, strict=True):
        found, known = Counter(words(answer)), Counter(words(wanted))
        total = found.total() + known.total()
        scores.append(2 * (found & known).total() / total if total else 1.0)
    return np.array(scores)


def rouge_l(answers: Sequence[str], expected: Sequence[str]) -> Array:
    """[rows] ROUGE-L, 0 to 1: F1 of the longest common subsequence of words (Lin 2004, with beta 1). No stemming.

    Two texts without a word match (1).
    """
    scores = []
    for answer, wanted in zip(answers, expected, strict=True):
        found, known = words(answer), words(wanted)
        total = len(found) + len(known)
        scores.append(2 * common_subsequence(found, known) / total if total else 1.0)
    return np.array(scores)


def word_errors(answers: Sequence[str], expected: Sequence[str]) -> tuple[Array, Array]:
    """(edits, words expected) of each row; `ratio` of them is the word error rate, 0 or more (above 1 for long answers).

    Edits are insertions, deletions and substitutions (Levenshtein 1966) between words split at white space; nothing is normalised.
    """
    return _errors([text.split() for text in answers], [text.split() for text in expected])


def character_errors(answers: Sequence[str], expected: Sequence[str]) -> tuple[Array, Array]:
    """(edits, characters expected) of each row; `ratio` of them is the character error rate, 0 or more."""
    return _errors(answers, expected)


def _errors(answers: Sequence[Sequence[Hashable]], expected: Sequence[Sequence[Hashable]]) -> tuple[Array, Array]:
    edits = [edit_distance(answer, wanted) for answer, wanted in zip(answers, expected, strict=True)]
    return np.array(edits, dtype=np.float64), np.array([len(wanted) for wanted in expected], dtype=np.float64)


def common_subsequence(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö 2004): one big-integer step for each element of `second`."""
    full = (1 << len(first)) - 1
    places = _places(first)
    row = full
    for item in second:
        matched = row & places.get(item, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(first) - row.bit_count()


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Levenshtein distance, bit-parallel (Myers 1999 in the form of Hyyrö 2003): one big-integer step for each of `second`."""
    if not first:
        return len(second)
    full, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    places = _places(first)
    up, down, distance = full, 0, len(first)  # bit i: cell i is one more / one less than the cell above it
    for item in second:
        matched = places.get(item, 0)
        zero = ((((matched & up) + up) ^ up) | matched | down) & full
        right, left = (down | ~(zero | up)) & full, up & zero
        distance += bool(right & last) - bool(left & last)
        right = (right << 1) | 1  # the first row of the table grows by one a column
        up, down = ((left << 1) | ~(zero | right)) & full, right & zero
    return distance


def _places(items: Sequence[Hashable]) -> dict[Hashable, int]:
    places: dict[Hashable, int] = {}
    for index, item in enumerate(items):
        places[item] = places.get(item, 0) | 1 << index
    return places


def bleu(answers: Sequence[str], expected: Sequence[str], tokenize: str = "13a") -> float:
    """Corpus BLEU, 0 to 100 (Papineni et al. 2002), by sacrebleu (Post 2018). `tokenize="zh"` for Chinese, "char" for others without spaces."""
    return float(_sacrebleu().corpus_bleu(list(answers), [list(expected)], tokenize=tokenize).score)


def chrf(answers: Sequence[str], expected: Sequence[str]) -> float:
    """Corpus chrF2, 0 to 100 (Popović 2015): character n-grams, recall counting twice; by sacrebleu."""
    return float(_sacrebleu().corpus_chrf(list(answers), [list(expected)]).score)


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError:
        raise UserError(
            "BLEU and chrF need the package sacrebleu, which is not installed", "pip install sacrebleu"
        ) from None
    return sacrebleu
