"""The one place where text is generated: evaluate, predict, chat, the service and rollouts all come here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from danlu.core.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    max_new_tokens: most tokens generated for a prompt.
    temperature: 0 takes the likeliest token; logits are divided by it otherwise.
    top_k: only the k likeliest tokens; 0 allows all. top_p: only the likeliest tokens that hold this share (Holtzman et al. 2020).
    repetition_penalty: logits of tokens already in prompt or answer are shrunk by it (Keskar et al. 2019); 1 leaves them.
    seed: of everything random; each prompt draws from (seed, its number), so its neighbours do not change its luck.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (
                self.temperature == 0 or self.temperature >= 1e-3,
                "0 (always the likeliest token), or 0.001 and more",
            ),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (all tokens) or more"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0 (1 leaves repetition alone)"),
        }
        for key, (holds, expected) in rules.items():
            if not holds:
                raise UserError(
                    f"{key}: found {getattr(self, key)!r}, expected {expected}", f"set {key} to a number {expected}"
                )


@dataclass(frozen=True)
class Generated:
    """New tokens only, an end token included if one came. finish: `stop` at an end token, `length` at a limit."""

    tokens: list[int]
    finish: Literal["stop", "length"]


@dataclass
class _Row:
    """A prompt being continued."""

    number: int
    prompt: list[int]
    limit: int
    rng: torch.Generator
    new: list[int] = field(default_factory=list)


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    ends: frozenset[int],
    on_token: Callable[[int, int], None] | None = None,
) -> list[Generated]:
    """Continue every prompt until a token of `ends`, `max_new_tokens`, or the model's context.

    Prompts are one batch: choose its size for the memory there is. A row that ends leaves the batch. Models with a `cache`
    compute each token once; others compute the whole text again. The model's train mode is restored afterwards.

    on_token(number of the prompt, token): called as each token comes, for streaming.
    Raises UserError for an empty prompt, one that fills the context, or a model whose output is not a number.
    """
    context = int(getattr(model, "context"))  # noqa: B009 - a Module's attributes are typed as tensors
    rows = [_row(number, list(prompt), sampling, context) for number, prompt in enumerate(prompts)]
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return _run(model, rows, sampling, ends, on_token)
    finally:
        model.train(training)


def _row(number: int, prompt: list[int], sampling: Sampling, context: int) -> _Row:
    if not prompt:
        raise UserError(f"prompt {number + 1} is empty", "give the model at least one token to continue")
    if len(prompt) >= context:
        raise UserError(
            f"prompt {number + 1} has {len(prompt):,} tokens, which leaves no room in the model's context of {context:,}",
            "shorten it, or take a model with a longer context",
        )
    rng = torch.Generator().manual_seed((sampling.seed * 1_000_003 + number) % 2**63)
    return _Row(number, prompt, min(sampling.max_new_tokens, context - len(prompt)), rng)


def _run(
    model: Any, rows: list[_Row], sampling: Sampling, ends: frozenset[int], on_token: Callable[[int, int], None] | None
) -> list[Generated]:
    done: list[Generated | None] = [None] * len(rows)
    cached = getattr(model, "cache", None) is not None
    cache = model.cache(len(rows)) if cached else None
    device = next(model.parameters()).device
    while rows:
        pieces = [row.new[-1:] if cached and row.new else row.prompt + row.new for row in rows]
        lengths = tuple(len(piece) for piece in pieces)
        ids = torch.tensor([token for piece in pieces for token in piece], device=device)
        hidden = model(ids, lengths, cache=cache) if cached else model(ids, lengths)
        logits = model.logits(hidden[torch.tensor(lengths, device=device).cumsum(0) - 1]).float().cpu()
        stay = []
        for place, (row, scores) in enumerate(zip(rows, logits, strict=True)):
            token = choose(scores, row.prompt + row.new, sampling, row.rng)
            row.new.append(token)
            if on_token is not None:
                on_token(row.number, token)
            if token in ends or len(row.new) == row.limit:
                done[row.number] = Generated(row.new, "stop" if token in ends else "length")
            else:
                stay.append(place)
        if cache is not None and 0 < len(stay) < len(rows):
            cache.keep(stay)
        rows = [rows[place] for place in stay]
    return [result for result in done if result is not None]


def choose(logits: Tensor, seen: Sequence[int], sampling: Sampling, rng: torch.Generator) -> int:
    """One token from logits float32 [vocabulary], after the text `seen`; in the order transformers applies the settings."""
    if not torch.isfinite(logits.max()):
        raise UserError(
            "the model's output is not a number",
            "its weights are broken: a learning rate that was too high, or a damaged file",
        )
    if sampling.repetition_penalty != 1.0:
        known = torch.tensor(sorted(set(seen)))
        old = logits[known]
        shrunk = torch.where(old < 0, old * sampling.repetition_penalty, old / sampling.repetition_penalty)
        logits = logits.index_copy(0, known, shrunk)
    if sampling.temperature == 0:
        return int(logits.argmax())
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    chances = logits.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = chances.sort(descending=True, stable=True)
        chances[order[ordered.cumsum(0) - ordered >= sampling.top_p]] = 0  # the token that crosses the share stays
    return int(torch.multinomial(chances, 1, generator=rng))
