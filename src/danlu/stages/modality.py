"""What differs between texts, running text and images on the way from rows to answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from danlu.core.errors import UserError
from danlu.core.run import Run
from danlu.core.types import CORPUS_TASKS, IMAGE_TASKS
from danlu.data.source import Source
from danlu.experiment import Asked
from danlu.serving.engine import Predictor, Writer
from danlu.stages.prepare import Prepared, Say


@dataclass(frozen=True)
class Modality:
    """The functions of `texts.py`, `corpus.py` and `images.py`; another modality is another module.

    prepare: everything up to the first step; `stages.prepare.prepare` says what it promises. read: one source (what was asked, its
    place, most rows), in the form that the task learns from. keep: write the held-out rows into the run's data/; all rows, if they came
    from Python. network: on its device, with random weights or learned ones. micro_batch: the most that goes through it at once while it
    learns, in the unit of its batches. looked_at: the same where it is only measured. watch: (run, prepared, model, every, until, say) ->
    hooks of `fit` that show what has been learned so far. at_the_end: the test of a training run, JSON-ready. evaluate: (run, data, say,
    **settings) -> figures of a finished run on its own test rows, or on `data`. predict: (run, inputs, data, **settings) -> an answer for
    each input. answering: the final model as the service asks it. blank: the same
    experiment from random weights. chances: (prepared, model, part) -> what a classifier gives each row, float32 [rows, labels].
    settings: what `evaluate` and `predict` may be told beside their data.
    """

    prepare: Callable[[Asked, Any, Say], Prepared]
    read: Callable[[Asked, Any, int | None], Source]
    keep: Callable[[Prepared, Path, bool], None]
    network: Callable[[Prepared, Say], Any]
    micro_batch: Callable[[Prepared], int]
    looked_at: Callable[[Prepared], int]
    at_the_end: Callable[[Run, Prepared, Say], dict[str, Any]]
    evaluate: Callable[..., dict[str, Any]]
    predict: Callable[..., list[dict[str, Any]]]
    answering: Callable[..., Writer | Predictor]
    blank: Callable[[Prepared], Prepared | None] = lambda _: None
    chances: Callable[[Prepared, Any, str], np.ndarray] = lambda *_: np.empty((0, 0))
    watch: Callable[[Path, Prepared, Any, int, int, Say], list[Any]] = lambda *_: []
    settings: Mapping[str, Sequence[str]] = field(default_factory=dict)


def modality(task: str) -> Modality:
    """That of a task."""
    if task in IMAGE_TASKS:
        from danlu.stages.images import IMAGES

        return IMAGES
    if task in CORPUS_TASKS:
        from danlu.stages.corpus import CORPUS

        return CORPUS
    from danlu.stages.texts import TEXTS

    return TEXTS


def of(run: Run, does: str, settings: Mapping[str, Any]) -> Modality:
    """That of a run's task; a setting that would mean nothing when it `does` this is an error."""
    task = run.read("run.json")["task"]
    found = modality(task)
    names = found.settings.get(does, ())
    if wrong := next((key for key in settings if key not in names), None):
        raise UserError(f"{wrong}=, which means nothing to a run of {task}", f"it knows {', '.join(names)}")
    return found
