"""Language: the next token, learned where a conversation's assistant speaks."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from danlu.core.types import Documents, Learner
from danlu.data.loader import IGNORED
from danlu.models.blocks import wide
from danlu.models.cross_entropy import token_losses
from danlu.tasks.network import NetworkTask, by_document


FEW = 8
"""Fewer rows than this are padded before the head: for 3 and less, float32 kernels sum a vocabulary of slopes ten times less exactly."""


class Language(NetworkTask):
    """Causal language modelling on the supervised tokens of each document; the mean is over supervised tokens."""

    def __init__(
        self,
        model: Any,
        learner: Learner | None = None,
        label_smoothing: float = 0.0,
        bytes_per_token: float | None = None,
    ) -> None:
        """model: a `core.types.Backbone`. learner: None measures only. bytes_per_token: bytes of the text a learned token, to tell bits per byte too."""
        super().__init__(model, model=learner)
        self.label_smoothing, self.bytes_per_token = label_smoothing, bytes_per_token

    def counts(self, batch: Documents, learner: str) -> dict[str, float]:
        return {"tokens": float((batch.targets != IGNORED).sum())}

    def losses(self, batch: Documents, learner: str) -> dict[str, torch.Tensor]:
        return {"tokens": self.row_losses(batch, self.label_smoothing)}

    def row_losses(self, batch: Documents, smoothing: float = 0.0) -> torch.Tensor:
        """Summed loss of each document's supervised tokens, in nats: [documents]."""
        device = next(self.model.parameters()).device
        hidden = self.model(batch.ids.to(device), batch.lengths)
        targets = batch.targets.to(device)
        taught = (targets != IGNORED).nonzero()[:, 0]
        missing = max(0, FEW - len(taught))
        rows, wanted = F.pad(hidden[taught], (0, 0, 0, missing)), F.pad(targets[taught], (0, missing))
        weight = getattr(self.model, "unembedding", None)
        if weight is None:
            logits = wide(self.model.logits(rows))
            losses = F.cross_entropy(logits, wanted, reduction="none", label_smoothing=smoothing)
        else:
            losses = token_losses(rows, weight, wanted, smoothing)
        return by_document(losses[: len(taught)], taught, batch.lengths)

    def measures(self, batch: Documents) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Validation: name -> (sum, count) of each document, without label smoothing."""
        taught = torch.tensor([int((part != IGNORED).sum()) for part in batch.targets.split(batch.lengths)])
        sums = self.row_losses(batch).cpu()
        if self.bytes_per_token is None:
            return {"loss": (sums, taught)}
        return {"loss": (sums, taught), "bits_per_byte": (sums / math.log(2), taught * self.bytes_per_token)}
