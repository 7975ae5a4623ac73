"""What happens around the updates: recording, validation, early stopping, checkpoints, progress, limits."""

from __future__ import annotations

import copy
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch

from danlu.core import checkpoint
from danlu.core.checkpoint import Checkpoint
from danlu.core.errors import UserError
from danlu.core.processes import process
from danlu.core.run import misplaced
from danlu.core.track import Tracker
from danlu.core.types import Batch
from danlu.training.fit import Recent, State, Step, averaged, listed
from danlu.training.optimizer import load_state_tensors, state_tensors


# ------------------------------------------------------------------------------------------------------------- snapshots


OWN = ("task", "random")
"""What each of several processes has of its own: random states, and what the task remembers of the rows it saw. Weights and optimizers are equal."""


def snapshot(state: State) -> tuple[dict[str, Mapping[str, torch.Tensor]], dict[str, Any]]:
    """Everything that decides what the next updates will be: tensors by file, and JSON."""
    learners = state.task.learners()
    tensors: dict[str, Mapping[str, torch.Tensor]] = {
        "weights": {f"{name}/{key}": p for name, learner in learners.items() for key, p in learner.parameters.items()},
        "optimizer": {
            f"{name}/{k}": t for name, learner in learners.items() for k, t in state_tensors(learner).items()
        },
        "average": {f"{name}/{key}": t for name, learner in learners.items() for key, t in learner.average.items()},
        "task": state.task.state_dict(),
        "random": {"torch": torch.get_rng_state()},
    }
    recent = {name: asdict(each) for name, each in state.recent.items()}
    content = {"format": 1, "step": state.step, "position": state.position, "seed": state.seed}
    return tensors, content | {"recent": recent, "regular": state.regular, "returned": state.returned}


_STEP = range(10**15)
_STATE: dict[str, Any] = {
    "step": _STEP, "position": (dict, None), "regular?": (_STEP, None), "returned?": (_STEP, None), "stop?": (str, None), "until?": _STEP, "seconds?": float,
    "recent?": {"*": {"losses": [float], "norms": [float], "skipped": _STEP, "returned": (_STEP, None)}},
    "best?": {"step": (_STEP, None), "loss": (float, None), "worse": _STEP}, "offsets?": {"*": _STEP},
}  # fmt: skip


def content_of(saved: Checkpoint) -> dict[str, Any]:
    """A checkpoint's JSON part, with what hooks added to it.

    Raises:
        UserError: it holds something else than was written; names the key.
    """
    content = saved.state()
    wrong = misplaced(content, _STATE)
    if not wrong and content["step"] != saved.step:
        wrong = f"step is {content['step']}, expected {saved.step}"
    if not wrong and (later := {key for key in ("regular", "returned") if (content.get(key) or 0) > saved.step}):
        wrong = f"{min(later)} is {content[min(later)]}, expected at most step {saved.step}"
    if wrong:
        raise UserError(
            f"{saved.path / 'state.json'}: {wrong}",
            f"delete {saved.path}, then `danlu resume` the run: it goes on from the checkpoint before",
        )
    return content


def restore(state: State, saved: Checkpoint) -> dict[str, Any]:
    """Put a checkpoint into a freshly built state; returns its JSON part, with what hooks added to it."""
    content = content_of(saved)
    restore_learned(state, saved)
    torch.set_rng_state(saved.tensors("random")["torch"])
    state.step, state.position = content["step"], content["position"]
    state.recent, state.regular = remembered(content), content.get("regular")
    state.returned = content.get("returned")
    return content


def remembered(content: Mapping[str, Any]) -> dict[str, Recent]:
    """The last good updates of each learner when a checkpoint was taken."""
    known = Recent.__dataclass_fields__
    return {name: Recent(**{key: each[key] for key in known}) for name, each in content.get("recent", {}).items()}


def restore_learned(state: State, saved: Checkpoint) -> None:
    """Weights and optimizers of a checkpoint; step and data position stay."""
    restore_weights(state, saved)
    optimizer = saved.tensors("optimizer")
    for name, learner in state.task.learners().items():
        load_state_tensors(learner, under(optimizer, name))


