"""Started by torchrun in `test_fit.py`: two steps on two uneven windows, one of them empty for the second process.

Without torchrun the same rows are trained in one process. `train(private)` returns the weights and the recorded losses.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from danlu.core.types import Learner, Position, Privacy
from danlu.training.fit import State, Step, fit


@dataclass(frozen=True)
class Batch:
    x: torch.Tensor
    rows: tuple[int, ...]


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


def main(target: str) -> None:
    from safetensors.torch import save_file

    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    for private in (False, True):
        save_file(train(private), f"{target}/{private}-{dist.get_rank()}.safetensors")
    dist.barrier()  # neither goes while the other still listens
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
