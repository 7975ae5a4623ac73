"""Prepared -> trainable: the network, its optimizer, its task and its loader; and what a step of it costs."""

from __future__ import annotations

import contextlib
import math
import os
import time
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from danlu.core import calibration, device
from danlu.core.config import Setting
from danlu.core.errors import UserError
from danlu.core.idle import at_rest
from danlu.core.types import Batch, Examples, Learner
from danlu.data.loader import Loader
from danlu.data.processor import Augment
from danlu.models import blocks
from danlu.stages.modality import modality
from danlu.stages.prepare import Prepared, Say, number
from danlu.surgery import adapter
from danlu.surgery.freeze import cast_frozen, freeze
from danlu.tasks.generative import Adversarial, Autoencoding
from danlu.tasks.language import Language
from danlu.tasks.masked import Masked
from danlu.tasks.supervised import Classification
from danlu.training import optimizer
from danlu.training.fit import State


@dataclass
class Trainable:
    """A network with what is trained in it."""

    model: Any
    task: Any
    state: State


def build(prepared: Prepared, say: Say) -> Trainable:
    """The network, its optimizers and its task, all from the experiment."""
    experiment = prepared.experiment
    options = experiment.training
    torch.set_num_threads(number(options.threads))
    device.keep_freed_memory()
    precision: torch.dtype = getattr(torch, str(options.precision))
    mine = modality(prepared.task)
    model = mine.network(prepared, say)
    lora = experiment.model.method == "lora"
    if lora:
        adapter.add_lora(model, experiment.model, options.seed)
    freeze(model, experiment.model.freeze)
    if lora and precision != torch.float32:
        cast_frozen(model, precision)
    task = task_of(prepared, model)
    loader = Loader(prepared.rows["train"], number(options.batch_size), mine.micro_batch(prepared), options.seed)
    return Trainable(model, task, State(task, loader, options.seed, precision))


def task_of(prepared: Prepared, model: Any) -> Any:
    """What is learned, and by whom."""
    options = prepared.experiment.training
    trained = {adapter.plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}

    def learner(part: str = "") -> Learner:
        mine = {name: parameter for name, parameter in trained.items() if name.startswith(part)}
        if not mine:
            raise UserError(
                f"freeze={','.join(prepared.experiment.model.freeze)} leaves nothing of {part[:-1]} to train",
                "freeze less",
            )
        return Learner(
            parameters=mine,
            optimizer=optimizer.optimizer(mine, options, float(options.learning_rate or 0)),
            schedule=optimizer.schedule(
                options.schedule, number(options.steps or 1), options.warmup, options.final_rate
            ),
            clip=options.clip or None,
            ema=options.ema,
        )

    asked = prepared.experiment.task
    if asked.task == "gan":
        return Adversarial(model, learner("discriminator."), learner("generator."))
    if asked.task == "autoencoder":
        return Autoencoding(model, learner(), asked.noise)
    if prepared.labels:
        augment = Augment(asked.augment, prepared.processor) if asked.augment else None
        return Classification(model, learner(), class_weights(prepared), asked.label_smoothing, augment)
    if asked.task == "masked-language-model":
        mask = prepared.processor.specials[prepared.processor.named["mask_token"]]
        return Masked(model, mask, learner(), asked.mask_share)
    tokens = prepared.findings.get("tokens", {})  # the first of a document is not learned, and its bytes are
    each = tokens["bytes"] / max(1, tokens["learned"]) if "bytes" in tokens else None
    return Language(model, learner(), asked.label_smoothing, each)


def class_weights(prepared: Prepared) -> torch.Tensor | None:
    """`balanced`: rows / (classes * rows of the class), so that every class weighs the same (King and Zeng 2001)."""
    if prepared.experiment.task.class_weights == "none":
        return None
    counts = np.bincount(prepared.rows["train"].targets, minlength=len(prepared.labels))
    return torch.tensor(counts.sum() / (len(counts) * np.maximum(counts, 1)), dtype=torch.float32)


