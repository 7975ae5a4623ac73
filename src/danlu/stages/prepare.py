"""Experiment -> prepared: the model found, the data read, split and tokenized, every open setting derived with its reason.

Nothing is trained and nothing is written here. What was found goes into `data.json` of a run and onto the preflight page.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from danlu.core import config, device
from danlu.core.config import Setting
from danlu.core.errors import UserError
from danlu.core.types import CLASSIFIERS, IMAGE_TASKS, TEXT_TASKS
from danlu.data.clean import contradictions, duplicates, has_html, is_damaged, language_of, leaks, normal_form, share
from danlu.data.loader import IGNORED, Rows, windows
from danlu.data.source import Source, read
from danlu.data.split import split
from danlu.data.tokenizer import Tokenizer
from danlu.experiment import Asked, Experiment
from danlu.models.catalogue import MODELS
from danlu.models.pretrained import Base, resolve
from danlu.stages.load import Weights, adapter_of, weights_of
from danlu.tasks.material import Account, Conversations, Encoded, Item, LabelledTexts, Material, Readable


PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Prepared:
    """All that training needs, and all that a person should know before it.

    experiment: with every derived setting filled in. settings: the same, flat, each with its origin. rows, items: by part.
    weights: where they lie (`load.Weights`); None for a network of images. processor: what turns a person's input into tensors.
    config: what the config.json of a network of images says; None for text.
    """

    asked: Asked
    experiment: Experiment
    settings: dict[str, Setting]
    base: Base
    weights: Any
    processor: Any
    labels: tuple[str, ...]
    rows: dict[str, Any]
    items: dict[str, list[Item]]
    sources: dict[str, Source]
    findings: dict[str, Any]
    config: dict[str, Any] | None = None

    @property
    def steps_per_epoch(self) -> int:
        rows = self.rows["train"]
        return windows(len(rows), number(self.experiment.training.batch_size), rows.least)


def prepare(asked: Asked, data: Any = None, say: Callable[[str], None] = print) -> Prepared:
    """Everything up to the first step.

    data: rows handed over in Python instead of the file `data=`.

    Raises:
        UserError: for every kind of bad input there is; nothing has been written.
    """
    if asked.experiment.task.task in IMAGE_TASKS:
        from danlu.stages import images

        return images.prepare(asked, data, say)
    experiment = asked.experiment
    options = experiment.data
    sources = sources_of(asked, data)
    base = resolve(experiment.model.model, say)
    weights = weights_of(base, say)
    tokenizer = Tokenizer.load(weights.folder, experiment.model.template)
    check_vocabulary(tokenizer.base_size, weights)
    chat = experiment.task.task == "chat"
    if chat and weights.bidirectional:
        raise UserError(
            f"{base.name} is an encoder: it sees the whole text at once and cannot write",
            "choose a chat model (`danlu models`)",
        )
    if chat and not tokenizer.has_template:
        raise UserError(
            f"{base.name} has no chat template", "choose a chat model (`danlu models`), or give template=FILE"
        )
    material: Material = Conversations(options, experiment.task) if chat else LabelledTexts(options)
    dropped = Account()
    parts = part(material, sources, experiment, dropped, say)
    labels: tuple[str, ...] = ()
    if isinstance(material, LabelledTexts):
        labels = material.labels = check_labels(parts, sources)
    unlimited = weights.context
    wanted = options.max_tokens or unlimited
    if wanted > unlimited:
        raise UserError(
            f"max_tokens={wanted}, but {base.name} reads at most {unlimited} tokens",
            f"set max_tokens={unlimited} or less",
        )
    encoded = {name: material.encode(items, tokenizer, wanted, options.too_long) for name, items in parts.items()}
    check_vocabulary(max(int(each.rows.ids.max(initial=-1)) + 1 for each in encoded.values()), weights)
    check_unknown(encoded["train"], parts["train"], base, options.unknown_share)
    if not len(encoded["train"].rows):
        reasons = (
            "; ".join(f"{entry['reason']} ({entry['count']})" for entry in encoded["train"].dropped.json())
            or "no usable row"
        )
        raise UserError(f"nothing to learn: {reasons}", "look at `danlu preflight`, raise max_tokens or mend the data")
    settings = derive(asked, weights, encoded, chat, len(parts["validation"]))
    findings = describe(base, sources, parts, encoded, dropped, labels, tokenizer)
    return Prepared(
        asked=asked,
        experiment=config.build(Experiment, settings),
        settings=settings,
        base=base,
        weights=weights,
        processor=tokenizer,
        labels=labels,
        rows={name: each.rows for name, each in encoded.items()},
        items=parts,
        sources=sources,
        findings=findings,
    )


def sources_of(asked: Asked, data: Any = None) -> dict[str, Source]:
    """What is to be learned from, and the files of held-out rows that were named: by role."""
    options = asked.experiment.data
    if data is None and options.data is None:
        raise UserError("no data=", "say what to learn from: data=my.jsonl")
    given = {"data": data if data is not None else options.data, "validation": options.validation, "test": options.test}
    return {
        role: read_as(asked, place, options.max_rows if role == "data" else None)
        for role, place in given.items()
        if place is not None
    }


def read_as(asked: Asked, place: Any, max_rows: int | None) -> Source:
    """One source, in the form that the task learns from."""
    options, task = asked.experiment.data, asked.experiment.task.task
    if task in TEXT_TASKS:
        return read(place, bad_rows=options.bad_rows, max_rows=max_rows)
    from danlu.data.images import read_images

    return read_images(
        place,
        bad_rows=options.bad_rows,
        max_rows=max_rows,
        image=options.image,
        label=options.label,
        labelled=task in CLASSIFIERS,
    )


def number(value: int | float | None) -> int:
    """A setting that `derive` has filled."""
    if value is None:
        raise ValueError("not derived yet")
    return int(value)


# ---------------------------------------------------------------------------------------------------------------- parts


def part(
    material: Readable, sources: dict[str, Source], experiment: Experiment, dropped: Account, say: Callable[[str], None]
) -> dict[str, list[Item]]:
    """Usable rows by part; rows of `data` that say the same as a given validation or test row leave the training part."""
    found: dict[str, list[Item]] = {}
    for role, source in sources.items():
        found[role], account = material.items(source)
        for rejected in source.rejected:
            dropped.add(rejected.reason, rejected.place)
        for entry in account.json():
            dropped.counts[entry["reason"]] += entry["count"]
            dropped.examples.setdefault(entry["reason"], []).extend(entry["examples"])
        taken = (
            f", the first {len(source.rows)} of {source.total}"
            if len(source.rows) + len(source.rejected) < source.total
            else ""
        )
        say(f"{role}: {source.name} ({source.format}), {len(found[role])} rows{taken}: {material.said}")
        if not found[role]:
            raise UserError(f"{source.name}: no usable row of {source.total}", "see the reasons with bad_rows=error")
    options = experiment.data
    shares = {
        "validation_share": 0.0 if "validation" in found else options.validation_share,
        "test_share": 0.0 if "test" in found else options.test_share,
    }
    held = {item.key: role for role in ("validation", "test") for item in found.get(role, [])}
    groups = {item.group: role for role in ("validation", "test") for item in found.get(role, []) if item.group}
    rows = []
    for item in found["data"]:
        if item.key in held:
            dropped.add(f"also in the {held[item.key]} file, so not learned", item.place)
        elif item.group in groups:
            dropped.add(f"of a group that is also in the {groups[item.group]} file, so not learned", item.place)
        else:
            rows.append(item)
    if "validation" in found and "test" in found:
        tested = {item.key for item in found["test"]}
        for item in [item for item in found["validation"] if item.key in tested]:
            dropped.add("in validation and in test: left out of validation", item.place)
        found["validation"] = [item for item in found["validation"] if item.key not in tested]
    if not rows:
        raise UserError("every row of data= is also in the validation or test file", "give other rows to learn from")
    labels = None
    if rows[0].label is not None:
        rows = without_rare(rows, options.rare_labels, 1 + sum(share > 0 for share in shares.values()), dropped)
        labels = [str(item.label) for item in rows]
        if not rows:
            raise UserError("every label has too few distinct rows", "is label= the right column?")
    chosen = split(components(rows), seed=experiment.training.seed, labels=labels, **shares)
    parts = {name: [rows[place] for place in getattr(chosen, name)] for name in PARTS}
    return parts | {name: found[name] for name in ("validation", "test") if name in found}


def without_rare(rows: list[Item], policy: str, least: int, dropped: Account) -> list[Item]:
    """Rows whose class has enough distinct ones to be learned, chosen by and measured; the others are an error, or counted."""
    keys: dict[str, set[str]] = {}
    for item in rows:
        keys.setdefault(str(item.label), set()).add(item.key)
    rare = {label: len(found) for label, found in keys.items() if len(found) < least}
    if len(keys) > 20 and len(keys) > len(rows) / 2:
        raise UserError(
            f"{len(keys)} different labels in {len(rows)} rows: this looks like numbers or free text, not classes",
            "name the right column with label=",
        )
    if rare and policy == "error":
        label, count = min(rare.items(), key=lambda pair: (pair[1], pair[0]))
        places = ", ".join(item.place for item in rows if item.label == label)
        raise UserError(
            f"label {label!r} has {count} distinct row{'s' * (count != 1)} ({places}), expected at least {least}: "
            f"one for each part it is split into ({len(rare)} such labels of {len(keys)})",
            "add rows, merge the label with another, or set rare_labels=drop",
        )
    for item in rows:
        if item.label in rare:
            dropped.add(f"its label has fewer than {least} distinct rows", item.place)
    return [item for item in rows if item.label not in rare]


def components(rows: Sequence[Item]) -> list[str]:
    """One key a row: rows that say the same or are of one group, directly or through others, share it."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for item in rows:
        if item.group is not None:
            one, two = sorted((root(f"text:{item.key}"), root(f"group:{item.group}")))
            parent[two] = one
    return [root(f"text:{item.key}") for item in rows]


