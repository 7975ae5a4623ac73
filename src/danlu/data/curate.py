"""Raw records -> a corpus on the disk: cleaned, without repetitions, tokenized, in memory that does not grow with the input.

Four passes over chunks of records, the first here and the others in `assemble.py`. Each chunk's result is a folder that is there whole or
not at all, so whatever was killed goes on with what is missing. Where chunks begin depends on the records alone: any number of workers
writes the same bytes.

    read      records -> texts.parquet, hashes for duplicates, summary.json       a chunk a folder, `work/read/UNIT-CHUNK`; `UNIT.json` when all are there
    repeats   all hashes -> which document repeats which earlier one              `work/repeats.*.npy`
    pack      texts that stay -> train, validation, test; token ids               a chunk a folder, `work/pack/UNIT-CHUNK`
    join      train.npy, train.documents.npy, texts/, validation.parquet, test.parquet, quarantine.jsonl, dropped.jsonl

A unit is a large file, or several small ones: what one machine of several takes at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from filelock import FileLock

from danlu.core.cache import sha256, whole, write_json
from danlu.core.errors import UserError
from danlu.data import near
from danlu.data.files import Address, name_in, sources_at, state
from danlu.data.rows import TEXTS, Collected, NoRecord, RowError, kind_of
from danlu.data.source import read_into, read_these
from danlu.data.steps import Cleaned, anonymous
from danlu.data.workers import Workers


CHARACTERS, RECORDS = 1 << 22, 10_000
"""Of a chunk. A few chunks are in memory at a time."""

UNIT = 1 << 28
"""Bytes on the disk from which on a file is a unit of its own."""

SAMPLES, EXCERPT = 20, 1500
"""Of what each rule drops: documents that are shown, and characters of each."""

DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a damaged file of ours raises, besides pyarrow's own."""

Say = Callable[[str], None]
Record = tuple[int, str, Callable[[], dict[str, Any]]]
"""The number of its file in the unit, where it stands, and what reads it."""


@dataclass(frozen=True)
class Unit:
    """Files that are read one after the other.

    name: of its chunks; another one for other files, or files that have changed. states: of each file its name, its bytes and what changes
    with its content. several: whether there are other units or files, so that places name theirs. rows: the one file is what `keep_rows` wrote.
    """

    name: str
    states: tuple[tuple[str, int, Any], ...]
    files: tuple[Path | Address, ...]
    place: Path | None = None
    several: bool = False
    rows: bool = False

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(size for _, size, _ in self.states)


@dataclass(frozen=True)
class Reading:
    """What a worker of the first pass needs. column: named by `text=`. near: similarity from which on documents are near copies; None: exact ones only."""

    clean: Callable[[str], Cleaned]
    column: str | None
    near: float | None


@dataclass(frozen=True)
class Plan:
    """All that decides what comes out.

    work: the folder of the passes. duplicates: whether any are looked for. characters: of a chunk, at most, but for a single record that is longer.
    """

    work: Path
    units: tuple[Unit, ...]
    reading: Reading
    duplicates: bool
    characters: int = CHARACTERS


# ---------------------------------------------------------------------------------------------------------------- units


def units(data: str | os.PathLike[str], least: int = UNIT) -> tuple[tuple[Unit, ...], str]:
    """What `data.source.read` takes, files of any kinds beside each other, in groups of at least so many bytes; and what is to be said of it."""
    place, files, note = sources_at(data, mixed=True)
    several = place is not None or len(files) > 1
    made: list[Unit] = []
    group: list[tuple[Path | Address, tuple[str, int, Any]]] = []
    names: Counter[str] = Counter()
    filled = 0
    for number, file in enumerate(files, 1):
        size, mark = state(file)
        group.append((file, (name_in(place, file), size, mark)))
        filled += size
        if filled >= least or number == len(files):
            states = tuple(each for _, each in group)
            name = _name([several, states])
            names[name] += 1  # the same files may be named twice
            made.append(Unit(f"{name}{names[name]}", states, tuple(each for each, _ in group), place, several))
            group, filled = [], 0
    return tuple(made), note


