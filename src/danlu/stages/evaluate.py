"""A run's model on rows it never learned from, beside the untouched base model and honest baselines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from danlu.core.errors import UserError, printable
from danlu.core.run import Run
from danlu.core.types import IMAGE_TASKS
from danlu.data.loader import IGNORED, Rows
from danlu.data.options import DataOptions
from danlu.data.source import read
from danlu.evaluation import metrics
from danlu.evaluation.baselines import baselines
from danlu.evaluation.compare import compare
from danlu.stages import predict
from danlu.stages.load import Opened, open_final, open_weights, weights_of
from danlu.stages.prepare import LEARNED, Prepared, fingerprint
from danlu.surgery import adapter
from danlu.surgery.freeze import cast_frozen
from danlu.tasks.language import Language
from danlu.tasks.material import Conversations, Item, LabelledTexts, Material
from danlu.tasks.options import TaskOptions
from danlu.training.hooks import measure


Say = Callable[[str], None]
TOKENS = 2048
"""Tokens in one forward pass of an evaluation; fixed, so that a figure never depends on a setting of training."""


def evaluate(
    run: Run,
    data: Any = None,
    say: Say = print,
    answers: int | None = None,
    text: str | None = None,
    label: str | None = None,
) -> dict[str, Any]:
    """Measure a finished run on `data`, or again on its own test rows. Returns the figures; the run's evaluation.json is left as it is.

    text, label: the columns of `data`; those of training, or found by their usual names, when not given.

    Raises:
        UserError: no final model, no rows, rows of another form, or a label the model does not know.
    """
    if run.read("run.json")["task"] in IMAGE_TASKS:
        from danlu.stages import images

        if answers is not None or text is not None:
            raise UserError("answers= and text= are about texts, and this run is about images", "leave them out")
        return images.evaluate(run, data, say, label)
    opened = open_final(run)
    name = "test" if data is None else "data"
    source = data if data is not None else run.path / "data" / "test.jsonl"
    used = {key: entry["value"] for key, entry in run.read("experiment.json")["used"].items()}
    used |= {key: name for key, name in (("text", text), ("label", label)) if name is not None}
    material, items, dropped = read_items(opened, source, used, own=data is None)
    say(f"{len(items)} rows: {material.said}")
    if data is not None and (known := learned_from(run, items)):
        say(f"warning: {known} of these {len(items)} rows were learned from, so the figures flatter the model")
    if isinstance(material, LabelledTexts):
        result, _ = classifier_figures(opened, items)
    else:
        result, _ = language_figures(
            opened, material, items, used["answers"] if answers is None else answers, used["answer_tokens"], say
        )
    dropped += result.pop("dropped", [])
    for entry in dropped:
        say(f"  left out {entry['count']}: {entry['reason']} ({', '.join(entry['examples'])})")
    return {"split": name, **result, "dropped": dropped}


def learned_from(run: Run, items: Sequence[Item]) -> int:
    """How many of the items say the same as a training row of the run."""
    path = run.path / "data" / LEARNED
    learned = set(path.read_text("utf-8").split()) if path.exists() else set()
    return sum(fingerprint(item.key) in learned for item in items)


def read_items(
    opened: Opened, source: Any, used: dict[str, Any], own: bool
) -> tuple[Material, list[Item], list[dict[str, Any]]]:
    """Held-out rows as the run kept them, or a person's file in the form the run was trained on; and what was left out."""
    columns = {"text": None, "label": None} if own else {"text": used["text"], "label": used["label"]}
    options = DataOptions(bad_rows=used["bad_rows"], **columns)
    material: Material
    if opened.labels:
        material = LabelledTexts(options, opened.labels)
    else:
        material = Conversations(options, TaskOptions(system=None if own else used["system"]))
    rows = read(source, bad_rows=used["bad_rows"])
    items, account = material.items(rows)
    for rejected in rows.rejected:
        account.add(rejected.reason, rejected.place)
    if not items:
        raise UserError(
            f"{source}: no usable row", "; ".join(entry["reason"] for entry in account.json()) or "give rows"
        )
    for item in items:
        if opened.labels and item.label not in opened.labels:
            raise UserError(
                f"{item.place}: label {item.label!r} is not known to the model", f"it knows {', '.join(opened.labels)}"
            )
    return material, items, account.json()


def at_the_end(run: Run, prepared: Prepared, say: Say) -> None:
    """The test of a training run: after and before, baselines, examples; written to evaluation.json."""
    if prepared.config is not None:
        from danlu.stages import images

        result = images.at_the_end(run, prepared, say)
    else:
        result = texts_at_the_end(run, prepared, say)
    run.write("evaluation.json", result)
    for line in summary(result):
        say(line)


