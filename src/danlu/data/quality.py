"""Rules of quality that papers published for web text, with their bounds: small functions over the lines and words of one text.

Gopher (Rae et al. 2021, appendix A.1), C4 (Raffel et al. 2020, section 2.2), FineWeb (Penedo et al. 2024), and for Chinese the
bounds of FineWeb 2 (Penedo et al. 2025). They count words; where no space stands between words a character stands for 1 / 1.68 of one.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any

from danlu.data.clean import UNSPACED


SETS = ("gopher", "repetition", "c4", "fineweb")

WORD = 1.68
"""Characters of a Chinese word: the mean of jieba's words in 1,004 reviews of products and books."""

FEWEST = 50
"""Words of the shortest document that Gopher keeps. Its rules of repetition were set on such texts: shorter ones are not asked about runs."""

_LETTER = rf"[^\W{UNSPACED.pattern[1:-1]}]"
_TOKEN = re.compile(rf"{UNSPACED.pattern}|{_LETTER}+(?:['’.-]{_LETTER}+)*|[^\w\s]+")
_PARAGRAPH = re.compile(r"\n{2,}")
_PLAIN = re.compile(r"\w+(?:['.-]\w+)*|[^\w\s]+", re.ASCII)
_END = ('.', '?', '!', '"', "'", "。", "？", "！", "；", "…", "”", "’", "」", "』")  # fmt: skip
_STOP = {
    "en": frozenset(("the", "be", "to", "of", "and", "that", "have", "with")),
    "zh": frozenset("的年在月是和日了於爲為有被人中为他與与後后也而由于"),
}


class Page:
    """A text as the rules look at it. Tokens are words, and punctuation in a row; in scripts without spaces, characters."""

    def __init__(self, text: str, language: str = "") -> None:
        self.text, self.language = text, language
        self.lines = [line for line in text.split("\n") if line.strip()]
        self.longest = sys.maxsize  # tokens of the longest run that may stand there twice
        # A character there carries what three letters do.
        self.spaceless = not text.isascii() and 4 * len(UNSPACED.findall(text[:2000])) > len(text[:2000])

    @cached_property
    def tokens(self) -> list[str]:
        return (_PLAIN if self.text.isascii() else _TOKEN).findall(self.text)

    @cached_property
    def words(self) -> list[str]:
        return [token for token in self.tokens if token[0].isalnum()]

    @cached_property
    def long(self) -> bool:
        least = self.characters(FEWEST)
        if len(self.text) < least or len(self.tokens) < least:
            return False
        return sum(map(str.isalnum, self.tokens)) >= least or len(self.words) >= least

    def runs(self, length: int) -> Iterator[tuple[str, ...]]:
        """All runs of so many tokens."""
        return zip(*(islice(self.tokens, first, None) for first in range(length)), strict=False)

    @cached_property
    def heaviest(self) -> int:
        """Most characters that one word fills with all its copies, each followed by a space."""
        return max([count * (len(word) + 1) for word, count in Counter(self.tokens).items() if count > 1], default=0)

    @cached_property
    def again(self) -> tuple[int, int]:
        """Lines that stood there before, and their characters."""
        return _again(self.lines)

    @cached_property
    def paragraphs(self) -> tuple[int, int, int]:
        """Paragraphs, those that stood there before, and their characters."""
        parts = _PARAGRAPH.split(self.text.strip()) if "\n\n" in self.text else [self.text]
        return len(parts), *_again(parts)

    def repeats(self, length: int) -> bool:
        """Whether a run of so many tokens stands there twice: without that no longer one does."""
        if length < self.longest and len(set(self.runs(length))) == len(self.tokens) - length + 1:
            self.longest = length
        return length < self.longest

    def characters(self, words: int) -> int:
        """So many words in tokens of this text."""
        return round(words * WORD) if self.spaceless else words


def _of(count: float, all_: int) -> float:
    return count / all_ if all_ else 0.0


def _ends(page: Page, ends: tuple[str, ...]) -> float:
    return _of(sum(line.rstrip().endswith(ends) for line in page.lines), len(page.lines))


def _again(parts: Sequence[str]) -> tuple[int, int]:
    """How many of the parts stood there before, and their characters."""
    seen: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in seen:
            count, characters = count + 1, characters + len(part)
        seen.add(part)
    return count, characters


def _top(page: Page, length: int, most: float) -> float | None:
    """Share of the characters in the run of words that stands there most often, if it does so twice.

    A run stands there no oftener than each of its words: where these show that it stays within `most`, that is enough.
    """
    if not page.long:
        return None
    whole, four, length = len(page.text), page.characters(4), page.characters(length)
    if (bound := length * page.heaviest / whole) <= most:
        return bound
    if length == four and not page.repeats(length):
        return 0.0
    counts = Counter(page.runs(length))
    run = max(counts, key=counts.__getitem__)
    spaces = 0 if page.spaceless else length - 1
    return counts[run] * (sum(map(len, run)) + spaces) / whole if counts[run] > 1 else 0.0


