"""A pattern means the weights a person would think it means."""

from __future__ import annotations

import pytest
import torch

from danlu.core.errors import UserError
from danlu.models.decoder import Decoder
from danlu.surgery.freeze import cast_frozen, freeze, matches


CONFIG = {
    "model_type": "qwen3",
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 12,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("pattern", "meant", "others"),
    [
        ("embeddings", ["model.embed_tokens.weight", "bert.embeddings.LayerNorm.bias"], ["lm_head.weight"]),
        ("head", ["lm_head.weight", "score.weight", "classifier.out_proj.bias"], ["model.layers.0.mlp.up_proj.weight"]),
        (
            "norms",
            ["model.norm.weight", "model.layers.3.input_layernorm.weight", "bert.embeddings.LayerNorm.bias"],
            ["model.layers.3.mlp.up_proj.weight"],
        ),
        ("layers.1", ["model.layers.1.mlp.up_proj.weight"], ["model.layers.10.mlp.up_proj.weight", "lm_head.weight"]),
        (
            "layers.2-10",
            ["model.layers.2.mlp.up_proj.weight", "bert.encoder.layer.10.output.dense.bias"],
            ["model.layers.1.mlp.up_proj.weight", "model.layers.11.mlp.up_proj.weight"],
        ),
        ("q_proj", ["model.layers.7.self_attn.q_proj.weight"], ["model.layers.7.self_attn.k_proj.weight"]),
    ],
)
def test_patterns(pattern: str, meant: list[str], others: list[str]) -> None:
    assert [matches(name, pattern) for name in meant + others] == [True] * len(meant) + [False] * len(others)


def test_freezing_leaves_exactly_the_others_to_train() -> None:
    model = Decoder(CONFIG)
    freeze(model, ["embeddings", "layers.0-10"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        name
        for name, _ in model.named_parameters()
        if "embed" not in name and ("layers." not in name or ".11." in name)
    }


def test_a_pattern_that_means_nothing_is_an_error() -> None:
    with pytest.raises(UserError, match=r"freeze: 'layers\.12' matches no weight"):
        freeze(Decoder(CONFIG), ["layers.12"])


def test_freezing_everything_is_an_error() -> None:
    with pytest.raises(UserError, match="leaves nothing to train"):
        freeze(Decoder(CONFIG), ["embeddings", "layers.0-11", "norms", "head"])


def test_frozen_matrices_are_cast_and_nothing_else() -> None:
    model = Decoder(CONFIG)
    freeze(model, ["layers.0-10"])
    cast_frozen(model, torch.bfloat16, keep="q_proj")
    for name, parameter in model.named_parameters():
        cast = not parameter.requires_grad and parameter.ndim == 2 and "q_proj" not in name
        assert parameter.dtype == (torch.bfloat16 if cast else torch.float32), name