def _name(identity: Any) -> str:
    return hashlib.blake2b(json.dumps(identity).encode(), digest_size=12).hexdigest()


def keep_rows(data: Any, column: str | None, target: Path) -> Unit:
    """Rows from Python, written to the file `target`: a line holds a text, or a list with the reason why there is none."""
    with whole(target, alone=True) as building, building.open("w", encoding="utf-8") as file:
        read_into(data, _Kept(file, column))
    digest = sha256(target)
    return Unit(_name(digest), (("Python", target.stat().st_size, digest),), (target,), rows=True)


class _Kept(Collected):
    """Writes texts to a file as they come."""

    def __init__(self, file: TextIO, column: str | None) -> None:
        super().__init__("Python", "skip", None)
        self.to, self.column = file, column

    def add(self, number: int, where: str, place: str, record: Callable[[], dict[str, Any]]) -> None:
        try:
            line: str | list[str] = text_of(record(), self.column)
        except Exception as error:  # noqa: BLE001
            line = [reason_of(error)]
        self.to.write(json.dumps(line) + "\n")


def reason_of(error: Exception) -> str:
    """Why a record cannot be read, for a list that others see."""
    return masked(error.reason if isinstance(error, RowError) else f"{type(error).__name__}: {error}")[:300]


def _row(line: bytes, column: str) -> dict[str, Any]:
    value = json.loads(line)
    if isinstance(value, list):
        raise RowError(value[0])
    return {column: value}


class Cutter(Collected):
    """Cuts records into chunks and hands each over as soon as it is full."""

    mixed = True

    def __init__(self, hand_over: Callable[[list[Record]], None], characters: int = CHARACTERS) -> None:
        super().__init__("data", "skip", None)
        self.hand_over, self.characters = hand_over, characters
        self.waiting: list[Record] = []
        self.filled = 0

    def add(self, number: int, where: str, place: str, record: Callable[[], dict[str, Any]]) -> None:
        self.total += 1
        size = _size(getattr(record, "args", ()))
        if self.waiting and self.filled + size > self.characters:
            self.flush()
        self.waiting.append((len(self.files), place, record))
        self.filled += size
        if len(self.waiting) >= RECORDS:
            self.flush()

    def broken(self, error: UserError) -> None:
        self.add(0, "", f"{self.file}, the rest", partial(_refused, f"{error.message} ({error.fix})"))

    def flush(self) -> None:
        """Hand over what waits."""
        if self.waiting:
            chunk, self.waiting, self.filled = self.waiting, [], 0
            self.hand_over(chunk)


def _refused(reason: str) -> dict[str, Any]:
    raise RowError(reason)


