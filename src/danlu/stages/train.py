"""Prepared -> run: train, keep the best, save the final model, measure it on the test rows, write the page."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from danlu.core import checkpoint, device
from danlu.core.config import Setting
from danlu.core.errors import UserError
from danlu.core.run import Run, create, delete, fresh_name, is_run, write_text
from danlu.core.track import Tracker, read_lines
from danlu.core.types import Documents, Learner
from danlu.data.loader import Loader
from danlu.data.source import read
from danlu.experiment import Asked
from danlu.models import pretrained
from danlu.stages import evaluate, preflight, report
from danlu.stages.load import open_weights, seal
from danlu.stages.prepare import Prepared, dump_items, lineage, number, prepare
from danlu.surgery import adapter
from danlu.surgery.freeze import cast_frozen, freeze
from danlu.tasks.language import Language
from danlu.tasks.supervised import Classification
from danlu.training import hooks, optimizer
from danlu.training.fit import State, fit


Say = Callable[[str], None]
CHANGEABLE = {"steps", "epochs", "hours", "patience"}
"""What may differ when a run goes on: how long it trains, never how."""


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
"""How a disk says that it takes no more."""


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """Training was asked to stop; its checkpoint is on the disk."""


def finetune(asked: Asked, data: Any = None, say: Say = print) -> Run:
    """The whole way from an experiment to a finished run.

    `out=` names the directory. An unfinished run of the same experiment there goes on; a finished one is returned as it is.

    Raises:
        UserError: bad input, or the directory holds another experiment; the difference is named.
        Interrupted: Ctrl-C or TERM; the run can be resumed.
    """
    out = asked.extra.get("out")
    path = Path(out) if out else fresh_name(asked.recipe, str(asked.experiment.model.model))
    if is_run(path) and not cut_off(Run(path)):
        return go_on(Run(path), asked, say, data)
    prepared = prepare(asked, data, say)
    preflight.show(prepared, say)
    if is_run(path):
        delete(Run(path))
    run = create(
        path,
        danlu=preflight.version(),
        recipe=asked.recipe,
        task=prepared.experiment.task.task,
        labels=list(prepared.labels),
        lineage=lineage(prepared),
        machine=preflight.machine_facts(),
        torch=torch.__version__,
    )
    with run.lock(), failing(run, new=True):
        train(run, begin(run, prepared, data), say)
    return run


def cut_off(run: Run) -> bool:
    """Whether a process was killed between making the directory and writing down what it is for: nothing is lost in it."""
    return not run.has("experiment.json") and not run.locked()


@contextlib.contextmanager
def failing(run: Run, new: bool = False) -> Iterator[None]:
    """A run that stops at an error says so; a new one that has not begun to train leaves nothing behind.

    Raises:
        UserError: also for a disk that is full wherever it is noticed.
    """
    try:
        yield
    except (UserError, OSError) as error:
        if new and not run.has("metrics.jsonl"):
            shutil.rmtree(run.path, ignore_errors=True)
        else:
            with contextlib.suppress(UserError):  # on a full disk not even this can be written
                run.update(status="failed")
        if isinstance(error, OSError) and error.errno in FULL:
            raise UserError(
                f"{error.filename or run.path} could not be written ({error.strerror})",
                f"make room, then: danlu resume {run.path}",
            ) from error
        raise


def begin(run: Run, prepared: Prepared, data: Any) -> Prepared:
    """Everything a later resume or evaluation needs, before the first step."""
    folder = run.path / "data"
    folder.mkdir(exist_ok=True)
    for name in ("validation", "test"):
        write_text(folder / f"{name}.jsonl", dump_items(prepared.items[name]))
    if data is not None:  # rows from Python: kept with the run, so that it can be resumed
        rows = [line_of(row.number, row.values) for row in prepared.sources["data"].rows]
        write_text(folder / "data.jsonl", "".join(rows))
        kept = Setting(str(folder / "data.jsonl"), "rows handed over in Python, kept with the run")
        prepared = replace(prepared, settings=prepared.settings | {"data": kept})
    run.write("data.json", prepared.findings)
    write_settings(run, prepared)
    return prepared


def line_of(place: int, values: dict[str, Any]) -> str:
    """One row from Python as a line of JSONL."""
    import json

    try:
        return json.dumps(values, ensure_ascii=False) + "\n"
    except TypeError as error:
        raise UserError(f"row {place}: {error}", "hand over text, numbers, lists and mappings") from None


def write_settings(run: Run, prepared: Prepared) -> None:
    """experiment.json: what was asked, and every setting that was used with its origin."""
    used = {key: {"value": setting.value, "origin": setting.origin} for key, setting in prepared.settings.items()}
    run.write("experiment.json", {"recipe": prepared.asked.recipe, "asked": prepared.asked.values(), "used": used})


def go_on(run: Run, asked: Asked | None, say: Say, data: Any = None) -> Run:
    """Resume an unfinished run, or one that may train longer; `asked` None asks for exactly what it is.

    data: rows handed over in Python; they must be those the run began with.

    Raises:
        UserError: the experiment differs in more than its length, or its data has changed.
    """
    with run.lock():
        written = run.read("experiment.json") if run.has("experiment.json") else None
        if written is None:
            raise UserError(
                f"{run.path} was cut off before it began", f"delete it (`danlu runs delete {run.path}`) and start again"
            )
        longer = asked is not None and longer_than(run, written, asked)
        old = {entry["role"]: entry["sha256"] for entry in run.read("run.json")["lineage"]["data"]}
        if data is not None and asked is not None:
            options = asked.experiment.data
            handed = read(data, bad_rows=options.bad_rows, max_rows=options.max_rows)
            if handed.sha256 != old["data"]:
                raise UserError(
                    f"{run.path} began with other rows than the {handed.total} handed over now", "give another out="
                )
        if run.read("run.json")["status"] == "finished" and not longer:
            say(f"{run.path} is finished; nothing to do (`danlu evaluate`, `danlu chat`, `danlu predict` use it)")
            return run
        used = {key: Setting(entry["value"], entry["origin"]) for key, entry in written["used"].items()}
        if longer and asked is not None:
            for key in CHANGEABLE:
                if key in asked.settings:
                    used[key] = asked.settings[key]
            if "epochs" in asked.settings and "steps" not in asked.settings:
                used.pop("steps")
        whole = Asked(written["recipe"], used)
        prepared = prepare(whole, say=say)
        for role, source in prepared.sources.items():
            if role in old and source.sha256 != old[role] and "kept with the run" not in used["data"].origin:
                raise UserError(
                    f"{source.name} has changed since the run began (SHA-256 {source.sha256[:12]}…, was {old[role][:12]}…)",
                    "restore the file, or start a new run with another out=",
                )
        if prepared.base.sha256 != run.read("run.json")["lineage"]["model"]["sha256"]:
            raise UserError(
                f"{prepared.base.name} is not the model the run began with", "restore it, or start a new run"
            )
        prepared = replace(prepared, asked=Asked(written["recipe"], asked.settings) if longer and asked else whole)
        if longer:
            write_settings(run, prepared)
        run.update(status="running")
        with failing(run):
            train(run, prepared, say)
    return run


def longer_than(run: Run, written: dict[str, Any], asked: Asked) -> bool:
    """Whether the asked experiment is the written one with a later end; False when they are equal."""
    old, new = written["asked"], asked.values()
    if written["recipe"] != asked.recipe:
        raise UserError(f"{run.path} is a run of {written['recipe']}, not of {asked.recipe}", "give another out=")
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if not differing:
        return False
    changed = [key for key in differing if key not in CHANGEABLE]
    now = written["used"]["steps"]["value"] or 0
    shorter = "steps" in differing and (new.get("steps") or 0) < now
    for key in ("epochs", "hours"):
        shorter |= key in differing and key in old and (new.get(key) or 0) < old[key]
    if changed or shorter:
        listed = "; ".join(f"{key}: was {old.get(key, 'not set')}, now {new.get(key, 'not set')}" for key in differing)
        raise UserError(
            f"{run.path} is a run of another experiment: {listed}",
            "give another out=, or the settings it has (steps, epochs and hours may rise)",
        )
    return True


# --------------------------------------------------------------------------------------------------------------- train


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
    for _ in range(2):  # the first pass also warms up; the machine may be busy with something else in either
        start = time.perf_counter()
        with torch.autocast(
            parameters[0].device.type, built.state.precision, enabled=built.state.precision != torch.float32
        ):
            losses = built.task.losses(batch, "model")
        torch.autograd.grad(sum(loss.sum() for loss in losses.values()), parameters, allow_unused=True)
        seconds = min(seconds, time.perf_counter() - start)
    torch.set_rng_state(state)
    rate = len(batch.ids) / seconds
    trained = sum(parameter.numel() for parameter in parameters)
    share = min(options.micro_batch_tokens, len(rows.ids) / prepared.steps_per_epoch) / len(batch.ids)
    activations = max(0, device.peak_memory_bytes() - device.resident_memory_bytes()) * max(1.0, share)
    per_step = len(rows.ids) / prepared.steps_per_epoch / rate
    return {
        "tokens_per_second": rate,
        "seconds_per_step": per_step,
        "trained_parameters": float(trained),
        "memory_bytes": device.resident_memory_bytes() + activations + 12.0 * trained,
    }


def train(run: Run, prepared: Prepared, say: Say) -> None:
    """From the newest checkpoint, or from the start, to the finished run."""
    started = time.perf_counter()
    built = build(prepared, say)
    expected = trial(built, prepared)
    options = prepared.experiment.training
    if options.steps is None:
        steps = max(1, math.floor(float(options.hours or 0) * 3600 / expected["seconds_per_step"]))
        reason = f"derived: {options.hours:g} hours at {expected['seconds_per_step']:.2f} seconds a step"
        prepared = with_steps(prepared, Setting(steps, reason))
        write_settings(run, prepared)
        options = prepared.experiment.training
        built.task.learner.schedule = optimizer.schedule(options.schedule, steps, options.warmup)
    until = number(options.steps)
    run.write(
        "data.json",
        {**run.read("data.json"), "expected": {**expected, "seconds": expected["seconds_per_step"] * until}},
    )
    say(preflight.expectation(expected, until))
    state, best = built.state, hooks.Best()
    found, complaints = checkpoint.newest(run.checkpoints)
    for complaint in complaints:
        say(complaint)
    offsets, before = {}, 0.0
    if found is not None:
        content = hooks.restore(state, found)
        best, offsets = hooks.Best(**content["best"]), content["offsets"]
        state.stop = content["stop"] if until == content["until"] else None
        before = sum(line["seconds"] for line in read_lines(run.path / "timings.jsonl") if line["step"] <= state.step)
        say(f"going on from step {state.step} of {until}")
    tracker = Tracker(run.path, offsets, state.step)
    progress = hooks.Progress(until)
    interrupt = hooks.Interrupt()
    every = number(options.validate_every)
    save = hooks.Save(run.checkpoints, every, until, tracker, best)
    chain: list[Any] = [
        hooks.Record(tracker, prepared.steps_per_epoch),
        *([hooks.Limit(options.hours * 3600, before)] if options.hours else []),
        interrupt,
        hooks.Validate(
            built.model,
            built.task.measures,
            validation(prepared),
            every,
            until,
            options.patience,
            tracker,
            best,
            progress.say,
        ),
        save,
        progress,
    ]
    try:
        with listening(interrupt):
            fit(state, until, chain)
    finally:
        tracker.close()
    if state.stop and state.stop.startswith("interrupted"):
        run.update(status="interrupted")
        raise Interrupted(f"stopped after step {state.step} of {until}; go on with: danlu resume {run.path}")
    stopped = state.stop or f"all {until} steps"
    if state.stop:
        say(state.stop)
    if best.step is not None and best.step != state.step:
        say(f"the best weights are those of step {best.step} (validation loss {best.loss:.4f})")
        hooks.restore_weights(state, checkpoint.Checkpoint(run.checkpoints / f"step-{best.step:08d}", best.step))
    save_final(run, prepared, built)
    del built, state, chain, save  # the test is made with the model on the disk: what is measured is what is served
    finish(run, prepared, say)
    seconds = before + time.perf_counter() - started
    run.update(
        status="finished", seconds=round(seconds, 1), peak_memory_bytes=device.peak_memory_bytes(), stopped=stopped
    )
    page = report.write(run.path)
    say(f"report: {page}")


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


@contextlib.contextmanager
def listening(interrupt: hooks.Interrupt) -> Iterator[None]:
    """Ctrl-C and TERM end training after the current step; a second one ends it at once."""

    def ask(number: int, _frame: Any) -> None:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked = signal.Signals(number).name
        os.write(2, b"\nstopping after this step, then saving (once more: at once)\n")

    try:
        old = {each: signal.signal(each, ask) for each in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: a notebook's worker; the caller's own handling stays
        yield
        return
    try:
        yield
    finally:
        for each, handler in old.items():
            signal.signal(each, handler)


def save_final(run: Run, prepared: Prepared, built: Trainable) -> None:
    """The final model in the Hugging Face layout: an adapter naming its base, or whole weights; all or nothing."""
    building = run.path / f".model-{os.getpid()}"
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir()
        prepared.tokenizer.save(building)
        lora = prepared.experiment.model.method == "lora"
        if lora and prepared.weights.adapter is None:
            adapter.save(built.model, building, prepared.weights.origin)
        elif lora:  # an adapter on merged weights: whole again, in float32
            whole = build(replace(prepared, experiment=in_float32(prepared)), lambda _: None)
            with torch.no_grad():
                for name, parameter in whole.task.learner.parameters.items():
                    parameter.copy_(built.task.learner.parameters[name])
            pretrained.save(adapter.merge(whole.model), building)
        else:
            pretrained.save(built.model, building)
        for name in ("generation_config.json",):
            if (prepared.weights.folder / name).is_file():
                shutil.copyfile(prepared.weights.folder / name, building / name)
        shutil.rmtree(run.model, ignore_errors=True)
        building.rename(run.model)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(building, ignore_errors=True)
        raise UserError(
            f"{run.model} could not be written ({error})", f"make room, then: danlu resume {run.path}"
        ) from error
    seal(run)


def in_float32(prepared: Prepared) -> Any:
    """The experiment with exact products, for merging."""
    return replace(prepared.experiment, training=replace(prepared.experiment.training, precision="float32"))


def finish(run: Run, prepared: Prepared, say: Say) -> None:
    """The test rows, read once; before and after."""
    if not prepared.items["test"]:
        say("no test rows: nothing is measured (test_share=0 and no test=)")
        return
    evaluate.at_the_end(run, prepared, say)