def check_labels(parts: dict[str, list[Item]], sources: dict[str, Source]) -> tuple[str, ...]:
    """The classes, sorted; those of the held-out parts must be among those that are learned."""
    labels = sorted({str(item.label) for item in parts["train"]})
    for name in ("validation", "test"):
        alien = sorted({str(item.label) for item in parts[name]} - set(labels))
        if alien:
            example = next(item for item in parts[name] if item.label == alien[0])
            raise UserError(
                f"{example.place}: label {alien[0]!r} occurs only in {name}, so it is never learned (learned: {', '.join(labels[:20])})",
                "add training rows with it, mend its spelling, or remove those rows",
            )
    if len(labels) < 2:
        raise UserError(
            f"{sources['data'].name}: all {len(parts['train'])} training rows have the label {labels[0]!r}",
            "add rows of another class",
        )
    return tuple(labels)


def check_vocabulary(tokens: int, weights: Weights) -> None:
    """A token needs its row in the embedding. An added token without one, that no row uses, does no harm: Gemma 3 has such a one."""
    if weights.vocabulary is not None and tokens > weights.vocabulary:
        raise UserError(
            f"{weights.folder}: the tokenizer has {tokens} tokens, the model's embedding {weights.vocabulary} rows (vocab_size in config.json)",
            "the tokenizer belongs to another model: copy or download the folder again, as a whole",
        )


