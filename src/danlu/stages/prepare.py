"""Experiment -> prepared: the model found, the data read, split and tokenized, every open setting derived with its reason.

Nothing is trained and nothing is written here. What was found goes into `data.json` of a run and onto the preflight page.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from danlu.core import config, device
from danlu.core.calibration import calibration, pick_precision, pick_threads
from danlu.core.config import Setting
from danlu.core.errors import UserError
from danlu.core.run import Run, find_run
from danlu.core.types import CORPUS_TASKS, TEXT_TASKS
from danlu.data.clean import contradictions, duplicates, leaks, normal_form
from danlu.data.loader import windows
from danlu.data.options import DataOptions
from danlu.data.rows import column
from danlu.data.source import Source
from danlu.data.split import moments, split
from danlu.experiment import Asked, Experiment
from danlu.models.base import Base
from danlu.models.catalogue import MODELS
from danlu.stages.load import adapter_of
from danlu.tasks.material import Account, Item, Readable


Say = Callable[[str], None]
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Prepared:
    """All that training needs, and all that a person should know before it.

    experiment: with every derived setting filled in. settings: the same, flat, each with its origin. rows, items: by part.
    weights: where they lie (`load.Weights`); None for a network of images. processor: what turns a person's input into tensors.
    config: what the config.json of a network of images, or of random weights for text, says; None for learned weights of text.
    vectors: what random weights for text start some tokens' embedding from: ids int64 [tokens], float32 [tokens, any width].
    """

    asked: Asked
    experiment: Experiment
    settings: dict[str, Setting]
    base: Base
    weights: Any
    processor: Any
    labels: tuple[str, ...]
    rows: dict[str, Any]
    items: Mapping[str, Sequence[Item]]
    sources: dict[str, Source]
    findings: dict[str, Any]
    config: dict[str, Any] | None = None
    vectors: tuple[Any, Any] | None = None

    @property
    def task(self) -> str:
        return self.experiment.task.task

    @property
    def steps_per_epoch(self) -> int:
        rows = self.rows["train"]
        return windows(len(rows), number(self.experiment.training.batch_size), rows.least)

    @property
    def used(self) -> dict[str, dict[str, Any]]:
        """Every setting, JSON-ready: key -> value and origin."""
        return {key: {"value": setting.value, "origin": setting.origin} for key, setting in self.settings.items()}

    def with_training(self, **changes: Any) -> Prepared:
        """The same with other settings of training; `settings` stays."""
        return replace(self, experiment=replace(self.experiment, training=replace(self.experiment.training, **changes)))

    def with_setting(self, key: str, setting: Setting) -> Prepared:
        """The same with a setting of training that has become known."""
        return replace(self.with_training(**{key: setting.value}), settings=self.settings | {key: setting})


def prepare(asked: Asked, data: Any = None, say: Say = print) -> Prepared:
    """Everything up to the first step.

    data: rows handed over in Python instead of the file `data=`.

    Raises:
        UserError: for every kind of bad input there is; nothing has been written.
    """
    from danlu.stages.modality import modality

    return modality(asked.experiment.task.task).prepare(asked, data, say)


def sources_of(asked: Asked, data: Any, read: Callable[[Asked, Any, int | None], Source]) -> dict[str, Source]:
    """What is to be learned from, and the files of held-out rows that were named: by role. read: one of them, at most so many rows."""
    options = asked.experiment.data
    if data is None and options.data is None:
        raise UserError("no data=", "say what to learn from: data=my.jsonl")
    given = {"data": data if data is not None else options.data, "validation": options.validation, "test": options.test}
    return {
        role: read(asked, place, options.max_rows if role == "data" else None)
        for role, place in given.items()
        if place is not None
    }


def number(value: int | float | None) -> int:
    """A setting that `derive` has filled."""
    if value is None:
        raise ValueError("not derived yet")
    return int(value)


# ---------------------------------------------------------------------------------------------------------------- parts


def part(
    material: Readable, sources: dict[str, Source], experiment: Experiment, dropped: Account, say: Say
) -> dict[str, list[Item]]:
    """Usable rows by part; rows of `data` that say the same as a given validation or test row, or nearly, leave the training part."""
    found: dict[str, list[Item]] = {}
    for role, source in sources.items():
        found[role], account = material.items(source)
        for rejected in source.rejected:
            dropped.add(rejected.reason, rejected.place)
        dropped.join(account)
        some = len(source.rows) + len(source.rejected) < source.total
        taken = f", the first {len(source.rows)} of {source.total}" * some
        say(f"{role}: {source.name} ({source.format}), {len(found[role])} rows{taken}: {material.said}")
        if not found[role]:
            raise UserError(f"{source.name}: no usable row of {source.total}", "see the reasons with bad_rows=error")
    options = experiment.data
    check_split(options)
    if options.near and experiment.task.task in TEXT_TASKS:
        found = with_alike(found, options.near)
    shares = {
        "validation_share": 0.0 if "validation" in found else options.validation_share,
        "test_share": 0.0 if "test" in found else options.test_share,
    }
    held = {item.key: role for role in ("validation", "test") for item in found.get(role, [])}
    near = {item.alike: role for role in ("validation", "test") for item in found.get(role, []) if item.alike}
    groups = {item.group: role for role in ("validation", "test") for item in found.get(role, []) if item.group}
    rows = []
    for item in found["data"]:
        if item.key in held:
            dropped.add(f"also in the {held[item.key]} file, so not learned", item.place)
        elif item.alike in near:
            dropped.add(f"nearly the same as a row of the {near[item.alike]} file, so not learned", item.place)
        elif item.group in groups:
            dropped.add(f"of a group that is also in the {groups[item.group]} file, so not learned", item.place)
        else:
            rows.append(item)
    if "validation" in found and "test" in found:
        tested = {item.alike or item.key for item in found["test"]}
        for item in [item for item in found["validation"] if (item.alike or item.key) in tested]:
            dropped.add("in validation and in test, or nearly: left out of validation", item.place)
        found["validation"] = [item for item in found["validation"] if (item.alike or item.key) not in tested]
    if not rows:
        fix = "give other rows to learn from" + "; near=0 lets through what is only nearly the same" * bool(near)
        raise UserError("every row of data= is also in the validation or test file", fix)
    labels = None
    if rows[0].label is not None:
        rows = without_rare(rows, options.rare_labels, 1 + sum(share > 0 for share in shares.values()), dropped)
        labels = [str(item.label) for item in rows]
        if not rows:
            raise UserError("every label has too few distinct rows", "is label= the right column?")
    times = None
    if options.time is not None:
        name = column(sources["data"], options.time, (), "time")
        written = {row.number: row.values.get(name) for row in sources["data"].rows}
        times = moments([(item.place, written[item.number]) for item in rows])
    chosen = split(
        components(rows),
        seed=experiment.training.seed,
        labels=labels,
        times=times,
        folds=options.folds or 0,
        fold=options.fold or 0,
        **shares,
    )
    parts = {name: [rows[place] for place in getattr(chosen, name)] for name in PARTS}
    if times is not None:
        for name, places in ((name, getattr(chosen, name)) for name in PARTS):
            if places:
                first, last = (written[rows[of(places, key=times.__getitem__)].number] for of in (min, max))
                say(f"{name}: {options.time} from {first} to {last}")
    return parts | {name: found[name] for name in ("validation", "test") if name in found}


def check_split(options: DataOptions) -> None:
    """Whether what is said about the split can be done together."""
    if options.fold is not None and options.fold >= (options.folds or 0):
        fix = f"fold=0 to {options.folds - 1}" if options.folds else "say how many there are: folds=5"
        raise UserError(f"fold={options.fold}, but folds={options.folds}", fix)
    if options.folds and (options.test or options.time):
        other = "test" if options.test else "time"
        raise UserError(f"folds= and {other}= both say which rows are the test", "leave one of them out")
    if options.time and options.test and options.validation:
        raise UserError("time= says which rows to hold out, but validation= and test= are given", "leave it out")


def with_alike(found: Mapping[str, list[Item]], threshold: float) -> dict[str, list[Item]]:
    """The same rows, each with the key that it shares with all that are nearly the same, in whatever file.

    A system message says nothing about whether two conversations are alike. Raises UserError if most rows are.
    """
    from danlu.data.near import clusters

    keys = {item.key: item for items in found.values() for item in items}
    roots = clusters([spoken(item) for item in keys.values()], threshold)
    names: dict[int, str] = {}
    for key, root in zip(keys, roots.tolist(), strict=True):
        names[root] = min(key, names.get(root, key))
    if names and (most := Counter(roots.tolist()).most_common(1)[0])[1] > max(2, len(keys) / 2):
        one, two = [item.place for item, root in zip(keys.values(), roots, strict=True) if root == most[0]][:2]
        raise UserError(
            f"{most[1]} of {len(keys)} distinct rows are nearly the same text ({one} and {two} for example), so no split of them measures "
            f"anything: at least {threshold:.0%} of their runs of five words are equal",
            "take what they have in common out of the rows; near=0 splits them all the same, near=0.95 only keeps closer ones together",
        )
    alike = {key: names[root] for key, root in zip(keys, roots.tolist(), strict=True)}
    return {role: [replace(item, alike=alike[item.key]) for item in items] for role, items in found.items()}


def spoken(item: Item) -> str:
    """What rows are compared by: the text, or all that is said in a conversation."""
    messages = item.values.get("messages")
    return "\n".join(str(m["content"] or "") for m in messages if m["role"] != "system") if messages else item.key


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
    """One key a row: rows that say the same, or nearly, or are of one group, directly or through others, share it."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for item in rows:
        if item.group is not None:
            one, two = sorted((root(f"text:{item.alike or item.key}"), root(f"group:{item.group}")))
            parent[two] = one
    return [root(f"text:{item.alike or item.key}") for item in rows]


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


