"""What an experiment says about its data."""

from __future__ import annotations

from dataclasses import dataclass

from danlu.core.config import option
from danlu.core.types import CLASSIFIERS, CORPUS_TASKS, IMAGE_TASKS, TEXT_TASKS


@dataclass(frozen=True)
class DataOptions:
    """The rows, their columns, and how they are split."""

    data: str | None = option(
        None,
        "what to learn from: a file, several separated by commas, a pattern or a folder (docs/data.md says which formats); for images a folder of class folders, .npz or Parquet",
    )
    validation: str | None = option(None, "a file to choose settings on; without one, a share of `data` is set aside")
    test: str | None = option(None, "a file read once, at the end; without one, a share of `data` is set aside")
    validation_share: float = option(
        0.1, "share of `data` set aside for validation when no file is given", low=0.0, high=0.5
    )
    test_share: float = option(0.1, "share of `data` set aside for the test when no file is given", low=0.0, high=0.5)
    text: str | None = option(None, "column with the text; found by its usual names when not given", tasks=TEXT_TASKS)
    image: str | None = option(
        None, "column with the images; found by its usual names when not given", tasks=IMAGE_TASKS
    )
    label: str | None = option(
        None, "column with the label; found by its usual names when not given", tasks=(*CLASSIFIERS, "chat")
    )
    group: str | None = option(
        None, "column whose equal values stay in one split (a customer, a source file)", tasks=TEXT_TASKS
    )
    max_tokens: int | None = option(
        None,
        "longest row in tokens; derived from the model's context and the data; for a language model the tokens of every row",
        low=8,
        tasks=TEXT_TASKS,
    )
    too_long: str = option(
        "truncate",
        "a row longer than max_tokens is cut, dropped, or an error",
        choices=("truncate", "drop", "error"),
        tasks=("chat", "text-classification"),
    )
    image_size: int | None = option(
        None,
        "side of the square images the network sees; derived from the model or the data",
        low=8,
        high=1024,
        tasks=IMAGE_TASKS,
    )
    tokenizer: str | None = option(
        None,
        "for random weights: a folder with tokenizer.json, a run or a catalogue name; learned from the training rows when not given",
        tasks=CORPUS_TASKS,
    )
    vocabulary: int | None = option(
        None,
        "tokens of a tokenizer that is learned; derived from the text",
        low=10,
        high=1_000_000,
        tasks=CORPUS_TASKS,
    )
    data_licence: str | None = option(None, "the licence of the data, for the model card")
    bad_rows: str = option(
        "error", "a row that cannot be read stops the run, or is skipped and counted", choices=("error", "skip")
    )
    rare_labels: str = option(
        "error",
        "a label with fewer than 3 distinct rows is an error, or its rows are left out",
        choices=("error", "drop"),
        tasks=CLASSIFIERS,
    )
    max_rows: int | None = option(None, "read only so many rows of `data` (said aloud)", low=1)
    unknown_share: float = option(
        0.2, "largest share of unknown tokens that is not an error", low=0.0, high=1.0, tasks=TEXT_TASKS
    )


@dataclass(frozen=True)
class CleaningOptions:
    """What is done to each text of a corpus, and which texts stay out of it (docs/cleaning.md)."""

    cleaning: tuple[str, ...] = option(
        ("encoding", "html", "unicode", "language", "chinese", "personal", "quality", "against"),
        "the steps, in their order; one that is left out is not taken",
    )
    language: tuple[str, ...] = option((), "languages that are kept (zh,en: ISO 639-1); all of them when not given")
    chinese: str | None = option(
        None, "Chinese in one script; as it is when not given", choices=("simplified", "traditional")
    )
    quality: tuple[str, ...] | None = option(
        None, "sets of rules: gopher, repetition, c4, fineweb; those that fit the texts when not given"
    )
    against: str | None = option(None, "test sets: a document that shares 13 words in a row with one is dropped")
