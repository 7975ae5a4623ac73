"""A person's own language model: what `build(vocabulary, context)` returns, an nn.Module from tokens to the logits of the next ones.

Code is only ever taken from the command or call of the moment (`own.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from danlu.core.errors import UserError
from danlu.models.blocks import check_lengths
from danlu.models.initialise import seeded
from danlu.models.options import THEIRS
from danlu.models.own import Code, Theirs, checked, computed, fill, find, theirs


BUILD = "def build(vocabulary, context): …  # an nn.Module from ids [n, length] to logits [n, length, vocabulary], each of the tokens up to its own"
TRIED = 12
"""Tokens in the text that a network is tried on."""


def describe(code: str, vocabulary: int, context: int) -> dict[str, Any]:
    """The config.json of one: words about the code, and what it is built for."""
    return {"model_type": THEIRS, "code": code, "vocab_size": vocabulary, "max_position_embeddings": context}


class OwnText(Theirs):
    """A person's network as a `core.types.Backbone`. Documents become rows of a batch, filled up behind: none sees another, and of what
    stands behind it a network that looks only back sees nothing."""

    cache = unembedding = None  # what our own decoders have; a part of theirs may be called so

    def __init__(self, config: Mapping[str, Any], module: Any, name: str) -> None:
        super().__init__()
        self.config: dict[str, Any] = dict(config)
        self.context, self.vocabulary = int(config["max_position_embeddings"]), int(config["vocab_size"])
        self.take_over(module, name)

    def forward(self, ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """ids [tokens] -> logits [tokens, vocabulary]"""
        check_lengths(ids, lengths, self.context)
        documents, found = ids.split(list(lengths)), dict[int, Tensor]()
        for bits in sorted({length.bit_length() for length in lengths}):  # of like length: less than half is padding
            places = [place for place, length in enumerate(lengths) if length.bit_length() == bits]
            logits = self.of_rows(pad_sequence([documents[place] for place in places], batch_first=True))
            found |= {place: row[: lengths[place]] for place, row in zip(places, logits, strict=True)}
        return torch.cat([found[place] for place in range(len(lengths))])

    def of_rows(self, rows: Tensor) -> Tensor:
        """ids [n, length] -> logits [n, length, vocabulary]"""
        return computed(self, rows, f"ids {list(rows.shape)}", [*rows.shape, self.vocabulary], BUILD)

    def logits(self, hidden: Tensor) -> Tensor:
        """`forward` has computed them already."""
        return hidden


def make(config: Mapping[str, Any], code: Code | None, seed: int) -> OwnText:
    """The network that `code` builds for a config.json; what it draws depends on the seed alone. Tried on a text whose end changes.

    Raises:
        UserError: there is no code, it fails, or what it makes is not what can be trained here.
    """
    name, build = find(code, config.get("code"), BUILD)
    vocabulary, context = int(config["vocab_size"]), int(config["max_position_embeddings"])
    with seeded(seed):
        with theirs(name):
            module = build(vocabulary, context)
        network = OwnText(config, checked(module, name, BUILD), name).eval()
        try_on(network)
    return network


def try_on(network: OwnText) -> None:
    """A text whose last token changes: the logits before it must not.

    Raises:
        UserError: they do, or are none.
    """
    name, length, device = network.name, min(TRIED, network.context), next(network.parameters()).device
    ids = torch.randint(network.vocabulary, (length,), device=device)
    other = torch.cat([ids[:-1], (ids[-1:] + 1) % network.vocabulary])
    with torch.no_grad():
        one, two = network(torch.cat([ids, other]), (length, length)).split(length)
    if (one - two)[:-1].abs().sum(1).gt(1e-4 * one.abs().sum(1)[:-1].clamp(min=1.0)).any():
        raise UserError(
            f"{name} looks ahead: with another token {length}, the logits of the tokens before it are others",
            "mask what comes later (a causal mask), or the loss is of tokens that it was shown",
        )
    if one.min() >= 0 and (one.sum(1) - 1).abs().max() < 1e-4:
        raise UserError(f"{name} gives probabilities (rows sum to 1), expected logits", "leave out its softmax")


def load(folder: Path, config: Mapping[str, Any], code: Code | None, seed: int) -> OwnText:
    """The network with the weights in `folder`.

    Raises:
        UserError: as `make`; or the weights are of another network.
    """
    if "vocab_size" not in config:
        raise UserError(f"{config.get('code')} is a network of images", "danlu finetune image-classification")
    network = make(config, code, seed)
    fill(network, folder)
    with seeded(seed):
        try_on(network)  # a head that begins at zero hides at first what the network sees
    return network
