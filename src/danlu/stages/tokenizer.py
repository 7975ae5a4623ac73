"""`danlu prepare tokenizer`: a tokenizer learned from a person's data, measured on documents it was not learned from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from danlu.core.errors import UserError
from danlu.data.source import Row, cell
from danlu.data.split import split
from danlu.data.tokenizer import Tokenizer
from danlu.data.vocabulary import BORDER, learn, survey, usual_size
from danlu.models.base import from_catalogue
from danlu.models.catalogue import MODELS
from danlu.stages import learned


Say = Callable[[str], None]


def tokenizer(
    data: Any,
    out: Path,
    *,
    kind: str = "bpe",
    specials: str | None = None,
    size: int | None = None,
    text: str | None = None,
    segment: str | None = None,
    lowercase: bool = False,
    validation_share: float = 0.05,
    bad_rows: str = "error",
    seed: int = 0,
    say: Say = print,
) -> dict[str, Any]:
    """Learn a tokenizer and write it to the new folder `out`, whole or not at all, with its figures beside it.

    data: what `data.source.read` takes. size: None derives it from the bytes learned from (`usual_size`).
    segment: `jieba`, or `words`: the column `words` of a segmented source such as CoNLL-U has the words of each text.
    validation_share: of the documents, held out and measured; documents that say the same are on one side.

    Returns what figures.json holds. Raises UserError for bad data or settings, and if `out` is there already.
    """
    if not 0 < validation_share < 1:
        raise UserError(
            f"validation_share={validation_share:g}: expected a share between 0 and 1", "validation_share=0.05"
        )
    if size is not None and size < 1:
        raise UserError(f"size={size}: expected at least 1 token", "leave size out to have it derived from the text")
    if segment == "words" and kind != "bpe":
        raise UserError(f"segment=words: kind={kind} does not learn within words that are given", "kind=bpe")
    source, items, origin = learned.documents(data, out, text, bad_rows)
    say(f"{source.name}: {source.format}, {len(items):,} documents")
    parts = split([item.key for item in items], validation_share=validation_share, test_share=0.0, seed=seed)
    texts = [items[at].text for at in parts.train]
    held_out = [items[at].text for at in parts.validation]
    given = texts
    if segment == "words":
        rows = {row.place: row for row in source.rows}
        given = [bordered(rows[items[at].place], items[at].text) for at in parts.train]
    learned_bytes = sum(len(each.encode()) for each in texts)
    wanted = usual_size(learned_bytes) if size is None else size
    why = f"derived from {learned_bytes:,} bytes" if size is None else "given"
    notes: list[str] = []
    say(f"learning {wanted:,} tokens ({why}) from {len(texts):,} documents; {len(held_out):,} are held out")
    made = learn(
        progress(given, say),
        kind=kind,
        size=wanted,
        specials=specials,
        lowercase=lowercase,
        segment=None if segment == "words" else segment,
        say=notes.append,
    )
    for note in notes:
        say(note)
    say("measuring on the documents held out")
    found = origin | {
        "settings": {
            "kind": kind,
            "specials": "decoder" if "bos_token" in made.named else "encoder",
            "size": wanted,
            "size_is": why,
            "segment": segment,
            "lowercase": lowercase,
            "validation_share": validation_share,
            "seed": seed,
        },
        "learned_from": {"documents": len(texts), "bytes": learned_bytes},
        "size": made.size,
        "notes": notes,
        "held_out": survey(made, held_out),
        "beside": {name: survey(other, held_out) for name, other in catalogue()},
    }
    what = f"A tokenizer of {made.size:,} tokens, learned from {len(texts):,} documents of {{name}}, {learned_bytes:,} bytes."
    lines = learned.page(found, what, "Measured on documents it was not learned from:", figures(found))
    learned.write(out, "tokenizer.json", made.save, "tokenizer.md", found, lines)
    return found


def bordered(row: Row, text: str) -> str:
    """A row's text with BORDER between two words that stand side by side."""
    words = cell(row, "words")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{row.place}: words: found {words!r:.80}, expected a list of words", "segment=jieba, or none")
    at, made = 0, ""
    for word in words:
        start = text.find(word, at)
        if start < 0:
            raise UserError(
                f"{row.place}: the word {word!r} is not in the rest of the text {text[at:]!r:.80}", "mend it"
            )
        made += text[at:start] + BORDER * (start == at > 0) + word
        at = start + len(word)
    return made + text[at:]


def progress(texts: Sequence[str], say: Say) -> Iterator[str]:
    """The texts as they are read, said every fifth of the way."""
    for at, text in enumerate(texts, 1):
        yield text
        if at * 5 // len(texts) > (at - 1) * 5 // len(texts):
            say(f"  {at / len(texts):.0%} of the documents read")


def catalogue() -> Iterator[tuple[str, Tokenizer]]:
    """The tokenizers of catalogue models that are in the cache; nothing is fetched for a comparison."""
    for name in MODELS.names():
        try:
            folder = from_catalogue(MODELS.get(name), lambda _: None, _absent).folder
        except UserError:
            continue
        yield name, Tokenizer.load(folder)


def _absent(package: str, version: str, _: Path) -> Path:
    raise UserError(f"{package} {version} is not in the cache")


COLUMNS = {
    "bytes_per_token": ("bytes a token", "{:.2f}"),
    "characters_per_token": ("characters a token", "{:.2f}"),
    "unknown_share": ("unknown tokens", "{:.2%}"),
    "exact_share": ("texts that come back exactly", "{:.1%}"),
    "used_share": ("vocabulary used", "{:.1%}"),
}


def figures(found: dict[str, Any]) -> list[list[str]]:
    """A table of the held-out figures, by tokenizer and script; the first line is its head."""
    rows = [["tokenizer", "tokens", "script", "documents", *(title for title, _ in COLUMNS.values())]]
    for name, its in {"this one": found["held_out"], **found["beside"]}.items():
        for script, part in {"all": its, **its.get("scripts", {})}.items():
            shown = [form.format(part[key]) for key, (_, form) in COLUMNS.items()]
            rows.append([name, f"{its['vocabulary']:,}", script, f"{part['texts']:,}", *shown])
    return rows