def texts_at_the_end(run: Run, prepared: Prepared, say: Say) -> dict[str, Any]:
    """The test of a training run on texts."""
    opened = open_final(run)
    items = prepared.items["test"]
    say(f"testing on {len(items)} rows that were neither learned from nor chosen by")
    if opened.labels:
        result, predicted = classifier_figures(opened, items)
        result["baselines"] = (
            compare_baselines(prepared, items, predicted, say) if prepared.experiment.task.baselines else []
        )
        result["examples"] = right_and_wrong(items, predicted, opened.labels)
    else:
        result = before_and_after(opened, prepared, items, say)
    return {"split": "test", **result}


def summary(result: dict[str, Any]) -> list[str]:
    """The figures as lines."""
    lines = []
    for name, entry in result["metrics"].items():
        if name == "f1_micro" or name.endswith("_weighted"):
            continue  # in the page and in --json; on a terminal they crowd out the others
        before = result.get("before", {}).get("metrics", {}).get(name)
        was = f"   before {before['value']:.4g} [{before['low']:.4g}, {before['high']:.4g}]" if before else ""
        lines.append(f"{name:>22} {entry['value']:.4g} [{entry['low']:.4g}, {entry['high']:.4g}]{was}")
    for each in result.get("baselines", []):
        name = result.get("primary", "accuracy")
        figure = each["metrics"][name]
        lines.append(
            f"{each['name']}: {name} {figure['value']:.4g} [{figure['low']:.4g}, {figure['high']:.4g}]; {each['comparison']['verdict']}"
        )
    if "comparison" in result.get("before", {}):
        lines.append(result["before"]["comparison"]["verdict"])
    return lines


# ------------------------------------------------------------------------------------------------------- classification


@dataclass(frozen=True)
class Predicted:
    """labels: int [rows]. probabilities: float32 [rows, classes]."""

    labels: np.ndarray
    probabilities: np.ndarray


def classifier_figures(opened: Opened, items: Sequence[Item]) -> tuple[dict[str, Any], Predicted]:
    """Every figure of a classifier, and what it said about each row."""
    probabilities = predict.probabilities(opened, [item.text for item in items])
    predicted = Predicted(probabilities.argmax(1), probabilities)
    truth = [opened.labels.index(str(item.label)) for item in items]
    return metrics.classification_report(truth, predicted.labels, probabilities, opened.labels), predicted


def compare_baselines(
    prepared: Prepared, items: Sequence[Item], predicted: Predicted, say: Say
) -> list[dict[str, Any]]:
    """Majority and TF-IDF on the same split, each compared with the model row by row."""
    train, labels = prepared.items["train"], prepared.labels
    truth = np.array([labels.index(str(item.label)) for item in items])
    groups = [item.group or item.key for item in train]
    say("baselines on the same split: majority class, TF-IDF with logistic regression")
    if cut := int(prepared.findings["truncated"]["rows"]):
        say(
            f"  they read whole rows; the model reads the first {prepared.experiment.data.max_tokens} tokens ({cut} rows are longer)"
        )
    found = baselines(
        [item.text for item in train],
        [labels.index(str(item.label)) for item in train],
        [item.text for item in items],
        len(labels),
        groups=groups,
    )
    result = []
    for each in found:
        figures = metrics.classification_report(truth, each.predicted, each.probabilities, labels)
        comparison = compare(
            metrics.accuracy,
            each.predicted,
            predicted.labels,
            truth,
            names=(each.name, "the fine-tuned model"),
            metric="accuracy",
        )
        result.append(
            {
                "name": each.name,
                "settings": each.settings,
                "metrics": figures["metrics"],
                "comparison": comparison,
                "notes": each.notes,
            }
        )
    return result


