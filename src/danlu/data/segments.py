"""Tokenizing running text by WordPiece or Unigram faster than the tokenizer does, to the same ids: what stands between two spaces is looked up.

Most such tokenizers cut a text before they look at any token of it (pre-tokenization), and none of those below has a piece that goes across
a single space between two characters that are not white space: such a space begins a piece. So ids of a text are the ids of its segments,
one after the other, and a segment that was seen before need not be tokenized again. Common words make up most of any text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain, dropwhile
from typing import Any

import numpy as np
import tokenizers


BORDER = re.compile(r" (?<=\S )(?=\S)")
"""Python's \\s has every character of Unicode's White_Space, so what it takes for none is none to any of these tokenizers."""

INNER = re.compile(r"\S(.*\S)?\Z", re.DOTALL)
"""A segment that may stand between two others, without the space it begins with."""

EVEN = re.compile(r"( |\S)(.*\S)?(?<!\A ) ?\Z", re.DOTALL)
"""What is between two spaces, or begins a text (behind a mark, " "), and is a segment: not empty, and no white space where another begins."""

ASCII = re.compile(r"[!-~][\t\n\r -~]*")
WORDS = re.compile(r"[^A-Za-z0-9]*[A-Za-z0-9]+|[^A-Za-z0-9]+")
"""A segment of such characters in smaller ones: each ends where letters and digits end."""

JOINS = re.compile(r".*[A-Za-z0-9]\Z", re.DOTALL)
"""Of those, but for the first, one that another may stand behind."""

KEPT = 1 << 17
"""Segments after which a new memory is begun; what comes again is taken over from the one before. Both take some 60 MB."""

LONGEST = 64
"""Characters of a segment that is remembered: a longer one hardly ever comes back."""

JOINED = 10_000
"""Characters of segments that are tokenized as one text."""


def separable(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether ids of a text are those of its segments: by what the tokenizer is made of, each part known."""
    parts = json.loads(tokenizer.to_str())
    normalizer, model = parts["normalizer"], parts["model"]
    if parts.get("truncation") or parts.get("padding"):
        return False
    # Unicode composes nothing with a space, and the others look at one character at a time.
    if normalizer and normalizer["type"] not in ("NFC", "BertNormalizer", "Lowercase"):
        return False
    if model["type"] not in ("WordPiece", "Unigram"):
        return False
    first, later = _steps(parts)
    if not _begins_words(first) or not all(map(_keeps, later)):
        return False
    return not any(
        token["lstrip"] or token["rstrip"] or token["single_word"] or BORDER.search(token["content"])
        for token in parts["added_tokens"]
    )