def _twice(page: Page, length: int) -> float | None:
    """Share of the characters in runs of words that stood there before."""
    if not page.long:
        return None
    length = page.characters(length)
    if not page.repeats(length):
        return 0.0
    seen: set[tuple[str, ...]] = set()
    behind = characters = 0
    for at, run in enumerate(page.runs(length)):
        if at < behind:
            continue
        if run in seen:
            characters, behind = characters + sum(map(len, run)), at + length
        seen.add(run)
    return _of(characters, len(page.text))


def _stop(page: Page) -> float | None:
    known = _STOP.get(page.language)
    return None if known is None else float(len(known.intersection(page.tokens)))


def _alphabetic(page: Page) -> float:
    others = [token for token in page.tokens if not token.isalpha()]
    return 1 - _of(sum(not any(map(str.isalpha, token)) for token in others), len(page.tokens))


Bounds = tuple[float | None, float | None]
GOPHER, TWO = "Rae et al. 2021", "Penedo et al. 2025"


@dataclass(frozen=True)
class Rule:
    """A number of a text and the bounds it has to keep to: (least, most) where words have spaces between them, and elsewhere; None: not asked."""

    set: str
    what: str
    value: Callable[[Page], float | None]
    spaced: Bounds | None
    spaceless: Bounds | None
    source: str
    share: bool = True

    def broken(self, value: float, least: float, most: float) -> tuple[str, str]:
        """Rule and what was found in a text that breaks it. A rule has one name, whatever its bound for this text."""
        bounds, low = self.spaced or self.spaceless or (None, None), value < least
        than = ("less than" if self.share else "fewer than") if low else "more than"
        own, named = (least, bounds[0]) if low else (most, bounds[1])
        elsewhere = "" if own == named else f"; without spaces between words {than} {self.said(own)}"
        return f"{self.set}: {than} {self.said(named or 0)}", self.said(value) + elsewhere

    def said(self, value: float) -> str:
        return f"{100 * value:.3g} % of {self.what}" if self.share else f"{value:,.6g} {self.what}"


RULES = [
    Rule("gopher", "words", lambda page: len(page.words), (50, 100_000), (84, 168_000), f"{GOPHER}; a word is 1.68 characters", False),
    Rule("gopher", "characters a word", lambda page: _of(sum(map(len, page.words)), len(page.words)), (3, 10), None, GOPHER, False),
    Rule("gopher", "# signs a word", lambda page: _of(page.text.count("#"), len(page.tokens)), (None, 0.1), (None, 0.06), GOPHER, False),
    Rule("gopher", "ellipses a word", lambda page: _of(page.text.count("...") + page.text.count("…"), len(page.tokens)), (None, 0.1), (None, 0.06), GOPHER, False),
    Rule("gopher", "lines that begin with a bullet", lambda page: _of(sum(line.lstrip().startswith(("•", "-")) for line in page.lines), len(page.lines)), (None, 0.9), (None, 0.9), GOPHER),
    Rule("gopher", "lines that end with an ellipsis", partial(_ends, ends=("...", "…")), (None, 0.3), (None, 0.3), GOPHER),
    Rule("gopher", "words with a letter", _alphabetic, (0.8, None), (0.82, None), f"{GOPHER}; {TWO}: 73.5 % of Chinese words"),
    Rule("gopher", "of the language's commonest words", _stop, (2, None), (2, None), f"{GOPHER} for English, {TWO} for Chinese", False),
    Rule("repetition", "lines that stood there before", lambda page: _of(page.again[0], len(page.lines)), (None, 0.3), (None, 0.287), f"{GOPHER}, table A1; {TWO}"),
    Rule("repetition", "paragraphs that stood there before", lambda page: _of(page.paragraphs[1], page.paragraphs[0]), (None, 0.3), (None, 0.3), f"{GOPHER}, table A1"),
    Rule("repetition", "characters in lines that stood there before", lambda page: _of(page.again[1], len(page.text)), (None, 0.2), (None, 0.2), f"{GOPHER}, table A1"),
    Rule("repetition", "characters in paragraphs that stood there before", lambda page: _of(page.paragraphs[2], len(page.text)), (None, 0.2), (None, 0.2), f"{GOPHER}, table A1"),
    *(
        Rule("repetition", f"characters in the commonest run of {length} words", partial(_top, length=length, most=most), (None, most), (None, chinese), f"{GOPHER}, table A1; {TWO}")
        for length, most, chinese in ((2, 0.2, 0.256), (3, 0.18, 0.201), (4, 0.16, 0.171))
    ),
    *(
        Rule("repetition", f"characters in runs of {length} words that stood there before", partial(_twice, length=length), (None, most), (None, chinese), f"{GOPHER}, table A1; {TWO}")
        for length, most, chinese in ((5, 0.15, 0.198), (6, 0.14, 0.182), (7, 0.13, 0.167), (8, 0.12, 0.154), (9, 0.11, 0.14), (10, 0.1, 0.127))
    ),
    Rule("fineweb", "lines that end with punctuation", partial(_ends, ends=_END), (0.12, None), (0.106, None), f"Penedo et al. 2024; {TWO}"),
    Rule("fineweb", "lines of 30 characters or less", lambda page: _of(sum(len(line) <= 30 for line in page.lines), len(page.lines)), (None, 0.67), None, "Penedo et al. 2024"),
    Rule("fineweb", "characters in lines that stood there before", lambda page: _of(page.again[1], len(page.text) - page.text.count("\n")), (None, 0.01), (None, 0.1), f"Penedo et al. 2024; {TWO}"),
    Rule("fineweb", "line ends a word", lambda page: _of(page.text.count("\n"), len(page.tokens)), (None, 0.3), (None, 0.106), f"Penedo et al. 2024; {TWO}: 0.178 for Chinese", False),
]  # fmt: skip

