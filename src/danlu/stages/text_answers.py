"""A trained model of texts: its answers, labels with their probabilities or text, and its figures on rows it never learned from."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from danlu.core.errors import UserError, printable
from danlu.core.run import Run
from danlu.data.chat import LISTS, PAIRS, conversation, recognise
from danlu.data.loader import IGNORED, Rows
from danlu.data.options import DataOptions
from danlu.data.rows import TEXTS
from danlu.data.source import Source, cell, column, read
from danlu.evaluation import metrics
from danlu.evaluation.baselines import Baseline, baselines
from danlu.evaluation.classification import beside, named, right_and_wrong
from danlu.evaluation.compare import compare
from danlu.models.generate import Sampling, generate
from danlu.models.options import THEIRS
from danlu.serving.engine import Answer, Asked, Predictor, Writer, check_length
from danlu.stages.load import Opened, open_final, open_weights, weights_of
from danlu.stages.prepare import Prepared, Say, fingerprint, learned_by
from danlu.surgery import adapter
from danlu.surgery.freeze import cast_frozen
from danlu.tasks.language import Language
from danlu.tasks.material import Conversations, Item, LabelledTexts, Material, Readable, cut_to
from danlu.tasks.options import TaskOptions
from danlu.training.hooks import clock, measure


TOKENS = 2048
"""Tokens in one forward pass where nothing is learned; fixed, so that a figure never depends on a setting of training."""
BATCH = 8
"""Prompts answered together. Fixed, so that an answer in the notebook is the answer in the evaluation."""
PROMPTS = ("prompt", "question", "instruction", *TEXTS)

Message = dict[str, Any]


# -------------------------------------------------------------------------------------------------------------- answers


def answering(run: Run) -> Writer | Predictor:
    """The final model as the service asks it."""
    opened = open_final(run)
    return Classifier(opened) if opened.labels else Speaker(opened)


def predict(
    run: Run, inputs: Sequence[Any] | None, data: Any = None, text: str | None = None, **settings: Any
) -> list[dict[str, Any]]:
    """Labels with their probabilities, or answers, for texts, conversations or the rows of a file. settings: of `Sampling`."""
    opened = open_final(run)
    asked = inputs_of(opened, inputs, data, text)
    if opened.labels:
        if settings:
            raise UserError(
                f"{', '.join(settings)}: settings of generation, but this run sorts texts into classes",
                "leave them out",
            )
        for each in asked:
            if not isinstance(each, str):
                raise UserError(f"found {each!r}, expected text", "this run sorts texts into classes")
        return Classifier(opened)(asked)
    conversations = [[{"role": "user", "content": each}] if isinstance(each, str) else each for each in asked]
    written = write(opened, [prompt(opened, conversation) for conversation in conversations], Sampling(**settings))
    return [
        {"input": given, "answer": each.text, "finish": each.finish} for given, each in zip(asked, written, strict=True)
    ]


def inputs_of(opened: Opened, inputs: Sequence[Any] | None, data: Any, text: str | None) -> list[Any]:
    """What is to be answered: one text, several inputs, or the rows of the file `data`.

    text: the column of the file.

    Raises:
        UserError: there is nothing, or the file has no such column.
    """
    given = [inputs] if isinstance(inputs, str) else inputs
    if asked := list(given) if given is not None else rows_of(opened, read(data), text):
        return asked
    raise UserError("nothing to answer", "give texts, or data=FILE")


def rows_of(opened: Opened, source: Source, text: str | None) -> list[Any]:
    """A file's rows as inputs: conversations without their last answer, or the column with the text.

    text: the column; the one of training, or found by its usual names, when not given.
    """
    names = set(source.columns)
    holds_chat = bool(names & set(LISTS)) or any(set(pair) <= names for pair in PAIRS)
    if text is None and not opened.labels and holds_chat:
        form = recognise(source)
        rows = [conversation(row, form, taught=False) for row in source.rows]
        return [row[:-1] if row[-1]["role"] == "assistant" else row for row in rows if row]
    trained = opened.text_column if opened.text_column in source.columns else None
    name = column(source, text or trained, TEXTS if opened.labels else PROMPTS, "text")
    return [str(cell(row, name)) for row in source.rows]


def probabilities(opened: Opened, texts: Sequence[str], still: Callable[[], None] = lambda: None) -> np.ndarray:
    """Softmax of the logits, float32 [texts, labels]; each text cut at the length the model was trained with."""
    encoded = opened.tokenizer.encode_batch(list(texts), special=True)
    ids = [cut_to(row, opened.max_tokens, opened.tokenizer) for row in encoded]
    return row_probabilities(
        opened.model, Rows.with_labels(ids, [0] * len(ids), range(len(ids))), opened.precision, still
    )


@torch.inference_mode()
def row_probabilities(
    model: Any, rows: Rows, precision: torch.dtype, still: Callable[[], None] = lambda: None
) -> np.ndarray:
    """The same of rows that are numbered from 0."""
    order = sorted(range(len(rows)), key=lambda row: (int(rows.lengths[row]), row))
    device, places = next(model.parameters()).device, list[int]()
    found = []
    model.eval()
    for batch in rows.batches(order, TOKENS):
        still()
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits = model.logits(model(batch.ids.to(device), batch.lengths))
        found.append(logits.float().softmax(-1).cpu().numpy())
        places += batch.rows
    result: np.ndarray = np.concatenate(found)[np.argsort(places)]
    return result


class Classifier:
    """A text classifier as the service asks it: `serving.engine.Predictor`."""

    kind = "text"

    def __init__(self, opened: Opened) -> None:
        self.opened, self.labels = opened, opened.labels

    def __call__(self, inputs: Sequence[str], still: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
        answers = named(probabilities(self.opened, inputs, still), self.labels)
        return [{"input": given, **answer} for given, answer in zip(inputs, answers, strict=True)]


def answers_to(opened: Opened, conversations: Sequence[Sequence[Message]], max_new_tokens: int) -> list[str]:
    """The likeliest answer to each conversation."""
    prompts = [prompt(opened, conversation) for conversation in conversations]
    return [each.text for each in write(opened, prompts, Sampling(max_new_tokens=max_new_tokens))]


def prompt(opened: Opened, conversation: Sequence[Message]) -> list[int]:
    """The ids that the answer goes on from."""
    return opened.tokenizer.encode(rendered(opened, conversation))


def rendered(opened: Opened, conversation: Sequence[Message]) -> str:
    """The text that the answer goes on from, by the very template the run was trained with."""
    return opened.tokenizer.render(with_system(opened, conversation), generation_prompt=True)


def write(
    opened: Opened,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    on_token: Callable[[int, int], None] | None = None,
    strip: bool = True,
) -> list[Answer]:
    """What the model writes behind each prompt; `strip` takes the white space around it away."""
    device = next(opened.model.parameters()).device
    done: list[Answer] = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        with torch.autocast(device.type, opened.precision, enabled=opened.precision != torch.float32):
            drawn = replace(sampling, seed=sampling.seed + start)  # no two prompts of a call draw the same numbers
            generated = generate(opened.model, batch, drawn, opened.tokenizer.ends, on_token)
        for ids, each in zip(batch, generated, strict=True):
            tokens = each.tokens[:-1] if each.finish == "stop" else each.tokens
            text = opened.tokenizer.decode(tokens, skip_special=True)
            done.append(Answer(text.strip() if strip else text, each.finish, len(ids), len(each.tokens)))
    return done


def with_system(opened: Opened, messages: Sequence[Message]) -> list[Message]:
    """The system message that the model was trained with (`system=`), where a conversation has none of its own."""
    if opened.system is None or any(message["role"] in ("system", "developer") for message in messages):
        return list(messages)
    return [{"role": "system", "content": opened.system}, *messages]


class Speaker:
    """A chat run as the service and the terminal ask it: `serving.engine.Writer`."""

    def __init__(self, opened: Opened) -> None:
        self.opened, self.context, self.ends = opened, int(opened.model.context), opened.tokenizer.ends

    def prompt(self, asked: Asked) -> list[int]:
        tokenizer, whole = self.opened.tokenizer, isinstance(asked, str)
        text = asked if isinstance(asked, str) else rendered(self.opened, [dict(message) for message in asked])
        least = tokenizer.least(text, self.context)
        check_length(asked, f"at least {least:,}", least, self.context)
        return tokenizer.encode(text, special=whole)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.opened.tokenizer.decode(tokens, skip_special=True)

    def write(self, prompt: list[int], sampling: Sampling, on_token: Callable[[int, int], None], strip: bool) -> Answer:
        (answer,) = write(self.opened, [prompt], sampling, on_token, strip)
        return answer


# ------------------------------------------------------------------------------------------------------- classification


def classifier_figures(opened: Opened, items: Sequence[Item]) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Every figure of a classifier; the right labels, int [rows], and what it gave each, float32 [rows, labels]."""
    chances = probabilities(opened, [item.text for item in items])
    truth = np.array([opened.labels.index(str(item.label)) for item in items])
    return metrics.classification_report(truth, chances.argmax(1), chances, opened.labels), truth, chances


