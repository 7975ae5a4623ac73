"""The training loop: the only one, with the only `backward` of the project.

Causal language models, classifiers, GANs, contrastive and private learning are tasks (`core.types.Task`); a federated client or a
search trial is another caller. `fit` never touches the disk: hooks own the run directory.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from danlu.core.errors import UserError
from danlu.core.processes import gathered, process
from danlu.core.types import Learner, Position, Privacy, Task


class Data(Protocol):
    """An endless stream of windows that can start anywhere it has been before."""

    def __call__(self, start: Position | None) -> Iterator[tuple[Sequence[Any], Position]]:
        """Yields a window (the micro-batches of one update) and the position behind it."""


RECENT = 128
"""Good updates that a spike is told from, as in OLMo-core's SkipStepOptimizer."""


@dataclass
class Recent:
    """A learner's last good updates, and what came after them.

    losses, norms: loss and gradient norm of the last RECENT good updates. skipped: updates in a row that were skipped since.
    returned: the step whose weights it went back to since.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    skipped: int = 0
    returned: int | None = None

    def wrong(self, loss: float, norm: float, spike: float) -> str | None:
        """Why an update must not be made: a number that is not finite, or one that lies more than `spike` ranges of the recent ones above
        them; None for a good one, which is remembered. spike 0 looks at finiteness alone."""
        if not (np.isfinite(loss) and np.isfinite(norm)):
            return f"loss {loss:g}, gradient norm {norm:g}: not finite"
        for name, value, recent in (("loss", loss, self.losses), ("gradient norm", norm, self.norms)):
            if spike and len(recent) == RECENT and value > max(recent) + spike * (max(recent) - min(recent)):
                return f"{name} {value:g}: far above the last {RECENT}, {min(recent):g} to {max(recent):g}"
        self.losses, self.norms = [*self.losses[1 - RECENT :], loss], [*self.norms[1 - RECENT :], norm]
        self.skipped, self.returned = 0, None
        return None


@dataclass
class State:
    """All that training is at one moment, between two updates.

    step: updates made or skipped. position: where the data goes on. precision: of the matrix products. stop: why training ended early.
    skips: updates in a row that a learner may skip because of their numbers. spike: see `Recent.wrong`; recent: by learner. regular: the
    step of the last checkpoint that was taken by its turn. returned: the one that training last went back to; it does so once to each.
    """

    task: Task
    data: Data
    seed: int = 0
    precision: torch.dtype = torch.float32
    step: int = 0
    position: Position | None = None
    stop: str | None = None
    skips: int = 0
    spike: float = 0.0
    recent: dict[str, Recent] = field(default_factory=dict)
    regular: int | None = None
    returned: int | None = None


@dataclass(frozen=True)
class Update:
    """What one learner's update was: each term's mean over the window, the L2 norm of the gradient before clipping.

    skipped: why it was not made. rows: those that caused it: whose own loss is not finite, or else all, the largest loss first.
    """

    losses: dict[str, float]
    counts: dict[str, float]
    loss: float
    gradient_norm: float
    learning_rate: float
    skipped: str | None = None
    rows: tuple[int, ...] = ()


@dataclass
class Step:
    """What a hook is shown after each step. seconds: the updates alone, without loading, validation or saving."""

    number: int
    window: Sequence[Any]
    updates: dict[str, Update] = field(default_factory=dict)
    seconds: float = 0.0


class Hook(Protocol):
    """Something that happens after each step; only hooks know of the disk, the clock or a person."""

    def __call__(self, state: State, step: Step) -> None:
        """Called after every step; may set `state.stop` to end training."""


def fit(state: State, until: int, hooks: Sequence[Hook] = ()) -> State:
    """Train until `state.step == until` or a hook sets `state.stop`.

    Every step is a function of the weights, the data position and (seed, step): a state restored from a checkpoint goes on bit
    for bit as if it had never stopped.

    Raises:
        UserError: more than `state.skips` updates in a row would have to be skipped. The weights are those before the first of them.
    """
    learners = state.task.learners()
    stream = state.data(state.position)
    while state.step < until and state.stop is None:
        window, position = next(stream)
        step = Step(state.step + 1, window)
        started = time.perf_counter()
        for number, (name, learner) in enumerate(learners.items()):
            if state.step % learner.every == 0:
                seed_everything(state.seed, state.step, number)
                with only(name, learners):
                    step.updates[name] = update(state, name, number, learner, window)
        step.seconds = time.perf_counter() - started
        state.step += 1
        state.position = position
        for hook in hooks:
            hook(state, step)
    return state


def update(state: State, name: str, number: int, learner: Learner, window: Sequence[Any]) -> Update:
    """One optimizer step on the gradient of `sum of weight * (sum over the window / count over the window)`.

    The count is taken over all micro-batches and processes before the first backward, so that any split of a window, uneven
    or partial, gives the gradient of the whole. number: of the learner, so that each draws random numbers of its own.
    """
    task, parameters = state.task, list(learner.parameters.values())
    rng = torch.Generator().manual_seed(mixed(state.seed, state.step, number, process()[0], 1))
    autocast = torch.autocast(parameters[0].device.type, state.precision, enabled=state.precision != torch.float32)
    with autocast:
        task.begin(window, name, rng)
    counts = total([task.counts(batch, name) for batch in window])
    examples = total([{"examples": float(len(batch.rows))} for batch in window])["examples"] if learner.privacy else 0.0
    private = PrivateSum(parameters, learner.privacy) if learner.privacy else None
    remembered = task.state_dict()  # running statistics see every batch
    sums: list[dict[str, float]] = []
    by_row: list[dict[str, float]] = []
    learner.optimizer.zero_grad(set_to_none=True)
    for batch in window:
        with autocast:
            losses = task.losses(batch, name)
        sums.append({term: float(loss.detach().double().sum()) for term, loss in losses.items()})
        terms = [loss * (learner.weights.get(term, 1.0) / (counts[term] or 1.0)) for term, loss in losses.items()]
        each = torch.stack(terms).sum(0)  # [examples]
        by_row += [{str(row): value} for row, value in zip(batch.rows, each.detach().tolist(), strict=True)]
        parts = [each.sum()] if private is None else list((examples * each).unbind())
        for place, part in enumerate(parts):
            if part.requires_grad:
                part.backward(retain_graph=place + 1 < len(parts))
            if private:
                private.take()
    if private:
        private.finish(examples, torch.Generator().manual_seed(mixed(state.seed, state.step, number, 0, 2)))
    else:
        add_over_processes(parameters)
    means = {term: value / (counts[term] or 1.0) for term, value in total(sums).items()}
    loss = sum(learner.weights.get(term, 1.0) * mean for term, mean in means.items())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
    recent = state.recent.setdefault(name, Recent())
    if why := recent.wrong(loss, float(norm), state.spike):
        learner.optimizer.zero_grad(set_to_none=True)
        task.load_state_dict(remembered)
        rows = blamed(total(by_row))
        if recent.skipped == state.skips:
            good = state.step - recent.skipped if recent.returned is None else recent.returned
            before = f", after {recent.skipped} updates in a row that were skipped" if recent.skipped else ""
            raise UserError(
                f"step {state.step + 1}: {why} ({listed(rows)}){before}; its weights are those of step {good}",
                "lower learning_rate, or look at those rows",
            )
        recent.skipped += 1
        return Update(means, counts, loss, float(norm), 0.0, why, rows)
    if learner.clip:
        torch.nn.utils.clip_grads_with_norm_(parameters, learner.clip, norm)
    factor = learner.schedule(state.step)
    for group in learner.optimizer.param_groups:
        group["lr"] = group.setdefault("peak", group["lr"]) * factor
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    if learner.ema is not None:
        made = state.step // learner.every
        decay = min(learner.ema, (1 + made) / (10 + made))  # early weights are soon forgotten, however short the run
        for key, parameter in learner.parameters.items():
            average = learner.average.setdefault(key, parameter.detach().clone())
            average.lerp_(parameter.detach(), 1 - decay)
    task.end(name)
    return Update(means, counts, loss, float(norm), usual_rate(learner.optimizer))


def usual_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of most weights: groups of layers may have others (`learning_rates`)."""
    weights: Counter[float] = Counter()
    for group in optimizer.param_groups:
        weights[group["lr"]] += sum(each.numel() for each in group["params"])
    return min(weights, key=lambda rate: (-weights[rate], rate))


