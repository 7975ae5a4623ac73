"""`danlu prepare vectors`: word vectors learned from a person's data, to look at and to start a model's embedding from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from danlu.core.errors import UserError
from danlu.data import vectors as words
from danlu.data.clean import normal_form
from danlu.data.source import Source, cell
from danlu.data.tokenizer import Tokenizer
from danlu.stages import learned
from danlu.stages.tokenizer import Say, progress


POSITIONS, PASSES = 3_000_000, (5, 30)
"""Word positions looked at in all, and the fewest and the most passes over a text: five are gensim's for a large one."""
SHOWN, NEAREST, LEAST_LETTERS = 30, 6, 4
"""Words on the page, neighbours of each, and letters of such a word where words are written in letters: the shortest are mostly grammar."""


def vectors(
    data: Any,
    out: Path,
    *,
    kind: str = "word2vec",
    width: int = 100,
    window: int = 5,
    min_count: int = 5,
    epochs: int | None = None,
    text: str | None = None,
    segment: str | None = None,
    bad_rows: str = "error",
    seed: int = 0,
    say: Say = print,
) -> dict[str, Any]:
    """Learn word vectors and write them to the new folder `out`, whole or not at all: vectors.txt, which gensim and spaCy read too.

    data: what `data.source.read` takes. width: numbers a word. window: words to either side that count as near. min_count: a rarer word
    has no vector. epochs: None derives it from the words there are. segment: `jieba` for Chinese, or `words`: the column `words` of a
    segmented source has the words of each text.

    Returns what figures.json holds. Raises UserError for bad data or settings, and if `out` is there already.
    """
    if segment not in (None, "jieba", "words"):
        raise UserError(f"segment={segment}: expected jieba or words", "segment=jieba")
    for key, value in {"width": width, "window": window, "min_count": min_count, "epochs": epochs or 1}.items():
        if not 1 <= value <= 10_000:
            raise UserError(f"{key}={value}: expected 1 to 10,000", f"leave {key}= out")
    source, items, origin = learned.documents(data, out, text, bad_rows)
    if segment == "words":
        rows = {row.place: row for row in source.rows}
        sentences = [given(cell(rows[item.place], "words"), item.place) for item in items]
    else:
        texts = [item.text for item in items]
        sentences = list(words.words_of(progress(texts, say) if segment else texts, segment))
    total = sum(map(len, sentences))
    passes = epochs or min(PASSES[1], max(PASSES[0], math.ceil(POSITIONS / max(1, total))))
    why = "given" if epochs else f"derived from {total:,} words"
    say(f"{source.name}: {source.format}, {len(items):,} documents, {total:,} words")
    say(f"learning in {passes} passes ({why}), on one thread so that it comes out the same every time")
    settings: dict[str, Any] = {"kind": kind, "width": width, "window": window, "min_count": min_count}
    settings |= {"epochs": passes, "seed": seed}
    made, counts = words.learn(sentences, say=say, **settings)
    plain = [
        at
        for at, word in enumerate(made.words)
        if word.isalpha() and (len(word) >= LEAST_LETTERS or not word.isascii())
    ]
    nearest = words.neighbours(made, plain[:SHOWN], NEAREST) if plain else []
    found = origin | {
        "settings": {**settings, "epochs_are": why, "segment": segment},
        "learned_from": {"documents": len(items), "words": total},
        "words": len(made.words),
        "covered": float(counts.sum() / total),
        "nearest": [
            {"word": made.words[at], "count": int(counts[at]), "nearest": near}
            for at, near in zip(plain, nearest, strict=False)
        ],
    }
    what = (
        f"Vectors of {found['words']:,} words, {width} numbers each, learned from {len(items):,} documents of {{name}}, "
        f"{total:,} words, of which {found['covered']:.1%} have a vector."
    )
    lines = learned.page(found, what, "Frequent words and those nearest to them by cosine:", figures(found))
    learned.write(out, words.FILE, lambda folder: words.write(made, folder / words.FILE), "vectors.md", found, lines)
    return found


def for_tokens(
    place: Path, tokenizer: Tokenizer, sources: Mapping[str, Source], notes: list[str], say: Say
) -> tuple[Source, tuple[np.ndarray, np.ndarray]]:
    """Where word vectors came from, and what they say of a tokenizer's tokens: `Prepared.vectors`. sources: of the run, by role.

    Raises:
        UserError: they cannot be read, or are of other words.
    """
    found = words.load(place)
    try:
        origin = json.loads((place / learned.FIGURES).read_bytes())["data"]["sha256"]
    except (OSError, ValueError, LookupError, TypeError):  # made by another tool
        origin = None
    if "test" not in sources and sources["data"].sha256 == origin:
        notes.append(
            f"warning: {place} was learned from all of {sources['data'].name}, held-out rows included: that flatters the model; test=FILE gives others"
        )
    ids, matrix, spelled = words.of_tokens(found, tokenizer)
    if spelled < 2:
        raise UserError(
            f"vectors={place}: {spelled} of {tokenizer.size:,} tokens spell one of its {len(found.words):,} words",
            "give vectors of words of the same language, or another tokenizer=",
        )
    said = (
        f"{found.format}, {matrix.shape[1]} wide; of {tokenizer.size:,} tokens {spelled:,} spell a word, {len(ids) - spelled:,} begin some, "
        f"{tokenizer.size - len(ids):,} start at random"
    )
    say(f"vectors: {found.name}, {len(found.words):,} words, {said}")
    return Source(found.name, found.sha256, (), (), len(found.words), said), (ids, matrix)


def given(found: Any, place: str) -> list[str]:
    """The words of a segmented row, as they are compared; punctuation is none."""
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise UserError(f"{place}: words: found {found!r:.80}, expected a list of words", "segment=jieba, or none")
    plain = (normal_form(word).replace(" ", "_") for word in found)
    return [word for word in plain if any(map(str.isalnum, word))]


def figures(found: dict[str, Any]) -> list[list[str]]:
    """A table of frequent words and their neighbours; the first line is its head."""
    return [
        ["word", "times", "nearest"],
        *([each["word"], f"{each['count']:,}", ", ".join(each["nearest"])] for each in found["nearest"]),
    ]
