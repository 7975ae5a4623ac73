"""Prepared -> trainable: the network, its optimizer, its task and its loader; and what a step of it costs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from danlu.core import device
from danlu.core.config import Setting
from danlu.core.types import Documents, Learner
from danlu.data.loader import Loader
from danlu.stages.load import open_weights
from danlu.stages.prepare import Prepared, number
from danlu.surgery import adapter
from danlu.surgery.freeze import cast_frozen, freeze
from danlu.tasks.language import Language
from danlu.tasks.supervised import Classification
from danlu.training import optimizer
from danlu.training.fit import State


Say = Callable[[str], None]


@dataclass
class Trainable:
    """A network with what is trained in it."""

    model: Any
    task: Any
    state: State


def build(prepared: Prepared, say: Say) -> Trainable:
    """The network, its optimizer and its task, all from the experiment."""
    experiment = prepared.experiment
    options = experiment.training
    torch.set_num_threads(number(options.threads))
    model = open_weights(
        prepared.weights,
        experiment.task.task,
        prepared.labels or None,
        dropout=experiment.model.dropout,
        seed=options.seed,
        say=say,
    )
    precision: torch.dtype = getattr(torch, str(options.precision))
    if experiment.model.method == "lora":
        adapter.add_lora(model, experiment.model, options.seed)
    freeze(model, experiment.model.freeze)
    if experiment.model.method == "lora" and precision != torch.float32:
        cast_frozen(model, precision)
    trained = {adapter.plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    steps = number(options.steps) if options.steps else 1
    learner = Learner(
        parameters=trained,
        optimizer=optimizer.optimizer(trained, options, float(options.learning_rate or 0)),
        schedule=optimizer.schedule(options.schedule, steps, options.warmup),
        clip=options.clip or None,
    )
    smoothing = experiment.task.label_smoothing
    task: Any
    if prepared.labels:
        task = Classification(model, learner, class_weights(prepared), smoothing)
    else:
        task = Language(model, learner, smoothing)
    loader = Loader(prepared.rows["train"], number(options.batch_size), options.micro_batch_tokens, options.seed)
    return Trainable(model, task, State(task, loader, seed=options.seed, precision=precision))


def class_weights(prepared: Prepared) -> torch.Tensor | None:
    """`balanced`: rows / (classes * rows of the class), so that every class weighs the same (King and Zeng 2001)."""
    if prepared.experiment.task.class_weights == "none":
        return None
    counts = np.bincount(prepared.rows["train"].targets, minlength=len(prepared.labels))
    return torch.tensor(counts.sum() / (len(counts) * np.maximum(counts, 1)), dtype=torch.float32)


def trial(built: Trainable, prepared: Prepared) -> dict[str, float]:
    """Speed and memory of this very model on these very rows, from one small micro-batch forward and backward; changes nothing."""
    rows, options = prepared.rows["train"], prepared.experiment.training
    sample = rows.batches(range(min(len(rows), number(options.batch_size))), min(512, options.micro_batch_tokens))
    parameters = list(built.task.learner.parameters.values())
    seconds = math.inf
    state = torch.get_rng_state()
    built.model.train()
    batch = sample[len(sample) // 2]
    held = 0
    for _ in range(2):  # the first pass also warms up; the machine may be busy with something else in either
        start = time.perf_counter()
        with torch.autocast(
            parameters[0].device.type, built.state.precision, enabled=built.state.precision != torch.float32
        ):
            before = device.resident_memory_bytes()
            losses = built.task.losses(batch, "model")
            held = max(held, device.resident_memory_bytes() - before)
        torch.autograd.grad(sum(loss.sum() for loss in losses.values()), parameters, allow_unused=True)
        seconds = min(seconds, time.perf_counter() - start)
    torch.set_rng_state(state)
    rate = len(batch.ids) / seconds
    trained = sum(parameter.numel() for parameter in parameters)
    share = min(options.micro_batch_tokens, len(rows.ids) / prepared.steps_per_epoch) / len(batch.ids)
    per_step = len(rows.ids) / prepared.steps_per_epoch / rate
    lora = prepared.experiment.model.method == "lora" and prepared.weights.adapter is None
    tested = len(prepared.rows["test"].ids)
    return {
        "tokens_per_second": rate,
        "seconds_per_step": per_step,
        "seconds_per_validation": sum(len(batch.ids) for batch in validation(prepared)) / rate / 3,
        "seconds_for_test": 2 * tested / rate / 3,  # forward only is a third of a step; before and after
        "disk_bytes": 3 * 12.0 * trained + 4.0 * max(trained, 0 if lora else prepared.weights.parameters),
        "trained_parameters": float(trained),
        "memory_bytes": device.resident_memory_bytes() + held * max(1.0, share) + 12.0 * trained,
    }


def with_steps(prepared: Prepared, setting: Setting) -> Prepared:
    """The number of steps, once it is known."""
    training = replace(prepared.experiment.training, steps=setting.value)
    return replace(
        prepared,
        experiment=replace(prepared.experiment, training=training),
        settings=prepared.settings | {"steps": setting},
    )


def validation(prepared: Prepared) -> list[Documents]:
    """The validation rows looked at, evenly spread, in micro-batches."""
    rows = prepared.rows["validation"]
    if not len(rows):
        return []
    options = prepared.experiment.training
    count = min(len(rows), number(options.validation_rows))
    chosen = sorted({int(place) for place in np.linspace(0, len(rows) - 1, count)})
    return rows.batches(chosen, options.micro_batch_tokens)


def in_float32(prepared: Prepared) -> Prepared:
    """The same with exact products, for merging."""
    training = replace(prepared.experiment.training, precision="float32")
    return replace(prepared, experiment=replace(prepared.experiment, training=training))
