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
    near: float | None = option(
        0.8,
        "rows that agree in this share of their runs of five words or more stay in one split, and out of training if one is held out (0: only equal rows do)",
        low=0.0,
        high=1.0,
        tasks=TEXT_TASKS,
    )
    time: str | None = option(
        None,
        "column with the time of a row (dates, or numbers): the newest are the test, those before them validation",
        tasks=TEXT_TASKS,
    )
    folds: int | None = option(
        None, "cross-validation: cut the rows into so many, of which one is the test instead of `test_share`", low=2
    )
    fold: int | None = option(None, "which of the folds is the test, from 0", low=0)
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
    against: str | None = option(None, "test sets: a document that holds a row of one is dropped")
    against_share: float = option(
        0.2,
        "share of a test row's runs of 13 words from which on a document holds it; 0: a single run",
        low=0.0,
        high=1.0,
    )


@dataclass(frozen=True)
class CorpusOptions:
    """What a corpus is made of and how it is cut (docs/corpus.md)."""

    data: str | None = option(
        None, "what to read: files, several separated by commas, a pattern, a folder or an address (docs/data.md)"
    )
    text: str | None = option(
        None, "column with the text; several names, separated by commas, where files differ; found by its usual names when not given"
    )  # fmt: skip
    duplicates: str = option(
        "near", "documents that repeat an earlier one are dropped: near copies too, exact ones only, or none",
        choices=("near", "exact", "keep"),
    )  # fmt: skip
    near: float = option(0.8, "share of their runs of five words in which near copies agree", low=0.3, high=1.0)
    tokenizer: str | None = option(
        None, "a folder with tokenizer.json, a run or a catalogue name; learned here when not given"
    )
    tokenize: bool = option(True, "token ids are written; false: texts only")
    kind: str = option("bpe", "of a tokenizer that is learned", choices=("bpe", "wordpiece", "unigram"))
    vocabulary: int | None = option(None, "tokens of a tokenizer that is learned; derived from the text", low=10, high=1_000_000)  # fmt: skip
    validation_share: float | None = option(None, "share of documents set aside for validation; derived", low=0.0, high=0.5)  # fmt: skip
    test_share: float | None = option(None, "share of documents set aside for the test; derived", low=0.0, high=0.5)
    bad_share: float = option(0.01, "largest share of records that cannot be read before it stops", low=0.0, high=1.0)
    data_licence: str | None = option(None, "the licence of the data, for the data card and the cards of models that learn from it")  # fmt: skip
    workers: int | None = option(None, "processes; one for each core when not given; nothing that comes out depends on it", low=1, high=1024)  # fmt: skip
    engine: str = option(
        "here", "what works on large files, or groups of small ones, at once: this process's workers, or datatrove on its own, with Ray or Slurm",
        choices=("here", "datatrove", "ray", "slurm"),
    )  # fmt: skip
    engine_options: dict[str, str] | None = option(None, "further arguments of datatrove's executor, such as partition=cpu,time=10:00:00")  # fmt: skip
    seed: int = option(0, "which documents are set aside", low=0)
