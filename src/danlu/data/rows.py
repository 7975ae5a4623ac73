"""Rows with the place they came from, and their collection: what is kept, what is rejected and why."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from danlu.core.errors import UserError, nearest


SKIP = "mend the row, or set bad_rows=skip to leave such rows out and count them"

TEXTS = ("text", "sentence", "content", "review", "document", "body", "comment", "message")
"""Usual names of a column with texts."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record.

    number: the line in the file for JSONL and text (a document's first line); for everything else the record's number, from 1. Unique
        in a source.
    where: what stands before the number in an error: `my.jsonl:` or `my.csv record `.
    """

    number: int
    values: dict[str, Any]
    where: str = "row "

    @property
    def place(self) -> str:
        return f"{self.where}{self.number}"


@dataclass(frozen=True, slots=True)
class FileRow(Row):
    """A row of one file of several, or that is a file of its own: `where` says the whole place, `number` counts over all files."""

    @property
    def place(self) -> str:
        return self.where


@dataclass(frozen=True)
class Rejected:
    """A row left out (`bad_rows=skip`): its place (`my.jsonl:17`) and the reason."""

    place: str
    reason: str


@dataclass(frozen=True)
class Source:
    """What was read.

    name: the file's or folder's name, or `Python` for data handed over in memory.
    sha256: of the file's bytes as they lie on the disk; of several files, of what `sha256sum` prints for them, a line each;
        for Python data of the rows kept.
    total: records, readable or not, before max_rows.
    format: what the file was taken for and what in it is no record, to be said aloud.
    """

    name: str
    sha256: str
    rows: tuple[Row, ...]
    rejected: tuple[Rejected, ...]
    total: int
    format: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column some row has, in the order they appear."""
        return tuple(dict.fromkeys(itertools.chain.from_iterable(row.values for row in self.rows)))


class RowError(Exception):
    """A record that cannot be read; the rest of the file can."""

    def __init__(self, reason: str, fix: str = SKIP) -> None:
        super().__init__(reason)
        self.reason, self.fix = reason, fix


class Unreachable(UserError):  # noqa: N818 (as UserError reads)
    """A file cannot be read for a reason that lies outside of it: rights, the network, a package that is missing."""


class NoRecord(Exception):  # noqa: N818 (nothing is wrong)
    """What stands at a place turns out to be no record, such as a page without text; it is counted by its `kind`."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Collected:
    """Rows and rejected rows as they come: the first `max_rows` readable ones are kept, all are counted.

    file: what places are named by; each file in turn when `several` are read into one.
    mixed: whether these may be of several kinds.
    left_out: what in the files is no record, by kind, counted.
    files: what was read, each with its SHA-256 and what it was taken for. reading: the file at hand, its `count` the bytes read so far.
    """

    mixed = False

    def __init__(self, name: str, bad_rows: str, max_rows: int | None) -> None:
        self.name, self.skip, self.limit = name, bad_rows == "skip", max_rows
        self.file, self.several = name, False
        self.left_out: Counter[str] = Counter()
        self.files: list[dict[str, Any]] = []
        self.reading: Any = None
        self.rows: list[Row] = []
        self.rejected: list[Rejected] = []
        self.total = 0

    @property
    def read(self) -> int:
        """Bytes of the file at hand that were read."""
        return int(self.reading.count) if self.reading else 0

    @property
    def full(self) -> bool:
        return self.limit is not None and len(self.rows) >= self.limit

    def add(self, number: int, where: str, place: str, record: Callable[[], dict[str, Any]]) -> None:
        """A record that is read by calling `record`, in another process perhaps: RowError if it cannot be, NoRecord if it is none."""
        self.total += 1
        if self.full:
            return
        try:
            row = FileRow(self.total, record(), place) if self.several else Row(number, record(), where)
            self.rows.append(row)
        except NoRecord as found:
            self.total -= 1
            self.left_out[found.kind] += 1
        except RowError as bad:
            if not self.skip:
                raise UserError(f"{place}: {bad.reason}", bad.fix) from None
            self.rejected.append(Rejected(place, bad.reason))

    def broken(self, error: UserError) -> None:
        """The file at hand cannot be read any further."""
        raise error

    def source(self, sha256: str, format: str) -> Source:  # noqa: A002 (the field's own name)
        if self.left_out:
            format += "; left out: " + ", ".join(f"{count:,} {kind}" for kind, count in self.left_out.items())  # noqa: A001
        if not self.rows:
            if self.rejected:
                first = self.rejected[0]
                raise UserError(
                    f"{self.name}: none of its {self.total} rows can be read; the first, {first.place}: {first.reason}",
                    f"expected {format}; mend the file",
                )
            raise UserError(
                f"{self.name}: read as {format}, there is no row in it",
                "put at least one row into it, or name another file",
            )
        return Source(self.name, sha256, tuple(self.rows), tuple(self.rejected), self.total, format)


def column(source: Source, wanted: str | None, usual: Sequence[str], key: str) -> str:
    """The column to use: `wanted` if given, else the first of the `usual` names the source has (any case).

    key: the setting that names this column, for the error.
    """
    columns = source.columns
    listed = ", ".join(repr(name) for name in columns)
    if wanted is not None:
        if wanted not in columns:
            raise UserError(
                f"{source.name}: no column {wanted!r} ({key}={wanted}); it has {listed}", nearest(wanted, columns)
            )
        return wanted
    by_name = {name.strip().lower(): name for name in reversed(columns)}
    for name in usual:
        if name.lower() in by_name:
            return by_name[name.lower()]
    raise UserError(
        f"{source.name}: no column for {key}: looked for {', '.join(usual)}; it has {listed}",
        f"name the column: {key}=COLUMN"
        + "; if the first line is already a row, write the names of the columns above it, such as: text,label"
        * source.format.startswith(("CSV", "TSV")),
    )


def cell(row: Row, name: str) -> Any:
    """The row's value in a column; an error naming the row when it has none (absent, null, or empty text)."""
    value = row.values.get(name)
    if value is None or value == "":
        found = (
            "is null" if name in row.values and value is None else "is empty" if name in row.values else "is missing"
        )
        raise UserError(f"{row.place}: column {name!r} {found}; the row has {', '.join(map(repr, row.values))}", SKIP)
    return value


def kind_of(value: Any) -> str:
    """What a value read from JSON is, in words, with its beginning."""
    if value is None:
        return "null"
    names = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return f"{names.get(type(value), type(value).__name__)} ({json.dumps(value, ensure_ascii=False, default=str)[:40]})"
