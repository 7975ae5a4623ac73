"""What is wrong with a text or with a set of rows, before anything is learned from it. Pure functions over text."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cache
from itertools import combinations


def normal_form(text: str) -> str:
    """The text as rows are compared: Unicode NFKC, case folded, white space collapsed.

    Full-width and half-width letters, ligatures, upper and lower case and line breaks make no difference.
    """
    return " ".join((text if text.isascii() else unicodedata.normalize("NFKC", stream_safe(text))).casefold().split())


MARKS = 30
"""Combining marks on one character that are kept, as Unicode's Stream-Safe Text Format has it (UAX 15)."""

_MANY = re.compile(
    f"[\u0300-\u036f\u0483-\u1dff\u20d0-\u20ff\u2cef-\u2dff\u302a-\u302f\u3099\u309a\ua66f-\uabff\ufb1e\ufe20-\ufe2f\U00010000-\U0001efff]{{{MARKS + 1}}}"
)
"""Quick to look for: where no run of such characters is, none is of marks."""


@cache
def _combining() -> re.Pattern[str]:
    points = [point for point in range(0x300, 0x1F000) if unicodedata.combining(chr(point))]
    marks = "".join(map(chr, points))
    return re.compile(f"([{marks}]{{{MARKS}}})[{marks}]+")


def stream_safe(text: str) -> str:
    """The text without more than MARKS marks in a row: to put them in order takes time that grows with the square of their number."""
    return text if text.isascii() or not _MANY.search(text) else _combining().sub(r"\1", text)


def duplicates(keys: Sequence[Hashable]) -> list[tuple[int, ...]]:
    """Groups of two or more positions whose keys are equal, in order of first appearance."""
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for position, key in enumerate(keys):
        groups[key].append(position)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def leaks(splits: Mapping[str, Iterable[Hashable]]) -> dict[tuple[str, str], frozenset[Hashable]]:
    """Keys that stand in two splits, for every pair of splits that shares any."""
    sets = {name: frozenset(keys) for name, keys in splits.items()}
    return {(one, two): shared for one, two in combinations(sets, 2) if (shared := sets[one] & sets[two])}


def contradictions(keys: Sequence[Hashable], labels: Sequence[Hashable]) -> list[tuple[int, ...]]:
    """Groups of positions with equal keys and unequal labels: at least one of the labels must be wrong."""
    return [group for group in duplicates(keys) if len({labels[position] for position in group}) > 1]


UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
"""Characters of scripts that put no space between words: Thai, Lao, Burmese, Khmer, kana, Han."""

# Letters only, by the block they stand in: (first code point, script). A gap reads as "", which is not counted.
_BLOCKS = [
    (0x0000, ""), (0x0041, "Latin"), (0x005B, ""), (0x0061, "Latin"), (0x007B, ""), (0x00C0, "Latin"), (0x0250, ""), (0x0370, "Greek"),
    (0x0400, "Cyrillic"), (0x0530, "Armenian"), (0x0590, "Hebrew"), (0x0600, "Arabic"), (0x0700, ""), (0x0750, "Arabic"), (0x0780, ""),
    (0x08A0, "Arabic"), (0x0900, "Devanagari"), (0x0980, "Bengali"), (0x0A00, "Gurmukhi"), (0x0A80, "Gujarati"), (0x0B00, ""), (0x0B80, "Tamil"),
    (0x0C00, "Telugu"), (0x0C80, "Kannada"), (0x0D00, "Malayalam"), (0x0D80, "Sinhala"), (0x0E00, "Thai"), (0x0E80, "Lao"), (0x0F00, "Tibetan"),
    (0x1000, "Burmese"), (0x10A0, "Georgian"), (0x1100, "Hangul"), (0x1200, "Ethiopic"), (0x13A0, ""), (0x1780, "Khmer"), (0x1800, "Mongolian"),
    (0x18B0, ""), (0x1E00, "Latin"), (0x1F00, "Greek"), (0x2000, ""), (0x3041, "Kana"), (0x3100, ""), (0x3130, "Hangul"), (0x3190, ""),
    (0x31F0, "Kana"), (0x3200, ""), (0x3400, "Han"), (0x4DC0, ""), (0x4E00, "Han"), (0xA000, ""), (0xAC00, "Hangul"), (0xD7B0, ""),
    (0xF900, "Han"), (0xFB00, ""), (0xFB50, "Arabic"), (0xFE00, ""), (0xFE70, "Arabic"), (0xFEFF, ""), (0xFF21, "Latin"), (0xFF3B, ""),
    (0xFF41, "Latin"), (0xFF5B, ""), (0xFF66, "Kana"), (0xFFA0, ""), (0x20000, "Han"), (0x32000, ""),
]  # fmt: skip
_STARTS = [start for start, _ in _BLOCKS]
LANGUAGES = {
    "Han": "Chinese", "Kana": "Japanese", "Hangul": "Korean", "Cyrillic": "Russian or another language in Cyrillic script", "Arabic": "Arabic",
    "Greek": "Greek", "Hebrew": "Hebrew", "Thai": "Thai", "Devanagari": "Hindi", "Latin": "a language in Latin script",
}  # fmt: skip


