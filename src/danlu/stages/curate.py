"""`danlu prepare corpus`: raw sources -> a folder with a cleaned, tokenized corpus, every record accounted for."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from danlu.core import config, device
from danlu.core.cache import remove, sha256, whole, write_json
from danlu.core.config import Setting
from danlu.core.errors import UserError
from danlu.core.run import write_text
from danlu.data import assemble, curate, near, steps
from danlu.data.assemble import Cuts, Packing
from danlu.data.cluster import over_units
from danlu.data.curate import Plan, Say, Summary
from danlu.data.files import FORMATS, shown, suffix
from danlu.data.options import CleaningOptions, CorpusOptions
from danlu.data.source import read
from danlu.data.tokenizer import Tokenizer
from danlu.data.vocabulary import learn, usual_size
from danlu.data.workers import Workers
from danlu.models.base import tokenizer_folder
from danlu.stages.corpus_folder import CARD, FORMAT, LOCK, PAGE, ROWS, begun, card_of, ours
from danlu.stages.corpus_page import page


LEARNED_FROM = 100_000_000
"""Bytes of text, spread over the corpus, that a tokenizer is learned from at most; said where there are more."""
HELD = 2000
"""Documents that are usually enough to measure on."""
EVERY = 5.0
"""Seconds between two lines of progress."""


@dataclass(frozen=True)
class Curation:
    """The settings of `danlu prepare corpus`."""

    cleaning: CleaningOptions = field(default_factory=CleaningOptions)
    corpus: CorpusOptions = field(default_factory=CorpusOptions)


def corpus(
    settings: Mapping[str, Setting],
    out: Path,
    data: Any = None,
    say: Say = print,
    *,
    characters: int = curate.CHARACTERS,
    unit: int = curate.UNIT,
) -> dict[str, Any]:
    """Make a corpus in the folder `out`, or go on with one that was interrupted; the same bytes either way.

    settings: keys of `Curation`. data: rows handed over in Python instead of `data=`. characters: of a chunk; unit: bytes of a unit (`data.curate`).

    Returns what corpus.json holds. Raises UserError for bad settings and data, when more records than `bad_share` cannot be read (what is
    done so far stays), and if `out` holds something else.
    """
    from filelock import FileLock, Timeout

    given = config.build(Curation, settings)
    if data is None and given.corpus.data is None:
        raise UserError("no data=", "say what to read: data=FOLDER")
    work = out.absolute() / "work"
    if shown(work) != str(work):  # neither pyarrow nor tokenizers writes to such a path
        raise UserError(f"out={out} has no name in UTF-8", "name another folder")
    try:
        if out.exists() and not ours(out):
            raise UserError(f"out={out} holds something else than a corpus", "name a new folder")
        units, note = curate.units(given.corpus.data, unit) if data is None and given.corpus.data else ((), "")
        own = out.resolve()
        for place in (each.resolve() for one in units for each in (one.place, *one.files) if isinstance(each, Path)):
            if own == place or own in place.parents or (place in own.parents and place.is_dir()):
                raise UserError(f"out={out} and data={given.corpus.data} lie in each other", "name a folder elsewhere")
        work.mkdir(parents=True, exist_ok=True)
        with FileLock(out / LOCK, timeout=0):
            if data is not None:
                units = (curate.keep_rows(data, given.corpus.text, work / ROWS),)
            return _corpus(given, out, units, note, say, characters)
    except Timeout:
        raise UserError(f"out={out}: another process is writing it", "wait for it, or name another folder") from None
    except OSError as error:
        raise UserError(
            f"{error.filename or out} cannot be written: {error.strerror or error}",
            "make room, or name a folder you may write to; what is done stays, and the same command goes on",
        ) from None


def _corpus(
    given: Curation, out: Path, units: tuple[curate.Unit, ...], note: str, say: Say, characters: int
) -> dict[str, Any]:
    options, named = given.corpus, [file for unit in units for file in unit.files]
    web = bool(named) and all(FORMATS.get(suffix(file)) == "WARC" for file in named)
    cleaning, why = steps.derived(given.cleaning, web)
    tests, digest = against(cleaning)
    clean = steps.Cleaner(cleaning, tests)
    folder = tokenizer_at(options, say)
    contents = {"against": digest, "tokenizer": sha256(folder / "tokenizer.json") if folder else None}
    asked = begun(config.flat(given), units, out, contents)
    if found := card_of(out):
        shutil.rmtree(out / "work", ignore_errors=True)
        say(f"{out} is finished already")
        return found
    if cleaning.quality != given.cleaning.quality:
        say(f"quality={','.join(cleaning.quality or ()) or 'none'} (derived: {why})")
    near_from = options.near if options.duplicates == "near" else None
    reading = curate.Reading(clean, options.text, near_from)
    plan = Plan(out.absolute() / "work", units, reading, options.duplicates != "keep", characters)
    workers = options.workers or device.cores()
    spread(options, partial(curate.read_alone, plan), plan, "read", say)
    summary, files = first_pass(plan, workers, options.bad_share, note, say)
    if plan.duplicates:
        say("looking for documents that repeat others")
    assemble.find_repeats(plan)
    cuts, shares = set_aside(plan, options, summary, say)
    tokenizer = tokenizer_for(plan, cuts, options, folder, summary.bytes, out, say)
    given_to_pack = Packing(plan, cuts, tokenizer, causal(tokenizer))
    spread(options, partial(assemble.pack_alone, given_to_pack), plan, "pack", say)
    counts = third_pass(given_to_pack, workers, summary, options.bad_share, say)
    say("joining")
    assemble.join(plan, out, tokenizer is not None)
    return finish(out, plan, cleaning, asked, why, shares, summary, files, note, counts, tokenizer, say)


def against(options: CleaningOptions) -> tuple[steps.Against | None, str | None]:
    """The test sets that no document may share a run of words with (every text in their rows, whatever its column), and their SHA-256."""
    if options.against is None:
        return None, None

    def strings(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, dict)):
            for each in value.values() if isinstance(value, dict) else value:
                yield from strings(each)

    source = read(options.against)
    texts = [(row.place, text) for row in source.rows for text in strings(row.values)]
    places = [place for place, _ in texts]
    return steps.Against((text for _, text in texts), options.against_share, places), source.sha256


# --------------------------------------------------------------------------------------------------------------- passes


class Progress:
    """A line every few seconds: how far, how long still, how fast. total: of what `done` counts; 0 where it is not known."""

    def __init__(self, what: str, total: float, say: Say) -> None:
        self.what, self.total, self.say = what, total, say
        self.began = self.last = time.monotonic()
        self.first: tuple[float, float] | None = None

    def __call__(self, done: float, size: float, more: str) -> None:
        """done: of the total. size: bytes of text behind it."""
        now = time.monotonic()
        if self.first is None:  # what was there before took no time
            self.began, self.last, self.first = now, now, (done, size)
        if now - self.last < EVERY:
            return
        self.last = now
        rate, left = (done - self.first[0]) / (now - self.began), ""
        if self.total and rate > 0:
            minutes = max(0.0, self.total - done) / rate / 60
            left = f"{min(1.0, done / self.total):.0%}, {'under a minute' if minutes < 1 else f'{minutes:,.0f} min'} left, "
        speed = (size - self.first[1]) / (now - self.began) / 1e6
        self.say(f"  {self.what}: {left}{speed:,.1f} MB of text a second, {more}")


def first_pass(plan: Plan, workers: int, bad_share: float, note: str, say: Say) -> tuple[Summary, list[dict[str, Any]]]:
    """All units read and cleaned; what became of their records, and the files. note: what was not read."""
    summary = Summary()
    size, count = sum(unit.size for unit in plan.units), sum(len(unit.files) for unit in plan.units)
    said = f"{size / 1e6:,.1f} MB" if size else "unknown size"
    say(f"reading {count:,} file{'s' * (count > 1)} ({said}) with {workers} worker{'s' * (workers > 1)}{note}")
    if single := [
        unit.place for unit in plan.units if unit.place for file in unit.files if FORMATS.get(suffix(file)) == "text"
    ]:
        say(
            f"  {len(single):,} of them text: in a folder each is one document; data='{single[0]}/*.txt' takes what stands between blank lines"
        )
    if any(plan.work.glob("read/*")):
        say("  what was read before is not read again")
    progress = Progress("cleaning", float(size), say)
    reader: curate.Cutter | None = None
    behind = 0

    def watch(cutter: curate.Cutter) -> None:
        nonlocal reader
        reader = cutter

    def done(chunk: Summary) -> None:
        summary.join(chunk)
        too_many(summary, bad_share, plan)
        far = float(behind + (sum(file["bytes"] for file in reader.files) + reader.read if reader else 0))
        progress(far, summary.bytes_before, f"{summary.kept:,} of {summary.records:,} records stay")

    with Workers(workers, plan.reading) as pool:
        for unit in plan.units:
            curate.read_unit(plan, unit, pool, done, watch)
            behind, reader = behind + unit.size, None
        pool.finish()
    files = [file for unit in plan.units for file in curate.record_of(plan, unit)["files"]]
    too_many(summary, bad_share, plan, least=1)
    if not summary.records:
        raise UserError("there is no record in the data", "name other files")
    if not summary.kept:
        rule, number = summary.dropped.most_common(1)[0] if summary.dropped else ("nothing is text", 0)
        raise UserError(
            f"no document of {summary.records:,} records stays; the most frequent reason: {rule} ({number:,})",
            "leave a step out of cleaning=, or name other quality= rules",
        )
    return summary, files


def too_many(summary: Summary, bad_share: float, plan: Plan, least: int = 1000) -> None:
    """Stop when more records than that cannot be read, once there are enough to tell."""
    if summary.records < least or summary.quarantined <= bad_share * summary.records:
        return
    target = plan.work.parent / "quarantine.jsonl"
    order = {unit.name: number for number, unit in enumerate(plan.units)}
    every = ((path.parent.name.rpartition("-"), path) for path in plan.work.glob("*/*/quarantine.jsonl"))
    mine = sorted((order[unit], number, path) for (unit, _, number), path in every if unit in order)
    write_text(target, "".join(path.read_text("utf-8") for _, _, path in mine))
    with target.open(encoding="utf-8", newline="\n") as lines:  # a name may hold what else ends a line
        listed = [(found["place"], found["reason"]) for found in map(json.loads, lines)]
    listed = listed or [(place, reason) for place, reason in summary.bad]
    reason, often = Counter(reason for _, reason in listed).most_common(1)[0]
    place = next(place for place, each in listed if each == reason)
    column = "say which column it is, text=NAME or text=ONE,OTHER; or " if reason.startswith("no column") else ""
    least_share = math.ceil(1000 * summary.quarantined / summary.records) / 1000
    raise UserError(
        f"{summary.quarantined:,} of {summary.records:,} records cannot be read, over bad_share={bad_share:g}: {place}: {reason}"
        + f" ({often:,} for this reason)" * (often > 1),
        f"{column}mend what {target} lists, or set bad_share={least_share:g}; what is done stays",
    )


def set_aside(plan: Plan, options: CorpusOptions, summary: Summary, say: Say) -> tuple[Cuts, dict[str, Any]]:
    """How many documents are set aside, and which."""
    stays = sum(int(each.sum()) for _, _, _, each in assemble.staying(plan))
    found: dict[str, Any] = {}
    numbers = []
    for name, share in (("validation", options.validation_share), ("test", options.test_share)):
        number = min(HELD, stays // 10) if share is None else round(share * stays)
        number = max(1, number) if share is None or share > 0 else 0
        numbers.append(number)
        found[name] = {"documents": number, "why": f"derived: a tenth, at most {HELD:,}" if share is None else "given"}
    if sum(numbers) >= stays:
        raise UserError(
            f"{stays} document{'s' * (stays != 1)} stay of {summary.records:,} records, too few to set some aside",
            "give more data, or validation_share=0 test_share=0",
        )
    say(
        f"{summary.kept - stays:,} documents repeat others; of {stays:,}, {numbers[0]:,} are set aside for validation, {numbers[1]:,} for the test"
    )
    cuts = assemble.cuts(plan, numbers[0], numbers[1], options.seed)
    if not any((cuts.parts(keys)[stay] == 0).any() for _, _, keys, stay in assemble.staying(plan)):
        raise UserError(
            f"of {stays} documents none is left to learn from: those of equal words are set aside together",
            "give more data, leave out duplicates=keep, or give validation_share=0 test_share=0",
        )
    return cuts, found


def tokenizer_at(options: CorpusOptions, say: Say) -> Path | None:
    """The folder of the tokenizer that is asked for; None: one is learned, or none is wanted."""
    if not (options.tokenize and options.tokenizer):
        return None
    folder = tokenizer_folder(options.tokenizer, say)
    Tokenizer.load(folder)
    return folder


def tokenizer_for(
    plan: Plan, cuts: Cuts, options: CorpusOptions, folder: Path | None, size: int, out: Path, say: Say
) -> Path | None:
    """The folder of the tokenizer in `out`: that in `folder`, or one learned from the training part; None: texts only. size: bytes of all texts."""
    if not options.tokenize:
        return None
    target = out / "tokenizer"
    if target.is_dir():
        return target
    if folder:
        made = Tokenizer.load(folder)
    else:
        share = min(1.0, LEARNED_FROM / max(1, size))
        wanted = options.vocabulary or usual_size(size)
        some = f" from {share:.1%} of the documents" if share < 1 else ""
        say(f"learning a tokenizer of {wanted:,} tokens ({'given' if options.vocabulary else 'derived'}){some}")
        try:
            made = learn(assemble.training_texts(plan, cuts, share), kind=options.kind, size=wanted, say=say)
        except UserError as error:
            raise UserError(
                error.message.replace("size=", "vocabulary=", 1), "give a larger vocabulary=, or leave it out"
            ) from None
    with whole(target, alone=True) as building:
        building.mkdir()
        made.save(building)
    return target


def spread(options: CorpusOptions, work: Callable[[int], None], plan: Plan, name: str, say: Say) -> None:
    """A pass on another engine: what it leaves undone, the pass here does."""
    if options.engine == "here":
        return
    say(f"{name}: {len(plan.units):,} unit{'s' * (len(plan.units) > 1)} by {options.engine}")
    over_units(
        work,
        len(plan.units),
        options.engine,
        options.engine_options or {},
        plan.work / f"{name}-tasks",
        options.workers or (device.cores() if options.engine == "datatrove" else None),
        say,
    )


def causal(tokenizer: Path | None) -> bool:
    """Whether documents are kept with what a decoder's begin and end with."""
    return tokenizer is None or "mask_token" not in Tokenizer.load(tokenizer).named


