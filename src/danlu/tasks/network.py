"""What every task on one network shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from danlu.core.types import Batch, Learner


class NetworkTask:
    """A network and who learns in it; a task adds its losses. No learners: it is only measured."""

    def __init__(self, model: Any, /, **learners: Learner | None) -> None:
        self.model = model
        # Frozen layers keep their running statistics too, unless nobody learns and all are frozen.
        self.still = [
            module
            for module in model.modules()
            if next(module.buffers(recurse=False), None) is not None
            and not any(parameter.requires_grad for parameter in module.parameters(recurse=False))
            and next(module.parameters(recurse=False), None) is not None
        ]
        self.by_name = {name: learner for name, learner in learners.items() if learner is not None}

    def learners(self) -> dict[str, Learner]:
        return self.by_name

    def begin(self, window: Sequence[Batch], learner: str, rng: torch.Generator) -> None:
        self.model.train()
        for module in self.still:
            module.eval()

    def end(self, learner: str) -> None:
        pass

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What the network remembers beside the weights that learn: running statistics, and of a person's own network all else. Copies."""
        kept, frozen = self.model.state_dict().keys(), getattr(self.model, "frozen", ())
        beside = {name: weight for name, weight in self.model.named_parameters() if name in frozen}
        return {
            name: each.detach().clone() for name, each in (*self.model.named_buffers(), *beside.items()) if name in kept
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.model.load_state_dict(state, strict=False)


def by_document(values: torch.Tensor, places: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    """Sums of the values at these places of the joined documents: [documents]."""
    sizes = torch.tensor(lengths, device=places.device)
    owner = torch.arange(len(lengths), device=places.device).repeat_interleave(sizes, output_size=sum(lengths))
    sums = torch.zeros(len(lengths), dtype=values.dtype, device=values.device)
    return sums.index_add(0, owner[places].to(values.device), values)