def _scripts(text: str) -> Counter[str]:
    counted: Counter[str] = Counter()
    for character, count in Counter(text).items():
        counted[_BLOCKS[bisect_right(_STARTS, ord(character)) - 1][1]] += count
    counted.pop("", None)
    return counted


def _dominant(scripts: Counter[str]) -> str:
    """Han and kana together are one script, Japanese, once a tenth of it is kana: Chinese has none."""
    counted = Counter(scripts)
    if counted["Kana"] * 10 > counted["Kana"] + counted["Han"]:
        counted["Kana"] += counted.pop("Han", 0)
    # A hanzi carries about as much as three letters of an alphabet.
    weight = {"Han": 3, "Kana": 2, "Hangul": 2}
    return max(counted, key=lambda script: (counted[script] * weight.get(script, 1), script)) if counted.total() else ""


def script_of(text: str) -> str:
    """The script most of the text is written in: Latin, Han, Kana, Cyrillic, …; empty when there is no letter."""
    return _dominant(_scripts(text))


def language_of(texts: Sequence[str]) -> str:
    """The language a data set is written in, as far as its script tells: `Chinese`, `a language in Latin script`.

    It looks at some 1,000 texts spread evenly over all of them, 2,000 characters each; `no letters` when there are none.
    """
    scripts: Counter[str] = Counter()
    for text in texts[:: max(1, len(texts) // 1000)]:
        scripts += _scripts(text[:2000])
    script = _dominant(scripts)
    return LANGUAGES.get(script, f"a language in {script} script" if script else "no letters")


_HIGH = "\x80-\xff€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"  # what the bytes 0x80 to 0xff are in Latin-1 and Windows-1252
_HIGH_RUN = re.compile(f"[{_HIGH}]{{2,}}")
_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*(?:\s[^<>]{0,300})?/?>|&(?:[a-z]{2,8}|#\d{2,5});|<!--")


def is_damaged(text: str) -> bool:
    """Whether the text was decoded wrongly: a replacement character, or UTF-8 read as Latin-1 or Windows-1252 (`cafÃ©`)."""
    if text.isascii():
        return False
    return "\ufffd" in text or any(_is_mojibake(run) for run in _HIGH_RUN.findall(text))


def _is_mojibake(run: str) -> bool:
    raw = bytearray()
    for character in run:
        try:
            raw += character.encode("cp1252")
        except UnicodeEncodeError:
            if character > "\xff":
                return False
            raw += character.encode("latin-1")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def has_html(text: str) -> bool:
    """Whether HTML tags or entities stand in the text."""
    return _TAG.search(text) is not None


def share(texts: Sequence[str], test: Callable[[str], bool]) -> float:
    """Share of the texts a test is true of; 0 for none."""
    return sum(map(test, texts)) / len(texts) if texts else 0.0