def baselines_of(prepared: Prepared, items: Sequence[Item], say: Say) -> list[Baseline]:
    """Majority and TF-IDF on the same split."""
    train, labels = prepared.items["train"], prepared.labels
    say("baselines on the same split: majority class, TF-IDF with logistic regression")
    say(
        f"  small fits choose its settings, then one is on all {len(train):,} rows: seconds to minutes (baselines=no leaves it out)"
    )
    if cut := int(prepared.findings["truncated"]["rows"]):
        say(
            f"  they read whole rows; the model reads the first {prepared.experiment.data.max_tokens} tokens ({cut} rows are longer)"
        )
    return baselines(
        [item.text for item in train],
        [labels.index(str(item.label)) for item in train],
        [item.text for item in items],
        len(labels),
        groups=[item.group or item.key for item in train],
        progress=fits_told(say),
    )


def fits_told(say: Say, seconds_between: float = 5.0) -> Callable[[int, int], None]:
    """How many fits are done and how long the others will take: now and then, and when they are all done if it was said before."""
    began = shown = time.perf_counter()

    def told(done: int, fits: int) -> None:
        nonlocal shown
        now = time.perf_counter()
        if now - shown >= seconds_between or (done == fits and shown > began):
            shown = now
            left = f"about {clock((now - began) / done * (fits - done))} left, then the one on all rows"
            say(f"  {done} of {fits} fits; {left if done < fits else 'now the one on all rows'}")

    return told


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
        written = answers_to(opened, [question for question, _ in chosen], answer_tokens)
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
    model = open_weights(weights_of(prepared.base), opened.task, None, network=prepared.asked.network)
    model.requires_grad_(False)
    if opened.precision != torch.float32 and model.config.get("model_type") != THEIRS:
        cast_frozen(model, opened.precision)
    yield replace(opened, model=model.eval())


