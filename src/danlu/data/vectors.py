"""Word vectors: learned from text, read from the files that other tools write, and matched to the tokens of a tokenizer."""

from __future__ import annotations

import gzip
import re
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from sys import intern
from typing import IO, cast

import numpy as np

from danlu.core.cache import sha256
from danlu.core.errors import UserError, nearest
from danlu.data.clean import normal_form
from danlu.data.shingles import places_of_words
from danlu.data.tokenizer import Tokenizer
from danlu.data.vocabulary import BORDER, HAN, segmented


KINDS = ("word2vec", "fasttext")
FILE = "vectors.txt"
"""In the folder that `danlu prepare vectors` writes."""

FOREIGN = {
    b"\x80": ("a pickle, such as gensim's own .model", 'in Python: KeyedVectors.load(FILE).save_word2vec_format("vectors.txt")'),
    b"PK\x03\x04": ("a zip archive", "unpack it, and name the file of the width you want"),
    b"\xba\x16\x4f\x2f": ("a model of fastText (.bin)", "name the .vec beside it: its words and their vectors as text"),
    b"\x93NUMPY": ("an array without its words", "name the text form of the vectors"),
}  # fmt: skip
"""What is not read, by how it begins: a pickle would be run."""


@dataclass(frozen=True)
class Vectors:
    """words: each once. matrix: float32 [words, width]. name, sha256: of the file. format: what it was taken for, and what is to be said of it."""

    words: tuple[str, ...]
    matrix: np.ndarray
    name: str = ""
    sha256: str = ""
    format: str = ""


# ---------------------------------------------------------------------------------------------------------------- learn


def words_of(texts: Iterable[str], segment: str | None = None) -> Iterator[list[str]]:
    """The words of each text, as `data.shingles` has them: letters, digits and marks in a row, case and width folded; in scripts
    without spaces a character, or with segment=`jieba` Chinese words."""
    for text in segmented(texts) if segment else texts:
        found: list[str] = []
        for part in text.split(BORDER) if segment else [text]:
            plain = normal_form(part)
            if segment and HAN.fullmatch(plain):
                found.append(plain)
            else:
                found += [plain[start:end] for start, end in places_of_words(plain)]
        yield [intern(word) for word in found]


def learn(
    sentences: Sequence[list[str]],
    *,
    kind: str = "word2vec",
    width: int,
    window: int,
    min_count: int,
    epochs: int,
    seed: int,
    say: Callable[[str], None],
) -> tuple[Vectors, np.ndarray]:
    """Vectors of the words that occur at least `min_count` times, the most frequent first, and how often each occurs: int64 [words].

    `word2vec`: skip-gram with five negative samples (Mikolov et al. 2013). `fasttext`: the same, a word's vector the sum of those of its
    character n-grams of 3 to 6 (Bojanowski et al. 2017). By gensim on one thread: several would give other vectors each time.
    """
    if kind not in KINDS:
        raise UserError(f"kind={kind}: expected {', '.join(KINDS)}", nearest(kind, KINDS))
    try:
        with warnings.catch_warnings(action="ignore"):
            from gensim.models import FastText, Word2Vec
    except ModuleNotFoundError:
        raise UserError(
            "vectors are learned by gensim, which is not installed", "pip install 'danlu[vectors]'"
        ) from None
    model = (Word2Vec if kind == "word2vec" else FastText)(
        vector_size=width, window=window, min_count=min_count, sg=1, negative=5, workers=1, seed=seed
    )
    passes = Passes(sentences, epochs + 1, say)
    model.build_vocab(passes)
    if len(model.wv) < 2:
        raise UserError(
            f"{len(model.wv)} words occur {min_count} times or more: nothing to learn from",
            "give more text, or a lower min_count=",
        )
    model.train(passes, total_examples=model.corpus_count, epochs=epochs)
    counts = np.array([model.wv.get_vecattr(word, "count") for word in model.wv.index_to_key])
    return Vectors(tuple(model.wv.index_to_key), np.asarray(model.wv.vectors, np.float32)), counts


class Passes:
    """The sentences, `count` times over; every ten seconds it is said how far that is."""

    def __init__(self, sentences: Sequence[list[str]], count: int, say: Callable[[str], None]) -> None:
        self.sentences, self.say = sentences, say
        self.work, self.done = len(sentences) * (count - 1), -len(sentences)  # the first pass only counts words
        self.began = self.said = time.perf_counter()

    def __iter__(self) -> Iterator[list[str]]:
        for sentence in self.sentences:
            yield sentence
            self.done, now = self.done + 1, time.perf_counter()
            if self.done == 0:
                self.began = now
            elif self.done > 0 and now - self.said > 10:
                left = (now - self.began) / self.done * (self.work - self.done)
                self.say(f"  {self.done / self.work:.0%} learned, about {left:,.0f} s left")
                self.said = now


