"""Every architecture we have not written ourselves: through transformers, padded, behind the contract of our own models."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from danlu.models.blocks import check_lengths


class Foreign(nn.Module):
    """A transformers model (AutoModelForCausalLM, AutoModelForMaskedLM or AutoModelForSequenceClassification) as a Backbone.

    Its parameters keep the names they have there. Documents become rows of a padded batch, so they cannot see each other.
    """

    def __init__(self, network: nn.Module, task: str = "language") -> None:
        super().__init__()
        # not a child: its parts become ours, in the same dictionaries, so that names agree
        self.__dict__["network"] = network
        self._modules, self._parameters, self._buffers = network._modules, network._parameters, network._buffers
        settings = cast(Any, network).config
        text = settings.get_text_config()
        self.config: dict[str, Any] = settings.to_dict()
        self.task = task
        self.layers_count = int(text.num_hidden_layers)
        self.context = int(getattr(text, "max_position_embeddings", None) or 1 << 30)
        self.pad: int | None = text.pad_token_id
        takes = inspect.signature(network.forward).parameters
        self.extra: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}
        self.train(network.training)

    def train(self, mode: bool = True) -> Foreign:
        super().train(mode)
        cast(nn.Module, self.network).train(mode)
        return self

    def forward(self, ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """ids [tokens] -> logits [tokens, vocabulary]; of a classifier [documents, labels]"""
        check_lengths(ids, lengths, self.context)
        documents = ids.split(list(lengths))
        # without a padding token transformers cannot tell where a row of a batch ends
        if self.task == "classification" and self.pad is None:
            return torch.cat([self._run(document[None], torch.ones_like(document)[None]) for document in documents])
        rows = pad_sequence(list(documents), batch_first=True, padding_value=self.pad or 0)
        seen = torch.arange(rows.shape[1], device=ids.device) < torch.tensor(lengths, device=ids.device)[:, None]
        out = self._run(rows, seen.long())
        return out if self.task == "classification" else out[seen]

    def _run(self, rows: Tensor, seen: Tensor) -> Tensor:
        return cast(Tensor, cast(Any, self.network)(input_ids=rows, attention_mask=seen, **self.extra).logits)

    def logits(self, hidden: Tensor) -> Tensor:
        """`forward` has computed them already."""
        return hidden
