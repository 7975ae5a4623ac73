"""Started by torchrun in `test_fit.py`: two steps on two uneven windows, one of them empty for the second process.

Without torchrun the same rows are trained in one process. `train(private)` returns the weights and the recorded losses.
`resumed(folder, until)` goes on from the newest checkpoint of the folder, and leaves one after each step.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
import torch.distributed as dist

from danlu.core.checkpoint import newest
from danlu.core.errors import UserError
from danlu.core.track import Tracker
from danlu.core.types import Learner, Position, Privacy
from danlu.training.fit import State, Step, fit
from danlu.training.hooks import Best, Record, Save, restore, snapshot


@dataclass(frozen=True)
class Batch:
    x: torch.Tensor
    rows: tuple[int, ...]
    unit: ClassVar[str] = "rows"

    @property
    def size(self) -> int:
        return len(self.rows)


class TwoTerms:
    """A squared error by its weight, and a penalty by rows."""

    def __init__(self, model: torch.nn.Module, learner: Learner) -> None:
        self.model, self.learner = model, learner

    def learners(self) -> dict[str, Learner]:
        return {"model": self.learner}

    def begin(self, window: Sequence[Batch], learner: str, rng: torch.Generator) -> None: ...

    def counts(self, batch: Batch, learner: str) -> dict[str, float]:
        return {"error": float(batch.x[:, 0].sum()), "size": float(len(batch.x))}

    def losses(self, batch: Batch, learner: str) -> dict[str, torch.Tensor]:
        out = self.model(batch.x)
        return {"error": batch.x[:, 0] * (out[:, 0] - batch.x[:, 1]) ** 2, "size": out[:, 1] ** 2}

    def end(self, learner: str) -> None: ...

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None: ...


WINDOWS = ((0, 1, 2, 3, 4, 5, 6), (7,))
X = torch.rand((8, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1


def data(start: Position | None) -> Iterator[tuple[list[Batch], Position]]:
    process, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    for number, window in enumerate(WINDOWS):
        mine = window[process::processes]
        cuts = [mine[:1], mine[1:]]  # uneven micro-batches
        yield [Batch(X[list(cut)], cut) for cut in cuts if cut], {"window": number + 1}


def train(private: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    learner = Learner(
        dict(model.named_parameters()),
        torch.optim.SGD(model.parameters(), lr=0.3),
        weights={"size": 0.25},
        clip=None if private else 0.5,
        privacy=Privacy(0.1, 0.5) if private else None,
    )
    recorded: list[float] = []

    def record(state: State, step: Step) -> None:
        recorded.extend([step.updates["model"].loss, step.updates["model"].gradient_norm])

    fit(State(TwoTerms(model, learner), data), 2, [record])
    return {name: p.detach() for name, p in model.named_parameters()} | {"recorded": torch.tensor(recorded).double()}


class Remembering(TwoTerms):
    """What each process remembers is its own, and enters the loss."""

    seen = torch.zeros(3, dtype=torch.float64)

    def begin(self, window: Sequence[Batch], learner: str, rng: torch.Generator) -> None:
        self.seen = 0.9 * self.seen + 0.1 * torch.rand(3, generator=rng, dtype=torch.float64)

    def losses(self, batch: Batch, learner: str) -> dict[str, torch.Tensor]:
        return super().losses(replace(batch, x=batch.x + self.seen), learner)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.seen = state["seen"]


def endless(start: Position | None) -> Iterator[tuple[list[Batch], Position]]:
    process, processes = dist.get_rank(), dist.get_world_size()
    number = start["behind"] if start else 0
    while True:
        number += 1
        mine = torch.randperm(8, generator=torch.Generator().manual_seed(number))[process::processes].tolist()
        yield [Batch(X[mine[:1]], tuple(mine[:1])), Batch(X[mine[1:]], tuple(mine[1:]))], {"behind": number}


def resumed(folder: Path, until: int) -> None:
    """Weights, optimizer, memory and random states at the end go to `folder/end-RANK.safetensors`."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.2), torch.nn.Linear(4, 2)).double()
    named = dict(model.named_parameters())
    state = State(Remembering(model, Learner(named, torch.optim.AdamW(model.parameters()), ema=0.9)), endless, seed=3)
    found, _ = newest(folder / "checkpoints")
    offsets = restore(state, found)["offsets"] if found else None
    numbers = folder / f"numbers-{dist.get_rank()}"
    numbers.mkdir(parents=True, exist_ok=True)
    dist.barrier()  # both have read
    with closing(Tracker(numbers, offsets, state.step)) as tracker:
        save = Save(folder / "checkpoints", 1, until, tracker, Best(), lambda: 0.0)
        fit(state, until, [Record(tracker, 2), save])
    tensors = {f"{file}/{key}": t.clone() for file, part in snapshot(state)[0].items() for key, t in part.items()}
    save_file(tensors, folder / f"end-{dist.get_rank()}.safetensors")


def refused(folder: Path) -> None:
    """The disk takes nothing more of the second process alone: what each is told goes to `folder/said-RANK`."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # enough for metrics, not for random states
    try:
        resumed(folder, 9)
    except UserError as error:
        said = error.message
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (folder / f"said-{dist.get_rank()}").write_text(said)


def main(target: str, until: str = "") -> None:
    from safetensors.torch import save_file

    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    if until:
        resumed(Path(target), int(until))
    else:
        for private in (False, True):
            save_file(train(private), f"{target}/{private}-{dist.get_rank()}.safetensors")
        resumed(Path(target, "whole"), 6)
        resumed(Path(target, "parts"), 3)
        resumed(Path(target, "parts"), 6)
        refused(Path(target, "parts"))
    dist.barrier()  # neither goes while the other still listens
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
