"""Ids of many texts, as the tokenizer itself gives them and several times faster.

fastokens tokenizes what byte-pair encoding of bytes has made; what stands between two spaces is looked up for WordPiece and Unigram
(data/segments.py); anything else goes through the tokenizer.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import fastokens
import numpy as np
import tokenizers

from danlu.core.errors import panics_told
from danlu.data.segments import Segments, separable


PROBE = (
    "", " ", "a", " a ", "Don't you'll I'D we've; THEY'RE 12345 3.14 -1e5 x_y $9.99 ½ ² ١٢٣", "two  three   four\n\n\nfive \t\r\n six\u3000 \xa0\u2028\x85\x1c",
    "naïve Zoë Zoe\u0308 İstanbul ſtraße Ǆ ﬁ Å\u212b", "他说:“明天见。”茶あいうカナ한국어ไทย हिन्दी क्षि العربية עברית Ελληνικά", "🙂👩‍🔧🇨🇳\u200b\ufeff\ufffd\U000686d7\ue000",
    "\x00\x01\x04\x13\x7f\x80", "a" * 300, "é" * 120, "!" * 80, "▁Ġ ĊĠ ▁▁", "https://example.org/a?b=c&d#e <b>x</b> {\"k\": [1, 2]} \\n %s", "def f(x):\n    return  x**2  # 1\n",
)  # fmt: skip
"""What tokenizers differ in: contractions, digits, white space, marks that combine, scripts without spaces, what no one has assigned."""

PATTERNS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "GPT-2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "GPT-4, Llama 3",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "Qwen2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s{0,64}[\r\n]+|\s+(?!\S)|\s+": "ours",
}
"""What texts are cut by, in tokenizers that fastokens is given."""

DIGITS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
"""What SmolLM and StarCoder cut in two steps, digits first and then GPT-2's pattern between them, as one pattern: fastokens is four times as
fast with it. White space before a digit ends a text between digits, so there all of it is one piece."""


class Bulk:
    """Ids of texts by a tokenizer; special tokens that are written out in a text are text.

    A reader of tokenizers that is not their author's may read one otherwise: it is given only those whose parts are all known, and taken
    only if it gives the same ids for `PROBE`, with the tokenizer's own special tokens written out in it. For one thread: meanwhile the tokenizer takes special tokens for text. read: makes
    that other reader of a tokenizer.json.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, read: Callable[[str], Any] = fastokens.Tokenizer.from_json_str
    ) -> None:
        self.tokenizer = tokenizer
        self.segments: Segments | None = None
        self.fast = self._agreeing(read)
        if self.fast is None and separable(tokenizer):
            self.segments = Segments(tokenizer)

    def ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 ids of each text, without what a model expects around it. A failing library in Rust is a RuntimeError."""
        if self.fast is None:
            return self._slow(texts)
        disputed = [not text.isascii() and any(map(_disputed, set(text))) for text in texts]
        made = iter(_fast(self.fast, [text for text, odd in zip(texts, disputed, strict=True) if not odd]))
        found = [None if odd else next(made) for odd in disputed]
        left = iter(self._slow([text for text, ids in zip(texts, found, strict=True) if ids is None]))
        return [next(left) if ids is None else ids for ids in found]

    def _slow(self, texts: Sequence[str]) -> list[np.ndarray]:
        self.tokenizer.encode_special_tokens = True
        try:
            with panics_told():
                if self.segments is not None:
                    try:
                        return self.segments.ids(texts)
                    except Exception as error:
                        if type(error) not in (Exception, RuntimeError):  # tokenizers raises the bare class
                            raise  # else: the "x" that segments are joined behind may be what it fails on
                made = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        finally:
            self.tokenizer.encode_special_tokens = False
        return [np.array(each.ids, np.int32) for each in made]

    def _agreeing(self, read: Callable[[str], Any]) -> Any:
        if (content := _readable(self.tokenizer)) is None:
            return None
        try:
            with panics_told():
                fast = read(content)
        except (RuntimeError, ValueError):
            return None
        added = [each.content for each in self.tokenizer.get_added_tokens_decoder().values()]
        probe = [*PROBE, *(f"{PROBE[4]}{each} {each.lower()}{each}{PROBE[7]}" for each in added[:100])]
        made = _fast(fast, probe)
        same = [
            np.array_equal(ids, other) for ids, other in zip(made, self._slow(probe), strict=True) if ids is not None
        ]
        return fast if all(same) and len(same) > len(probe) // 2 else None


def _fast(fast: Any, texts: Sequence[str]) -> list[np.ndarray | None]:
    """int32 ids of each text; None: it gives up, where its engine goes back too often or a byte is not in the vocabulary."""
    try:
        with panics_told():
            ids, borders = fast.encode_batch_flat(list(texts), split_special_tokens=True)
    except (RuntimeError, ValueError):
        return [each for text in texts for each in _fast(fast, [text])] if len(texts) > 1 else [None] * len(texts)
    return list(np.split(np.frombuffer(ids, np.int32), np.frombuffer(borders, np.int64)[1:-1])) if texts else []


def _readable(tokenizer: tokenizers.Tokenizer) -> str | None:
    """Its tokenizer.json for fastokens, with `DIGITS` for what is cut in two steps; None where not every part is one that is known."""
    model, before = tokenizer.model, tokenizer.pre_tokenizer and tokenizer.pre_tokenizer.__getstate__().decode()
    if not isinstance(model, tokenizers.models.BPE) or tokenizer.truncation or tokenizer.padding:
        return None
    if any(getattr(model, name) for name in ("dropout", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges")):
        return None
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    if not isinstance(tokenizer.normalizer, tokenizers.normalizers.NFC | None):
        return None
    added = tokenizer.get_added_tokens_decoder().values()
    if any(each.lstrip or each.rstrip or each.single_word or not each.content for each in added):
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    if len(set(vocabulary.values())) < len(vocabulary):
        return None
    whole, steps = tokenizer.to_str(), json.loads(before) if before else {}
    match steps.get("pretokenizers", [steps]):
        case [{"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:
            return whole
        case [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
        ] if pattern in PATTERNS:
            return whole
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False} as bytes_,
        ]:
            split = {"type": "Split", "pattern": {"Regex": DIGITS}, "behavior": "Isolated", "invert": False}
            one = {"type": "Sequence", "pretokenizers": [split, bytes_ | {"use_regex": False}]}
            return whole.replace(f'"pre_tokenizer":{before}', f'"pre_tokenizer":{json.dumps(one)}', 1)
    return None


@cache
def _disputed(character: str) -> bool:
    """Whether two libraries may take it for different things: a long s, which ignoring case is an s to some; U+180E, white space until Unicode
    6.3 and to some today; and what this Python's Unicode has not assigned, a letter perhaps to one that is newer."""
    return character in "\u017f\u180e" or unicodedata.category(character) == "Cn"