def check_unknown(encoded: Encoded, items: Sequence[Item], base: Base, limit: float) -> None:
    """Text the tokenizer cannot read is not learned, whatever the loss says."""
    share = encoded.unknown / max(1, encoded.tokens)
    if share > limit:
        language = language_of([item.text for item in items])
        entries = [MODELS.get(name) for name in MODELS.names()]
        fitting = [
            f"{entry.name} (unfit for {entry.unfit})" if entry.unfit else entry.name
            for entry in entries
            if entry.byte_level
        ]
        raise UserError(
            f"{share:.0%} of the tokens are unknown to the tokenizer of {base.name}: the text is {language}",
            f"give a model for that language: model=FOLDER or a hub name; of the catalogue only {', '.join(fitting)} reads its "
            f"characters at all. unknown_share={min(1.0, math.ceil(share * 100) / 100)} trains all the same",
        )


# --------------------------------------------------------------------------------------------------------------- derive


class Open:
    """Every setting: what was asked, else what is derived with its reason, else the default."""

    def __init__(self, asked: Asked) -> None:
        self.settings = {
            key: Setting(value, asked.settings[key].origin if key in asked.settings else "default")
            for key, value in config.flat(asked.experiment).items()
        }
        machine = device.machine()
        self.fill("precision", *device.pick_precision(machine))
        self.fill("threads", *device.pick_threads(machine))

    def fill(self, key: str, value: Any, reason: str) -> Any:
        """What `key` is: this value, if nobody said another."""
        if self.settings[key].value is None:
            self.settings[key] = Setting(value, f"derived: {reason}")
        return self.settings[key].value

    def length(self, rows: int, passes: float, why: str, validation_rows: int, least: int = 1) -> None:
        """How long training takes and how often it is looked at; `passes` over the rows unless steps or time are given."""
        batch = self.settings["batch_size"].value
        if all(self.settings[key].value is None for key in ("steps", "epochs", "hours")):
            self.fill("epochs", passes, why)
        if self.settings["epochs"].value is not None:
            epochs, asked_steps = self.settings["epochs"].value, self.settings["steps"].value
            steps = max(1, round(epochs * windows(rows, batch, least)))
            if asked_steps is None or steps < asked_steps:
                first = "" if asked_steps is None else f", which end before steps={asked_steps}"
                self.settings["steps"] = Setting(
                    steps, f"derived: {epochs:g} passes over {rows} rows, {batch} at a time{first}"
                )
        steps = self.settings["steps"].value
        times = 8 if steps is None or steps >= 80 else max(1, steps // 10)
        self.fill(
            "validate_every",
            math.ceil((steps or 200) / times),
            f"{times} time{'s' * (times != 1)} in {steps} updates" if steps else "hours= alone: every 25 updates",
        )
        cap = max(64, rows // 4)
        self.fill(
            "validation_rows",
            min(cap, validation_rows) or 1,
            f"all {validation_rows}"
            if validation_rows <= cap
            else f"{cap} of {validation_rows}: looked at often, so at most a quarter of the training rows",
        )


def derive(
    asked: Asked, weights: Weights, encoded: Mapping[str, Encoded], chat: bool, validation_rows: int
) -> dict[str, Setting]:
    """The settings of training on text."""
    opened = Open(asked)
    rows = len(encoded["train"].rows)
    small = weights.parameters < 60e6
    reason = f"{weights.parameters / 1e6:,.0f} M weights " + (
        "train whole in little memory" if small else "would need 16 bytes each to train whole"
    )
    lora = opened.fill("method", "full" if small else "lora", reason) == "lora"
    adam = (2e-4 if chat else 5e-4) if lora else (2e-5 if chat or not small else 1e-4)
    why = (
        "LoRA's matrices start at zero and bear ten times the rate of whole weights"
        if lora
        else "whole weights: one to two orders below the rate of pretraining, so that what they know stays"
    )
    if asked.experiment.training.optimizer == "sgd":
        opened.fill(
            "learning_rate", 100 * adam, f"{why}; plain gradients are small, so a hundred times Adam's {adam:g}"
        )
    else:
        opened.fill("learning_rate", adam, why)
    most = 8 if chat else 16
    size = min(most, max(2, 2 ** int(math.log2(max(2, rows / 25)))))
    opened.fill("batch_size", size, f"{rows} training rows: at least 25 updates in a pass, at most {most} rows in one")
    longest = max(each.longest for each in encoded.values())
    opened.fill(
        "max_tokens",
        min(longest, weights.context),
        f"the longest row has {longest} tokens, the model's context {weights.context}",
    )
    few = rows < 5_000
    opened.length(
        rows,
        3.0 if few else 1.0,
        f"{rows} training rows: " + ("three passes" if few else "one pass is enough"),
        validation_rows,
    )
    return opened.settings


# ------------------------------------------------------------------------------------------------------------- findings


def shared_findings(
    sources: Mapping[str, Source], parts: Mapping[str, list[Item]], kept: int, dropped: Account, labels: Sequence[str]
) -> dict[str, Any]:
    """What preflight found and is the same for every kind of rows, JSON-ready. kept: rows in all parts together."""
    keys = {name: [item.key for item in items] for name, items in parts.items()}
    pairs = {" and ".join(pair): len(shared) for pair, shared in leaks(keys).items()}
    notes = [f"{count} rows stand both in {pair}" for pair, count in pairs.items()]
    if labels:
        unclear = contradictions(keys["train"], [str(item.label) for item in parts["train"]])
        if unclear:
            notes.append(
                f"{len(unclear)} rows stand in training with two different labels, for example {parts['train'][unclear[0][0]].place}"
            )
    for name in ("validation", "test"):
        if absent := [label for label in labels if parts[name] and all(item.label != label for item in parts[name])]:
            few = len({item.group for item in parts["train"]}) if parts["train"][0].group is not None else 0
            why = f" (training has only {few} groups)" if few and few < 20 else ""
            notes.append(f"warning: {name} has no row of {', '.join(map(repr, absent[:5]))}{why}")
    spelled: dict[str, list[str]] = {}
    for label in labels:
        spelled.setdefault(normal_form(label), []).append(label)
    notes += [
        f"warning: the labels {' and '.join(map(repr, alike))} differ only in case or width"
        for alike in spelled.values()
        if len(alike) > 1
    ]
    return {
        "rows": {
            "read": sum(source.total for source in sources.values()),
            "kept": kept,
            "dropped": [{**entry, "examples": entry["examples"][:3]} for entry in dropped.json()],
        },
        "splits": {name: len(parts[name]) for name in PARTS},
        "duplicates": sum(len(group) - 1 for group in duplicates(keys["train"])),
        "leaks": sum(pairs.values()),
        "labels": {
            label: {name: sum(item.label == label for item in parts[name]) for name in PARTS} for label in labels
        },
        "notes": notes,
    }


def describe(
    base: Base,
    sources: Mapping[str, Source],
    parts: Mapping[str, list[Item]],
    encoded: Mapping[str, Encoded],
    dropped: Account,
    labels: Sequence[str],
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """What preflight found in text, JSON-ready."""
    for name in PARTS:
        for entry in encoded[name].dropped.json():
            dropped.counts[entry["reason"]] += entry["count"]
            dropped.examples.setdefault(entry["reason"], []).extend(entry["examples"])
    rows = encoded["train"].rows
    lengths = rows.lengths
    found = shared_findings(sources, parts, sum(len(each.rows) for each in encoded.values()), dropped, labels)
    notes = found["notes"]
    texts = [item.text for item in parts["train"]]
    if base.kind == "catalogue" and (unfit := MODELS.get(base.name).unfit):
        language = language_of(texts)
        if "Latin" not in language and language != "no letters":
            notes.append(f"warning: the text is {language}; {base.name} is unfit for {unfit}")
    for test, what in ((is_damaged, "damaged text (an encoding read as another)"), (has_html, "HTML")):
        if (part := share(texts, test)) >= 0.01:
            notes.append(f"{part:.0%} of the training rows contain {what}")
    smuggled = sum(tokenizer.specials_in(item.text) > 0 for items in parts.values() for item in items)
    if smuggled:
        notes.append(
            f"{smuggled} rows contain the text of a special token such as the end of a turn; it is read as that token"
        )
    edges = np.histogram_bin_edges(lengths, bins=min(24, max(1, len(np.unique(lengths)))))
    counts, _ = np.histogram(lengths, edges)
    cuts: dict[str, int] = {}
    for each in encoded.values():
        for reason, count in each.cut.items():
            cuts[reason] = cuts.get(reason, 0) + count
    notes += [f"{cuts[reason]} {reason}" for reason in cuts if reason.startswith("rows in")]
    return found | {
        "tokens": {
            "train": int(lengths.sum()),
            "learned": int((rows.targets != IGNORED).sum()) if not rows.labelled else len(rows),
            "lengths": {
                "min": int(lengths.min()),
                "median": int(np.median(lengths)),
                "p95": int(np.percentile(lengths, 95)),
                "max": int(lengths.max()),
                "histogram": [
                    [round(float(edge), 1), int(count)] for edge, count in zip(edges[:-1], counts, strict=True)
                ],
            },
        },
        "unknown_share": encoded["train"].unknown / max(1, encoded["train"].tokens),
        "truncated": {
            "rows": cuts.get("rows", 0),
            "tokens": cuts.get("tokens", 0),
            "learned": cuts.get("learned tokens cut off", 0),
        },
        "view": [view(rows, place, tokenizer) for place in range(min(3, len(rows)))],
    }


def view(rows: Rows, place: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """One row as pieces of text, learned or not: what the mask really is, read back from the tokens."""
    span = slice(rows.starts[place], rows.starts[place + 1])
    ids = rows.ids[span].tolist()
    if rows.labelled:
        return {
            "row": int(rows.numbers[place]),
            "pieces": [[tokenizer.decode(ids), False]],
            "label": int(rows.targets[place]),
        }
    learned = [False, *(target != IGNORED for target in rows.targets[span].tolist()[:-1])]
    pieces: list[list[Any]] = []
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or learned[end] != learned[start]:
            pieces.append([tokenizer.decode(ids[start:end]), learned[start]])
            start = end
    return {"row": int(rows.numbers[place]), "pieces": pieces}


def lineage(prepared: Prepared) -> dict[str, Any]:
    """What the run came from: the model with the SHA-256 of its weights, and every data file with its own."""
    base = prepared.base
    adapter = adapter_of(base.folder) if base.sha256 else None
    return {
        "model": {
            "name": base.name,
            "sha256": base.sha256,
            "licence": base.licence,
            "hub": MODELS.get(base.name).hub if base.kind == "catalogue" else base.name if base.kind == "hub" else None,
            "kind": base.kind,
            "folder": str(base.folder),
            **({"adapter_on": adapter["danlu_base"]} if adapter and "danlu_base" in adapter else {}),
        },
        "data": [
            {
                "role": role,
                "name": source.name,
                "sha256": source.sha256,
                "rows": source.total,
                "format": source.format,
                "licence": prepared.experiment.data.data_licence,
            }
            for role, source in prepared.sources.items()
        ],
    }


KEPT = "rows handed over in Python, kept with the run"
"""The origin of `data=` where it names them."""
LEARNED = "learned.txt"
"""In a run's data/: the fingerprints of its training rows, so that an evaluation notices rows that were learned from."""


def fingerprint(key: str) -> str:
    """64 bits of a row's normal form."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def dump_items(items: Sequence[Item]) -> str:
    """Held-out rows as JSONL, readable again by `data=`."""
    return "".join(
        json.dumps({"row": item.number, **item.values}, ensure_ascii=False, default=str) + "\n" for item in items
    )
