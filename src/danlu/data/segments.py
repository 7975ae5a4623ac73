"""Tokenizing running text faster than the tokenizer does, to the same ids: what stands between two spaces is looked up.

Most tokenizers cut a text before they look at any token of it (pre-tokenization), and none of those below has a piece that goes across a
single space between two characters that are not white space: such a space begins a piece. So ids of a text are the ids of its segments,
one after the other, and a segment that was seen before need not be tokenized again. Common words make up most of any text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import tokenizers


BORDER = re.compile(r" (?<=\S )(?=\S)")
"""Python's \\s has every character of Unicode's White_Space, so what it takes for none is none to any of these tokenizers."""

INNER = re.compile(r"\S(.*\S)?\Z", re.DOTALL)
"""A segment that may stand between two others, without the space it begins with."""

EVEN = re.compile(r"( |\S)(.*\S)?(?<!\A )\Z", re.DOTALL)
"""What is between two spaces, or begins a text (behind a mark, " "), and is a segment: not empty, and no white space where another begins."""

KEPT = 1 << 17
"""Segments after which a new memory is begun; what comes again is taken over from the one before. Both take some 60 MB."""

LONGEST = 64
"""Characters of a segment that is remembered: a longer one hardly ever comes back."""

JOINED = 10_000
"""Characters of segments that are tokenized as one text."""

PATTERNS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # GPT-4, Llama 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # Qwen2
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s{0,64}[\r\n]+|\s+(?!\S)|\s+",  # ours (data/vocabulary.py)
}
"""Of `Split` in one piece a match: a match with a space behind another character is white space alone in each of them."""


def separable(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether ids of a text are those of its segments: by what the tokenizer is made of, each part known."""
    parts = json.loads(tokenizer.to_str())
    normalizer, before, model = parts["normalizer"], parts["pre_tokenizer"], parts["model"]
    if parts.get("truncation") or parts.get("padding"):
        return False
    # Unicode composes nothing with a space, and the others look at one character at a time.
    if normalizer and normalizer["type"] not in ("NFC", "BertNormalizer", "Lowercase"):
        return False
    if model["type"] not in ("BPE", "WordPiece", "Unigram") or model.get("dropout"):
        return False
    steps = before["pretokenizers"] if before and before["type"] == "Sequence" else [before]
    if not _cuts(steps) or not all(map(_keeps, steps)):
        return False
    return not any(
        token["lstrip"] or token["rstrip"] or token["single_word"] or BORDER.search(token["content"])
        for token in parts["added_tokens"]
    )


def _cuts(steps: Sequence[dict[str, Any] | None]) -> bool:
    """Whether one of the steps begins a piece at every border."""
    return any(
        step is not None
        and (
            step["type"] in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
            or (step["type"] == "ByteLevel" and step["use_regex"])
            or (step["type"] == "Split" and step["pattern"].get("Regex") in PATTERNS and step["behavior"] == "Isolated" and not step["invert"])
            or (step["type"] == "Metaspace" and step["prepend_scheme"] == "never" and step.get("split", True))
        )
        for step in steps
    )  # fmt: skip


def _keeps(step: dict[str, Any] | None) -> bool:
    """Whether what a step does to a piece depends on that piece alone."""
    if step is None:
        return False
    known = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Digits", "Punctuation", "Split", "Metaspace")
    return step["type"] in known or (step["type"] == "ByteLevel" and not step["add_prefix_space"])


class Segments:
    """Ids of texts by a tokenizer that is `separable`; special tokens that are written out in a text are text.

    known: int32 ids as bytes, by segment: without the space it begins with, and " " before the one that begins a text.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, kept: int = KEPT) -> None:
        self.tokenizer, self.kept = tokenizer, kept
        self.known: dict[str, bytes] = {}
        self.older: dict[str, bytes] = {}

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
        self.known |= {part: self.older[part] for part in missing if part in self.older}
        fresh = self._tokenized(sorted(missing.difference(self.known)))
        self.known |= fresh
        look = self.known.__getitem__
        made = [np.frombuffer(b"".join(map(look, parts)), np.int32) for parts in cut]
        for part in fresh:
            # What ends a text with white space is a segment there alone.
            if len(part) > LONGEST or not EVEN.match(part):
                del self.known[part]
        return made

    def _tokenized(self, parts: Sequence[str]) -> dict[str, bytes]:
        """Ids of each segment. Those that begin at a border and end before one are a text again, which is tokenized as one: many short texts
        take longer."""
        inner = [part for part in parts if INNER.match(part)]
        alone = [part for part in parts if not INNER.match(part)]
        texts: list[list[str]] = []
        filled = JOINED
        for part in inner:
            if filled + len(part) > JOINED:
                texts.append([])
                filled = 0
            texts[-1].append(part)
            filled += len(part) + 1
        found: dict[str, bytes] = {}
        joined = [" ".join(["x", *text]) for text in texts]  # the first is no beginning of a text, either
        for text, encoding in zip(texts, self.tokenizer.encode_batch(joined, add_special_tokens=False), strict=True):
            begins = np.cumsum([1, *(len(part) + 1 for part in text)])
            # A token's offset leaves out its space, and with it is within the segment still.
            owners = np.searchsorted(begins, [begin for begin, _ in encoding.offsets], side="right")
            borders = np.searchsorted(owners, np.arange(1, len(text) + 2)).tolist()
            ids = np.array(encoding.ids, np.int32)
            found |= {part: ids[one:two].tobytes() for part, one, two in zip(text, borders, borders[1:], strict=False)}
        # What begins a text has its mark, which is cut off; what ends one, or has white space inside, begins with its space.
        bare = [part[1:] if part.startswith(" ") else f" {part}" for part in alone]
        each = self.tokenizer.encode_batch_fast(bare, add_special_tokens=False)
        return found | {part: np.array(one.ids, np.int32).tobytes() for part, one in zip(alone, each, strict=True)}
