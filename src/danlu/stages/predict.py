"""Answers of a finished run: labels with their probabilities, text or images. The command line and Python come here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from danlu.core.errors import UserError
from danlu.core.run import Run
from danlu.models.generate import Sampling
from danlu.serving.engine import speak
from danlu.stages.load import open_final
from danlu.stages.modality import of
from danlu.stages.text_answers import Speaker


def predict(run: Run, inputs: Sequence[Any] | None = None, data: Any = None, **settings: Any) -> list[dict[str, Any]]:
    """Answer each input: texts, conversations (lists of messages), images, or the rows of a file, whose column is `text=`.

    settings: of generation, for a model that writes (`models.generate.Sampling`); `out`, `count` and `seed` for images.

    Returns one mapping a row: `label` and `probabilities`, or `answer` and `finish`, beside `input`.
    """
    return of(run, "predict", settings).predict(run, inputs, data, **settings)


def chat(run: Run, say: Callable[[str], None] = print, ask: Callable[[str], str] = input, **settings: Any) -> None:
    """A conversation in the terminal, streamed; an empty line or Ctrl-D ends it."""
    task = run.read("run.json")["task"]
    if task != "chat":
        raise UserError(f"{run.path} is a run of {task}, it does not chat", f"danlu predict {run.path}")
    speaker, sampling = Speaker(open_final(run)), Sampling(**settings)
    history: list[dict[str, Any]] = []
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