def trial(built: Trainable, prepared: Prepared) -> dict[str, float]:
    """Speed and memory of this very model on these very rows; measured (`measured`), or remembered from an earlier start on a machine at rest.

    Where steps are to fill `hours=`, nothing is remembered: the machine may be busy with something else; nor of a person's own network, whose
    code may have changed.
    """
    resident = device.resident_memory_bytes()  # what `measured` frees stays and is used again
    rows, options = prepared.rows["train"], prepared.experiment.training
    most = modality(prepared.task).micro_batch(prepared)
    sample = rows.batches(range(min(len(rows), number(options.batch_size))), min(rows.timed, most))
    batch = sample[len(sample) // 2]
    lengths = getattr(rows, "lengths", None)  # tokens of each row, which is never cut; images have none
    shortest = batch if lengths is None else rows.batches([int(lengths.argmin())], 1)[0]
    place = calibration.kept_at(
        device.machine(gpus=True), "trial", *what_a_trial_depends_on(built, prepared, shortest, batch)
    )
    anew = bool(options.hours) or prepared.asked.network is not None
    found = None if anew else remembered(place)
    if found is None:
        rests = not anew and at_rest()
        found = measured(built, shortest, batch, 2 if options.hours or rests else 1)
        if rests and at_rest():
            calibration.keep(place, found)
    rate = batch.size / found["seconds"]
    trained = sum(p.numel() for learner in built.task.learners().values() for p in learner.parameters.values())
    per_step = rows.size / prepared.steps_per_epoch
    adapted = prepared.experiment.model.method == "lora" and prepared.weights.adapter is None
    final = trained if adapted else sum(parameter.numel() for parameter in built.model.parameters())
    return {
        f"{batch.unit}_per_second": rate,
        "seconds_per_step": per_step / rate,
        "seconds_per_validation": sum(each.size for each in validation(prepared)) / rate / 3,
        "seconds_for_test": 2 * prepared.rows["test"].size / rate / 3,  # forward only is a third; before and after
        "disk_bytes": 3 * 12.0 * trained + 4.0 * final,
        "trained_parameters": float(trained),
        "longest": 0.0 if lengths is None else float(lengths.max()),
        # a gradient and two moments; and a copy of weights and moments, from which a checkpoint is written; an average, and its copy
        **memory(
            resident + (24.0 if options.ema is None else 32.0) * trained,
            found["held"],
            batch.size,
            min(most, per_step),
        ),
    }


def what_a_trial_depends_on(built: Trainable, prepared: Prepared, *batches: Batch) -> list[Any]:
    """The network with what is trained of it, the number format, and the shapes of what it is tried on; not the numbers in them."""
    experiment = prepared.experiment
    weights = [(name, tuple(p.shape), p.dtype, p.requires_grad) for name, p in built.model.named_parameters()]
    shapes = [(tuple(each.inputs.shape) if isinstance(each, Examples) else each.lengths) for each in batches]
    set_by = repr((experiment.task, experiment.model, experiment.training.threads, experiment.training.ema))
    processes = os.environ.get("WORLD_SIZE", "1")
    versions = [version(name) for name in ("danlu", "transformers")]
    return [versions, processes, type(built.model).__qualname__, weights, built.state.precision, shapes, set_by]


def remembered(place: Path) -> dict[str, float] | None:
    """What `measured` gave, if it was kept and is whole."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return {key: calibration.rate(calibration.kept(place)[key]) for key in ("seconds", "held")}
    return None


def measured(built: Trainable, shortest: Batch, batch: Batch, times: int) -> dict[str, float]:
    """seconds of a forward and a backward pass over `batch`, the shortest of so many `times`; bytes held for the backward pass. `shortest`
    goes before, to warm up. Changes nothing."""
    parameters = {name: list(learner.parameters.values()) for name, learner in built.task.learners().items()}
    seconds, held, device_type = math.inf, 0, next(built.model.parameters()).device.type
    random, before = torch.get_rng_state(), built.task.state_dict()
    built.model.train()
    for each in (shortest, *[batch] * times):
        start = time.perf_counter()
        for name, mine in parameters.items():
            built.task.begin([each], name, torch.Generator().manual_seed(0))
            with torch.autocast(device_type, built.state.precision, enabled=built.state.precision != torch.float32):
                resident, saved = device.resident_memory_bytes(), dict[int, int]()
                show = partial(counted, saved)
                blocks.counting.append(show)
                try:
                    with torch.autograd.graph.saved_tensors_hooks(show, lambda tensor: tensor):
                        losses = built.task.losses(each, name)
                finally:
                    blocks.counting.remove(show)
                weights = (p.untyped_storage().data_ptr() for p in built.model.parameters())
                kept = sum(saved.values()) - sum(saved.get(weight, 0) for weight in weights)
                held = max(held, device.resident_memory_bytes() - resident, kept)
            torch.autograd.grad(sum(loss.sum() for loss in losses.values()), mine, allow_unused=True)
        seconds = min(seconds, time.perf_counter() - start) if each is batch else math.inf
    torch.set_rng_state(random)
    built.task.load_state_dict(before)
    return {"seconds": seconds, "held": float(held)}


def counted(saved: dict[int, int], tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is kept for the backward pass, with the bytes of its storage written down once."""
    storage = tensor.untyped_storage()
    saved[storage.data_ptr()] = storage.nbytes()
    return tensor


def memory(fixed: float, held: float, size: int, micro_batch: float) -> dict[str, float]:
    """memory_bytes of training: what is there always, and what a micro-batch keeps for its backward pass, linear in its tokens or images.

    held: bytes that one of `size` tokens or images kept.
    """
    each = held / size
    return {"memory_bytes": fixed + each * max(size, micro_batch), "fixed_bytes": fixed, "bytes_each": each}


def fitting(
    built: Trainable, prepared: Prepared, expected: dict[str, float], room: int
) -> tuple[Prepared, dict[str, float]]:
    """The same with the largest micro-batch, the default one or that halved, that is expected to fit into nine tenths of `room` bytes; what was
    asked for stays. The gradient is that of the whole window in any case, but for dropout's draws."""
    setting, longest, room = prepared.settings["micro_batch_tokens"], expected["longest"], room * 9 // 10
    if not longest or setting.origin != "default" or expected["memory_bytes"] <= room:
        return prepared, expected
    tokens, each = number(setting.value), expected["bytes_each"]
    while tokens // 2 >= longest and expected["fixed_bytes"] + each * tokens > room:
        tokens //= 2
    if tokens == setting.value:
        return prepared, expected
    prepared = prepared.with_setting(
        "micro_batch_tokens", Setting(tokens, f"derived: {room / 1e9:.1f} GB of memory are free")
    )
    built.state.data = replace(built.state.data, most=tokens)  # type: ignore[type-var]
    return prepared, {**expected, "memory_bytes": expected["fixed_bytes"] + each * tokens}


def validation(prepared: Prepared) -> list[Batch]:
    """The validation rows looked at, evenly spread, in micro-batches; none for a GAN, whose losses say nothing of its images."""
    rows = prepared.rows["validation"]
    if not len(rows) or prepared.experiment.task.task == "gan":
        return []
    options = prepared.experiment.training
    count = min(len(rows), number(options.validation_rows))
    chosen = sorted({int(place) for place in np.linspace(0, len(rows) - 1, count)})
    found: list[Batch] = rows.batches(chosen, modality(prepared.task).looked_at(prepared))
    return found