def blamed(losses: Mapping[str, float]) -> tuple[int, ...]:
    """The rows whose loss is not finite, or else all, the largest loss first."""
    bad = [row for row, loss in losses.items() if not np.isfinite(loss)] or list(losses)
    return tuple(map(int, sorted(bad, key=lambda row: (-losses[row] if np.isfinite(losses[row]) else 0.0, int(row)))))


def listed(rows: Sequence[int]) -> str:
    """`rows 3, 4`, the first eight of them."""
    return f"rows {', '.join(map(str, rows[:8]))}" + f" and {len(rows) - 8} more" * (len(rows) > 8)


class PrivateSum:
    """Sum of clipped per-example gradients (DP-SGD, Abadi et al. 2016, algorithm 1)."""

    def __init__(self, parameters: list[torch.nn.Parameter], privacy: Privacy) -> None:
        self.parameters, self.privacy = parameters, privacy
        self.sums = [torch.zeros_like(parameter) for parameter in parameters]

    def take(self) -> None:
        """Move the gradient of one example, clipped, from the parameters into the sum."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        factor = min(1.0, self.privacy.clip / max(float(torch.nn.utils.get_total_norm(gradients)), 1e-12))
        for accumulated, gradient, parameter in zip(self.sums, gradients, self.parameters, strict=True):
            accumulated.add_(gradient, alpha=factor)
            parameter.grad = None

    def finish(self, examples: float, rng: torch.Generator) -> None:
        """Leave (sum + noise) / examples as the gradient; every process draws the same noise after the sum over processes."""
        for accumulated, parameter in zip(self.sums, self.parameters, strict=True):
            parameter.grad = accumulated
        add_over_processes(self.parameters)
        deviation = self.privacy.noise * self.privacy.clip
        for parameter in self.parameters:
            assert parameter.grad is not None
            noise = torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype) * deviation
            parameter.grad.add_(noise.to(parameter.device)).div_(examples)


@contextlib.contextmanager
def only(name: str, learners: dict[str, Learner]) -> Iterator[None]:
    """Every other learner's parameters are frozen inside."""
    others = [learner for other, learner in learners.items() if other != name]
    frozen = [p for learner in others for p in learner.parameters.values() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def swap_averages(learners: Mapping[str, Learner]) -> None:
    """Exchange the weights and their moving averages in place; done twice, all is as before. Learners without an average stay."""
    for learner in learners.values():
        for key, average in learner.average.items():
            parameter = learner.parameters[key]
            parameter.data, learner.average[key] = average, parameter.data


@contextlib.contextmanager
def averaged(learners: Mapping[str, Learner]) -> Iterator[None]:
    """Inside, the moving averages stand in for the weights."""
    swap_averages(learners)
    try:
        yield
    finally:
        swap_averages(learners)


def total(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Key by key sum over the micro-batches of every process; a process whose part of the window is empty still takes part."""
    result: dict[str, float] = {}
    for part in (part for those in gathered(list(parts)) for part in those):
        for key, value in part.items():
            result[key] = result.get(key, 0.0) + value
    return result


def add_over_processes(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Sum the gradients of all processes in place, as one flat message."""
    if process()[1] == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    dist.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([parameter.numel() for parameter in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def mixed(*parts: int) -> int:
    """One well-mixed 63-bit seed out of several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_everything(seed: int, step: int, number: int) -> None:
    """Random states are a function of (seed, step, learner, process), never of what ran before."""
    value = mixed(seed, step, number, process()[0])
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 (other people's augmentation draws from it)
