"""What was read -> one corpus: what repeats, what is set aside, token ids, and all chunks behind each other (the passes of `curate.py`)."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock

from danlu.core.cache import whole
from danlu.data import near
from danlu.data.curate import Plan, Summary, intact, masked, read_texts, record_of, write_left_out, write_texts
from danlu.data.workers import Workers


REPEATED = ("duplicates: nearly an earlier document", "duplicates: the same words as an earlier document")
"""What a document that is nearly or exactly an earlier one was dropped for."""


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


# -------------------------------------------------------------------------------------------------------------- repeats


def find_repeats(plan: Plan) -> None:
    """The second pass, in one process: `work/repeats.first.npy` and `.exact.npy`, all documents counted through."""
    out, done = plan.work / "repeats", plan.work / "repeats.done"
    if not done.exists():
        if plan.duplicates:
            with intact(plan.work / "read"):
                near.repeats(
                    [plan.work / "read" / each.name / "hashes" for each in chunks(plan)], out, plan.reading.near
                )
        done.touch()


def repeated(plan: Plan, name: str, begin: int, count: int) -> np.ndarray:
    """What was found of `count` documents: `first`, the number of the document that each repeats, or -1; or `exact`, whether word for word."""
    if not plan.duplicates:
        return np.full(count, -1) if name == "first" else np.zeros(count, bool)
    return np.array(np.load(plan.work / f"repeats.{name}.npy", mmap_mode="r")[begin : begin + count])


def keys_of(chunk: Path) -> np.ndarray:
    """uint64 [documents, 2]: of each document of a chunk of the first pass, 128 bits of its normal form."""
    with intact(chunk):
        return near.keys(chunk / "hashes")


def staying(plan: Plan) -> Iterator[tuple[Path, int, np.ndarray, np.ndarray]]:
    """Of each chunk of the first pass: its folder, the number of its first document, the keys of all, and bool: which repeat none."""
    for each in chunks(plan):
        folder = plan.work / "read" / each.name
        yield folder, each.begin, keys_of(folder), repeated(plan, "first", each.begin, each.documents) < 0


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


class Chunk(NamedTuple):
    """name: of its folder in each pass. unit, number: its place among all. begin: the number of its first document; documents: how many it has."""

    name: str
    unit: int
    number: int
    begin: int
    documents: int


def chunks(plan: Plan) -> Iterator[Chunk]:
    """What the first pass left, in order."""
    begin = 0
    for at, unit in enumerate(plan.units):
        for number, count in enumerate(record_of(plan, unit)["documents"]):
            yield Chunk(f"{unit.name}-{number:07d}", at, number, begin, count)
            begin += count


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
    for each in chunks(given.plan):
        target = folder / each.name
        if unit not in (None, each.unit):
            continue
        if target.is_dir():
            with intact(target / "counts.json"):
                counts = json.loads((target / "counts.json").read_bytes())
            workers.know(counts, done)
        else:
            workers.give(pack_chunk, (given.plan.work / "read" / each.name, target, each.begin), done)


def pack_alone(given: Packing, unit: int) -> None:
    """The third pass over one unit, in this process alone; a second one that was sent for it waits."""
    with FileLock(given.plan.work / f"{unit}.lock"), Workers(1, given, packing) as workers:
        pack(given, workers, lambda _: None, unit)


def pack_chunk(state: tuple[Packing, Any], source: Path, target: Path, begin: int) -> dict[str, Any]:
    """The documents of `source` that stay -> the folder `target`. begin: the number of its first document.

    ids.npy, lengths.npy and texts.parquet of the training part, held.parquet of the others, counts.json.
    """
    given, tokenizer = state
    texts, places, languages = read_texts(source / "texts.parquet", ("text", "place", "language"))
    first, exact = (repeated(given.plan, name, begin, len(texts)) for name in ("first", "exact"))
    parts = given.cuts.parts(keys_of(source))
    counts: Counter[str] = Counter()
    summary = Summary()
    train: list[list[str]] = []
    held: list[list[str]] = []
    dropped: list[dict[str, str]] = []
    for at, row in enumerate(zip(texts, places, languages, strict=True)):
        if first[at] >= 0:
            rule = REPEATED[bool(exact[at])]
            counts["exact" if exact[at] else "near"] += 1
            summary.sample(rule, places[at], str(first[at]), texts[at])
            dropped.append({"place": places[at], "rule": rule})
        elif parts[at]:
            part = "validation" if parts[at] == 1 else "test"
            counts[part] += 1
            held.append([*row, part])
        else:
            train.append(list(row))
    with whole(target, alone=True) as building:
        building.mkdir()
        quarantine: list[dict[str, str]] = []
        if tokenizer is not None:
            ids, lengths, refused = encoded(tokenizer, [row[0] for row in train], given.causal)
            quarantine = [{"place": train[at][1], "reason": reason} for at, reason in refused.items()]
            train = [row for at, row in enumerate(train) if at not in refused]
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
        write_left_out(building, quarantine, dropped)
        found = {
            **counts,
            "bad": [[each["place"], each["reason"]] for each in quarantine[:3]],
            "bytes_before": sum(len(text.encode()) for text in texts),
            "samples": summary.samples,
        }
        (building / "counts.json").write_text(json.dumps(found, ensure_ascii=False), "utf-8")
    return found


def encoded(tokenizer: Any, texts: Sequence[str], causal: bool) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """(ids of all texts, tokens of each, positions that the tokenizer failed on and why). ids: uint16 where they fit, else int32."""
    rows: list[np.ndarray] = []
    refused: dict[int, str] = {}
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
                    refused[at] = masked(f"the tokenizer fails on it: {str(alone)[:200]}")
    kind = np.uint16 if tokenizer.size <= 1 << 16 else np.int32
    lengths = np.array([len(row) for row in rows], np.int64)
    return np.concatenate([*rows, np.empty(0, np.int32)]).astype(kind), lengths, refused


# ----------------------------------------------------------------------------------------------------------------- join


def join(plan: Plan, out: Path, tokenized: bool) -> None:
    """The last pass: what the chunks hold, one behind the other, in the folder `out`."""
    import pyarrow as pa
    from pyarrow import compute, parquet

    parts = list(chunks(plan))
    folders = [plan.work / "pack" / each.name for each in parts]
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
        for each, folder in zip(parts, folders, strict=True):
            target = building / f"{each.unit:05d}-{each.number:07d}.parquet"
            try:
                os.link(folder / "texts.parquet", target)
            except OSError:  # a file system without links
                shutil.copyfile(folder / "texts.parquet", target)
    for part in ("validation", "test"):
        with whole(out / f"{part}.parquet", alone=True) as building:
            schema = pa.schema([(name, pa.large_string()) for name in ("text", "place", "language")])
            with parquet.ParquetWriter(building, schema, compression="zstd") as writer:
                for folder in folders:
                    with parquet.ParquetFile(folder / "held.parquet") as file:
                        table = file.read(use_threads=False)
                    if len(table := table.filter(compute.equal(table["part"], part))):
                        writer.write_table(table.select(schema.names).cast(schema))
    for name in ("quarantine.jsonl", "dropped.jsonl"):
        with whole(out / name, alone=True) as building, building.open("wb") as file:
            for folder in [*(plan.work / "read" / each.name for each in parts), *folders]:
                file.write((folder / name).read_bytes())
