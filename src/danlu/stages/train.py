"""Prepared -> run: train, keep the best, save the final model, measure it on the test rows, write the page."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from danlu.core import checkpoint, device
from danlu.core.cache import sha256, whole
from danlu.core.config import Setting
from danlu.core.errors import Interrupted, UserError
from danlu.core.run import Run, create, fresh_name, is_run
from danlu.core.track import Tracker, read_lines
from danlu.evaluation.overfitting import diverged, overfitting
from danlu.experiment import Asked
from danlu.models import pretrained
from danlu.stages import evaluate, gain, pace, preflight, report
from danlu.stages.build import Trainable, build, fitting, trial, validation
from danlu.stages.load import seal
from danlu.stages.modality import modality
from danlu.stages.prepare import KEPT, LEARNED, Prepared, Say, fingerprint, lineage, number, prepare
from danlu.surgery import adapter
from danlu.training import hooks, optimizer
from danlu.training.fit import State, Step, fit, swap_averages


_NO_MEMORY = re.compile("can't allocate memory|not enough memory|out of memory")
"""What torch's allocators say."""

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
"""How a disk says that it takes no more."""


def finetune(asked: Asked, data: Any = None, say: Say = print) -> Run:
    """The whole way from an experiment to a finished run.

    `out=` names the directory. An unfinished run of the same experiment there goes on; a finished one is returned as it is.

    Raises:
        UserError: bad input, or the directory holds another experiment; the difference is named.
        Interrupted: Ctrl-C or TERM; the run can be resumed.
    """
    out = asked.extra.get("out")
    path = Path(str(out)) if out else fresh_name(asked.recipe, str(asked.experiment.model.model))
    if is_run(path):
        return go_on(Run(path), asked, say, data)
    prepared = prepare(asked, data, say)
    preflight.show(prepared, say)
    facts: dict[str, Any] = {
        "danlu": version("danlu"),
        "recipe": asked.recipe,
        "task": prepared.experiment.task.task,
        "labels": list(prepared.labels),
        "lineage": lineage(prepared),
        "machine": preflight.machine_facts(),
        "folder": str(Path.cwd()),
        "started": device.oom_kills(),
        "torch": torch.__version__,
    }
    with stoppable(Run(path)):
        run = create(path, fill=lambda building: begin(building, prepared, data), **facts)
        with run.lock(), failing(run, new=True):
            train(run, with_kept_rows(run, prepared) if data is not None else prepared, say)
    return run


def begun(run: Run) -> bool:
    """Whether a step was made; another program may have deleted the one or the other."""
    written = any(map(run.has, ("metrics.jsonl", "timings.jsonl", "events")))  # one of them may have been deleted
    return written or any(run.checkpoints.glob("step-*"))


@contextlib.contextmanager
def stoppable(run: Run) -> Iterator[None]:
    """Ctrl-C before and after the steps, or a second one, says what there is and how to go on.

    Raises:
        Interrupted: instead of KeyboardInterrupt, once there is a run.
    """
    try:
        yield
    except KeyboardInterrupt:
        if not is_run(run.path):
            raise
        if any(run.checkpoints.glob("step-*")):
            said = "stopped at once; go on from its last checkpoint with"
        elif run.has("metrics.jsonl"):
            said = "stopped at once, before the first checkpoint; begin again with"
        else:
            said = "stopped before the first step; begin with"
        raise Interrupted(f"{said}: danlu resume {run.path}") from None


@contextlib.contextmanager
def failing(run: Run, new: bool = False) -> Iterator[None]:
    """A run that stops at an error says so; a new one that has not begun to train leaves nothing behind.

    Raises:
        UserError: also for a disk that is full wherever it is noticed.
    """
    try:
        yield
    except Exception as error:
        again = f"make room, then: danlu resume {run.path}"
        if not is_run(run.path):
            raise UserError(
                f"{run.path} is not there any more: it was moved or deleted while it was being written",
                "put it back, or where it is now: danlu resume PLACE goes on from its last checkpoint; one that was deleted begins anew",
            ) from error
        if new and not begun(run):
            shutil.rmtree(run.path, ignore_errors=True)
            again = "make room, then give the command again"
        elif not isinstance(error, Interrupted):
            with contextlib.suppress(UserError):  # on a full disk not even this can be written
                run.update(status="failed")
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
            with contextlib.suppress(UserError):
                run.update(out_of_memory=True)
            half = (
                f"danlu resume {run.path} goes on, with half the micro-batch where rows allow"
                if begun(run)
                else "give the command again with half micro_batch_tokens"
            )
            raise UserError("there is not enough memory for a step", f"free memory, or {half}") from error
        if isinstance(error, SafetensorError):  # how safetensors reports a disk that is full
            raise UserError(f"{run.path} could not be written ({error})", again) from error
        if isinstance(error, OSError) and error.errno in FULL:
            raise UserError(f"{error.filename or run.path} could not be written ({error.strerror})", again) from error
        raise