def restore_weights(state: State, saved: Checkpoint) -> None:
    """Only the weights, their averages and what the task remembers beside them, for example of the best step.

    Raises:
        UserError: they are of another network than the one that was made: danlu, or a person's code, has changed since.
    """
    weights, average = saved.tensors("weights"), saved.tensors("average")
    learners = state.task.learners().items()
    made = {f"{name}/{key}": list(p.shape) for name, learner in learners for key, p in learner.parameters.items()}
    kept = {key: list(value.shape) for key, value in weights.items()}
    if other := sorted(key for key in made.keys() | kept.keys() if made.get(key) != kept.get(key)):
        raise UserError(
            f"{saved.path} holds another network than is made now: {other[0].partition('/')[2]} has shape "
            f"{kept.get(other[0], 'none')} there and {made.get(other[0], 'none')} here",
            "go on with the version that began the run, or train anew with another out=",
        )
    state.task.load_state_dict(saved.tensors("task"))
    with torch.no_grad():
        for name, learner in learners:
            for key, parameter in learner.parameters.items():
                parameter.copy_(weights[f"{name}/{key}"])
            learner.average = {
                key: value.to(learner.parameters[key].device, copy=True) for key, value in under(average, name).items()
            }


def under(tensors: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """One learner's part of a tensor file."""
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


# ----------------------------------------------------------------------------------------------------------------- hooks


@dataclass
class Record:
    """One line of metrics and one of timings a step; nothing that depends on the clock goes into the metrics."""

    tracker: Tracker
    steps_per_epoch: int

    def __call__(self, state: State, step: Step) -> None:
        size = sum(batch.size for batch in step.window)
        unit = step.window[0].unit
        line: dict[str, Any] = {"epoch": round(step.number / self.steps_per_epoch, 4)}
        for name, update in step.updates.items():
            values: dict[str, Any] = {
                "loss": update.loss,
                "learning_rate": update.learning_rate,
                "gradient_norm": update.gradient_norm,
                unit: size,
                "learned": int(sum(update.counts.values())),
            }
            if update.skipped:  # in no statistic, and JSON has no number for what is not finite
                values = {"skipped": update.skipped, "rows": list(update.rows)}
            line |= values if len(step.updates) == 1 else {name: values}
        self.tracker.metrics(step.number, line)
        self.tracker.timings(step.number, {"seconds": step.seconds, f"{unit}_per_second": size / step.seconds})


@dataclass
class Skipped:
    """Says which updates were skipped; after as many in a row as there may be, the weights go back to those of the last regular checkpoint,
    and the data goes on behind the rows. Once to each: what is skipped right after that again ends training, and so do more in a row than
    there may be before another checkpoint was gained.

    Not to one that was taken where a person interrupted: the run must be the one that was never interrupted.
    """

    saved: Save
    say: Callable[[str], None]

    def __call__(self, state: State, step: Step) -> None:
        for name, update in step.updates.items():
            if not update.skipped:
                continue
            who = f"{name}: " if len(step.updates) > 1 else ""
            self.say(
                f"step {step.number}: {who}update skipped, no weight changed: {update.skipped} ({listed(update.rows)})"
            )
            recent, regular = state.recent[name], state.regular
            if recent.skipped == state.skips and recent.returned is None and regular not in (None, state.returned):
                self.saved.wait()
                found = Checkpoint(checkpoint.place(self.saved.folder, regular), regular)
                if wrong := checkpoint.verify(found.path):
                    self.say(f"step {step.number}: {found.path}: {wrong}; there is nothing to go back to")
                    continue
                restore_learned(state, found)
                state.recent = remembered(content_of(found))  # what is far outside is told by what those weights did
                state.recent.setdefault(name, Recent()).returned = state.returned = regular
                self.say(
                    f"step {step.number}: {state.skips} in a row; back to the weights of step {regular}, on with the rows behind"
                )


@torch.no_grad()
def measure(
    model: torch.nn.Module,
    measures: Callable[[Any], dict[str, tuple[torch.Tensor, torch.Tensor]]],
    batches: Sequence[Batch],
    precision: torch.dtype,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """name -> (sum, count) of each row, float64, in the order of the batches; the model is in evaluation mode meanwhile."""
    parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    training = model.training
    device = next(model.parameters()).device.type
    model.eval()
    try:
        for batch in batches:
            with torch.autocast(device, precision, enabled=precision != torch.float32):
                for name, part in measures(batch).items():
                    parts.setdefault(name, []).append(part)
    finally:
        model.train(training)
    return {
        name: (torch.cat([s for s, _ in p]).double(), torch.cat([c for _, c in p]).double())
        for name, p in parts.items()
    }


@dataclass
class Best:
    """The best validation so far, and how many came after it without a better one."""

    step: int | None = None
    loss: float = float("inf")
    worse: int = 0


@dataclass
class Validate:
    """Every `every` steps and at the last one: sums over counts on the validation rows; early stopping after `patience` worse ones.

    Not where a person interrupts: resumed, the run must be the one that was never interrupted.
    """

    model: torch.nn.Module
    measures: Callable[[Any], dict[str, tuple[torch.Tensor, torch.Tensor]]]
    batches: Sequence[Batch]
    every: int
    until: int
    patience: int | None
    tracker: Tracker
    best: Best
    say: Callable[[str], None]

    def __call__(self, state: State, step: Step) -> None:
        last = state.step == self.until or not (state.stop or "interrupted").startswith("interrupted")
        if not last and (state.step % self.every or unsettled(state)):  # where no checkpoint is taken either
            return
        with averaged(state.task.learners()):
            found = measure(self.model, self.measures, self.batches, state.precision)
        if not all(counts.sum() > 0 for _, counts in found.values()):
            self.say(f"step {state.step}: no validation: none of its tokens is hidden, give it more text")
            return
        means = {name: float(sums.sum() / counts.sum()) for name, (sums, counts) in found.items()}
        self.tracker.metrics(state.step, {"validation": means})
        if means["loss"] < self.best.loss:
            self.best.step, self.best.loss, self.best.worse = state.step, means["loss"], 0
            note = "best so far"
        else:
            self.best.worse += 1
            known = self.best.step is not None
            note = f"not better than {self.best.loss:.4f} at step {self.best.step}" if known else "not finite"
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        self.say(f"step {state.step}: validation {numbers} ({note})")
        if self.patience is not None and self.best.worse >= self.patience:
            state.stop = f"early stopping: {self.best.worse} validations in a row were " + (
                "not finite" if self.best.step is None else f"not better than step {self.best.step}"
            )


def needed(saved: Checkpoint) -> set[int]:
    """The step whose weights were the best when this checkpoint was taken, and the one to go back to."""
    content = content_of(saved)
    return {content["best"]["step"], content.get("regular")} - {None}


@dataclass
class Save:
    """A verified checkpoint every `every` steps, at the last one, and whenever training stops early; none between two skipped updates,
    so that the newest one is always good.

    A copy is taken between two updates, and written in the background while training goes on: one at a time, and the last one is
    waited for. What goes wrong is raised at the next step. The copy takes as much memory as weights, averages and optimizer.
    Several processes write it together, and wait for it.
    """

    folder: Path
    every: int
    until: int
    tracker: Tracker
    best: Best
    elapsed: Callable[[], float]
    writing: threading.Thread | None = None
    failed: Exception | None = None

    def __call__(self, state: State, step: Step) -> None:
        if self.failed:
            self.wait()
        # Where a person interrupts between two skipped updates, the checkpoint before is the one to go on from.
        ends = state.step == self.until or not (
            state.stop is None or (unsettled(state) and state.stop.startswith("interrupted"))
        )
        regular = state.step % self.every == 0 and not unsettled(state)
        if regular:
            state.regular = state.step
        if ends or regular:
            self.begin(state)
        if ends or process()[1] > 1:
            self.wait()

    def begin(self, state: State) -> None:
        """Copy everything, and start to write it."""
        self.wait()
        tensors, content = snapshot(state)
        tensors = {
            name: {key: t.detach().to("cpu", copy=True) for key, t in part.items()} for name, part in tensors.items()
        }
        if not all(checkpoint.finite(each) for each in tensors["weights"].values() if each.is_floating_point()):
            raise UserError(
                f"step {state.step}: weights are not finite; no checkpoint of them is taken", "lower learning_rate"
            )
        stop = None if (state.stop or "").startswith("interrupted") else state.stop
        content |= {
            "best": asdict(self.best),
            "offsets": self.tracker.offsets(),
            "stop": stop,
            "until": self.until,
            "seconds": self.elapsed(),
        }
        self.writing = threading.Thread(target=self.write, args=(state.step, tensors, copy.deepcopy(content)))
        self.writing.start()

    def write(self, step: int, tensors: Mapping[str, Mapping[str, torch.Tensor]], content: Mapping[str, Any]) -> None:
        """In the background: save, then rotate."""
        try:
            checkpoint.save(self.folder, step, tensors, content, OWN)
            checkpoint.rotate(self.folder, needs=needed)
        except Exception as error:  # noqa: BLE001 (raised by `wait`)
            self.failed = error

    def wait(self) -> None:
        """Until nothing is being written any more; whoever reads checkpoints waits first.

        Raises:
            UserError: the checkpoint could not be written.
        """
        if self.writing:
            self.writing.join()
        error, self.writing, self.failed = self.failed, None, None
        if error:
            raise error


def unsettled(state: State) -> bool:
    """Whether someone has made no update since the last one that was skipped."""
    return any(recent.skipped or recent.returned is not None for recent in state.recent.values())


@dataclass
class Progress:
    """Rate, loss and time left: one line that is rewritten on a terminal, a line now and then elsewhere."""

    until: int
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    seconds_between: float = 15.0
    started: float = field(default_factory=time.perf_counter)
    first: int | None = None
    done: int = 0
    busy: float = 0.0
    shown: float = 0.0

    def __call__(self, state: State, step: Step) -> None:
        now = time.perf_counter()
        if self.first is None:
            self.first = state.step - 1
        self.done += sum(batch.size for batch in step.window)
        self.busy += step.seconds
        elapsed = now - self.started
        live = self.stream.isatty()
        if not (live or now - self.shown >= self.seconds_between or state.step == self.until or state.stop):
            return
        self.shown = now
        left = elapsed / (state.step - self.first) * (self.until - state.step)
        losses = "  ".join(
            f"{'loss' if len(step.updates) == 1 else name} {'skipped' if u.skipped else f'{u.loss:.4f}'}"
            for name, u in step.updates.items()
        )
        line = f"step {state.step}/{self.until}  {losses}  {self.done / self.busy:,.0f} {step.window[0].unit}/s  {clock(left)} left"
        ended = state.step == self.until or state.stop is not None
        self.stream.write(f"\r\x1b[K{line}" + ("\n" if ended else "") if live else line + "\n")
        self.stream.flush()

    def say(self, text: str) -> None:
        """A line above the running one."""
        self.stream.write(f"\r\x1b[K{text}\n" if self.stream.isatty() else text + "\n")
        self.stream.flush()


def clock(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass
class Limit:
    """Stops at the first update past so many seconds of the clock, those before a resume included."""

    seconds: float
    elapsed: Callable[[], float]

    def __call__(self, state: State, step: Step) -> None:
        if self.elapsed() >= self.seconds and state.stop is None:
            state.stop = f"time limit: {clock(self.seconds)} are over"


@dataclass
class Interrupt:
    """Ends training between two updates when asked to (Ctrl-C, a service manager's TERM), so that a checkpoint can be taken."""

    asked: str | None = None

    def __call__(self, state: State, step: Step) -> None:
        if self.asked and state.stop is None:
            state.stop = f"interrupted: {self.asked}"