def third_pass(given: Packing, workers: int, summary: Summary, bad_share: float, say: Say) -> Counter[str]:
    """What stays, tokenized and cut into parts; counts of documents, tokens and bytes. What the tokenizer fails on is in `summary`."""
    found: Counter[str] = Counter()
    progress = Progress("tokenizing", float(summary.bytes), say)

    def done(chunk: dict[str, Any]) -> None:
        for rule, rows in chunk.pop("samples").items():
            summary.samples[rule] = sorted(summary.samples.get(rule, []) + rows)[: curate.SAMPLES]
        summary.quarantined += chunk.pop("quarantined")
        summary.bad = (summary.bad + chunk.pop("bad"))[:3]
        too_many(summary, bad_share, given.plan)
        found.update(chunk)
        progress(found["bytes_before"], found["bytes_before"], f"{found['tokens']:,} tokens")

    needed = replace(given, plan=replace(given.plan, units=()))
    with Workers(workers, needed, assemble.packing) as pool:
        assemble.pack(given, pool, done)
        pool.finish()
    too_many(summary, bad_share, given.plan, least=1)
    return found


# ----------------------------------------------------------------------------------------------------------------- card


def finish(
    out: Path,
    plan: Plan,
    cleaning: CleaningOptions,
    asked: dict[str, Any],
    why: str,
    shares: dict[str, Any],
    summary: Summary,
    files: list[dict[str, Any]],
    note: str,
    counts: Counter[str],
    tokenizer: Path | None,
    say: Say,
) -> dict[str, Any]:
    """corpus.json and the page, then the passes' folder goes."""
    similarity = plan.reading.near
    cut = near.bands(similarity) if similarity else None
    dropped = dict(summary.dropped.most_common())
    dropped |= {
        rule: counts[kind] for kind, rule in zip(("near", "exact"), assemble.REPEATED, strict=True) if counts[kind]
    }
    documents = {part: counts[part] for part in ("train", "validation", "test")}
    found: dict[str, Any] = {
        "format": FORMAT,
        "danlu": version("danlu"),
        "asked": asked,
        "sources": files,
        "not_read": note.strip(" ()"),
        "licence": asked["settings"]["data_licence"],
        "records": summary.records,
        "left_out": dict(summary.left_out),
        "quarantined": summary.quarantined,
        "dropped": dropped,
        "documents": documents,
        "changed": dict(summary.changed),
        "personal": dict(summary.personal),
        "languages": dict(summary.languages.most_common()),
        "bytes_read": summary.bytes_before,
        "bytes": counts["bytes"],
        "tokens": counts["tokens"] if tokenizer else None,
        "tokenizer": {"size": Tokenizer.load(tokenizer).size, "sha256": sha256(tokenizer / "tokenizer.json")}
        if tokenizer
        else None,
        "steps": steps.described(cleaning),
        "quality_why": why,
        "set_aside": shares,
        "near": {
            "similarity": similarity,
            "bands": cut[0],
            "rows": cut[1],
            "curve": {f"{s:g}": p for s, p in near.curve(*cut).items()},
        }
        if cut
        else None,
    }
    accounted = summary.quarantined + sum(dropped.values()) + sum(documents.values())
    if accounted != summary.records:
        raise RuntimeError(f"{summary.records} records came in, {accounted} are accounted for")
    for path in out.glob(".building-*"):  # of a killed command
        remove(path)
    found["files"] = {
        path.relative_to(out).as_posix(): sha256(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and (out / "work") not in path.parents and path.name not in (CARD, PAGE, LOCK)
    }
    write_text(out / PAGE, page(out.name, found, assemble.with_originals(plan, summary.samples)))
    write_json(out / CARD, found)
    shutil.rmtree(out / "work", ignore_errors=True)
    say(
        f"{sum(documents.values()):,} documents, {found['bytes'] / 1e6:,.1f} MB"
        + (f", {found['tokens']:,} tokens" if tokenizer else "")
    )
    return found


def summary(found: dict[str, Any]) -> list[str]:
    """What became of all records, in words; the lines add up."""
    width = len(f"{found['records']:,}")
    lines = [(found["records"], "records read")]
    lines += [(number, f"  dropped, {rule}") for rule, number in found["dropped"].items()]
    lines += [(found["quarantined"], "  could not be read (quarantine.jsonl)")] * bool(found["quarantined"])
    lines += [(number, f"  {part}") for part, number in found["documents"].items()]
    return [f"{number:>{width},}  {what}" for number, what in lines]