def _size(value: Any) -> int:
    """About how many characters a value holds."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, (list, tuple)) else 8


# ----------------------------------------------------------------------------------------------------------------- read


@dataclass
class Summary:
    """What became of the records of one chunk or of many; sums, and the samples that a hash of their place chose.

    changed: documents by step. dropped: by step and rule (`quality: gopher: …`). personal: replaced, by kind. samples: by step and rule,
    [hash, place, found, excerpt], without personal data. bad: the first few that cannot be read. bytes: of the texts that stay, in UTF-8.
    none: by number of the file in its unit, what turned out to be no record.
    """

    records: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    none: Counter[str] = field(default_factory=Counter)
    quarantined: int = 0
    kept: int = 0
    bytes: int = 0
    bytes_before: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    personal: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[list[str]]] = field(default_factory=dict)
    bad: list[list[str]] = field(default_factory=list)

    def sample(self, rule: str, place: str, found: str, text: str) -> None:
        """Keep this one if its hash is among the least: a random choice that does not depend on how records are cut."""
        order, before = hashlib.blake2b(place.encode(), digest_size=8).hexdigest(), self.samples.get(rule, [])
        if len(before) < SAMPLES or [order] < before[-1]:
            row = [order, place, masked(found), masked(text[: 2 * EXCERPT])[:EXCERPT]]
            self.samples[rule] = heapq.nsmallest(SAMPLES, [*before, row])

    def join(self, other: Summary) -> None:
        """Add another's."""
        for name in ("records", "quarantined", "kept", "bytes", "bytes_before"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in COUNTED:
            getattr(self, name).update(getattr(other, name))
        for rule, rows in other.samples.items():
            self.samples[rule] = heapq.nsmallest(SAMPLES, self.samples.get(rule, []) + rows)
        self.bad = (self.bad + other.bad)[:3]

    @classmethod
    def of(cls, values: dict[str, Any]) -> Summary:
        """What `vars` gave of one."""
        return cls(**values | {name: Counter(values[name]) for name in COUNTED})

    @classmethod
    def load(cls, folder: Path) -> Summary:
        """A chunk's."""
        with intact(folder / "summary.json"):
            return cls.of(json.loads((folder / "summary.json").read_bytes()))


COUNTED = ("left_out", "none", "changed", "dropped", "personal", "languages")


def masked(text: str) -> str:
    """Text from records that is shown on a page or in a list: personal data replaced, valid Unicode."""
    try:
        return anonymous(text.encode("utf-8", "backslashreplace").decode())[0]
    except ImportError as error:
        return f"(not shown: to find personal data in it needs {error.name})"


def read_unit(
    plan: Plan,
    unit: Unit,
    workers: Workers,
    done: Callable[[Summary], None] | None = None,
    watch: Callable[[Cutter], None] | None = None,
) -> None:
    """The first pass over one unit. done: called with what each chunk adds, or a unit that was there, in order. watch: with the reader.

    At the end `record_of` has what is to be known of it, and it is not read again.
    """
    folder = plan.work / "read"
    folder.mkdir(parents=True, exist_ok=True)
    told = done or (lambda _: None)
    if (folder / f"{unit.name}.json").is_file():
        workers.know(Summary.of(record_of(plan, unit)["summary"]), told)
        return
    together, documents = Summary(), list[int]()

    def chunk(found: Summary) -> None:
        documents.append(found.kept)
        together.join(found)
        told(found)

    def rest(found: Summary) -> None:
        together.join(found)
        told(found)
        for number, file in enumerate(cutter.files):
            file["records"] -= together.none[str(number)]
        write_json(
            folder / f"{unit.name}.json", {"files": cutter.files, "documents": documents, "summary": vars(together)}
        )

    numbers = itertools.count()

    def hand_over(records: list[Record]) -> None:
        target = folder / f"{unit.name}-{next(numbers):07d}"
        if target.is_dir():
            workers.know(Summary.load(target), chunk)
        else:
            workers.give(read_chunk, (target, records), chunk)

    cutter = Cutter(hand_over, plan.characters)
    if watch:
        watch(cutter)
    cutter.several = unit.several
    if unit.rows:
        with Path(str(unit.files[0])).open("rb") as file:
            for number, line in enumerate(file, 1):
                cutter.add(number, "row ", f"row {number}", partial(_row, line, plan.reading.column or "text"))
        name, size, digest = unit.states[0]
        cutter.files.append({"name": name, "sha256": digest, "format": "rows", "records": cutter.total, "bytes": size})
    else:
        read_these(unit.place, unit.files, cutter)
    cutter.flush()
    workers.know(Summary(left_out=cutter.left_out), rest)


def read_alone(plan: Plan, unit: int) -> None:
    """The first pass over one unit, in this process alone; a second one that was sent for it waits."""
    with FileLock(plan.work / f"{unit}.lock"), Workers(1, plan.reading) as workers:
        read_unit(plan, plan.units[unit], workers)


def record_of(plan: Plan, unit: Unit) -> dict[str, Any]:
    """Of a unit that was read: `files`, what each was; `documents` of each chunk; `summary`."""
    found: dict[str, Any] = json.loads((plan.work / "read" / f"{unit.name}.json").read_bytes())
    return found


def read_chunk(given: Reading, target: Path, records: list[Record]) -> Summary:
    """Records -> the folder `target`: texts.parquet, hashes, quarantine.jsonl, dropped.jsonl and summary.json."""
    found, texts, places, languages = Summary(), list[str](), list[str](), list[str]()
    quarantine: list[dict[str, str]] = []
    dropped: list[dict[str, str]] = []
    for file, place, record in records:
        try:
            text = text_of(record(), given.column)
            cleaned = given.clean(text)
            size = len(cleaned.text.encode())
        except NoRecord as none:
            found.left_out[none.kind] += 1
            found.none[str(file)] += 1
            continue
        except Exception as error:  # noqa: BLE001 (of what libraries raise on one text, the others know nothing)
            reason = reason_of(error)
            quarantine.append({"place": place, "reason": reason})
            found.records += 1
            found.quarantined += 1
            found.bad = (found.bad + [[place, reason]])[:3]
            continue
        found.records += 1
        found.bytes_before += len(text.encode("utf-8", "surrogatepass"))
        found.changed.update(cleaned.changed)
        found.personal.update(cleaned.personal)
        if cleaned.dropped:
            step, rule, what = cleaned.dropped
            found.dropped[f"{step}: {rule}"] += 1
            dropped.append({"place": place, "rule": f"{step}: {rule}"})
            found.sample(f"{step}: {rule}", place, what, cleaned.text or text)
            continue
        found.kept += 1
        found.bytes += size
        found.languages[cleaned.language] += 1
        texts.append(cleaned.text)
        places.append(place)
        languages.append(cleaned.language)
    with whole(target, alone=True) as building:
        building.mkdir()
        write_texts(building / "texts.parquet", {"text": texts, "place": places, "language": languages}, "lz4")
        near.write(building / "hashes", texts, given.near)
        write_left_out(building, quarantine, dropped)
        (building / "summary.json").write_text(json.dumps(vars(found), ensure_ascii=False), "utf-8")
    return found


def text_of(values: dict[str, Any], column: str | None) -> str:
    """The text of a record: of the column that is named (of several, the first it has), or the first with a usual name."""
    if column is None:
        by_name = {name.strip().lower(): name for name in reversed(values)}
        found = next((by_name[name] for name in TEXTS if name in by_name), None)
    else:
        found = next((name for name in (column, *column.split(",")) if name in values), None)
    if found is None:
        wanted = f"for the text ({', '.join(TEXTS)})" if column is None else repr(column)
        raise RowError(f"no column {wanted}; the record has {', '.join(map(repr, values))[:200]}")
    column, text = found, values[found]
    if not isinstance(text, str):
        raise RowError(f"column {column!r}: found {kind_of(text)}, expected text")
    if not text.strip():
        raise RowError(f"column {column!r} is empty")
    return text


def write_left_out(folder: Path, quarantine: list[dict[str, str]], dropped: list[dict[str, str]]) -> None:
    """`quarantine.jsonl`, `place` and `reason` of what cannot be read, and `dropped.jsonl`, `place` and `rule`, of a chunk."""
    for name, rows in (("quarantine", quarantine), ("dropped", dropped)):
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")


def write_texts(path: Path, columns: dict[str, list[str]], compression: str = "zstd") -> None:
    """Columns of text as Parquet."""
    import pyarrow as pa
    from pyarrow import parquet

    # `pa.array` would import pandas, which takes half a second in every process.
    def column(rows: Sequence[str]) -> pa.Array:
        made = [row.encode() for row in rows]
        ends = np.cumsum([0, *map(len, made)], dtype=np.int64)
        return pa.LargeStringArray.from_buffers(len(rows), pa.py_buffer(ends), pa.py_buffer(b"".join(made)))

    parquet.write_table(
        pa.table([column(rows) for rows in columns.values()], list(columns)), path, compression=compression
    )


def read_texts(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """The columns of such a file."""
    from pyarrow import parquet

    with intact(path):
        with parquet.ParquetFile(path, memory_map=False) as file:
            table = file.read(list(columns), use_threads=False)
        return [table.column(name).to_pylist() for name in columns]


@contextlib.contextmanager
def intact(path: Path) -> Iterator[None]:
    """While a file of ours is read: what is damaged or missing in it is told, with the way to make it again."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, *DAMAGED) as error:
        raise UserError(
            f"{path} is damaged: {type(error).__name__}: {error}",
            "remove the folder `work` of the corpus, or all of a finished one, and give the command again",
        ) from None
