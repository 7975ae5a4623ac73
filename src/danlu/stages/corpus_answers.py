"""A trained model of running text: what it writes or fills in, and how well it predicts text it never learned from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from danlu.core.errors import UserError
from danlu.core.run import Run, write_text
from danlu.data import pack
from danlu.data.pack import Packed, Tokens
from danlu.data.tokenizer import Tokenizer
from danlu.evaluation import metrics
from danlu.evaluation.baselines import counted_tokens
from danlu.evaluation.compare import compare
from danlu.models.generate import Sampling
from danlu.serving.engine import Predictor, Writer
from danlu.stages.load import Opened, open_final
from danlu.stages.prepare import Prepared, Say
from danlu.stages.text_answers import TOKENS, Speaker, data_options, inputs_of, read_items, untouched, write
from danlu.tasks.language import Language
from danlu.tasks.masked import Masked
from danlu.tasks.material import Item, RunningText
from danlu.training.fit import State, Step, averaged
from danlu.training.hooks import measure


COUNTED = 10_000_000
"""Tokens that a baseline counts: pairs of more take gigabytes. With fewer than all it says so."""

SHOWN = 6
"""Beginnings of held-out documents that are continued, in words."""


def encoded(texts: Sequence[str], tokenizer: Tokenizer, causal: bool) -> list[np.ndarray]:
    """Documents as `Tokenizer.documents` makes them, a thousand at a time."""
    parts = (texts[start : start + 1000] for start in range(0, len(texts), 1000))
    return [ids for part in parts for ids in tokenizer.documents(part, causal)]


def packed(texts: Tokens, tokenizer: Tokenizer, context: int, causal: bool, aligned: bool) -> Packed:
    """Documents as rows of tokens: for a decoder a stream, for an encoder pieces between the marks of its tokenizer."""
    if causal:
        return pack.stream(texts, context, aligned)
    around = tokenizer.encode("", special=True)
    return pack.whole(texts, context, around[:1], around[1:])


def flat(rows: Packed, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, targets) of all rows one behind the other; of at most about `most` tokens, in rows spread evenly over all."""
    chosen = range(0, len(rows), max(1, -(-rows.size // most)) if most else 1)
    batch = rows.batch(chosen)
    return batch.ids.numpy(), batch.targets.numpy()


def mask_of(tokenizer: Tokenizer) -> int:
    """The token that stands where another is hidden."""
    return tokenizer.specials[tokenizer.named["mask_token"]]


# -------------------------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class Measured:
    """Of each document: summed loss in nats, the tokens and bytes it is over, and where tokens were hidden how many were guessed."""

    sums: np.ndarray
    counts: np.ndarray
    sizes: np.ndarray
    right: np.ndarray | None
    vocabulary: int = 1

    def report(self) -> dict[str, Any]:
        """Every figure; bits per byte only where the loss is of the whole text."""
        sizes = self.sizes if self.right is None else None
        if not self.counts.sum():  # of a few short texts it may be that none is hidden
            return {"rows": len(self.counts), "level": 0.95, "metrics": {}}
        right, size = self.right, self.vocabulary
        found = metrics.language_report(self.sums, self.counts, sizes=sizes, right=right, vocabulary=size)
        return {**found, "primary": "bits_per_byte" if self.right is None else "token_accuracy"}


def measured(opened: Opened, items: Sequence[Item], share: float = 0.15) -> Measured:
    """How well a model predicts these documents; one longer than the model sees is read in pieces."""
    causal, tokenizer = opened.task == "language-model", opened.tokenizer
    task: Language | Masked = (
        Language(opened.model) if causal else Masked(opened.model, mask_of(tokenizer), share=share)
    )
    texts = Tokens.of(encoded([item.text for item in items], tokenizer, causal), range(len(items)))
    rows = packed(texts, tokenizer, opened.max_tokens, causal, aligned=True)
    batches = rows.batches(range(len(rows)), TOKENS)
    found = measure(opened.model, task.measures, batches, opened.precision)
    owners = np.concatenate([batch.rows for batch in batches])

    def by_document(values: torch.Tensor) -> np.ndarray:
        return np.bincount(owners, values.numpy(), len(items))

    sizes = np.array([len(item.text.encode()) for item in items])
    right = by_document(found["accuracy"][0]) if "accuracy" in found else None
    sums, counts = map(by_document, found["loss"])
    return Measured(sums, counts, sizes, right, tokenizer.size)


def at_the_end(run: Run, prepared: Prepared, say: Say) -> dict[str, Any]:
    """The test of a training run, beside simple counts of the training text, and beside the model it started from."""
    opened, items = open_final(run, network=prepared.asked.network), prepared.items["test"]
    share = prepared.experiment.task.mask_share
    say(f"testing on {len(items)} documents that were neither learned from nor chosen by")
    mine = measured(opened, items, share)
    result = mine.report()
    if prepared.experiment.task.baselines and mine.right is None:
        result["baselines"] = baselines_of(prepared, mine, say)
    if prepared.base.kind != "random":
        say("measuring the model it started from on the same documents")
        try:
            with untouched(opened, prepared) as before:
                theirs = measured(before, items, share)
            result["before"] = theirs.report() | {"comparison": beside(theirs, mine, "the model it started from")}
        except UserError as error:  # an encoder that was never made to fill in masks
            say(f"it cannot be measured: {error.message}")
    result["examples"] = examples(opened, items)
    return result


def beside(theirs: Measured, mine: Measured, name: str) -> dict[str, Any]:
    """Another model of the same documents against this one, in bits per byte, or nats for each hidden token."""
    whole = mine.right is None
    return compare(
        lambda counts, sums: metrics.ratio(sums, counts),
        theirs.sums / np.log(2) if whole else theirs.sums,
        mine.sums / np.log(2) if whole else mine.sums,
        mine.sizes if whole else mine.counts,
        names=(name, "the model"),
        metric="bits per byte" if whole else "loss a hidden token",
        higher_is_better=False,
        points=False,
    )


def baselines_of(prepared: Prepared, mine: Measured, say: Say) -> list[dict[str, Any]]:
    """What counting the training tokens comes to: each alone, and each after the one before it."""
    train, test = prepared.rows["train"], prepared.rows["test"]
    counted = flat(train, COUNTED)
    some = f" in {len(counted[0]):,} of the {train.size:,} tokens learned from" if len(counted[0]) < train.size else ""
    say(f"baselines on the same split: counts of tokens, and of pairs of tokens{some}")
    size = prepared.processor.size
    found = []
    for name, pairs in (("counts of tokens", False), ("counts of pairs of tokens", True)):
        each = counted_tokens(*counted, *flat(test), size, pairs)
        owners = np.repeat(test.owners, test.piece_lengths)
        order = {number: place for place, number in enumerate(item.number for item in prepared.items["test"])}
        places = np.array([order[owner] for owner in owners.tolist()])
        theirs = Measured(np.bincount(places, each, len(order)), mine.counts, mine.sizes, None)
        comparison = beside(theirs, mine, name)
        notes = [f"counted{some}"] if some else []
        found.append({"name": name, "settings": {}, "notes": notes, **theirs.report(), "comparison": comparison})
    return found


def examples(opened: Opened, items: Sequence[Item], shown: int = SHOWN, beginning: int = 24) -> list[dict[str, Any]]:
    """Beginnings of held-out documents, how they really go on, and how the model does; or sentences with a hidden token."""
    tokenizer, context, found = opened.tokenizer, int(opened.model.context), list[dict[str, Any]]()
    for place, item in enumerate(items[:shown]):
        if opened.task == "language-model":
            ids = tokenizer.encode(item.text, special=True)
            cut = min(beginning, max(1, len(ids) // 2), context // 2)
            sampling = Sampling(max_new_tokens=2 * beginning, temperature=0.8, top_p=0.95, seed=place)
            answer = write(opened, [ids[:cut]], sampling, strip=False)[0].text
            asked, rest = ids[:cut], ids[cut : cut + 2 * beginning]
        else:
            ids = tokenizer.encode(item.text)[: min(32, context // 2)]
            if not ids:
                continue
            middle, around = len(ids) // 2, tokenizer.encode("", special=True)
            asked, rest = [*ids[:middle], mask_of(tokenizer), *ids[middle + 1 :]], ids[middle : middle + 1]
            answer = best(opened, [*around[:1], *asked, *around[1:]])[0][0]["token"]
        read = (tokenizer.decode(asked, skip_special=opened.task == "language-model"), tokenizer.decode(rest, True))
        found.append({"input": read[0], "expected": read[1], "answer": answer, "right": answer == read[1]})
    return found


def evaluate(run: Run, data: Any, say: Say, text: str | None = None, network: Any = None) -> dict[str, Any]:
    """Figures of a finished run on its own test documents, or on `data`. network: the code of a person's own."""
    opened, own = open_final(run, network=network), data is None
    if own and text is not None:
        raise UserError(f"text={text}, but no column of a file is read here", "leave it out, or give data=FILE")
    used = run.settings() | ({"text": text} if text else {})
    items, dropped = read_items(run, RunningText(data_options(used, own)), data, used["bad_rows"], say)
    if not own and run.read("data.json").get("corpus"):
        say(
            "note: it learned from a corpus whose texts were cleaned, so a row that reads otherwise before that may have been learned from unnoticed; "
            "`danlu prepare corpus … against=FILE` keeps a test file out"
        )
    found = measured(opened, items, float(used["mask_share"])).report()
    return {**found, "dropped": dropped}


# -------------------------------------------------------------------------------------------------------------- answers


def answering(run: Run, network: Any = None) -> Writer | Predictor:
    """The final model as the service asks it. network: the code of a person's own."""
    opened = open_final(run, network=network)
    return Speaker(opened) if opened.task == "language-model" else Filler(opened)


class Filler:
    """A masked language model as the service asks it: `serving.engine.Predictor`."""

    kind, labels = "text", ()

    def __init__(self, opened: Opened) -> None:
        self.opened = opened

    def __call__(self, inputs: Sequence[str], still: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
        return fill(self.opened, inputs, still)


def predict(
    run: Run,
    inputs: Sequence[Any] | None,
    data: Any = None,
    text: str | None = None,
    network: Any = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """What goes on from each text, or stands behind its masks. settings: of `Sampling`. network: the code of a person's own."""
    opened = open_final(run, network=network)
    asked = inputs_of(opened, inputs, data, text)
    for each in asked:
        if not isinstance(each, str):
            raise UserError(f"found {each!r}, expected text", "give texts, or data=FILE")
    if opened.task != "language-model":
        if settings:
            raise UserError(
                f"{', '.join(settings)}: settings of generation, but this run fills masks", "leave them out"
            )
        return fill(opened, asked)
    prompts = [opened.tokenizer.encode(each, special=True) for each in asked]
    written = write(opened, prompts, Sampling(**settings), strip=False)
    return [{"input": i, "answer": each.text, "finish": each.finish} for i, each in zip(asked, written, strict=True)]


def fill(opened: Opened, texts: Sequence[str], still: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """The likeliest tokens at each mask of each text, with their probabilities.

    Raises:
        UserError: a text without a mask, or longer than the model sees.
    """
    mask, found = opened.tokenizer.named["mask_token"], []
    for n, text in enumerate(texts, 1):
        still()
        ids = opened.tokenizer.encode(text, special=True)
        there = opened.tokenizer.specials[mask] in ids
        if not there or len(ids) > opened.model.context:
            what = f"no {mask}" if not there else f"{len(ids)} tokens, more than {opened.model.context}"
            raise UserError(f"text {n}: {what}", f"write {mask} where a word is to be found: 'a {mask} day'")
        candidates = best(opened, ids)
        answer = " ".join(str(each[0]["token"]) for each in candidates)
        found.append({"input": text, "answer": answer, "finish": "stop", "candidates": candidates})
    return found


@torch.inference_mode()
def best(opened: Opened, ids: Sequence[int], candidates: int = 5) -> list[list[dict[str, Any]]]:
    """For each mask in a text the likeliest tokens."""
    tokenizer, device = opened.tokenizer, next(opened.model.parameters()).device
    given = torch.tensor(ids)
    places = (given == mask_of(tokenizer)).nonzero()[:, 0].to(device)
    with torch.autocast(device.type, opened.precision, enabled=opened.precision != torch.float32):
        logits = opened.model.logits(opened.model(given.to(device), (len(ids),))[places])
    chances, tokens = (each.tolist() for each in logits.float().softmax(-1).topk(candidates))
    return [
        [{"token": tokenizer.decode([t]), "probability": round(p, 6)} for p, t in zip(*each, strict=True)]
        for each in zip(chances, tokens, strict=True)
    ]


# ------------------------------------------------------------------------------------------------------- while it learns


@dataclass
class Continuations:
    """What the model writes, or fills in, every `every` steps: into samples/, and the first of it to the terminal."""

    run: Path
    prepared: Prepared
    model: Any
    every: int
    until: int
    say: Say

    def __call__(self, state: State, step: Step) -> None:
        if state.step % self.every and state.step != self.until:
            return
        items = (self.prepared.items["validation"] or self.prepared.items["train"])[:3]
        training = self.model.training
        self.model.eval()
        with averaged(state.task.learners()):
            run, tokenizer = Run(self.run), self.prepared.processor
            opened = Opened(run, self.model, tokenizer, self.prepared.task, (), state.precision, 0)
            found = examples(opened, items, beginning=12)
        self.model.train(training)
        folder = self.run / "samples"
        folder.mkdir(exist_ok=True)
        write_text(folder / f"step-{state.step:08d}.json", json.dumps(found, ensure_ascii=False, indent=1))
        if found:
            first = found[0]
            self.say("  it writes: " + " ".join(f"{first['input']} >> {first['answer']}".split())[:200])