# ------------------------------------------------------------------------------------------------------------- evaluate


def evaluate(
    run: Run,
    data: Any,
    say: Say,
    answers: int | None = None,
    text: str | None = None,
    label: str | None = None,
) -> dict[str, Any]:
    """Figures of a finished run on its own test rows, or on `data`."""
    opened, used, own = open_final(run), run.settings(), data is None
    used |= {key: name for key, name in (("text", text), ("label", label)) if name is not None}
    options = data_options(used, own)
    material: Material = LabelledTexts(options, opened.labels)
    if not opened.labels:
        material = Conversations(options, TaskOptions(system=None if own else used["system"]))
    items, dropped = read_items(run, material, data, options.bad_rows, say)
    if alien := next((item for item in items if opened.labels and item.label not in opened.labels), None):
        known = f"it knows {', '.join(opened.labels)}"
        raise UserError(f"{alien.place}: label {alien.label!r} is not known to the model", known)
    if opened.labels:
        result, _, _ = classifier_figures(opened, items)
    else:
        most = used["answers"] if answers is None else answers
        result, _ = language_figures(opened, material, items, most, used["answer_tokens"], say)
    dropped += result.pop("dropped", [])
    for entry in dropped:
        say(f"  left out {entry['count']}: {entry['reason']} ({', '.join(entry['examples'])})")
    return {**result, "dropped": dropped}


def data_options(used: dict[str, Any], own: bool) -> DataOptions:
    """How a file is read as training was; what the run kept itself has columns of its own."""
    options = DataOptions(bad_rows=used["bad_rows"])
    return options if own else replace(options, text=used["text"], label=used.get("label"))


def read_items(
    run: Run, material: Readable, data: Any, bad_rows: str, say: Say
) -> tuple[list[Item], list[dict[str, Any]]]:
    """Held-out rows as the run kept them, or a person's file in the form the run was trained on; and what was left out."""
    source = read(run.path / "data" / "test.jsonl" if data is None else data, bad_rows=bad_rows)
    items, account = material.items(source)
    for rejected in source.rejected:
        account.add(rejected.reason, rejected.place)
    if not items:
        why = "; ".join(entry["reason"] for entry in account.json())
        raise UserError(f"{source.name}: no usable row", why or "give rows")
    say(f"{len(items)} rows: {material.said}")
    if data is not None:
        say_learned(run, [item.key for item in items], "rows", say)
    return items, account.json()


def say_learned(run: Run, keys: Sequence[str], unit: str, say: Say) -> None:
    """A warning where rows of a file were learned from."""
    learned = learned_by(run)
    if known := sum(fingerprint(key) in learned for key in keys):
        say(f"warning: {known} of these {len(keys)} {unit} were learned from, so the figures flatter the model")


def at_the_end(run: Run, prepared: Prepared, say: Say) -> dict[str, Any]:
    """The test of a training run on texts."""
    opened = open_final(run)
    items = prepared.items["test"]
    say(f"testing on {len(items)} rows that were neither learned from nor chosen by")
    if not opened.labels:
        return before_and_after(opened, prepared, items, say)
    result, truth, chances = classifier_figures(opened, items)
    found = baselines_of(prepared, items, say) if prepared.experiment.task.baselines else []
    result["baselines"] = beside(found, truth, chances, opened.labels)
    result["examples"] = right_and_wrong(
        truth, chances, opened.labels, lambda place: {"input": items[place].text[:600]}
    )
    return result