def right_and_wrong(
    items: Sequence[Item], predicted: Predicted, labels: Sequence[str], each: int = 12
) -> list[dict[str, Any]]:
    """The most confident mistakes, and some right answers."""
    sure = predicted.probabilities.max(1)
    right = np.array([labels[guess] == item.label for guess, item in zip(predicted.labels, items, strict=True)])
    order = np.argsort(-sure, kind="stable")
    rows: list[int] = []
    for wanted in (False, True):
        chosen = [int(place) for place in order if bool(right[place]) is wanted]
        rows += (chosen if not wanted else chosen[:: max(1, len(chosen) // each)])[:each]
    return [
        {
            "input": items[place].text[:600],
            "expected": str(items[place].label),
            "answer": labels[predicted.labels[place]],
            "right": bool(right[place]),
            "confidence": round(float(sure[place]), 4),
        }
        for place in rows
    ]


# ------------------------------------------------------------------------------------------------------------- language


def language_figures(
    opened: Opened, material: Material, items: Sequence[Item], answers: int, answer_tokens: int, say: Say
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Loss, perplexity and bits a byte on the learned tokens of all rows; answers in words for the first `answers` rows."""
    encoded = material.encode(items, opened.tokenizer, opened.max_tokens, "truncate")
    sums, counts, sizes = row_losses(opened, encoded.rows)
    report = metrics.language_report(sums, counts, sizes=sizes)
    report |= {"dropped": encoded.dropped.json(), "cut": encoded.cut}
    if encoded.cut.get("rows"):
        say(f"  cut: {encoded.cut['rows']} rows are longer than {opened.max_tokens} tokens ({encoded.cut})")
    asked = questions(items)
    written: list[str] = []
    if answers:
        chosen = asked[:answers]
        if len(chosen) < len(asked):
            say(f"answers are written for the first {len(chosen)} of {len(asked)} turns (answers={answers})")
        written = predict.answers(opened, [question for question, _ in chosen], answer_tokens)
        graded = metrics.answer_report(written, [expected for _, expected in chosen])
        report["metrics"] |= graded["metrics"]
        report["answered"] = len(chosen)
    return report, {"sums": sums, "counts": counts, "answers": written}


def questions(items: Sequence[Item]) -> list[tuple[list[dict[str, str]], str]]:
    """(the conversation up to an answer, that answer) for every answer that is learned from."""
    return [
        (messages[:place], str(message["content"]))
        for messages in (item.values["messages"] for item in items)
        for place, message in enumerate(messages)
        if message["role"] == "assistant" and message.get("learn", True) and (message["content"] or "").strip()
    ]


def row_losses(opened: Opened, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Summed loss (nats), learned tokens and bytes they stand for, of each row of the source.

    The examples that a history-rewriting template makes of one conversation are added up: they are not independent.
    """
    task = Language(opened.model)
    order = sorted(range(len(rows)), key=lambda row: (int(rows.lengths[row]), row))
    found = measure(opened.model, task.measures, rows.batches(order, TOKENS), opened.precision)["loss"]
    owners, owner = np.unique(rows.numbers, return_inverse=True)
    sums, counts, sizes = (np.zeros(len(owners)) for _ in range(3))
    np.add.at(sums, owner[order], found[0].numpy())
    np.add.at(counts, owner[order], found[1].numpy())
    for row in range(len(rows)):
        targets = rows.targets[rows.starts[row] : rows.starts[row + 1]]
        text = opened.tokenizer.decode(targets[targets != IGNORED].tolist(), skip_special=True)
        sizes[owner[row]] += len(text.encode())
    return sums, counts, np.maximum(sizes, 1)


def before_and_after(opened: Opened, prepared: Prepared, items: Sequence[Item], say: Say) -> dict[str, Any]:
    """The trained model and the untouched one on the same rows, compared row by row."""
    task = prepared.experiment.task
    material = Conversations(DataOptions(bad_rows="skip"), TaskOptions())
    say("measuring the fine-tuned model")
    result, after = language_figures(opened, material, items, task.answers, task.answer_tokens, say)
    say("measuring the untouched base model on the same rows")
    with untouched(opened, prepared) as start:
        base, before = language_figures(start, material, items, task.answers, task.answer_tokens, lambda _: None)
    result["before"] = base
    comparison = compare(
        lambda counts, sums: metrics.ratio(sums, counts),
        before["sums"],
        after["sums"],
        after["counts"],
        names=("the base model", "the fine-tuned model"),
        metric="loss a token",
        higher_is_better=False,
        points=False,
    )
    result["before"]["comparison"] = comparison
    result["primary"] = "perplexity"
    asked = questions(items)[: len(after["answers"])]
    result["examples"] = [
        {
            "input": question[-1]["content"],
            "expected": expected,
            "answer": answer,
            "right": bool(metrics.exact_match([answer], [expected])[0]),
            "before": earlier,
        }
        for (question, expected), answer, earlier in zip(asked, after["answers"], before["answers"], strict=True)
    ]
    for example in result["examples"][:1]:
        say(
            printable(
                f"\nasked:    {example['input']}\nexpected: {example['expected']}\n"
                f"before:   {example['before']}\nafter:    {example['answer']}\n"
            )
        )
    return result


@contextlib.contextmanager
def untouched(opened: Opened, prepared: Prepared) -> Iterator[Opened]:
    """The model as it was before: its adapter taken off inside, or the base loaded again."""
    if adapter.layers(opened.model):
        with adapter.switched_off(opened.model):
            yield opened
        return
    model = open_weights(weights_of(prepared.base), opened.task, None)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if opened.precision != torch.float32:
        cast_frozen(model, opened.precision)
    yield replace(opened, model=model.eval())
