"""A folder that `danlu prepare corpus` made, as training sees it: token ids and texts stay on the disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np

from danlu.core.cache import remembered_sha256, sha256
from danlu.core.errors import UserError
from danlu.data.clean import normal_form
from danlu.data.curate import read_texts
from danlu.data.pack import Tokens
from danlu.data.rows import Source
from danlu.data.tokenizer import Tokenizer
from danlu.experiment import Asked
from danlu.stages.corpus_folder import ASKED, CARD, card_of
from danlu.stages.prepare import KEPT
from danlu.tasks.material import Item


SETTLED = (
    "validation",
    "test",
    "validation_share",
    "test_share",
    "text",
    "group",
    "near",
    "time",
    "folds",
    "fold",
    "tokenizer",
    "vocabulary",
    "bad_rows",
)
"""Settings of the data that were decided when the corpus was made."""


FILES = {"train.npy", "train.documents.npy", "validation.parquet", "test.parquet", "tokenizer/tokenizer.json"}
"""Files of a corpus that is learned from; texts/ beside them."""

AGAIN = "prepare the corpus again, or copy it again"


def _mapped(path: Path) -> np.ndarray:
    """Whole numbers of a file in numpy's format, mapped; nothing in it is executed."""
    try:
        found: np.ndarray = np.load(path, mmap_mode="r")
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: not an array of whole numbers: {error}", AGAIN) from None
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise UserError(f"{path}: found {found.dtype} {list(found.shape)}, expected a row of whole numbers", AGAIN)
    return found


@dataclass(frozen=True)
class Curated:
    """folder: where it lies. card: what corpus.json says. most: documents that are learned from, the first so many; None: all."""

    folder: Path
    card: dict[str, Any]
    most: int | None

    @classmethod
    def of(cls, asked: Asked) -> Curated | None:
        """The corpus that `data=` names, its files as they were when it was made; None if it names something else.

        Raises:
            UserError: it is unfinished, was changed, or has no tokens; a setting is asked for that it has settled.
        """
        folder = Path(asked.experiment.data.data or "").expanduser()
        if asked.experiment.data.data is None or not folder.is_dir():
            return None
        card = card_of(folder)
        if card is None and (folder / "work" / ASKED).is_file():
            raise UserError(f"{folder}: this corpus is not finished", "give its `danlu prepare corpus` command again")
        if card is None:
            return None
        for key in SETTLED:
            if key in asked.settings and not asked.settings[key].origin.startswith(
                ("default", "derived", "recipe", KEPT)
            ):
                raise UserError(
                    f"{key}=: {folder} is a prepared corpus, where that is settled", "leave it out, or prepare another"
                )
        if card["tokens"] is None:
            raise UserError(f"{folder}: it was prepared with tokenize=false", f"data={folder}/texts takes its texts")
        files = card["files"]
        if not isinstance(files, dict) or not files.keys() >= FILES or any(".." in Path(name).parts for name in files):
            raise UserError(f"{folder / CARD}: found other files than those of a corpus", "prepare the corpus again")
        for name, digest in files.items():
            path = folder / name
            if Path(name).is_absolute() or not path.is_file() or remembered_sha256(path) != digest:
                raise UserError(f"{path} is not what it was when the corpus was made", AGAIN)
        return cls(folder, card, asked.experiment.data.max_rows)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder / "tokenizer")

    @cached_property
    def source(self) -> Source:
        total = sum(self.card["documents"].values())
        return Source(self.folder.name, sha256(self.folder / CARD), (), (), total, "a prepared corpus")

    @cached_property
    def tokens(self) -> Tokens:
        """The training part, mapped from the disk."""
        begins, ids = (_mapped(self.folder / name) for name in ("train.documents.npy", "train.npy"))
        if not len(begins) or begins[0] != 0 or begins[-1] != len(ids) or (np.diff(begins) < 0).any():
            raise UserError(f"{self.folder}: train.documents.npy and train.npy do not belong together", AGAIN)
        top = max((int(ids[at : at + (1 << 22)].max()) for at in range(0, len(ids), 1 << 22)), default=0)
        if top >= self.tokenizer.size:
            raise UserError(f"{self.folder}: token {top:,}, but its tokenizer has {self.tokenizer.size:,}", AGAIN)
        begins = np.array(begins[: None if self.most is None else self.most + 1], np.int64)
        return Tokens(ids[: int(begins[-1])], begins, np.arange(len(begins) - 1))

    @cached_property
    def items(self) -> dict[str, Sequence[Item]]:
        """Documents by part; those of training are read when they are asked for."""
        found: dict[str, Sequence[Item]] = {"train": Training(self.folder / "texts", len(self.tokens.numbers))}
        for part in ("validation", "test"):
            found[part] = list(items_of(self.folder / f"{part}.parquet", 0))
        return found

    def findings(self) -> dict[str, Any]:
        """What preflight says of the records: figures of the corpus."""
        documents = {part: len(items) for part, items in self.items.items()}
        dropped = [{"reason": rule, "count": count, "examples": []} for rule, count in self.card["dropped"].items()]
        if self.card["quarantined"]:
            dropped.append(
                {"reason": "cannot be read", "count": self.card["quarantined"], "examples": ["quarantine.jsonl"]}
            )
        kept = sum(documents.values())
        if (rest := sum(self.card["documents"].values()) - kept) > 0:
            dropped.append({"reason": f"behind the first {self.most:,} (max_rows)", "count": rest, "examples": []})
        return {
            "rows": {"read": self.card["records"], "kept": kept, "dropped": dropped},
            "splits": documents,
            "duplicates": 0,
            "leaks": 0,
            "near": 0,
            "labels": {},
            "notes": [],
            "corpus": {key: value for key, value in self.card.items() if key not in ("files", "asked")},
        }


def items_of(path: Path, first: int) -> Iterator[Item]:
    """The documents of a file; first: the number of its first one."""
    for number, (text, place) in enumerate(zip(*read_texts(path, ("text", "place")), strict=True), first):
        yield Item(number, place, normal_form(text), text, {"text": text})


class Training(Sequence[Item]):
    """Documents in a folder of files, in their order, read one file at a time."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.size = folder, count

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Item]:
        number = 0
        for path in sorted(self.folder.iterdir()):
            for item in items_of(path, number):
                if number == self.size:
                    return
                yield item
                number += 1

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> list[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | list[Item]:
        wanted = range(self.size)[place]
        if isinstance(wanted, int):
            return next(item for item in self if item.number == wanted)
        until = islice(self, max(wanted, default=-1) + 1)
        return [item for item in until if item.number in wanted]