def write(vectors: Vectors, path: Path) -> None:
    """word2vec's text form: numbers that read back as the same bits."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f"{len(vectors.words)} {vectors.matrix.shape[1]}\n")
        for word, vector in zip(vectors.words, vectors.matrix, strict=True):
            file.write(f"{word} {' '.join(map(str, vector))}\n")


def neighbours(vectors: Vectors, places: Sequence[int], count: int) -> list[list[str]]:
    """Of the words at these places, the nearest others by cosine, the nearest first."""
    unit = vectors.matrix / np.maximum(np.linalg.norm(vectors.matrix, axis=1, keepdims=True), 1e-12)
    order = (-(unit[list(places)] @ unit.T)).argsort(1, kind="stable")
    return [
        [vectors.words[at] for at in row if at != place][:count]
        for place, row in zip(places, order[:, : count + 1].tolist(), strict=True)
    ]


# ----------------------------------------------------------------------------------------------------------------- load


def load(place: Path) -> Vectors:
    """GloVe's text, word2vec's text (fastText's .vec) and binary form, each also as .gz; or the folder of `danlu prepare vectors`.

    Of a word that is there twice the first counts. Nothing in a file is run.

    Raises:
        UserError: no such file, a form that is not read, or a line that is broken, by its number.
    """
    path = place / FILE if place.is_dir() else place
    if not path.is_file():
        raise UserError(f"vectors={place}: no such file", f"a file of vectors, or a folder with {FILE}")
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
            with cast(IO[bytes], gzip.open(raw) if packed else raw) as file:
                words, values, width, form = _read(path, file)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}", "copy or download the file again") from None
    first = dict(zip(reversed(words), reversed(range(len(words))), strict=True))
    matrix = np.frombuffer(values, np.float32).reshape(-1, width)
    if not (finite := np.isfinite(matrix).all(1)).all():
        at = int(finite.argmin())
        where = f"{path}:{at + 1 + (form != 'GloVe text')}" if form.endswith("text") else str(path)
        raise UserError(f"{where}: the vector of {words[at]!r} has a number that is not finite", "mend or remove it")
    if len(first) < len(words):
        form += f"; left out: {len(words) - len(first):,} words that are there twice"
        words = sorted(first, key=first.__getitem__)
        matrix = matrix[[first[word] for word in words]]
    return Vectors(tuple(words), matrix, path.name, sha256(path), form)


def _read(path: Path, file: IO[bytes]) -> tuple[list[str], bytearray, int, str]:
    """Words, float32 values one behind the other, width, format."""
    head = file.readline(1 << 20)
    for mark, (what, fix) in FOREIGN.items():
        if head.startswith(mark):
            raise UserError(f"{path}: found {what}, expected word vectors", fix)
    header = re.fullmatch(rb"(\d+) (\d+)\s*", head)
    count, width = map(int, header.groups() if len(head) <= 20 else (0, 0)) if header else (None, len(head.split()) - 1)
    if width < 1 or count == 0:
        raise UserError(
            f"{path}:1: found {head[:60]!r}, expected a word and its numbers, or two numbers: words and width",
            "name a file of word vectors",
        )
    words, values = list[str](), bytearray()
    second, form = file.readline(1 << 20) if header else head, "word2vec text" if header else "GloVe text"
    try:
        _line(second, width)
    except ValueError:
        form = "word2vec binary" if header else form
    if form == "word2vec binary":
        _binary(chain([second], iter(lambda: file.read(1 << 20), b"")), count or 0, width, words, values)
    else:
        for number, line in enumerate(chain([second], iter(lambda: file.readline(1 << 20), b"")), 1 + bool(header)):
            try:
                word, vector = _line(line, width)
            except ValueError as error:
                raise UserError(
                    f"{path}:{number}: {error}, expected a word and {width} numbers", "mend or remove the line"
                ) from None
            words.append(word)
            values += vector.tobytes()
    if count not in (None, len(words)):
        raise UserError(
            f"{path}: its first line says {count:,} words, found {len(words):,}", "copy or download the file again"
        )
    return words, values, width, form


def _line(line: bytes, width: int) -> tuple[str, np.ndarray]:
    """A word, which may have spaces in it, and its vector; ValueError says what was found."""
    word, *fields = line.decode("utf-8", "replace").rstrip().rsplit(" ", width)
    if len(fields) != width:
        raise ValueError(f"found {len(fields)} numbers")
    return word, np.array(fields, np.float32)


def _binary(blocks: Iterable[bytes], count: int, width: int, words: list[str], values: bytearray) -> None:
    """A word, a space and `width` float32 of little endian, `count` times; some tools put a line break behind each."""
    kept, size = b"", 4 * width
    for block in blocks:
        kept, at = kept + block, 0
        while len(words) < count and 0 <= (space := kept.find(b" ", at)) <= len(kept) - size - 1:
            words.append(kept[at:space].lstrip(b"\n").decode("utf-8", "replace"))
            values += kept[space + 1 : space + 1 + size]
            at = space + 1 + size
        kept = kept[at:]


# --------------------------------------------------------------------------------------------------------------- tokens


def of_tokens(vectors: Vectors, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, int]:
    """What vectors say of a tokenizer's tokens: their ids int64 [tokens], vectors float32 [tokens, width], and how many spell a word.

    A token that alone spells a word, within a text or at its beginning, has the word's vector; of several the first in the file, and a
    capitalised form counts where the form itself spells none. These come first. A token that longer words begin with has the mean of
    theirs.
    """
    spelled: dict[int, int] = {}
    begun: dict[int, list[int]] = {}
    special = {*tokenizer.specials.values(), tokenizer.unknown}
    for form in (" {}".format, "{}".format, lambda word: f" {word.capitalize()}", str.capitalize):
        for start in range(0, len(vectors.words), 10_000):
            some = [form(word) for word in vectors.words[start : start + 10_000]]
            for at, ids in enumerate(tokenizer.encode_batch(some), start):
                if len(ids) == 1 and ids[0] not in special:
                    spelled.setdefault(ids[0], at)
                elif len(ids) > 1 and ids[0] not in special:
                    begun.setdefault(ids[0], []).append(at)
    means = {token: sorted({*places}) for token, places in sorted(begun.items()) if token not in spelled}
    rows = [vectors.matrix[at] for at in spelled.values()] + [
        vectors.matrix[places].mean(0) for places in means.values()
    ]
    found = np.array([*spelled, *means], np.int64)
    return found, np.array(rows, np.float32).reshape(len(found), vectors.matrix.shape[1]), len(spelled)
