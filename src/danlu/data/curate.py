"""Raw records -> a corpus on the disk: cleaned, without repetitions, tokenized, in memory that does not grow with the input.

Four passes over chunks of records. Each chunk's result is a folder that is there whole or not at all, so whatever was killed goes on with
what is missing. Where chunks begin depends on the records alone: any number of workers writes the same bytes.

    read      records -> texts.parquet, hashes for duplicates, summary.json       a chunk a folder, `work/read/UNIT-CHUNK`
    repeats   all hashes -> which document repeats which earlier one              `work/repeats.*.npy`
    pack      texts that stay -> train, validation, test; token ids               a chunk a folder, `work/pack/UNIT-CHUNK`
    join      train.npy, train.documents.npy, texts/, validation.parquet, test.parquet, quarantine.jsonl

A unit is a large file, or several small ones: what one machine of several takes at a time.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from danlu.core.cache import whole
from danlu.data import near
from danlu.data.options import CleaningOptions
from danlu.data.rows import Collected, NoRecord, RowError, kind_of
from danlu.data.source import Address, read_into, read_these, sources_at
from danlu.data.steps import Against, Cleaner
from danlu.data.workers import Workers


TEXTS = ("text", "sentence", "content", "review", "document", "body", "comment", "message")
"""Usual names of a column with texts."""

CHARACTERS, RECORDS = 1 << 22, 10_000
"""Of a chunk. A few chunks are in memory at a time."""

UNIT = 1 << 28
"""Bytes on the disk from which on a file is a unit of its own."""

SAMPLES, EXCERPT = 20, 1500
"""Of what each rule drops: documents that are shown, and characters of each."""

REPEATED = ("duplicates: nearly an earlier document", "duplicates: the same words as an earlier document")
"""What a document that is nearly or exactly an earlier one was dropped for."""

Say = Callable[[str], None]
Record = tuple[str, Callable[[], dict[str, Any]]]
"""Where it stands, and what reads it."""


@dataclass(frozen=True)
class Unit:
    """Files that are read one after the other, or rows from Python. several: whether there are other files, so that places name theirs."""

    place: Path | None = None
    files: tuple[Path | Address, ...] = ()
    rows: Any = None
    several: bool = False


@dataclass(frozen=True)
class Plan:
    """All that decides what comes out.

    work: the folder of the passes. column: named by `text=`. duplicates: whether any are looked for. near: similarity from which on
    documents are near copies; None: exact copies only. characters: of a chunk, at most, but for a single record that is longer.
    """

    work: Path
    units: tuple[Unit, ...]
    column: str | None
    cleaning: CleaningOptions
    against: Against | None
    duplicates: bool
    near: float | None
    characters: int = CHARACTERS


@dataclass(frozen=True)
class Cuts:
    """How documents are set aside: those with the least of a hash that is drawn from their words and the seed, equal words together.

    test, validation: the largest hash that is still in the part, or in that of the test; -1 where there is none.
    """

    test: int
    validation: int
    seed: int

    def parts(self, keys: np.ndarray) -> np.ndarray:
        """uint8 [documents]: 0 train, 1 validation, 2 test. keys: uint64 [documents, 2]."""
        drawn = hashes(keys, self.seed)
        found = np.zeros(len(keys), np.uint8)
        for part, cut in ((1, self.validation), (2, self.test)):
            if cut >= 0:
                found[drawn <= np.uint64(cut)] = part
        return found


def hashes(keys: np.ndarray, seed: int) -> np.ndarray:
    """uint64 [documents]: another order of the keys (uint64 [documents, 2], evenly spread themselves) for each seed."""
    mixed = (keys[:, 0] ^ np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)) * np.uint64(0xBF58476D1CE4E5B9)
    found: np.ndarray = mixed ^ (mixed >> np.uint64(31))
    return found


# ---------------------------------------------------------------------------------------------------------------- units


def units(data: Any, least: int = UNIT) -> tuple[tuple[Unit, ...], str]:
    """What `data.source.read` takes, files of any kinds beside each other, in groups of at least so many bytes; and what is to be said of it."""
    if not isinstance(data, (str, os.PathLike)):
        return (Unit(rows=data),), ""
    place, files, note = sources_at(data, mixed=True)
    several = place is not None or len(files) > 1
    made: list[Unit] = []
    group: list[Path | Address] = []
    filled = 0
    for file in files:
        group.append(file)
        filled += bytes_of(file)
        if filled >= least or file is files[-1]:
            made.append(Unit(place, tuple(group), several=several))
            group, filled = [], 0
    return tuple(made), note


def bytes_of(file: Path | Address) -> int:
    """Of a file on the disk; 0 for one that is elsewhere or not there."""
    try:
        return file.stat().st_size if isinstance(file, Path) else 0
    except OSError:
        return 0


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
        self.waiting.append((place, record))
        self.filled += size
        if len(self.waiting) >= RECORDS:
            self.flush()

    def flush(self) -> None:
        """Hand over what waits."""
        if self.waiting:
            chunk, self.waiting, self.filled = self.waiting, [], 0
            self.hand_over(chunk)


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
    [hash, place, found, excerpt]. bad: the first few that cannot be read. bytes: of the texts that stay, in UTF-8.
    """

    records: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
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
        order = hashlib.blake2b(place.encode(), digest_size=8).hexdigest()
        self.samples[rule] = heapq.nsmallest(
            SAMPLES, [*self.samples.get(rule, []), [order, place, found, text[:EXCERPT]]]
        )

    def join(self, other: Summary) -> None:
        """Add another's."""
        for name in ("records", "quarantined", "kept", "bytes", "bytes_before"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("left_out", "changed", "dropped", "personal", "languages"):
            getattr(self, name).update(getattr(other, name))
        for rule, rows in other.samples.items():
            self.samples[rule] = heapq.nsmallest(SAMPLES, self.samples.get(rule, []) + rows)
        self.bad = (self.bad + other.bad)[:3]

    @classmethod
    def load(cls, folder: Path) -> Summary:
        """A chunk's."""
        found = cls(**json.loads((folder / "summary.json").read_bytes()))
        for name in ("left_out", "changed", "dropped", "personal", "languages"):
            setattr(found, name, Counter(getattr(found, name)))
        return found


def read_unit(
    plan: Plan, unit: int, workers: Workers, done: Callable[[Summary], None], watch: Callable[[Cutter], None]
) -> Cutter:
    """The first pass over one unit; what the reader counted. done: called with each chunk's summary, in order. watch: with the reader."""
    number = 0

    def hand_over(records: list[Record]) -> None:
        nonlocal number
        target = chunk_folder(plan.work / "read", unit, number)
        number += 1
        if target.is_dir():
            workers.know(Summary.load(target), done)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            workers.give(read_chunk, (target, records), done)

    cutter = Cutter(hand_over, plan.characters)
    watch(cutter)
    read_records(plan.units[unit], cutter)
    return cutter


def read_records(unit: Unit, cutter: Cutter) -> None:
    """All records of a unit into the cutter."""
    cutter.several = unit.several
    if unit.files:
        read_these(unit.place, unit.files, cutter)
    else:
        digest, kind = read_into(unit.rows, cutter)
        cutter.files.append({"name": "Python", "sha256": digest, "format": kind, "records": cutter.total, "bytes": 0})
    cutter.flush()


def chunk_folder(work: Path, unit: int, number: int) -> Path:
    """Where the result of a chunk lies; names in order."""
    return work / f"{unit:05d}-{number:07d}"


def reading(plan: Plan) -> tuple[Plan, Cleaner]:
    """What a worker of the first pass needs."""
    return plan, Cleaner(plan.cleaning, plan.against)


def read_chunk(state: tuple[Plan, Cleaner], target: Path, records: list[Record]) -> Summary:
    """Records -> the folder `target`: texts.parquet, hashes, quarantine.jsonl and summary.json."""
    plan, clean = state
    found, quarantine, texts, places, languages = Summary(), list[str](), list[str](), list[str](), list[str]()
    for place, record in records:
        try:
            text = text_of(record(), plan.column)
            cleaned = clean(text)
            size = len(cleaned.text.encode())
        except NoRecord as none:
            found.left_out[none.kind] += 1
            continue
        except (RowError, UnicodeError, RecursionError, MemoryError) as error:
            reason = error.reason if isinstance(error, RowError) else f"{type(error).__name__}: {error}"
            quarantine.append(json.dumps({"place": place, "reason": reason[:300]}, ensure_ascii=False))
            found.records += 1
            found.quarantined += 1
            found.bad = (found.bad + [[place, reason[:300]]])[:3]
            continue
        found.records += 1
        found.bytes_before += len(text.encode("utf-8", "surrogatepass"))
        found.changed.update(cleaned.changed)
        found.personal.update(cleaned.personal)
        if cleaned.dropped:
            step, rule, what = cleaned.dropped
            found.dropped[f"{step}: {rule}"] += 1
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
        write_texts(building / "texts.parquet", {"text": texts, "place": places, "language": languages})
        near.write(building / "hashes", texts, plan.near)
        (building / "quarantine.jsonl").write_text("".join(f"{line}\n" for line in quarantine), "utf-8")
        (building / "summary.json").write_text(json.dumps(vars(found), ensure_ascii=False), "utf-8")
    return found


def text_of(values: dict[str, Any], column: str | None) -> str:
    """The text of a record: of the column that is named, or the first with a usual name."""
    if column is None:
        by_name = {name.strip().lower(): name for name in reversed(values)}
        column = next((by_name[name] for name in TEXTS if name in by_name), None)
        if column is None:
            raise RowError(f"no column for the text; the record has {', '.join(map(repr, values))[:200]}")
    elif column not in values:
        raise RowError(f"no column {column!r}; the record has {', '.join(map(repr, values))[:200]}")
    text = values[column]
    if not isinstance(text, str):
        raise RowError(f"column {column!r}: found {kind_of(text)}, expected text")
    if not text.strip():
        raise RowError(f"column {column!r} is empty")
    return text


def write_texts(path: Path, columns: dict[str, list[str]]) -> None:
    """Columns of text as Parquet."""
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(
        pa.table({name: pa.array(rows, pa.large_string()) for name, rows in columns.items()}), path, compression="zstd"
    )


def read_texts(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """The columns of such a file."""
    from pyarrow import parquet

    table = parquet.read_table(path, columns=list(columns), use_threads=False, memory_map=False)
    return [table.column(name).to_pylist() for name in columns]


# -------------------------------------------------------------------------------------------------------------- repeats


def find_repeats(plan: Plan) -> Path:
    """The second pass, in one process: `work/repeats.first.npy` and `.exact.npy`, all documents counted through."""
    out, done = plan.work / "repeats", plan.work / "repeats.done"
    if not done.exists():
        stems = [folder / "hashes" for folder in chunks(plan.work / "read")]
        near.repeats(stems, out, plan.near) if plan.duplicates else None
        done.touch()
    return out


def repeated(plan: Plan, name: str, begin: int, count: int) -> np.ndarray:
    """What was found of `count` documents: `first`, the number of the document that each repeats, or -1; or `exact`, whether word for word."""
    if not plan.duplicates:
        return np.full(count, -1) if name == "first" else np.zeros(count, bool)
    return np.array(np.load(plan.work / f"repeats.{name}.npy", mmap_mode="r")[begin : begin + count])


def keys_of(chunk: Path) -> np.ndarray:
    """uint64 [documents, 2]: of each document of a chunk of the first pass, 128 bits of its normal form."""
    return near.keys(chunk / "hashes")


def staying(plan: Plan) -> Iterator[tuple[Path, int, np.ndarray, np.ndarray]]:
    """Of each chunk of the first pass: its folder, the number of its first document, the keys of all, and bool: which repeat none."""
    begin = 0
    for folder in chunks(plan.work / "read"):
        keys = keys_of(folder)
        yield folder, begin, keys, repeated(plan, "first", begin, len(keys)) < 0
        begin += len(keys)


def cuts(plan: Plan, validation: int, test: int, seed: int) -> Cuts:
    """So many documents set aside (more only where equal ones are kept)."""
    least = np.empty(0, np.uint64)
    for _, _, keys, stays in staying(plan):
        least = np.concatenate([least, hashes(keys[stays], seed)])
        if len(least) > test + validation:
            least = np.partition(least, test + validation)[: test + validation]
    least = np.sort(least)
    both = int(least[test + validation - 1]) if test + validation else -1
    return Cuts(int(least[test - 1]) if test else -1, both if validation else -1, seed)


def training_texts(plan: Plan, cuts: Cuts, share: float) -> Iterator[str]:
    """The texts of the training part, or a share of them that is spread over all."""
    for folder, _, keys, stays in staying(plan):
        chosen = stays & (cuts.parts(keys) == 0) & (keys[:, 1] <= np.uint64(min(2**64 - 1, int(share * 2**64))))
        (texts,) = read_texts(folder / "texts.parquet", ("text",))
        yield from (text for text, wanted in zip(texts, chosen.tolist(), strict=True) if wanted)


def with_originals(plan: Plan, samples: dict[str, list[list[str]]]) -> dict[str, list[list[str]]]:
    """Samples of what was dropped; of a repetition with the place of what it repeats instead of its number."""
    wanted = {int(row[2]) for rule in REPEATED for row in samples.get(rule, ())}
    places: dict[int, str] = {}
    for folder, begin, keys, _ in staying(plan) if wanted else ():
        if mine := {number for number in wanted if begin <= number < begin + len(keys)}:
            (found,) = read_texts(folder / "texts.parquet", ("place",))
            places |= {number: found[number - begin] for number in mine}
    return {
        rule: [
            [order, place, places[int(what)] if rule in REPEATED else what, text] for order, place, what, text in rows
        ]
        for rule, rows in samples.items()
    }


def chunks(folder: Path) -> list[Path]:
    """The chunks of a pass, in their order."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


# ----------------------------------------------------------------------------------------------------------------- pack


@dataclass(frozen=True)
class Packing:
    """What a worker of the third pass needs. tokenizer: its folder; None: texts only. causal: what a document begins and ends with is kept."""

    plan: Plan
    cuts: Cuts
    tokenizer: Path | None
    causal: bool


def packing(given: Packing) -> tuple[Packing, Any]:
    """In a worker: the tokenizer on one thread, since every core has a worker."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if multiprocessing.parent_process() else "true"
    from danlu.data.tokenizer import Tokenizer

    return given, Tokenizer.load(given.tokenizer) if given.tokenizer else None


def pack(given: Packing, workers: Workers, done: Callable[[dict[str, Any]], None], unit: int | None = None) -> None:
    """The third pass over all chunks, or over those of one unit. done: called with the counts of each, in order."""
    folder = given.plan.work / "pack"
    folder.mkdir(exist_ok=True)
    for source, begin, _, _ in staying(given.plan):
        target = folder / source.name
        if unit is not None and not source.name.startswith(f"{unit:05d}-"):
            continue
        if target.is_dir():
            workers.know(json.loads((target / "counts.json").read_bytes()), done)
        else:
            workers.give(pack_chunk, (source, target, begin), done)


def read_alone(plan: Plan, unit: int) -> None:
    """The first pass over one unit, in this process alone."""
    with Workers(1, reading, plan) as workers:
        read_unit(plan, unit, workers, _ignored, _ignored)


def pack_alone(given: Packing, unit: int) -> None:
    """The third pass over one unit, in this process alone."""
    with Workers(1, packing, given) as workers:
        pack(given, workers, _ignored, unit)


def _ignored(_: Any) -> None:
    """What it is called with is on the disk as well."""


def pack_chunk(state: tuple[Packing, Any], source: Path, target: Path, begin: int) -> dict[str, Any]:
    """The documents of `source` that stay -> the folder `target`. begin: the number of its first document.

    ids.npy, lengths.npy and texts.parquet of the training part, held.parquet of the others, counts.json.
    """
    given, tokenizer = state
    texts, places, languages = read_texts(source / "texts.parquet", ("text", "place", "language"))
    first, exact, parts = looked_up(given, source, begin, len(texts))
    counts: Counter[str] = Counter()
    summary = Summary()
    train: list[list[str]] = []
    held: list[list[str]] = []
    for at, row in enumerate(zip(texts, places, languages, strict=True)):
        if first[at] >= 0:
            counts["exact" if exact[at] else "near"] += 1
            summary.sample(REPEATED[bool(exact[at])], places[at], str(first[at]), texts[at])
        elif parts[at]:
            counts["validation" if parts[at] == 1 else "test"] += 1
            held.append([*row, "validation" if parts[at] == 1 else "test"])
        else:
            train.append(list(row))
    with whole(target, alone=True) as building:
        building.mkdir()
        quarantine: list[list[str]] = []
        if tokenizer is not None:
            ids, lengths, refused = encoded(tokenizer, [row[0] for row in train], given.causal)
            quarantine = [[train[at][1], reason] for at, reason in refused]
            train = [row for at, row in enumerate(train) if at not in {at for at, _ in refused}]
            np.save(building / "ids.npy", ids)
            np.save(building / "lengths.npy", lengths)
            counts["tokens"] = len(ids)
        counts["train"] = len(train)
        counts["bytes"] = sum(len(row[0].encode()) for row in train)
        counts["quarantined"] = len(quarantine)
        for name, columns, rows in (("texts", (), train), ("held", ("part",), held)):
            names = ("text", "place", "language", *columns)
            write_texts(
                building / f"{name}.parquet", {name: [row[at] for row in rows] for at, name in enumerate(names)}
            )
        lines = (json.dumps({"place": place, "reason": reason}, ensure_ascii=False) for place, reason in quarantine)
        (building / "quarantine.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
        found = {**counts, "bytes_before": sum(len(text.encode()) for text in texts), "samples": summary.samples}
        (building / "counts.json").write_text(json.dumps(found, ensure_ascii=False), "utf-8")
    return found


def looked_up(given: Packing, source: Path, begin: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a chunk's documents: the first one that each repeats or -1, whether exactly, and its part."""
    parts = given.cuts.parts(keys_of(source))
    first, exact = (repeated(given.plan, name, begin, count) for name in ("first", "exact"))
    return first, exact, parts


def encoded(tokenizer: Any, texts: Sequence[str], causal: bool) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]:
    """(ids of all texts, tokens of each, positions that the tokenizer failed on and why). ids: uint16 where they fit, else int32."""
    rows: list[np.ndarray] = []
    refused: list[tuple[int, str]] = []
    for start in range(0, len(texts), 256):
        batch = texts[start : start + 256]
        try:
            rows += tokenizer.documents(batch, causal)
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            for at, text in enumerate(batch, start):
                try:
                    rows += tokenizer.documents([text], causal)
                except BaseException as alone:  # noqa: BLE001
                    refused.append((at, f"the tokenizer fails on it: {str(alone)[:200]}"))
    kind = np.uint16 if tokenizer.size <= 1 << 16 else np.int32
    lengths = np.array([len(row) for row in rows], np.int64)
    return np.concatenate([*rows, np.empty(0, np.int32)]).astype(kind), lengths, refused


# ----------------------------------------------------------------------------------------------------------------- join


def join(plan: Plan, out: Path, tokenized: bool) -> None:
    """The last pass: what the chunks hold, one behind the other, in the folder `out`."""
    import pyarrow as pa
    from pyarrow import parquet

    folders = chunks(plan.work / "pack")
    if tokenized:
        lengths = [np.load(folder / "lengths.npy") for folder in folders]
        begins = np.concatenate([[0], np.cumsum(np.concatenate([*lengths, np.empty(0, np.int64)]))]).astype(np.int64)
        with whole(out / "train.documents.npy", alone=True) as building, building.open("wb") as file:
            np.save(file, begins)
        kind = np.load(folders[0] / "ids.npy", mmap_mode="r").dtype
        with whole(out / "train.npy", alone=True) as building, building.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (int(begins[-1]),)}
            np.lib.format.write_array_header_1_0(file, header)
            for folder in folders:
                np.load(folder / "ids.npy", mmap_mode="r").tofile(file)
    with whole(out / "texts", alone=True) as building:
        building.mkdir()
        for folder in folders:
            target = building / f"{folder.name}.parquet"
            try:
                os.link(folder / "texts.parquet", target)
            except OSError:  # a file system without links
                shutil.copyfile(folder / "texts.parquet", target)
    for part in ("validation", "test"):
        with whole(out / f"{part}.parquet", alone=True) as building:
            schema = pa.schema([(name, pa.large_string()) for name in ("text", "place", "language")])
            with parquet.ParquetWriter(building, schema, compression="zstd") as writer:
                for folder in folders:
                    table = parquet.read_table(
                        folder / "held.parquet", filters=[("part", "=", part)], columns=schema.names
                    )
                    if len(table):
                        writer.write_table(table.cast(schema))
    with whole(out / "quarantine.jsonl", alone=True) as building, building.open("wb") as file:
        for folder in [*chunks(plan.work / "read"), *folders]:
            file.write((folder / "quarantine.jsonl").read_bytes())
