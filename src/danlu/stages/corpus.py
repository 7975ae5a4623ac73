"""Running text through the stages: a decoder learns what comes next, an encoder what was hidden; from random weights or learned ones.

Keeps to `stages.modality.Modality`; what a trained model writes and how well it predicts is in `corpus_answers.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from danlu.core import config
from danlu.core.config import Setting
from danlu.core.errors import UserError
from danlu.data.loader import windows
from danlu.data.pack import Packed, Tokens
from danlu.data.tokenizer import Tokenizer
from danlu.data.vocabulary import learn, usual_size
from danlu.experiment import Asked, Experiment
from danlu.models import own, own_text, scaling
from danlu.models.base import Base, resolve, tokenizer_folder
from danlu.models.folder import read_json
from danlu.models.generate import Sampling
from danlu.models.options import CODE, THEIRS
from danlu.models.pretrained import needless
from danlu.stages import plan
from danlu.stages.corpus_answers import Continuations, answering, at_the_end, encoded, evaluate, packed, predict
from danlu.stages.curated import Curated
from danlu.stages.load import Weights, weights_of
from danlu.stages.modality import Modality
from danlu.stages.prepare import (
    KEPT,
    Open,
    Prepared,
    Say,
    check_gain,
    learned_before,
    number,
    part,
    shared_findings,
    sources_of,
)
from danlu.stages.texts import check_unknown, flaws, keep, micro_batch, network, read_source, spread
from danlu.stages.vectors import for_tokens
from danlu.surgery.freeze import matches
from danlu.tasks.material import Account, Item, RunningText


EMBEDDED = "model.embed_tokens.weight"
"""What transformers calls the embeddings of a decoder."""
SCRATCH = {"gpt": "language-model", "bert": "masked-language-model"}
"""Architectures with random weights, and what each learns."""


def prepare(asked: Asked, data: Any, say: Say) -> Prepared:
    """Everything up to the first step, as `stages.prepare.prepare` promises it."""
    experiment, options = asked.experiment, asked.experiment.data
    causal = experiment.task.task == "language-model"
    curated = Curated.of(asked) if data is None else None
    sources = {"data": curated.source} if curated else sources_of(asked, data, read_source)
    base = start(asked, say)
    theirs = CODE.fullmatch(base.name) is not None
    if asked.network is not None or theirs:
        own.find(asked.network, base.name, own_text.BUILD)  # what is wrong with it is told before anything is read
    if base.name in SCRATCH:
        needless(asked.network, {"model_type": base.name})
    check_gain(experiment, base)
    weights = None if base.kind == "random" else weights_of(base, say)
    if weights is not None and weights.bidirectional == causal:
        kind, recipe = ("an encoder", "bert") if causal else ("a decoder", "gpt")
        raise UserError(f"{base.name} is {kind}", f"danlu pretrain {recipe} model={base.name}")
    material, dropped = RunningText(options), Account()
    parts = curated.items if curated else part(material, sources, experiment, dropped, say)
    if weights is not None:
        tokenizer = Tokenizer.load(weights.folder)
        weights.check_vocabulary(tokenizer.base_size)
        if curated and tokenizer.rust.to_str() != curated.tokenizer.rust.to_str():
            raise UserError(
                f"{curated.folder} was tokenized with another tokenizer than that of {base.name}",
                f"danlu prepare corpus … tokenizer={base.name}",
            )
    elif curated:
        tokenizer = curated.tokenizer
    else:
        tokenizer = vocabulary(asked, parts["train"], causal, say)
    if not causal and "mask_token" not in tokenizer.named:
        whose = options.tokenizer or base.name
        raise UserError(f"the tokenizer of {whose} has no mask token", "take one of an encoder that was made for masks")
    tokens = {
        name: curated.tokens
        if curated and name == "train"
        else Tokens.of(encoded([item.text for item in items], tokenizer, causal), [item.number for item in items])
        for name, items in parts.items()
    }
    context = context_of(experiment, weights, np.diff(tokens["train"].begins), base)
    rows = {name: packed(each, tokenizer, context, causal, name != "train") for name, each in tokens.items()}
    if not len(rows["train"]):
        raise UserError("nothing to learn: no text", "look at `danlu preflight`")
    if weights is not None:
        weights.check_vocabulary(max(int(each.ids.max(initial=-1)) + 1 for each in rows.values()))
    unknown = share_of(tokenizer.unknown, tokens["train"].ids)
    check_unknown(unknown, parts["train"][:1000], base, options.unknown_share)
    described = None
    everything = derive(asked, weights, rows, context, tokenizer, say)
    if weights is None:
        depth = 0 if theirs else number(everything["depth"].value)
        described = config_of(base.name, depth, context, tokenizer)
    if curated:
        findings = curated.findings()
        size = curated.card["bytes"] * len(parts["train"]) / max(1, curated.card["documents"]["train"])
    else:
        findings = shared_findings(sources, parts, sum(map(len, parts.values())), dropped, ())
        findings["notes"] += flaws(parts, tokenizer, "it is read as text")
        size = sum(len(item.text.encode()) for item in parts["train"])
    findings |= describe(rows["train"], np.diff(tokens["train"].begins), size, unknown)
    findings["notes"] += learned_before(base, parts["test"])
    vectors = None
    if experiment.model.vectors:
        place, notes = Path(experiment.model.vectors).expanduser(), findings["notes"]
        sources["vectors"], vectors = for_tokens(place, tokenizer, sources, notes, say)
    if weights is not None and (each := findings["bytes_per_token"]) < 2:
        findings["notes"].append(
            f"warning: the tokenizer of {base.name} spends a token on every {each:.1f} bytes: it was made for other text"
        )
    return Prepared(
        asked=asked,
        experiment=config.build(Experiment, everything),
        settings=everything,
        base=base,
        weights=weights,
        processor=tokenizer,
        labels=(),
        rows=rows,
        items=parts,
        sources=sources,
        findings=findings,
        config=described,
        vectors=vectors,
    )


def start(asked: Asked, say: Say) -> Base:
    """Where the weights come from; gpt and bert mean random ones."""
    name, task, values = asked.experiment.model.model, asked.experiment.task.task, config.flat(asked.experiment)
    if name in SCRATCH or CODE.fullmatch(name):
        if SCRATCH.get(name, "language-model") != task:
            fix = f"danlu pretrain {name if name in SCRATCH else f'gpt model={name}'}"
            raise UserError(f"model={name} cannot be trained for {task}", fix)
        for key in ("depth", "vectors", "dropout") if name not in SCRATCH else ():
            if values[key] is not None:
                raise UserError(f"{key}= describes danlu's own networks, and {name} is yours", "leave it out")
        settings = asked.settings
        both = [
            settings[key] for key in ("tokenizer", "vocabulary") if key in settings and settings[key].value is not None
        ]
        if len(both) == 2 and both[0].origin != KEPT and not both[1].origin.startswith("derived"):
            raise UserError("tokenizer= is ready, so there is no vocabulary= to learn", "leave one of them out")
        return Base(name, Path(), "", "none: random weights", "random")
    for key in ("depth", "initialise", "vectors", "tokenizer", "vocabulary"):
        if values[key] is not None:
            raise UserError(f"{key}= describes random weights, but {name} has weights", "leave it out")
    return resolve(name, say, tuple(SCRATCH))


def vocabulary(asked: Asked, items: Sequence[Item], causal: bool, say: Say) -> Tokenizer:
    """The tokenizer of random weights: a given one, or one learned from the training rows."""
    options = asked.experiment.data
    if options.tokenizer is not None:
        return Tokenizer.load(tokenizer_folder(options.tokenizer, say))
    texts = [item.text for item in items]
    # WordPiece knows no bytes: each character needs a token, and another where it goes on in a word.
    least = 0 if causal else 5 + 2 * len(set().union(*texts))
    size = options.vocabulary or max(least, usual_size(sum(len(text.encode()) for text in texts)))
    say(f"learning a tokenizer of {size:,} tokens from {len(items):,} documents")
    try:
        return learn(texts, kind="bpe" if causal else "wordpiece", size=size, say=say)
    except UserError as error:
        fix = "give a larger vocabulary=, or leave it out"
        raise UserError(error.message.replace("size=", "vocabulary=", 1), fix) from None


def config_of(name: str, depth: int, context: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """The config.json of random weights, with the numbers of its tokenizer's special tokens. name: an architecture, or a person's code."""
    if name in SCRATCH:
        found = plan.config_of(name, depth, tokenizer.size, context)
    else:
        found = own_text.describe(name, tokenizer.size, context)
    named = {key: tokenizer.specials.get(tokenizer.named.get(f"{key}_token", "")) for key in ("bos", "eos", "pad")}
    return found | {f"{key}_token_id": each for key, each in named.items() if each is not None}


def share_of(token: int | None, ids: np.ndarray) -> float:
    """How many of all tokens are this one; looked at in pieces, since they may lie on the disk."""
    if token is None or not len(ids):
        return 0.0
    return sum(int((ids[at : at + (1 << 22)] == token).sum()) for at in range(0, len(ids), 1 << 22)) / len(ids)


def context_of(experiment: Experiment, weights: Weights | None, lengths: np.ndarray, base: Base) -> int:
    """Tokens in a row: enough for nine of ten documents, as far as the model can see. lengths: int [documents], of each in tokens."""
    wanted = experiment.data.max_tokens
    if weights is not None:
        weights.check_length(wanted, base.name)
    if wanted is not None:
        return wanted
    long = float(np.percentile(lengths, 90)) if len(lengths) else 128.0
    usual = int(min(1024, max(128, 64 * math.ceil(long / 64))))
    return min(usual, weights.context) if weights is not None else usual


def derive(
    asked: Asked, weights: Weights | None, rows: Mapping[str, Packed], context: int, tokenizer: Tokenizer, say: Say
) -> dict[str, Setting]:
    """The settings of training on running text."""
    opened, tokens, model = Open(asked), rows["train"].size, asked.experiment.model
    theirs = CODE.fullmatch(str(model.model)) is not None
    if (weights is not None or theirs) and opened.settings["optimizer"].origin.startswith("recipe"):
        why = "learned weights were most likely learned with Adam"
        if theirs:
            why = "which of your network's matrices are embeddings or a head, which Muon leaves out, is not known"
        opened.settings["optimizer"] = Setting("adamw", f"derived: {why}")
        opened.settings["momentum"] = Setting(None, "default")
    passes = float(scaling.PASSES) if weights is None else 1.0
    batch, of = plan.batch_tokens(scaling.PASSES * tokens), f"{tokens:,} tokens to learn from"
    lora = False
    if weights is not None:
        whose = read_json(weights.folder / "config.json").get("model_type") == THEIRS
        if whose and model.method == "lora":
            raise UserError(f"method=lora: {model.model} is a network of your own", "leave it out")
        small = whose or weights.parameters < 60e6
        why = "a network of your own" if whose else f"{weights.parameters / 1e6:,.0f} M weights"
        lora = opened.fill("method", "full" if small else "lora", why) == "lora"
    else:
        if model.method == "lora":
            raise UserError("method=lora: random weights have nothing to keep", "leave it out")
        opened.fill("method", "full", "random weights")
        opened.fill("vocabulary", tokenizer.size, "the tokenizer's")
    if weights is None and not theirs:
        reason = f"{tokens:,} tokens, {scaling.PASSES} passes, {scaling.TOKENS_PER_WEIGHT} for each weight (Hoffmann et al. 2022)"
        if found := plan.planned(asked, opened, rows, context, tokenizer.size, say):
            batch, of = found.batch, f"{found.tokens:,} tokens in the time"
            reason = (
                f"`danlu plan`: {tokens:,} tokens and {asked.experiment.training.hours:g} hours at this machine's speed"
            )
            opened.fill("steps", found.steps, reason)
            looked = len(rows["validation"]) * found.held // max(1, rows["validation"].size)
            if looked < len(rows["validation"]):
                opened.fill("validation_rows", max(1, looked), "all validations take a fifteenth of the time at most")
        opened.fill("depth", found.depth if found else scaling.deepest(scaling.PASSES * tokens), reason)
        opened.fill("dropout", 0.0, "few passes over a text leave little to overfit")
    opened.fill("max_tokens", context, "nine of ten documents fit, as far as the model sees")
    if lora:
        rate, why = 2e-4, "LoRA's matrices start at zero and bear ten times the rate of whole weights"
    elif weights is not None:
        rate, why = (
            1e-4,
            "learned weights: one to two orders below the rate of pretraining, so that what they know stays",
        )
    elif theirs:
        rate, why = 1e-3, "random weights of a network of yours; try a third and three times as much"
    else:
        wide = 64 * number(opened.settings["depth"].value)
        rate, why = plan.learning_rate(model.model, wide, opened.settings["optimizer"].value == "muon")
    kind, decay = opened.settings["optimizer"].value, opened.settings["weight_decay"]
    if kind == "sgd":
        rate, why = 100 * rate, f"{why}; a hundred times that of Adam, since plain gradients are small"
    if kind in ("adam", "sgd") and decay.origin.startswith("recipe"):
        opened.settings["weight_decay"] = Setting(0.0, f"derived: with {kind} it is a term of the loss, not a decay")
    rate = opened.fill("learning_rate", rate, why)
    if model.model == "gpt" and kind == "muon":
        if {*model.freeze} <= {"embeddings", "head", "norms"}:  # a frozen layer would add nothing for ever
            opened.fill("initialise", "zero_residual", "each layer begins by adding nothing")
        given = opened.settings["learning_rates"].value
        if given != {} and not any(matches(EMBEDDED, each) for each in (*(given or {}), *model.freeze)):
            why = "derived: ten times the rate of what is moved together" + ", beside what was given" * bool(given)
            opened.settings["learning_rates"] = Setting({"embeddings": 10 * rate, **(given or {})}, why)
    size = max(1, batch // context)
    opened.fill("batch_size", size, f"{of}: about {size * context:,} of them an update")
    opened.length(
        len(rows["train"]), passes, f"{passes:g} over {tokens:,} tokens", len(rows["validation"]), unit="sequences"
    )
    if model.model == "gpt" and kind in ("adamw", "muon") and decay.origin == "recipe gpt":
        a_pass = windows(len(rows["train"]), opened.settings["batch_size"].value, 1)
        value, why = plan.weight_decay(rate, opened.settings["steps"].value / a_pass, a_pass)
        opened.settings["weight_decay"] = Setting(value, f"derived: {why}")
    return opened.settings


def describe(rows: Packed, lengths: np.ndarray, size: float, unknown: float) -> dict[str, Any]:
    """What preflight found in the tokens of the training part, JSON-ready. lengths: of each document; size: bytes of all."""
    return {
        "tokens": {"train": rows.size, "learned": rows.learned, "bytes": round(size), "lengths": spread(lengths)},
        "bytes_per_token": size / max(1, rows.size),
        "unknown_share": unknown,
        "truncated": {"rows": 0, "tokens": 0, "learned": 0},
    }


# ---------------------------------------------------------------------------------------------------------------- train


def watch(run: Path, prepared: Prepared, model: Any, every: int, until: int, say: Say) -> list[Any]:
    """What the model writes so far."""
    return [Continuations(run, prepared, model, every, until, say)]


CORPUS = Modality(
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
    watch=watch,
    settings={
        "evaluate": ("text", "network"),
        "predict": ("text", "network", *(field.name for field in fields(Sampling))),
        "serve": ("network",),
    },
)
