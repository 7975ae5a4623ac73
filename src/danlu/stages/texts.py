"""Texts through the stages, before and while they are learned from: rows tokenized, settings derived, the network opened.

Keeps to `stages.modality.Modality`; what a trained model of texts answers is in `text_answers.py`.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from danlu.core import config
from danlu.core.config import Setting
from danlu.core.errors import UserError
from danlu.core.run import write_text
from danlu.core.types import CORPUS_TASKS
from danlu.data.clean import has_html, is_damaged, language_of, share
from danlu.data.loader import IGNORED, Rows
from danlu.data.source import Source, read
from danlu.data.tokenizer import Tokenizer
from danlu.experiment import Asked, Experiment, unread
from danlu.models import decoder, encoder, own_text
from danlu.models.base import Base, resolve
from danlu.models.catalogue import MODELS
from danlu.models.folder import label_keys, read_json
from danlu.models.generate import Sampling
from danlu.models.initialise import embed, initialise
from danlu.models.options import THEIRS
from danlu.stages import plan
from danlu.stages.load import Weights, open_weights, weights_of
from danlu.stages.modality import Modality
from danlu.stages.prepare import (
    PARTS,
    Open,
    Prepared,
    Say,
    check_gain,
    check_labels,
    dump_items,
    learned_before,
    part,
    rate_before,
    run_behind,
    shared_findings,
    sources_of,
    without_weights,
)
from danlu.stages.text_answers import answering, at_the_end, evaluate, predict, row_probabilities
from danlu.tasks.material import Account, Conversations, Encoded, Item, LabelledTexts, Material


def prepare(asked: Asked, data: Any, say: Say) -> Prepared:
    """Everything up to the first step, as `stages.prepare.prepare` promises it."""
    experiment = asked.experiment
    options = experiment.data
    sources = sources_of(asked, data, read_source)
    base = resolve(experiment.model.model, say)
    check_gain(experiment, base)
    weights = weights_of(base, say)
    tokenizer = Tokenizer.load(weights.folder, experiment.model.template)
    weights.check_vocabulary(tokenizer.base_size)
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
    weights.check_length(options.max_tokens, base.name)
    wanted = options.max_tokens or weights.context
    encoded = {name: material.encode(items, tokenizer, wanted, options.too_long) for name, items in parts.items()}
    weights.check_vocabulary(max(int(each.rows.ids.max(initial=-1)) + 1 for each in encoded.values()))
    unknown = encoded["train"].unknown / max(1, encoded["train"].tokens)
    if tokenizer.unknown is None:
        unknown = dropped_share([item.text for item in parts["train"]], tokenizer)
    check_unknown(unknown, parts["train"], base, options.unknown_share)
    if not len(encoded["train"].rows):
        reasons = (
            "; ".join(f"{entry['reason']} ({entry['count']})" for entry in encoded["train"].dropped.json())
            or "no usable row"
        )
        raise UserError(f"nothing to learn: {reasons}", "look at `danlu preflight`, raise max_tokens or mend the data")
    settings = derive(asked, base, weights, encoded, chat, len(parts["validation"]))
    findings = describe(base, sources, parts, encoded, dropped, labels, tokenizer)
    findings["unknown_share"] = unknown
    if unknown >= 0.01:
        what = (
            "letters and digits have no token, and the model never sees them"
            if tokenizer.unknown is None
            else "tokens are unknown to the tokenizer, and all one to the model"
        )
        findings["notes"].append(
            f"warning: {unknown:.0%} of the {what}: mend the text, or give a model for its language"
        )
    findings["notes"] += learned_before(base, parts["test"])
    if chat:
        findings["notes"] += alike(parts["train"], experiment.task.system)
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


def read_source(asked: Asked, place: Any, max_rows: int | None) -> Source:
    """One source of texts."""
    return read(place, bad_rows=asked.experiment.data.bad_rows, max_rows=max_rows)


def check_unknown(share: float, items: Sequence[Item], base: Base, limit: float) -> None:
    """Text the tokenizer cannot read is not learned, whatever the loss says. share: of unknown tokens."""
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


def derive(
    asked: Asked, base: Base, weights: Weights, encoded: Mapping[str, Encoded], chat: bool, validation_rows: int
) -> dict[str, Setting]:
    """The settings of training on text."""
    opened = Open(asked)
    rows = len(encoded["train"].rows)
    small = weights.parameters < 60e6
    reason = f"{weights.parameters / 1e6:,.0f} M weights " + (
        "train whole in little memory" if small else "would need 16 bytes each to train whole"
    )
    if of_lora := unread(asked, "method", "full"):
        small, reason = False, f"{of_lora[0]}= belongs to it"
    lora = opened.fill("method", "full" if small else "lora", reason) == "lora"
    adam = (2e-4 if chat else 5e-4) if lora else (2e-5 if chat or not small else 1e-4)
    why = (
        "LoRA's matrices start at zero and bear ten times the rate of whole weights"
        if lora
        else "whole weights: one to two orders below the rate of pretraining, so that what they know stays"
    )
    before, by = rate_before(base)
    if before and not lora and (run := run_behind(base)) and run.read("run.json")["task"] in CORPUS_TASKS:
        if run.read("run.json")["lineage"]["model"]["sha256"]:  # learned on from learned weights, at a rate for that
            adam, why = before, "the rate at which it went on learning from text"
        else:
            of = "the rate of its pretraining"
            if by == "muon":  # which bears more
                usual, _ = plan.learning_rate("gpt", read_json(weights.folder / "config.json")["hidden_size"], False)
                before, of = min(before, usual), f"{of}, as far as AdamW bears it" if usual < before else of
            adam, why = before / 10, f"a tenth of {before:g}, {of}, so that what it knows stays"
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
        dropped.join(encoded[name].dropped)
    rows = encoded["train"].rows
    lengths = rows.lengths
    found = shared_findings(sources, parts, sum(len(each.rows) for each in encoded.values()), dropped, labels)
    notes = found["notes"]
    texts = [item.text for item in parts["train"]]
    if base.kind == "catalogue" and (unfit := MODELS.get(base.name).unfit):
        language = language_of(texts)
        if "Latin" not in language and language != "no letters":
            notes.append(f"warning: the text is {language}; {base.name} is unfit for {unfit}")
    notes += flaws(parts, tokenizer) + lost(texts, tokenizer)
    cuts = Counter[str]()
    for each in encoded.values():
        cuts.update(each.cut)
    notes += [f"{cuts[reason]} {reason}" for reason in cuts if reason.startswith("rows in")]
    return found | {
        "tokens": {
            "train": int(lengths.sum()),
            "learned": int((rows.targets != IGNORED).sum()) if not rows.labelled else len(rows),
            "lengths": spread(lengths),
        },
        "truncated": {"rows": cuts["rows"], "tokens": cuts["tokens"], "learned": cuts["learned tokens cut off"]},
        "view": [view(rows, place, tokenizer) for place in range(min(3, len(rows)))],
    }


def flaws(
    parts: Mapping[str, Sequence[Item]], tokenizer: Tokenizer, read: str = "it is read as that token"
) -> list[str]:
    """What is often wrong with texts: flaws of the training part, and special tokens written out in any part; read: what becomes of those."""
    texts = [item.text for item in parts["train"]]
    tests = ((is_damaged, "damaged text (an encoding read as another)"), (has_html, "HTML"))
    shares = [(share(texts, test), what) for test, what in tests]
    found = [f"{part:.0%} of the training rows contain {what}" for part, what in shares if part >= 0.01]
    smuggled = [item.place for items in parts.values() for item in items if tokenizer.specials_in(item.text)]
    if smuggled:
        found.append(
            f"{len(smuggled)} rows contain the text of a special token such as the end of a turn, for example {smuggled[0]}; {read}: write it otherwise where that is not meant"
        )
    return found


def lost(texts: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """What the tokenizer takes from the texts before it reads them: words that differ only in that are one to the model."""
    normalizer, counts = tokenizer.rust.normalizer, {"capitals": 0, "accents": 0}
    for text in texts if normalizer else ():
        read = normalizer.normalize_str(text)
        counts["capitals"] += any(map(str.isupper, text)) and not any(map(str.isupper, read))
        accents, left = (sum(map(unicodedata.combining, unicodedata.normalize("NFD", each))) for each in (text, read))
        counts["accents"] += left < accents
    told = " and ".join(f"the {what} of {count}" for what, count in counts.items() if count)
    return [f"the tokenizer drops {told} training rows; where they matter, take a cased model"] if told else []


def dropped_share(texts: Sequence[str], tokenizer: Tokenizer) -> float:
    """Of the letters and digits, those no token stands for: a vocabulary without a token for the unknown leaves them out.

    Looked at in at most 500 texts, evenly spread.
    """
    missing = characters = 0
    for place in sorted({int(place) for place in np.linspace(0, len(texts) - 1, min(500, len(texts)))}):
        covered = {at for first, behind in tokenizer.offsets(texts[place])[1] for at in range(first, behind)}
        letters = [at for at, character in enumerate(texts[place]) if character.isalnum()]
        characters += len(letters)
        missing += sum(at not in covered for at in letters)
    return missing / max(1, characters)


def alike(items: Sequence[Item], system: str | None) -> list[str]:
    """Warnings of conversations that all begin with a system message which nobody puts before a question, or that all teach one answer."""
    conversations = [item.values["messages"] for item in items]
    first = {
        str(messages[0]["content"]) for messages in conversations if messages[0]["role"] in ("system", "developer")
    }
    found = []
    if system is None and all(messages[0]["role"] in ("system", "developer") for messages in conversations):
        said = json.dumps(min(first), ensure_ascii=False)
        found.append(
            "warning: every training row has a system message, and a question without one is of a form that is never learned: "
            + (
                f"give it as system={said}, so that it is put before questions too"
                if len(first) == 1 and len(said) <= 200
                else "ask with one"
            )
        )
    answers = {str(m["content"]).strip() for messages in conversations for m in messages if m["role"] == "assistant"}
    if len(answers) == 1 and len(items) > 1:
        found.append(
            f"warning: all {len(items)} training rows teach one answer, {min(answers)[:60]!r}: is it the right column?"
        )
    return found


def spread(lengths: np.ndarray) -> dict[str, Any]:
    """Of the rows in tokens, with a histogram."""
    edges = np.histogram_bin_edges(lengths, bins=min(24, max(1, len(np.unique(lengths)))))
    counts, _ = np.histogram(lengths, edges)
    return {
        "min": int(lengths.min()),
        "median": int(np.median(lengths)),
        "p95": int(np.percentile(lengths, 95)),
        "max": int(lengths.max()),
        "histogram": [[round(float(edge), 1), int(count)] for edge, count in zip(edges[:-1], counts, strict=True)],
    }


def view(rows: Rows, place: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """One row as pieces of text, learned or not: what the mask really is, read back from the tokens."""
    span = slice(rows.starts[place], rows.starts[place + 1])
    ids, number = rows.ids[span].tolist(), int(rows.numbers[place])
    if rows.labelled:
        return {"row": number, "pieces": [[tokenizer.decode(ids), False]], "label": int(rows.targets[place])}
    learned = [False, *(target != IGNORED for target in rows.targets[span].tolist()[:-1])]
    pieces: list[list[Any]] = []
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or learned[end] != learned[start]:
            pieces.append([tokenizer.decode(ids[start:end]), learned[start]])
            start = end
    return {"row": number, "pieces": pieces}


# ---------------------------------------------------------------------------------------------------------------- train


def keep(prepared: Prepared, folder: Path, everything: bool) -> None:
    """The held-out rows go with the run; all of them when they came from Python."""
    for name in ("validation", "test"):
        write_text(folder / f"{name}.jsonl", dump_items(prepared.items[name]))
    if everything:
        rows = (json.dumps(row.values, ensure_ascii=False, default=str) for row in prepared.sources["data"].rows)
        write_text(folder / "data.jsonl", "".join(f"{row}\n" for row in rows))


def network(prepared: Prepared, say: Say) -> Any:
    """The network of an experiment on its device: random weights by seed, or learned ones with a new head where the labels are new."""
    options, seed, labels = prepared.experiment.model, prepared.experiment.training.seed, prepared.labels or None
    if prepared.config is None:
        chosen: dict[str, Any] = {"dropout": options.dropout, "seed": seed, "new_head": True, "say": say}
        return open_weights(prepared.weights, prepared.task, labels, network=prepared.asked.network, **chosen)
    place = "cuda" if torch.cuda.is_available() else "cpu"
    if prepared.config["model_type"] == THEIRS:
        theirs = own_text.make(prepared.config, prepared.asked.network, seed)
        if options.initialise:
            initialise(theirs, options.initialise, seed)
        return theirs.train().to(place)
    own: Any = decoder.Decoder if decoder.supports(prepared.config) else encoder.Encoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = own(prepared.config, "classification" if labels else "language", labels, options.dropout)
    if options.initialise:
        initialise(model, options.initialise, seed)
    if prepared.vectors is not None:
        tokens, vectors = map(torch.from_numpy, prepared.vectors)
        embed(model, tokens, vectors, seed)
    return model.to(place)


def blank(prepared: Prepared) -> Prepared | None:
    """The same with random weights; None for an architecture that only transformers makes."""
    config = read_json(prepared.weights.folder / "config.json") | label_keys(prepared.labels)
    if not (decoder.supports(config) or encoder.supports(config)):
        return None
    return replace(without_weights(prepared), config=config, weights=None)


def chances(prepared: Prepared, model: Any, part: str) -> np.ndarray:
    """What a classifier gives each row of a part: float32 [rows, labels]."""
    rows = prepared.rows[part]
    return row_probabilities(model, replace(rows, numbers=np.arange(len(rows))), torch.float32)


def micro_batch(prepared: Prepared) -> int:
    """Tokens in one forward pass."""
    return prepared.experiment.training.micro_batch_tokens


TEXTS = Modality(
    prepare=prepare,
    read=read_source,
    keep=keep,
    network=network,
    micro_batch=micro_batch,
    looked_at=micro_batch,
    at_the_end=at_the_end,
    evaluate=evaluate,
    predict=predict,
    answering=answering,
    blank=blank,
    chances=chances,
    settings={
        "evaluate": ("answers", "text", "label"),
        "predict": ("text", *(field.name for field in fields(Sampling))),
    },
)
