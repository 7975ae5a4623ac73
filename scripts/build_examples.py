"""Builds examples/data from the indices of the Debian archive: real text, written by package maintainers and translators.

    python scripts/build_examples.py Packages Translation-en Translation-de examples/data

The three indices are what `apt-get update` fetches (examples/data/README.md says how to get them as plain text). The same
indices give the same bytes: nothing is drawn at random, rows are ordered by the SHA-256 of their source package's name.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


ASK = "Write the one-line synopsis of this Debian package:\n\n"
ASK_GERMAN = "And in German?"
CHAT_ROWS = {"train": 1000, "validation": 60, "test": 60}
SECTIONS = ("admin", "games", "net", "science", "sound", "x11")
SECTION_ROWS = 300
PER_SOURCE = 3
"""Packages of one source in the sections: they stay in one split with `group=source`."""

SHINGLE = 4
"""Words in a row that two texts of one family share."""

BOILERPLATE = re.compile(
    r"transitional|dummy package|metapackage|meta-package|debug symbols|empty package|this package (provides|contains) "
    r"(the )?(header|development|documentation|common|data|architecture|shared|static|python 3)|development files|https?://|"
    r"www\.|@",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Package:
    """A package as the indices have it: `text` is the long description, `german` the synopsis of its translation, if any."""

    name: str
    source: str
    section: str
    synopsis: str
    text: str
    german: str

    @property
    def order(self) -> str:
        return hashlib.sha256(f"{self.source}/{self.name}".encode()).hexdigest()


def stanzas(path: Path) -> Iterator[dict[str, str]]:
    """The paragraphs of a Debian control file; a field's continuation lines are joined to it by line breaks."""
    fields: dict[str, str] = {}
    last = ""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line == "\n":
                if fields:
                    yield fields
                fields = {}
            elif line[0] in " \t":
                fields[last] += "\n" + line.rstrip()
            else:
                last, _, value = line.partition(":")
                fields[last] = value.strip()
    if fields:
        yield fields


def prose(lines: Iterable[str]) -> str:
    """The long description as paragraphs on one line each, or nothing if it holds a list or a table: those lines are
    indented twice (Debian policy, 5.6.13), or begin with a bullet."""
    paragraphs = [""]
    for line in lines:
        if line.strip() == ".":
            paragraphs.append("")
        elif line.startswith("  ") or re.match(r"\s*[-*+o•] ", line):
            return ""
        else:
            paragraphs[-1] += " " + line.strip()
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs if paragraph)


def packages(index: Path, english: Path, german: Path) -> list[Package]:
    """Every package whose long description is plain prose, in an order that only its name decides."""
    originals = {stanza["Description-md5"]: stanza["Description-en"] for stanza in stanzas(english)}
    translated = {stanza["Description-md5"]: stanza["Description-de"].split("\n")[0] for stanza in stanzas(german)}
    found = []
    for stanza in stanzas(index):
        digest = stanza.get("Description-md5", "")
        if digest not in originals:
            continue
        synopsis, *lines = originals[digest].split("\n")
        found.append(
            Package(
                name=stanza["Package"],
                source=stanza.get("Source", stanza["Package"]).split()[0],
                section=stanza["Section"].split("/")[-1],
                synopsis=synopsis,
                text=prose(lines),
                german=translated.get(digest, ""),
            )
        )
    return sorted((package for package in found if package.text), key=lambda package: package.order)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def shingles(text: str) -> set[tuple[str, ...]]:
    tokens = words(text)
    return {tuple(tokens[at : at + SHINGLE]) for at in range(max(1, len(tokens) - SHINGLE + 1))}


def thinned(rows: Iterable[Package], text: Callable[[Package], str], share: float) -> Iterator[Package]:
    """Rows whose text has less than `share` of its shingles in common with all the rows before it."""
    seen: set[tuple[str, ...]] = set()
    for row in rows:
        own = shingles(text(row))
        if len(own & seen) < share * len(own):
            seen |= own
            yield row


