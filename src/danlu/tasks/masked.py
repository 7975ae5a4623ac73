"""Masked: the tokens that were hidden from an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from danlu.core.types import Batch, Documents, Learner
from danlu.data.loader import IGNORED
from danlu.models.blocks import wide
from danlu.tasks.network import NetworkTask, by_document


class Masked(NetworkTask):
    """Masked language modelling (Devlin et al. 2019): of each document `share` of the tokens is chosen; the model sees [MASK] in place
    of 80 % of them, another token in place of 10 %, and the rest as it is, and is to say what stood there.

    Chosen anew at every update (Liu et al. 2019); where it is only measured, by the document's number alone.
    """

    def __init__(self, model: Any, mask: int, learner: Learner | None = None, share: float = 0.15) -> None:
        """mask: the id of [MASK]. learner: None measures only."""
        super().__init__(model, model=learner)
        self.mask, self.share = mask, share
        self.vocabulary = int(model.config["vocab_size"])
        self.hidden: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def begin(self, window: Sequence[Batch], learner: str, rng: torch.Generator) -> None:
        super().begin(window, learner, rng)
        texts = [batch for batch in window if isinstance(batch, Documents)]
        self.hidden = {id(batch): self.hide(batch.ids, batch.targets, rng) for batch in texts}

    def hide(self, ids: torch.Tensor, targets: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(what the model sees, the places it is asked about), int64 [tokens] and [places]."""
        chance, how = torch.rand(2, len(ids), generator=rng)
        chosen = (chance < self.share) & (targets != IGNORED)
        seen = ids.masked_fill(chosen & (how < 0.8), self.mask)
        others = torch.randint(self.vocabulary, (len(ids),), generator=rng)
        return torch.where(chosen & (how >= 0.8) & (how < 0.9), others, seen), chosen.nonzero()[:, 0]

    def counts(self, batch: Documents, learner: str) -> dict[str, float]:
        return {"tokens": float(len(self.hidden[id(batch)][1]))}

    def losses(self, batch: Documents, learner: str) -> dict[str, torch.Tensor]:
        seen, places = self.hidden[id(batch)]
        losses, _ = self.asked(batch, seen, places)
        return {"tokens": by_document(losses, places, batch.lengths)}

    def end(self, learner: str) -> None:
        self.hidden = {}

    def asked(self, batch: Documents, seen: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss at each place in nats, and whether the likeliest token is the right one: [places] each."""
        device = next(self.model.parameters()).device
        hidden = self.model(seen.to(device), batch.lengths)[places.to(device)]
        logits = wide(self.model.logits(hidden))
        wanted = batch.targets[places].to(device)
        return F.cross_entropy(logits, wanted, reduction="none"), logits.argmax(-1) == wanted

    def measures(self, batch: Documents) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Validation: name -> (sum, count) of each document."""
        parts = zip(batch.ids.split(batch.lengths), batch.targets.split(batch.lengths), batch.rows, strict=True)
        seen, places, before = [], [], 0
        for ids, targets, row in parts:
            shown, where = self.hide(ids, targets, torch.Generator().manual_seed(row))
            seen.append(shown)
            places.append(where + before)
            before += len(ids)
        asked = torch.cat(places)
        losses, right = self.asked(batch, torch.cat(seen), asked)
        counts = by_document(torch.ones(len(asked)), asked, batch.lengths)
        found = {"loss": losses.cpu(), "accuracy": right.float().cpu()}
        return {name: (by_document(each, asked, batch.lengths), counts) for name, each in found.items()}
