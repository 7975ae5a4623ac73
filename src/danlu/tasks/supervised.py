"""Supervised: one label a document or image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from danlu.core.types import Batch, Documents, Examples, Learner
from danlu.models.blocks import wide
from danlu.tasks.network import NetworkTask


class Classification(NetworkTask):
    """Multi-class cross-entropy from logits; with class weights the mean is weighted, as in PyTorch.

    class_weights: float [labels], or None when every row counts the same. augment: of images, while they are learned from.
    """

    def __init__(
        self,
        model: Any,
        learner: Learner,
        class_weights: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__(model, model=learner)
        self.class_weights, self.label_smoothing, self.augment = class_weights, label_smoothing, augment

    def counts(self, batch: Batch, learner: str) -> dict[str, float]:
        if self.class_weights is None:
            return {"rows": float(len(batch.targets))}
        return {"rows": float(self.class_weights[batch.targets].sum())}

    def losses(self, batch: Batch, learner: str) -> dict[str, torch.Tensor]:
        if self.augment and isinstance(batch, Examples):
            batch = replace(batch, inputs=self.augment(batch.inputs))
        logits = self.logits(batch)
        weights = None if self.class_weights is None else self.class_weights.to(logits)
        targets = batch.targets.to(logits.device)
        return {
            "rows": F.cross_entropy(logits, targets, weights, reduction="none", label_smoothing=self.label_smoothing)
        }

    def logits(self, batch: Batch) -> torch.Tensor:
        """[rows, labels], float32 at least."""
        device = next(self.model.parameters()).device
        if isinstance(batch, Documents):
            return wide(self.model.logits(self.model(batch.ids.to(device), batch.lengths)))
        return wide(self.model.logits(self.model(batch.inputs.to(device))))

    def measures(self, batch: Batch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Validation: name -> (sum, count) of each row; loss without weights or smoothing, and accuracy."""
        logits = self.logits(batch).cpu()
        ones = torch.ones(len(batch.targets))
        right = (logits.argmax(-1) == batch.targets).float()
        return {"loss": (F.cross_entropy(logits, batch.targets, reduction="none"), ones), "accuracy": (right, ones)}