def divisible(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether ids of an `ASCII` segment of a `separable` tokenizer are those of its `WORDS`: a piece ends where letters and digits end, and
    what comes before and behind is not looked at."""
    parts = json.loads(tokenizer.to_str())
    inside = re.compile("[A-Za-z0-9][^A-Za-z0-9]")
    first, _ = _steps(parts)
    return (
        first is not None
        and first["type"] == "BertPreTokenizer"
        and not any(inside.search(token["content"]) and not token["special"] for token in parts["added_tokens"])
    )


Step = dict[str, Any] | None


def _steps(parts: dict[str, Any]) -> tuple[Step, list[Step]]:
    """The first step that looks at more than one character at a time, and those after it, which see the pieces that it makes."""
    before = parts["pre_tokenizer"]
    steps: list[Step] = before["pretokenizers"] if before and before["type"] == "Sequence" else [before]
    rest = list(dropwhile(lambda step: step is not None and step["type"] in ("Digits", "Punctuation"), steps))
    return (rest[0], rest[1:]) if rest else (None, [])


def _begins_words(step: Step) -> bool:
    """Whether a step begins a piece at every border at least."""
    return step is not None and (
        step["type"] in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
        or (step["type"] == "Metaspace" and step["prepend_scheme"] == "never" and step.get("split", True))
    )


def _keeps(step: Step) -> bool:
    """Whether what a step does to a piece depends on that piece alone."""
    known = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Digits", "Punctuation", "Split", "Metaspace")
    return step is not None and step["type"] in known


class Segments:
    """Ids of texts by a tokenizer that is `separable`; special tokens that are written out in a text are text.

    known: int32 ids as bytes, by segment: without the space it begins with, and " " before one that begins a text. words: those of what a
    segment is divided into, but for its first.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, kept: int = KEPT) -> None:
        self.tokenizer, self.kept, self.divisible = tokenizer, kept, divisible(tokenizer)
        self.known: dict[str, bytes] = {}
        self.older: dict[str, bytes] = {}
        self.words: dict[str, bytes] = {}

    def ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 ids of each text, without what a model expects around it."""
        cut = [text.split(" ") for text in texts]
        for parts in cut:
            parts[0] = " " + parts[0]
        if len(self.known) > self.kept:
            self.known, self.older = {}, self.known
        missing = set(chain.from_iterable(cut)).difference(self.known)
        # Most spaces are borders. Where one is not, one of the two parts beside it has white space at its edge or is empty.
        if uneven := {part for part in missing if not EVEN.match(part)}:
            again: set[str] = set()
            for at, parts in enumerate(cut):
                if not uneven.isdisjoint(parts):
                    first, *rest = BORDER.split(texts[at])
                    cut[at] = [" " + first, *rest]
                    again.update(cut[at])
            missing = (missing - uneven | again).difference(self.known)
        fresh = self._learned(missing)
        look = self.known.__getitem__
        made = [np.frombuffer(b"".join(map(look, parts)), np.int32) for parts in cut]
        for part in fresh:
            # What ends a text with white space is a segment there alone.
            if len(part) > LONGEST or not EVEN.match(part):
                del self.known[part]
        return made

    def _learned(self, missing: set[str]) -> set[str]:
        """Has the ids of these segments in `known`; returns those that had to be made."""
        self.known |= {part: self.older[part] for part in missing if part in self.older}
        fresh = missing.difference(self.known)
        divided: dict[str, list[str]] = {}
        if self.divisible:
            cuts = ((part, WORDS.findall(part)) for part in fresh if ASCII.fullmatch(part))
            divided = {part: words for part, words in cuts if len(words) > 1}
            if len(self.words) > self.kept:
                self.words = {}
            inner = {word for words in divided.values() for word in words[1:]}.difference(self.words)
            self.words |= self._tokenized({word: word for word in inner}, JOINS)
        fresh = (fresh - divided.keys()).union(words[0] for words in divided.values()).difference(self.known)
        # A mark is cut off; what has none begins with its space.
        bare = {part: part[1:] if part.startswith(" ") else f" {part}" for part in fresh}
        self.known |= self._tokenized(bare, INNER)
        for part, (first, *rest) in divided.items():
            self.known[part] = b"".join([self.known[first], *map(self.words.__getitem__, rest)])
        return fresh.union(divided)

    def _tokenized(self, bare: dict[str, str], joins: re.Pattern[str]) -> dict[str, bytes]:
        """Ids of the texts, by their keys. Those whose key `joins` are a text again, one behind the other, which is tokenized as one: many short
        texts take longer."""
        texts: list[list[str]] = []
        alone, filled = list[str](), JOINED
        for part in sorted(bare):
            if not joins.match(part):
                alone.append(part)
                continue
            if filled + len(bare[part]) > JOINED:
                texts.append([])
                filled = 0
            texts[-1].append(part)
            filled += len(bare[part])
        found: dict[str, bytes] = {}
        # Behind an "x" the first is no beginning of a text, either.
        joined = ["".join(["x", *map(bare.__getitem__, text)]) for text in texts]
        for text, encoding in zip(texts, self.tokenizer.encode_batch(joined, add_special_tokens=False), strict=True):
            begins = np.cumsum([1, *(len(bare[part]) for part in text)])
            # A token's offset leaves out the white space before it, and with that is within the segment still.
            owners = np.searchsorted(begins, [begin for begin, _ in encoding.offsets], side="right")
            borders = np.searchsorted(owners, np.arange(1, len(text) + 2)).tolist()
            ids = np.array(encoding.ids, np.int32)
            found |= {part: ids[one:two].tobytes() for part, one, two in zip(text, borders, borders[1:], strict=False)}
        each = self.tokenizer.encode_batch_fast([bare[part] for part in alone], add_special_tokens=False)
        return found | {part: np.array(one.ids, np.int32).tobytes() for part, one in zip(alone, each, strict=True)}