_ASKED = {
    (name, spaceless): [
        (rule, -math.inf if bounds[0] is None else bounds[0], math.inf if bounds[1] is None else bounds[1])
        for rule in RULES
        if rule.set == name and (bounds := rule.spaceless if spaceless else rule.spaced) is not None
    ]
    for name in SETS
    for spaceless in (False, True)
}

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_SENTENCE = re.compile(r"(?<![.?!])[.?!]+[\"')\]]*(?=\s|$)|[。？！]+")
C4 = "Raffel et al. 2020"
LINES: list[tuple[str, str]] = [
    ("lines that do not end with punctuation, or end with an ellipsis", C4),
    ("lines of fewer than 3 words (5 characters)", C4),
    ("lines with a word of more than 1,000 characters", f"{C4}, code"),
    ("lines that say javascript", C4),
    ("lines about cookies and terms of use, in English", f"{C4}, code"),
    ("marks of citations: [1], [edit], [citation needed]", f"{C4}, code"),
]
WHOLE: list[tuple[str, str]] = [("fewer than 5 sentences", C4), ("a curly bracket", C4), ("lorem ipsum", C4)]
"""What C4 takes out of a text, and what makes it drop one. Its list of bad words is not asked: it drops what it does not mean to."""


def c4(page: Page) -> tuple[str, tuple[str, str] | None]:
    """The lines that C4 keeps, and what it drops the text for."""
    low = page.text.lower()
    for mark, rule in (("lorem ipsum", WHOLE[2][0]), ("{", WHOLE[1][0])):
        if mark in low:
            return page.text, (f"c4: {rule}", f"at character {low.index(mark) + 1:,}")
    kept = []
    for raw in page.text.split("\n"):
        line = _CITATION.sub("", raw.strip())
        words = Page(line).tokens
        least = 5 if page.spaceless else 3
        if (
            line.endswith(_END)
            and not line.endswith(("...", "…"))
            and sum(word[0].isalnum() for word in words) >= least
            and len(max(words, key=len)) <= 1000
            and "javascript" not in (lower := line.lower())
            and not any(policy in lower for policy in _POLICY)
        ):
            kept.append(line)
    text = "\n".join(kept)
    sentences = len(_SENTENCE.findall(text))
    return text, None if sentences >= 5 else (f"c4: {WHOLE[0][0]}", f"{sentences} in {len(kept)} lines")


def judged(text: str, language: str, sets: Sequence[str]) -> tuple[str, tuple[str, str] | None]:
    """The text, of which c4 takes lines, and the first rule that it breaks with what was found; None: it keeps to all."""
    page = Page(text, language)
    for name in sets:
        if name == "c4":
            left, why = c4(page)
            if why:
                return text, why
            page = page if left == text else Page(left, language)
            text = left
        for rule, least, most in _ASKED[name, page.spaceless]:
            value = rule.value(page)
            if value is not None and not least <= value <= most:
                return text, rule.broken(value, least, most)
    return text, None


def described(sets: Sequence[str]) -> list[dict[str, Any]]:
    """The rules of these sets: `rule`, `about`, `source`, `bounds` and `spaceless`, each (least, most) or None."""
    found: list[dict[str, Any]] = []
    for name in sets:
        if name == "c4":
            found += [{"rule": "c4", "about": f"left out: {what}", "source": source} for what, source in LINES]
            found += [{"rule": "c4", "about": f"dropped for: {what}", "source": source} for what, source in WHOLE]
        found += [
            {
                "rule": rule.set,
                "about": rule.what,
                "source": rule.source,
                "bounds": rule.spaced,
                "spaceless": rule.spaceless,
            }
            for rule in RULES
            if rule.set == name
        ]
    return found