def teaches(package: Package) -> bool:
    """A description from which a person could write the synopsis, and a synopsis in both languages."""
    english, german, text = package.synopsis, package.german, package.text
    content = {word for word in words(english) if len(word) > 3}
    return (
        150 <= len(text) <= 420
        and 18 <= len(english) <= 70
        and 18 <= len(german) <= 90
        and german.lower() != english.lower()
        and "<trans" not in german
        and not BOILERPLATE.search(f"{english} {text}")
        and text.isascii()
        and not re.search(r"[\[\](){}<>/:—–]|--| - ", english + german)
        and len(content & set(words(text))) >= max(1, len(content) / 3)
        and words(english) != words(text)[: len(words(english))]
        and package.section not in ("libs", "libdevel", "debug", "oldlibs", "localization", "metapackages", "doc")
    )


def conversation(package: Package) -> dict[str, object]:
    turns = [ASK + package.text, package.synopsis, ASK_GERMAN, package.german]
    messages = [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)]
    return {"source": package.source, "messages": messages}


def chat(everything: list[Package]) -> dict[str, list[dict[str, object]]]:
    """Conversations of two turns, one package a source, families thinned by synopsis and by description."""
    sources: set[str] = set()
    openings: Counter[str] = Counter()
    chosen = []
    for package in thinned(filter(teaches, everything), lambda package: package.text, 0.25):
        opening = " ".join(words(package.synopsis)[:2])
        if package.source not in sources and openings[opening] < 3:
            sources.add(package.source)
            openings[opening] += 1
            chosen.append(package)
    # No synopsis is in two files, in either language, whatever the descriptions are.
    chosen = list({package.german.lower(): package for package in reversed(chosen)}.values())[::-1]
    chosen = list({package.synopsis.lower(): package for package in reversed(chosen)}.values())[::-1]
    files: dict[str, list[dict[str, object]]] = {}
    start = 0
    for name, count in sorted(CHAT_ROWS.items(), key=lambda item: item[1]):
        files[name] = [conversation(package) for package in chosen[start : start + count]]
        start += count
    if start > len(chosen):
        sys.exit(f"the indices give only {len(chosen)} conversations, {start} are wanted: is Translation-de complete?")
    return files


def sections(everything: list[Package]) -> list[dict[str, object]]:
    """Descriptions with the section their maintainers filed them under, the same number of each."""
    taken: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    rows: list[dict[str, object]] = []
    fitting = (
        package
        for package in everything
        if package.section in SECTIONS and 100 <= len(package.text) <= 400 and not BOILERPLATE.search(package.text)
    )
    for package in thinned(fitting, lambda package: package.text, 0.5):
        if taken[package.section] < SECTION_ROWS and sources[package.source] < PER_SOURCE:
            taken[package.section] += 1
            sources[package.source] += 1
            rows.append({"text": package.text, "label": package.section, "source": package.source})
    # A full section takes no more, so the tail would hold only the rarest: another order, as fixed as the first.
    rows.sort(key=lambda row: hashlib.sha256(str(row["text"]).encode()).digest())
    short = {name: taken[name] for name in SECTIONS if taken[name] < SECTION_ROWS}
    if short:
        sys.exit(f"the indices give too few rows of these sections, {SECTION_ROWS} of each are wanted: {short}")
    return rows


def write(path: Path, rows: Sequence[dict[str, object]]) -> None:
    body = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(body)
    print(f"{hashlib.sha256(body).hexdigest()}  {len(rows)} rows  {len(body):,} bytes  {path.name}")


def main() -> None:
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    index, english, german, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    everything = packages(index, english, german)
    for name, rows in chat(everything).items():
        write(out / ("descriptions_chat.jsonl" if name == "train" else f"descriptions_chat.{name}.jsonl"), rows)
    write(out / "sections.jsonl", sections(everything))


if __name__ == "__main__":
    main()