# --------------------------------------------------------------------------------------------------------------- derive


class Open:
    """Every setting: what was asked, else what is derived with its reason, else the default."""

    def __init__(self, asked: Asked) -> None:
        self.settings = {
            key: Setting(value, asked.settings[key].origin if key in asked.settings else "default")
            for key, value in config.flat(asked.experiment).items()
        }
        if self.settings["precision"].value is None or self.settings["threads"].value is None:  # a resume has both
            machine = device.machine(gpus=True)
            measured = cache(lambda: calibration(machine))
            self.fill("precision", *pick_precision(machine, measured))
            self.fill("threads", *pick_threads(machine, measured))
        if asked.experiment.training.optimizer == "muon":
            self.fill("momentum", 0.95, "Muon's (Jordan 2024)")
        elif asked.experiment.training.optimizer == "sgd":
            self.fill("momentum", 0.9, "usual with sgd")
        if asked.experiment.task.task in CORPUS_TASKS:
            self.fill("spike", 2.0, "windows of a corpus are alike")

    def fill(self, key: str, value: Any, reason: str) -> Any:
        """What `key` is: this value, if nobody said another."""
        if self.settings[key].value is None:
            self.settings[key] = Setting(value, f"derived: {reason}")
        return self.settings[key].value

    def length(
        self, rows: int, passes: float, why: str, validation_rows: int, least: int = 1, unit: str = "rows"
    ) -> None:
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
                    steps,
                    f"derived: {epochs:g} pass{'es' * (epochs != 1)} over {rows} {unit}, {batch} at a time{first}",
                )
        steps = self.settings["steps"].value
        times = 8 if steps is None or steps >= 80 else max(1, steps // 10)
        self.fill(
            "validate_every",
            math.ceil((steps or 200) / times),
            f"{times} time{'s' * (times != 1)} in {steps} updates" if steps else "until the hours are known in updates",
        )
        cap = max(64, rows // 4)
        self.fill(
            "validation_rows",
            min(cap, validation_rows) or 1,
            f"all {validation_rows}"
            if validation_rows <= cap
            else f"{cap} of {validation_rows}: looked at often, so at most a quarter of the training rows",
        )


# ------------------------------------------------------------------------------------------------------------- findings


def shared_findings(
    sources: Mapping[str, Source],
    parts: Mapping[str, Sequence[Item]],
    kept: int,
    dropped: Account,
    labels: Sequence[str],
) -> dict[str, Any]:
    """What preflight found and is the same for every kind of rows, JSON-ready. kept: rows in all parts together."""
    keys = {name: [item.key for item in items] for name, items in parts.items()}
    alike = {name: [item.alike or item.key for item in items] for name, items in parts.items()}
    pairs = {" and ".join(pair): len(shared) for pair, shared in leaks(alike).items()}
    notes = [f"{count} rows stand both in {pair}" for pair, count in pairs.items()]
    if labels:
        unclear = contradictions(keys["train"], [str(item.label) for item in parts["train"]])
        if unclear:
            notes.append(
                f"{len(unclear)} rows stand in training with two different labels, for example {parts['train'][unclear[0][0]].place}: mend or remove one of each"
            )
    for name in ("validation", "test"):
        if absent := [label for label in labels if parts[name] and all(item.label != label for item in parts[name])]:
            few = len({item.group for item in parts["train"]}) if parts["train"][0].group is not None else 0
            why = f" (training has only {few} groups)" if few and few < 20 else ""
            notes.append(f"warning: {name} has no row of {', '.join(map(repr, absent[:5]))}{why}")
    spelled: dict[str, list[str]] = {}
    for label in labels:
        spelled.setdefault("".join(normal_form(label).split()), []).append(label)
    notes += [
        f"warning: the labels {' and '.join(map(repr, similar))} differ only in case, width or spaces, and are learned as different: write them alike if they are one"
        for similar in spelled.values()
        if len(similar) > 1
    ]
    return {
        "rows": {
            "read": sum(source.total for source in sources.values()),
            "kept": kept,
            "dropped": [{**entry, "examples": entry["examples"][:3]} for entry in dropped.json()],
        },
        "splits": {name: len(parts[name]) for name in PARTS},
        "duplicates": sum(len(group) - 1 for group in duplicates(keys["train"])),
        "near": len(set(keys["train"])) - len(set(alike["train"])),
        "leaks": sum(pairs.values()),
        "labels": {
            label: {name: sum(item.label == label for item in parts[name]) for name in PARTS} for label in labels
        },
        "notes": notes,
    }


def lineage(prepared: Prepared) -> dict[str, Any]:
    """What the run came from: the model with the SHA-256 of its weights, and every data file with its own."""
    base = prepared.base
    adapter, run = adapter_of(base.folder) if base.sha256 else None, run_behind(base)
    return {
        "model": {
            "name": base.name,
            "sha256": base.sha256,
            "licence": base.licence,
            "hub": MODELS.get(base.name).hub if base.kind == "catalogue" else base.name if base.kind == "hub" else None,
            "kind": base.kind,
            "folder": str(base.folder) if base.sha256 else None,
            **({"adapter_on": adapter["danlu_base"]} if adapter and "danlu_base" in adapter else {}),
            **({"run": run.path.resolve().name, "lineage": run.read("run.json")["lineage"]} if run else {}),
        },
        "data": [
            {
                "role": role,
                "name": source.name,
                "sha256": source.sha256,
                "rows": source.total,
                "format": source.format,
                "licence": prepared.experiment.data.data_licence or prepared.findings.get("corpus", {}).get("licence"),
            }
            for role, source in prepared.sources.items()
        ],
    }


KEPT = "kept with the run"
"""The origin of `data=` where it names rows handed over in Python, and of `tokenizer=` where one was learned."""
LEARNED = "learned.txt"
"""In a run's data/: the fingerprints of its training rows, so that an evaluation notices rows that were learned from."""


def fingerprint(key: str) -> str:
    """64 bits of a row's normal form."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def check_gain(experiment: Experiment, base: Base) -> None:
    """Whether the comparison that is asked for can be made."""
    seeds = experiment.task.gain_seeds
    if seeds == 1:
        raise UserError("gain_seeds=1: one seed has no interval", "give 2 or more, or 0 for no comparison")
    if seeds and base.kind == "random" and not experiment.model.vectors:
        raise UserError(f"gain_seeds={seeds}, but {base.name} starts from random weights", "leave it out")
    if seeds and base.kind != "random" and experiment.task.task in CORPUS_TASKS:
        raise UserError(f"gain_seeds={seeds}, but only vectors= are compared in pretraining", "leave it out")


def without_weights(prepared: Prepared) -> Prepared:
    """The same experiment from random weights: nothing of it was learned, so nothing is frozen or adapted."""
    model = replace(prepared.experiment.model, freeze=(), method="full")
    base = Base(prepared.base.name, Path(), "", "", "random")
    return replace(prepared, base=base, experiment=replace(prepared.experiment, model=model))


def learned_by(run: Run) -> frozenset[str]:
    """Fingerprints of a run's training rows; none of a run that learned from none."""
    path = run.path / "data" / LEARNED
    return frozenset(path.read_text("utf-8").split()) if path.is_file() else frozenset()


def run_behind(base: Base) -> Run | None:
    """The run that made these weights."""
    if base.kind == "checkpoint":
        return Run(Path(base.name).expanduser().parent.parent)  # RUN/checkpoints/step-…
    found = find_run(Path(base.name).expanduser()) if base.kind == "run" else None
    return Run(found) if found else None


def rate_before(base: Base) -> tuple[float | None, str | None]:
    """The peak learning rate of the run that made these weights, and its optimizer."""
    run = run_behind(base)
    if run is None:
        return None, None
    used = run.settings()
    return float(used["learning_rate"]), str(used["optimizer"])


def learned_before(base: Base, items: Sequence[Item]) -> list[str]:
    """A warning, if the run behind the weights learned from some of these test rows."""
    run = run_behind(base)
    before = learned_by(run) if run else frozenset()
    if known := sum(fingerprint(item.key) in before for item in items):
        return [
            f"warning: {known} of the {len(items)} test rows were learned from by {base.name}, so the figures flatter the model; test=FILE gives others"
        ]
    return []


def dump_items(items: Sequence[Item]) -> str:
    """Held-out rows as JSONL, readable again by `data=`."""
    return "".join(
        json.dumps({"row": item.number, **item.values}, ensure_ascii=False, default=str) + "\n" for item in items
    )
