"""Supervised: one label a document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from danlu.core.types import Documents, Learner


class Classification:
    """Multi-class cross-entropy from logits; with class weights the mean is weighted, as in PyTorch.

    class_weights: float [labels], or None when every row counts the same.
    """

    def __init__(
        self, model: Any, learner: Learner, class_weights: torch.Tensor | None = None, label_smoothing: float = 0.0
    ) -> None:
        self.model, self.learner = model, learner
        self.class_weights, self.label_smoothing = class_weights, label_smoothing

    def learners(self) -> dict[str, Learner]:
        return {"model": self.learner}

    def begin(self, window: Sequence[Documents], learner: str, rng: torch.Generator) -> None:
        self.model.train()

    def counts(self, batch: Documents, learner: str) -> dict[str, float]:
        if self.class_weights is None:
            return {"rows": float(len(batch.targets))}
        return {"rows": float(self.class_weights[batch.targets].sum())}

    def losses(self, batch: Documents, learner: str) -> dict[str, torch.Tensor]:
        logits = self.logits(batch)
        weights = None if self.class_weights is None else self.class_weights.to(logits)
        targets = batch.targets.to(logits.device)
        return {
            "rows": F.cross_entropy(logits, targets, weights, reduction="none", label_smoothing=self.label_smoothing)
        }

    def end(self, learner: str) -> None:
        pass

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        pass

    def logits(self, batch: Documents) -> torch.Tensor:
        """[documents, labels], float32 at least."""
        device = next(self.model.parameters()).device
        logits: torch.Tensor = self.model.logits(self.model(batch.ids.to(device), batch.lengths))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def measures(self, batch: Documents) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Validation: name -> (sum, count) of each document; loss without weights or smoothing, and accuracy."""
        logits = self.logits(batch).cpu()
        ones = torch.ones(len(batch.targets))
        right = (logits.argmax(-1) == batch.targets).float()
        return {"loss": (F.cross_entropy(logits, batch.targets, reduction="none"), ones), "accuracy": (right, ones)}
