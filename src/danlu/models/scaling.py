"""What a config costs (weights, operations, memory) and what published laws say it learns: arithmetic only, nothing is measured.

N is a number of parameters, D of tokens trained on, U of different tokens among them; a loss is in nats a token of the law's own tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from danlu.models.cross_entropy import KEPT


TOKENS_PER_WEIGHT = 20
"""Hoffmann et al. 2022: about so many tokens for each weight get most out of a budget of computation."""
PASSES = 4
"""Muennighoff et al. 2023: up to four passes over the same text are about as good as new text."""

E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
"""Approach 3 of Hoffmann et al. 2022, as fitted anew by Besiroglu et al. 2024 (arXiv 2404.10102): theirs did not fit their own data."""
AGAIN, EXCESS = 15.387756, 5.309743
"""R_D* and R_N* of Muennighoff et al. 2023 (arXiv 2305.16264, appendix A): how fast repeated tokens and superfluous parameters lose worth."""
FITTED = 1e18
"""Operations of the smallest trainings that Hoffmann et al. fitted; below it only the law of Kaplan et al. has been tried."""
BYTES_PER_TOKEN = 96e9 / 22.9e9
"""Of the text Kaplan et al. 2020 trained on: WebText2 is 96 GB, and 22.9 billion tokens."""


def matrices(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """[rows, columns] of the weight matrices of one layer, of what `models.decoder.describe` and `models.encoder.describe` say."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    kv = width * config.get("num_key_value_heads", config["num_attention_heads"]) // config["num_attention_heads"]
    up = 1 if config["model_type"] == "bert" else 2  # SwiGLU has a gate beside it
    return [(width, width), (kv, width), (kv, width), (width, width), *[(inner, width)] * up, (width, inner)]


def parameters(config: Mapping[str, Any]) -> tuple[int, int]:
    """(of the matrices inside the layers, of everything else: embeddings, head, norms, biases)."""
    width, inner, layers, rows = (
        config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    )
    inside = layers * sum(math.prod(shape) for shape in matrices(config))
    if config["model_type"] == "bert":
        embedded = (rows + config["max_position_embeddings"] + config["type_vocab_size"] + 2) * width
        return inside, embedded + layers * (9 * width + inner) + width * width + 3 * width + rows
    return inside, rows * width * (1 if config["tie_word_embeddings"] else 2) + (2 * layers + 1) * width


def flops(config: Mapping[str, Any], length: float, tokens: float) -> tuple[float, float]:
    """(of the layers, of the head) for one token, forward and backward, in documents of so many tokens.

    Six for each weight (Kaplan et al. 2020), and the scores of attention between all pairs of tokens. The head of a decoder
    computes its logits a second time in the backward pass where micro-batches of so many tokens have more of them than are kept
    (`models.cross_entropy`): eight. That of an encoder sees 15 % of the tokens.
    """
    width, rows = config["hidden_size"], config["vocab_size"]
    bert = config["model_type"] == "bert"
    layers = config["num_hidden_layers"] * (
        6 * sum(math.prod(shape) for shape in matrices(config)) + 12 * width * length
    )
    return float(layers), float(
        (0.15 * 6 * (rows + width) if bert else (6 if tokens * rows <= KEPT else 8) * rows) * width
    )


def muon_flops(config: Mapping[str, Any]) -> float:
    """Of Newton and Schulz's iteration over all layers, for one update (`training.optimizer.orthogonalised`): five steps of X X^T, its square, times X."""
    sides = [(min(shape), max(shape)) for shape in matrices(config)]
    layers = int(config["num_hidden_layers"])
    return layers * sum(5 * (4 * s * s * long + 2 * s**3) for s, long in sides)


def memory(config: Mapping[str, Any], tokens: int, muon: bool) -> float:
    """Bytes that training holds in float32 at micro-batches of so many tokens, beside the program itself and the text.

    Weights, gradients, and what the optimizer remembers (Muon one number a weight, AdamW two); numbers a token and unit of width that
    a layer keeps for its backward pass, some 18.5 of an encoder and 13.8 of a decoder (what its norms and SwiGLU made is made again), 12
    more while one is at work; three blocks of 256 rows of logits, and the slopes of a decoder's that are kept (`models.cross_entropy`).
    """
    inside, rest = parameters(config)
    each, logits = (18.5, 0) if config["model_type"] == "bert" else (13.8, tokens * config["vocab_size"])
    kept = (each * config["num_hidden_layers"] + 12) * config["hidden_size"] * tokens + (
        logits if logits <= KEPT else 0
    )
    return 4.0 * float(inside * (3 if muon else 4) + rest * 4 + kept + 3 * 256 * config["vocab_size"])


# ----------------------------------------------------------------------------------------------------------------- laws


def optimum(operations: float) -> tuple[float, float]:
    """(N, D) that a budget of 6 N D operations is best spent on, all text new: equation 4 of Hoffmann et al. 2022 with the constants above."""
    g = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    n = g * (operations / 6) ** (BETA / (ALPHA + BETA))
    return n, operations / 6 / n


def fitting(tokens: float) -> float:
    """N for which so many new tokens are the optimum, the other way round."""
    g = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    return float(g ** ((ALPHA + BETA) / ALPHA) * tokens ** (BETA / ALPHA))


def deepest(tokens: float) -> int:
    """The deepest decoder (`models.decoder.describe`) that so many tokens feed, 2 to 32 layers; its layers have 12 * width^2 weights."""
    return max(
        (depth for depth in range(2, 33) if 12 * depth * (64 * depth) ** 2 * TOKENS_PER_WEIGHT <= tokens), default=2
    )


def worth(tokens: float, different: float) -> float:
    """D': new tokens that are as good as passing `tokens` over `different` ones, U + U R* (1 - e^(-R / R*)) with R = D / U - 1 (Muennighoff et al. 2023)."""
    used = min(tokens, different)
    return used + used * AGAIN * -math.expm1(-(tokens / used - 1) / AGAIN)


def loss(n: float, tokens: float, different: float = math.inf) -> float:
    """E + A / N'^alpha + B / D'^beta: Hoffmann et al. 2022, with D' and N' for repeated text of Muennighoff et al. 2023.

    N: all parameters; beyond the optimum for U they count less and less. Below `FITTED` operations it may exceed the loss of guessing.
    """
    enough = min(n, fitting(min(tokens, different)))
    n = enough + enough * EXCESS * -math.expm1(-(n / enough - 1) / EXCESS)
    return float(E + A / n**ALPHA + B / worth(tokens, different) ** BETA)


def loss_of_small(inside: float, tokens: float) -> float:
    """((6.4e13 / N)^(0.076 / 0.103) + 1.8e13 / D)^0.103: equation 1.5 of Kaplan et al. 2020 with table 2, from 768 parameters and 2e7 tokens up.

    inside: without embeddings. For a model trained on its D tokens until it learns nothing more, so rather too low for a short training.
    """
    return float(((6.4e13 / inside) ** (0.076 / 0.103) + 1.8e13 / tokens) ** 0.103)
