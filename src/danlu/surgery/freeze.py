"""Which weights a pattern means, which are trained, and in what type the others are kept."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from danlu.core.errors import UserError


GROUPS = {
    "embeddings": re.compile(r"(^|\.)(embed_tokens|embed_positions|embed_in|embeddings|word_embeddings|wte|wpe)\."),
    "head": re.compile(r"(^|\.)(lm_head|embed_out|classifier|score|pooler|pre_classifier|classification_head)\."),
    "norms": re.compile(r"(norm|LayerNorm)[^.]*\.(weight|bias)$"),
}
LAYERS = re.compile(r"layers?\.(\d+)(?:-(\d+))?")


def head_of(name: str) -> str | None:
    """The module of the head that a parameter belongs to: `bert.pooler.dense.weight` -> `pooler`; None below the head."""
    found = GROUPS["head"].search(name)
    return found[2] if found else None


def matches(name: str, pattern: str) -> bool:
    """Does a layer-group pattern mean this parameter?

    `embeddings`, `head`, `norms`, `layers.3`, `layers.0-3` (both ends included), or any part of the parameter's name.
    """
    if pattern in GROUPS:
        return GROUPS[pattern].search(name) is not None
    span = LAYERS.fullmatch(pattern)
    if span:
        number = re.search(r"(?:^|\.)layers?\.(\d+)\.", name)
        first = int(span[1])
        return number is not None and first <= int(number[1]) <= int(span[2] or first)
    return pattern in name


def freeze(model: torch.nn.Module, patterns: Sequence[str]) -> None:
    """Leave the weights that a pattern means as they are.

    Raises:
        UserError: a pattern means no weight, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            raise UserError(
                f"freeze: {pattern!r} matches no weight of this model (for example {names[0]}, {names[-1]})",
                "use embeddings, head, norms, layers.0-3, or a part of a weight's name",
            )
    for name, parameter in model.named_parameters():
        if any(matches(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"freeze={','.join(patterns)} leaves nothing to train", "freeze less")


def cast_frozen(model: torch.nn.Module, dtype: torch.dtype, keep: str = "\0") -> None:
    """Keep the frozen matrices in `dtype`: under LoRA they are most of the memory, and are not cast again in every step.

    keep: weights with this in their name stay as they are.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and parameter.ndim >= 2 and keep not in name:
            parameter.data = parameter.data.to(dtype)
