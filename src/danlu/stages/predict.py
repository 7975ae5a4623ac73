"""Answers of a finished run: labels with their probabilities, or text. Evaluation, the command line and Python all come here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from danlu.core.errors import UserError
from danlu.core.run import Run
from danlu.core.types import IMAGE_TASKS
from danlu.data.chat import LISTS, PAIRS, conversation, recognise
from danlu.data.loader import Rows
from danlu.data.source import Source, cell, column, read
from danlu.models.generate import Sampling, generate
from danlu.serving.engine import Answer, Asked, speak
from danlu.stages.load import Opened, open_final
from danlu.tasks.material import TEXTS, cut_to


TOKENS = 2048
BATCH = 8
"""Prompts answered together. Fixed, so that an answer in the notebook is the answer in the evaluation."""
PROMPTS = ("prompt", "question", "instruction", *TEXTS)

Message = dict[str, Any]


def predict(
    run: Run, inputs: Sequence[Any] | None = None, data: Any = None, text: str | None = None, **settings: Any
) -> list[dict[str, Any]]:
    """Answer each input: texts, conversations (lists of messages), images, or the rows of a file, whose column is `text`.

    settings: of generation, for a chat model (`models.generate.Sampling`); `out`, `count` and `seed` for images.

    Returns one mapping a row: `label` and `probabilities`, or `answer` and `finish`, beside `input`.
    """
    task = run.read("run.json")["task"]
    known = ("out", "count", "seed") if task in IMAGE_TASKS else [field.name for field in fields(Sampling)]
    if wrong := next((key for key in settings if key not in known), None):
        raise UserError(f"{wrong}=, which means nothing to a run of {task}", f"it knows {', '.join(known)}")
    if task in IMAGE_TASKS:
        from danlu.stages import images

        return images.predict(run, inputs, data, **settings)
    opened = open_final(run)
    given = [inputs] if isinstance(inputs, str) else inputs
    asked = list(given) if given is not None else inputs_of(opened, read(data), text)
    if not asked:
        raise UserError("nothing to answer", "give texts, or data=FILE")
    if opened.labels:
        if settings:
            raise UserError(
                f"{', '.join(settings)}: settings of generation, but this run sorts texts into classes",
                "leave them out",
            )
        wrong = next((each for each in asked if not isinstance(each, str)), None)
        if wrong is not None:
            raise UserError(f"found {wrong!r}, expected text", "this run sorts texts into classes")
        return Classifier(opened)(asked)
    conversations = [[{"role": "user", "content": each}] if isinstance(each, str) else each for each in asked]
    sampling = Sampling(**settings)
    written = write(opened, [prompt(opened, conversation) for conversation in conversations], sampling)
    return [
        {"input": given, "answer": each.text, "finish": each.finish} for given, each in zip(asked, written, strict=True)
    ]


def inputs_of(opened: Opened, source: Source, text: str | None = None) -> list[Any]:
    """A file's rows as inputs: conversations without their last answer, or the column with the text.

    text: the column; the one of training, or found by its usual names, when not given.
    """
    if text is None and not opened.labels and holds_chat(source):
        form = recognise(source)
        rows = [conversation(row, form, taught=False) for row in source.rows]
        return [row[:-1] if row[-1]["role"] == "assistant" else row for row in rows if row]
    trained = opened.text_column if opened.text_column in source.columns else None
    name = column(source, text or trained, TEXTS if opened.labels else PROMPTS, "text")
    return [str(cell(row, name)) for row in source.rows]


def holds_chat(source: Source) -> bool:
    """Whether the rows are conversations, rather than one text each."""
    names = set(source.columns)
    return bool(names & set(LISTS)) or any(set(pair) <= names for pair in PAIRS)


@torch.inference_mode()
def probabilities(opened: Opened, texts: Sequence[str]) -> np.ndarray:
    """Softmax of the logits, float32 [texts, labels]; each text cut at the length the model was trained with."""
    limit = opened.max_tokens
    encoded = opened.tokenizer.encode_batch(list(texts), special=True)
    ids = [cut_to(row, limit, opened.tokenizer) for row in encoded]
    rows = Rows.with_labels(ids, [0] * len(ids), range(len(ids)))
    order = sorted(range(len(ids)), key=lambda row: (len(ids[row]), row))
    result = np.empty((len(ids), len(opened.labels)), np.float32)
    device = next(opened.model.parameters()).device
    for batch in rows.batches(order, TOKENS):
        with torch.autocast(device.type, opened.precision, enabled=opened.precision != torch.float32):
            logits = opened.model.logits(opened.model(batch.ids.to(device), batch.lengths))
        result[list(batch.rows)] = logits.float().softmax(-1).cpu().numpy()
    return result


class Classifier:
    """A text classifier as the service asks it: `serving.engine.Predictor`."""

    kind = "text"

    def __init__(self, opened: Opened) -> None:
        self.opened, self.labels = opened, opened.labels

    def __call__(self, inputs: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {
                "input": given,
                "label": self.labels[int(row.argmax())],
                "probabilities": {label: round(float(p), 6) for label, p in zip(self.labels, row, strict=True)},
            }
            for given, row in zip(inputs, probabilities(self.opened, inputs), strict=True)
        ]


def answers(opened: Opened, conversations: Sequence[Sequence[Message]], max_new_tokens: int) -> list[str]:
    """The likeliest answer to each conversation."""
    prompts = [prompt(opened, conversation) for conversation in conversations]
    return [each.text for each in write(opened, prompts, Sampling(max_new_tokens=max_new_tokens))]


def prompt(opened: Opened, conversation: Sequence[Message]) -> list[int]:
    """The ids that the answer goes on from, rendered by the very template the run was trained with."""
    return opened.tokenizer.encode(opened.tokenizer.render(with_system(opened, conversation), generation_prompt=True))


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
        if isinstance(asked, str):
            return self.opened.tokenizer.encode(asked, special=True)
        return prompt(self.opened, [dict(message) for message in asked])

    def decode(self, tokens: Sequence[int]) -> str:
        return self.opened.tokenizer.decode(tokens, skip_special=True)

    def write(self, prompt: list[int], sampling: Sampling, on_token: Callable[[int, int], None], strip: bool) -> Answer:
        (answer,) = write(self.opened, [prompt], sampling, on_token, strip)
        return answer


def chat(run: Run, say: Callable[[str], None] = print, ask: Callable[[str], str] = input, **settings: Any) -> None:
    """A conversation in the terminal, streamed; an empty line or Ctrl-D ends it."""
    if run.read("run.json")["task"] in IMAGE_TASKS:
        raise UserError(f"{run.path} is of images, it does not chat", f"danlu predict {run.path} IMAGE")
    opened = open_final(run)
    if opened.labels:
        raise UserError(f"{run.path} sorts texts into classes, it does not chat", f"danlu predict {run.path} 'a text'")
    speaker, sampling = Speaker(opened), Sampling(**settings)
    history: list[Message] = []
    say("an empty line ends the conversation")
    while True:
        try:
            question = ask("you: ").strip()
        except EOFError:
            return
        if not question:
            return
        history.append({"role": "user", "content": question})
        answer = speak(speaker, history, sampling, say=lambda piece: print(piece, end="", flush=True))
        print(flush=True)
        history.append({"role": "assistant", "content": answer.text})