def begin(run: Run, prepared: Prepared, data: Any) -> None:
    """Everything a later resume or evaluation needs, before the first step."""
    folder = run.path / "data"
    folder.mkdir()
    modality(prepared.task).keep(prepared, folder, data is not None)
    if data is not None:
        run.update(kept_rows_sha256=sha256(kept_rows(run)))
    learned = np.fromiter((int(fingerprint(item.key), 16) for item in prepared.items["train"]), np.uint64)
    with whole(folder / LEARNED) as building, building.open("w") as file:
        file.writelines(f"{each:016x}\n" for each in np.unique(learned))
    run.write("data.json", prepared.findings)
    write_settings(run, prepared)


def kept_rows(run: Run) -> Path:
    """Where rows that were handed over in Python lie."""
    return next(iter((run.path / "data").glob("data.*")), run.path / "data" / "data.jsonl")


def with_kept_rows(run: Run, prepared: Prepared) -> Prepared:
    """The experiment with `data=` naming the rows that lie in the run, wherever the run lies now."""
    kept = Setting(str(kept_rows(run)), KEPT)
    prepared = replace(prepared, settings=prepared.settings | {"data": kept})
    write_settings(run, prepared)
    return prepared


def write_settings(run: Run, prepared: Prepared) -> None:
    """experiment.json: what was asked, and every setting that was used with its origin."""
    asked = prepared.asked
    run.write("experiment.json", {"recipe": asked.recipe, "asked": asked.values(), "used": prepared.used})


def go_on(run: Run, asked: Asked | None, say: Say, data: Any = None, network: Any = None) -> Run:
    """Resume an unfinished run, or one that may train longer; `asked` None asks for exactly what it is.

    data: rows handed over in Python; they must be those the run began with. network: the code of a person's own network, which is
    never looked for in what the run says.

    Raises:
        UserError: the experiment differs in more than its length, or its data has changed.
    """
    with run.lock(), stoppable(run):
        written, facts = run.read("experiment.json"), run.read("run.json")
        longer = asked is not None and longer_than(run, written, asked)
        old = {entry["role"]: entry["sha256"] for entry in facts["lineage"]["data"]}
        if data is not None and asked is not None:
            handed = modality(facts["task"]).read(asked, data, asked.experiment.data.max_rows)
            if handed.sha256 != old["data"]:
                raise UserError(
                    f"{run.path} began with other rows than the {handed.total} handed over now", "give another out="
                )
        if facts["status"] == "finished" and not longer:
            say(f"{run.path} is finished; nothing to do (`danlu evaluate`, `danlu chat`, `danlu predict` use it)")
            return run
        used = {key: Setting(entry["value"], entry["origin"]) for key, entry in written["used"].items()}
        used |= begun_elsewhere(used, facts)
        if "kept_rows_sha256" in facts:
            used["data"] = Setting(str(kept_rows(run)), KEPT)
            old["data"] = facts["kept_rows_sha256"]
        given = used.get("tokenizer", Setting(None, ""))
        learned = facts["lineage"]["model"].get("kind") == "random" and (given.value is None or given.origin == KEPT)
        if learned and (run.path / "start" / "tokenizer.json").is_file():
            used["tokenizer"] = Setting(str(run.path / "start"), KEPT)  # learned once, whatever learns tokenizers later
        if facts.get("out_of_memory") or (
            facts["status"] == "running" and device.killed_for_memory(facts.get("started"))
        ):
            used |= halved(run, used, say)
        if longer and asked is not None:
            used |= {"steps": asked.settings["steps"], "epochs": Setting(None, "steps were raised")}
        again = {key: Setting(value, used[key].origin) for key, value in written["asked"].items()}
        code = network if asked is None else asked.network
        prepared = prepare(Asked(written["recipe"], used, network=code), say=say)
        for role, source in prepared.sources.items():
            if role in old and source.sha256 != old[role]:
                raise UserError(
                    f"{source.name} has changed since the run began (SHA-256 {source.sha256[:12]}…, was {old[role][:12]}…)",
                    "restore the file, or start a new run with another out=",
                )
        if prepared.base.sha256 != facts["lineage"]["model"]["sha256"]:
            raise UserError(
                f"{prepared.base.name} is not the model the run began with", "restore it, or start a new run"
            )
        prepared = replace(prepared, asked=asked if longer and asked else Asked(written["recipe"], again, network=code))
        run.update(status="running", out_of_memory=False, started=device.oom_kills())
        write_settings(run, prepared)
        with failing(run):
            train(run, prepared, say)
    return run


def begun_elsewhere(used: dict[str, Setting], facts: dict[str, Any]) -> dict[str, Setting]:
    """Files and folders that were named relative to the folder in which the run was begun, when it goes on from another one.

    A model that was a name (`gpt`, one of the catalogue) stays one, even if a folder has that name now: the run itself, perhaps.
    """
    folder = facts.get("folder")
    there = Path(folder) if folder else Path()
    keys = ["data", "validation", "test", "tokenizer", "vectors"]
    keys += ["model"] * (facts["lineage"]["model"].get("kind") not in ("random", "catalogue", "hub"))
    named = {key: used[key] for key in keys if key in used}
    return {
        key: Setting(str(there / str(setting.value)), setting.origin)
        for key, setting in named.items()
        if folder and setting.value and (there / str(setting.value)).exists()
    }


def halved(run: Run, used: dict[str, Setting], say: Say) -> dict[str, Setting]:
    """micro_batch_tokens after a death for want of memory; nothing where smaller micro-batches would not help, which is said."""
    tokens = used["micro_batch_tokens"].value
    longest = run.read("data.json").get("expected", {}).get("longest")
    if not longest or tokens // 2 < longest:
        least = f"a row of {longest:.0f} tokens" if longest else "a batch of images"
        lower = "max_tokens" if longest else "batch_size or image_size"
        say(
            f"warning: the run ended for want of memory, and {least} is never cut: free memory, or begin again with lower {lower}"
        )
        return {}
    say(
        f"the run ended for want of memory: micro_batch_tokens={tokens // 2} from now on (was {tokens}); the gradient stays the same"
    )
    return {"micro_batch_tokens": Setting(tokens // 2, f"halved: {tokens} took more memory than there was")}


def longer_than(run: Run, written: dict[str, Any], asked: Asked) -> bool:
    """Whether the asked experiment is the written one with more steps; False when they are equal."""
    old, new = written["asked"], asked.values()
    if written["recipe"] != asked.recipe:
        raise UserError(f"{run.path} is a run of {written['recipe']}, not of {asked.recipe}", "give another out=")
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if not differing:
        return False
    if differing != ["steps"] or (new.get("steps") or 0) <= (written["used"]["steps"]["value"] or 0):
        listed = "; ".join(f"{key}: was {old.get(key, 'not set')}, now {new.get(key, 'not set')}" for key in differing)
        raise UserError(
            f"{run.path} is a run of another experiment: {listed}",
            "give another out=, or the settings it has; only steps may rise",
        )
    return True


# --------------------------------------------------------------------------------------------------------------- train


def train(run: Run, prepared: Prepared, say: Say) -> None:
    """From the newest checkpoint, or from the start, to the finished run. One that was made longer goes on, whatever it had ended for."""
    built = build(prepared, say)
    keep_start(run, prepared, built)
    prepared = announce(run, prepared, built, say)
    options, state, best, clock = prepared.experiment.training, built.state, hooks.Best(), Clock()
    found, complaints = checkpoint.newest(run.checkpoints)
    for complaint in complaints:
        say(complaint)
    offsets: dict[str, int] = {}
    if found is not None:
        content = hooks.restore(state, found)
        best = hooks.Best(**{key: value for key, value in content["best"].items() if value is not None})
        offsets, clock.before = content["offsets"], content["seconds"]
        ended = content.get("until", options.steps) == options.steps  # else the run has been made longer since
        state.stop = content["stop"] if ended else None
        for name, written in offsets.items():
            there = (run.path / name).stat().st_size if run.has(name) else 0
            if there < written:
                say(
                    f"warning: {run.path / name} has {there:,} of the {written:,} bytes it had at step {state.step}: "
                    "lines are missing from it and from the page; the weights do not depend on them"
                )
        say(f"going on from step {state.step} of {options.steps}")
    elif run.has("metrics.jsonl"):
        say("no checkpoint was taken yet: training begins again, to the same result")
    prepared = update(run, prepared, built, best, Tracker(run.path, offsets, state.step), clock, say)
    conclude(run, prepared, built, best, clock, say)


def keep_start(run: Run, prepared: Prepared, built: Trainable) -> None:
    """Once, before the first step: start/ holds what checkpoints do not, so that any of them can start another run."""
    place = run.path / "start"
    lora = prepared.experiment.model.method == "lora"
    if place.is_dir() or (lora and prepared.weights.adapter is not None):
        return
    with whole(place, alone=True) as building:
        building.mkdir()
        prepared.processor.save(building)
        if lora:
            adapter.save(built.model, building, prepared.weights.base)
        else:
            trained = [name for learner in built.task.learners().values() for name in learner.parameters]
            pretrained.save(built.model, building, without=trained)


def announce(run: Run, prepared: Prepared, built: Trainable, say: Say) -> Prepared:
    """Say what training will cost; with `hours=` alone that also decides the steps."""
    expected = trial(built, prepared)
    if not begun(run):  # later the micro-batch stays, so that a run that goes on is bitwise the same
        room = device.machine().memory_available + device.resident_memory_bytes()
        prepared, expected = fitting(built, prepared, expected, room)
        write_settings(run, prepared)
    before, prepared = prepared, pace.in_hours(prepared, expected)
    if prepared is not before:
        lengthen(run, prepared, built)
    options = prepared.experiment.training
    until = number(options.steps)
    seconds = expected["seconds_per_step"] * until
    run.write("data.json", {**run.read("data.json"), "expected": {**expected, "seconds": seconds}})
    for line in preflight.expectation(expected, until, number(options.validate_every)):
        say(line)
    if seconds > 1800 and options.hours is None:
        say("  hours=0.5 takes half an hour; fewer epochs= or a smaller model take less")
    return prepared


def lengthen(run: Run, prepared: Prepared, built: Trainable) -> None:
    """The number of steps has become known, or another: write it, and let the learning rate end there."""
    write_settings(run, prepared)
    options = prepared.experiment.training
    for learner in built.task.learners().values():
        learner.schedule = optimizer.schedule(
            options.schedule, number(options.steps), options.warmup, options.final_rate
        )


@dataclass
class Clock:
    """Seconds of the whole run: those before a resume, and those since."""

    before: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def __call__(self) -> float:
        return self.before + time.perf_counter() - self.started


def update(
    run: Run, prepared: Prepared, built: Trainable, best: hooks.Best, tracker: Tracker, clock: Clock, say: Say
) -> Prepared:
    """All the steps there still are, with everything that happens around them; the same with the steps there were in the end.

    With `hours=` the clock decides once, on the way, how many there will be (`pace.on_time`).

    Raises:
        Interrupted: a signal asked to stop; a checkpoint has been taken.
    """
    options, state, interrupt = prepared.experiment.training, built.state, hooks.Interrupt()
    state.skips, state.spike = options.skips, options.spike or 0.0
    batches, every, decided = validation(prepared), number(options.validate_every), pace.mark(prepared)

    def go(until: int, end: int) -> None:
        """Until step `until` of `end`."""
        progress = hooks.Progress(end)
        save = hooks.Save(run.checkpoints, every, end, tracker, best, clock)
        chain: list[Any] = [
            hooks.Record(tracker, prepared.steps_per_epoch),
            hooks.Skipped(save, progress.say),
            *([hooks.Limit(options.hours * 3600, clock)] if options.hours else []),
            interrupt,
        ]
        if batches:
            validate = hooks.Validate(
                built.model, built.task.measures, batches, every, end, options.patience, tracker, best, progress.say
            )
            chain.append(validate)
        chain += [
            *modality(prepared.task).watch(run.path, prepared, built.model, every, end, progress.say),
            save,
            Page(run.path, every),
            progress,
        ]
        try:
            fit(state, until, chain)
            # what the clock decides now must not reach back, but no checkpoint lies between two skipped updates
            if until < end and state.stop is None and not hooks.unsettled(state):
                save.begin(state)
            save.wait()
        finally:
            if save.writing:  # after an error: nobody else may have the run before
                save.writing.join()

    say(f"watch it: {report.write(run.path)} is written again every {every} steps")
    try:
        with listening(interrupt):
            if decided is not None and state.step <= decided:
                go(decided, number(options.steps))
                if state.stop is None:
                    prepared = pace.on_time(prepared, state.step, clock())
                    lengthen(run, prepared, built)
                    say("{value:,} updates in all, {origin}".format(**asdict(prepared.settings["steps"])))
            until = number(prepared.experiment.training.steps)
            go(until, until)
    finally:
        tracker.close()
    if state.stop and state.stop.startswith("interrupted"):
        run.update(status="interrupted")
        raise Interrupted(f"stopped after step {state.step} of {until}; go on with: danlu resume {run.path}")
    return prepared


def conclude(run: Run, prepared: Prepared, built: Trainable, best: hooks.Best, clock: Clock, say: Say) -> None:
    """The best weights become the final model, which is measured as it lies on the disk, and the page is written."""
    state = built.state
    stopped = state.stop or f"all {state.step} steps"
    if state.stop:
        say(state.stop)
    if best.step is not None and best.step != state.step:
        say(f"the best weights are those of step {best.step} (validation loss {best.loss:.4f})")
        place = run.checkpoints / f"step-{best.step:08d}"
        if wrong := checkpoint.verify(place):
            raise UserError(f"{place}, which holds the best weights: {wrong}", "restore it from a copy of the run")
        hooks.restore_weights(state, checkpoint.Checkpoint(place, best.step))
    used = {key: setting.value for key, setting in prepared.settings.items()}
    lines = read_lines(run.path / "metrics.jsonl")
    parts = (part for line in lines for part in (line, *line.values()) if isinstance(part, dict))
    if skipped := sum("skipped" in part for part in parts):
        say(
            f"{skipped} updates in {state.step} steps were skipped because of their numbers; metrics.jsonl names their rows"
        )
    if said := diverged(lines, used) or overfitting(lines, used, prepared.steps_per_epoch):
        say(said)
        run.write("data.json", {**run.read("data.json"), "overfitting": said})
    swap_averages(built.task.learners())
    save_final(run, prepared, built)
    if prepared.items["test"]:
        evaluate.at_the_end(run, prepared, say)
        gain.measure(run, prepared, say)
    else:
        say("no test rows: nothing is measured (test_share=0 and no test=)")
    memory = device.peak_memory_bytes()
    run.update(status="finished", seconds=round(clock(), 1), peak_memory_bytes=memory, stopped=stopped)
    say(f"report: {report.write(run.path)}")


@dataclass
class Page:
    """The page, written again after each validation: open it while training goes on."""

    path: Path
    every: int

    def __call__(self, state: State, step: Step) -> None:
        if state.step % self.every == 0:
            report.write(self.path)


@contextlib.contextmanager
def listening(interrupt: hooks.Interrupt) -> Iterator[None]:
    """Ctrl-C and TERM end training after the current step; a second one at once, but for a checkpoint that is being written; a third one
    ends the process where it is."""

    def ask(number: int, _frame: Any) -> None:
        if interrupt.asked:
            for each in old:
                signal.signal(each, signal.SIG_DFL)
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
    lora = prepared.experiment.model.method == "lora"
    try:
        with whole(run.model, alone=True) as building:
            building.mkdir()
            prepared.processor.save(building)
            if lora and prepared.weights.adapter is None:
                adapter.save(built.model, building, prepared.weights.base)
            elif lora:  # an adapter on merged weights: whole again, in float32
                exact = build(prepared.with_training(precision="float32"), lambda _: None)
                with torch.no_grad():
                    for name, parameter in exact.task.learners()["model"].parameters.items():
                        parameter.copy_(built.task.learners()["model"].parameters[name])
                pretrained.save(adapter.merge(exact.model), building)
            else:
                pretrained.save(built.model, building)
            settings = prepared.base.folder / "generation_config.json"
            if settings.is_file():
                shutil.copyfile(settings, building / settings.name)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{run.model} could not be written ({error})", f"make room, then: danlu resume {run.path}"
        ) from error
    seal(run)
