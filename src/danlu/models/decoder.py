"""The Llama family in one file: Llama, SmolLM, Mistral, Qwen2 and Qwen3, from and to Hugging Face checkpoints by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.core.errors import UserError
from danlu.models.attention import Cache, Layout, attend
from danlu.models.blocks import RMSNorm, Rotary, check_lengths, count_labels, initialise, residual, rotate, swiglu
from danlu.models.dropout import chance
from danlu.models.linear import project


_COMMON = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "attention_bias": False,
    "mlp_bias": False,
    "head_dim": None,
}
_WINDOWED = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
FAMILY: dict[str, dict[str, Any]] = {
    "llama": _COMMON | {"num_key_value_heads": None, "max_position_embeddings": 2048},
    "mistral": _COMMON | {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    "qwen2": _COMMON | _WINDOWED | {"num_key_value_heads": 32, "max_position_embeddings": 32768},
    "qwen3": _COMMON | _WINDOWED | {"num_key_value_heads": 32, "max_position_embeddings": 32768, "head_dim": 128},
}
"""`model_type` -> what a `config.json` that leaves a key out means by it."""

Attend = Callable[[int, Tensor, Tensor, Tensor, int | None, float], Tensor]
"""(layer, q, k, v, window, dropout) -> what the layer's attention saw: within documents, or of a cache."""


def describe(depth: int, vocabulary: int, context: int) -> dict[str, Any]:
    """The config.json of a Llama of `depth` layers from random weights: 64 wide a layer, heads of 64, SwiGLU of 8/3 the width.

    One dial for the whole shape, as in nanochat: width and depth grow together (Kaplan et al. 2020 found the exact ratio to matter little).
    The output matrix is one of its own: it costs no product, only AdamW's pass over it and its memory, and bears a tenth of the embedding's rate.
    """
    width = 64 * depth
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": depth,
        "num_key_value_heads": depth,
        "intermediate_size": 64 * round(width * 8 / 3 / 64),
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
    }


def supports(config: Mapping[str, Any]) -> bool:
    """Whether `Decoder` computes what transformers would for this `config.json`."""
    if config.get("model_type") not in FAMILY:
        return False
    full = FAMILY[config["model_type"]] | dict(config)
    rope = Rotary.parameters_of(full)
    return (
        full["hidden_act"] == "silu"
        and rope["rope_type"] in Rotary.KINDS
        and rope.get("partial_rotary_factor", 1.0) == full.get("partial_rotary_factor", 1.0) == 1.0
        and full.get("quantization_config") is None
        and set(full.get("layer_types") or ()) <= {"full_attention", "sliding_attention"}
    )


def windows(full: Mapping[str, Any]) -> list[int | None]:
    """Each layer's sliding window in tokens; None sees the whole document."""
    layers = full["num_hidden_layers"]
    if full["model_type"] == "mistral":
        return [full["sliding_window"]] * layers
    if not full.get("use_sliding_window"):
        return [None] * layers
    kinds = full.get("layer_types") or [
        "full_attention" if layer < full["max_window_layers"] else "sliding_attention" for layer in range(layers)
    ]
    return [full["sliding_window"] if kind == "sliding_attention" else None for kind in kinds]


class Attention(nn.Module):
    """Rotary attention with grouped heads; Qwen2 has biases, Qwen3 norms of queries and keys, Mistral a window."""

    def __init__(self, full: Mapping[str, Any], index: int, window: int | None, dropout: float) -> None:
        super().__init__()
        self.index, self.window, self.dropout = index, window, dropout
        width, kind = full["hidden_size"], full["model_type"]
        self.heads = full["num_attention_heads"]
        self.kv = full["num_key_value_heads"] or self.heads
        self.d = full["head_dim"] or width // self.heads
        out_bias = bool(full["attention_bias"]) and kind in ("llama", "qwen3")
        in_bias = out_bias or kind == "qwen2"
        self.q_proj = nn.Linear(width, self.heads * self.d, in_bias)
        self.k_proj = nn.Linear(width, self.kv * self.d, in_bias)
        self.v_proj = nn.Linear(width, self.kv * self.d, in_bias)
        self.o_proj = nn.Linear(self.heads * self.d, width, out_bias)
        self.q_norm = RMSNorm(self.d, full["rms_norm_eps"]) if kind == "qwen3" else nn.Identity()
        self.k_norm = RMSNorm(self.d, full["rms_norm_eps"]) if kind == "qwen3" else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, see: Attend) -> Tensor:
        """[tokens, width] -> [tokens, width]"""
        q, k, v = project(x, self.q_proj, self.k_proj, self.v_proj)
        q = rotate(self.q_norm(q.view(-1, self.heads, self.d)), cos, sin)
        k = rotate(self.k_norm(k.view(-1, self.kv, self.d)), cos, sin)
        v = v.view(-1, self.kv, self.d)
        seen = see(self.index, q, k, v, self.window, self.dropout if self.training else 0.0)
        return project(seen.flatten(1), self.o_proj)[0]


class MLP(nn.Module):
    """The gated layer between attentions."""

    def __init__(self, full: Mapping[str, Any]) -> None:
        super().__init__()
        width, inner, bias = full["hidden_size"], full["intermediate_size"], bool(full["mlp_bias"])
        self.gate_proj = nn.Linear(width, inner, bias)
        self.up_proj = nn.Linear(width, inner, bias)
        self.down_proj = nn.Linear(inner, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, width] -> [tokens, width]"""
        return project(swiglu(*project(x, self.gate_proj, self.up_proj)), self.down_proj)[0]


class Layer(nn.Module):
    """Attention and MLP, each with its norm before it and added to what came in."""

    def __init__(self, full: Mapping[str, Any], index: int, window: int | None, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(full, index, window, dropout)
        self.mlp = MLP(full)
        self.input_layernorm = RMSNorm(full["hidden_size"], full["rms_norm_eps"])
        self.post_attention_layernorm = RMSNorm(full["hidden_size"], full["rms_norm_eps"])

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, see: Attend) -> Tensor:
        """[tokens, width] -> [tokens, width]"""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, see)
        return cast(Tensor, x + self.mlp(self.post_attention_layernorm(x)))


class Trunk(nn.Module):
    """Everything below the head, under Hugging Face's names."""

    def __init__(self, full: Mapping[str, Any], dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(full["vocab_size"], full["hidden_size"])
        self.layers = nn.ModuleList(Layer(full, i, window, dropout) for i, window in enumerate(windows(full)))
        self.norm = RMSNorm(full["hidden_size"], full["rms_norm_eps"])


class Decoder(nn.Module):
    """A causal language model, or a classifier on each document's last token (the layout of LlamaForSequenceClassification).

    config: the plain dict of a Hugging Face `config.json`. Parameters carry Hugging Face's names; `lm_head.weight` exists
    only where it is not tied to the embeddings. Freshly built weights are drawn as Hugging Face draws them; under
    `torch.device("meta")` there are none, for `load_state_dict` to fill.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        task: str = "language",
        labels: Sequence[str] | None = None,
        dropout: float | None = None,
    ) -> None:
        """labels: of a classifier; None takes their number from the config. dropout: None takes the config's."""
        super().__init__()
        if not supports(config):
            raise UserError(
                f"config.json: model_type {config.get('model_type')!r} with these settings is not one this decoder computes",
                f"it takes {', '.join(FAMILY)}; every other architecture goes through danlu.models.foreign",
            )
        full = FAMILY[config["model_type"]] | dict(config)
        self.config = dict(config)
        self.task = task
        self.layers_count: int = full["num_hidden_layers"]
        self.context: int = full["max_position_embeddings"]
        self.model = Trunk(full, chance(full, "attention_dropout") if dropout is None else dropout)
        self.rotary = Rotary(full["head_dim"] or full["hidden_size"] // full["num_attention_heads"], full)
        if task == "classification":
            self.score = nn.Linear(full["hidden_size"], count_labels(config, labels), bias=False)
        elif not full["tie_word_embeddings"]:
            self.lm_head = nn.Linear(full["hidden_size"], full["vocab_size"], bias=False)
        initialise(self, full["initializer_range"])

    def cache(self, documents: int) -> Cache:
        """An empty cache for generating the continuation of so many documents."""
        return Cache(documents, self.layers_count)

    def forward(self, ids: Tensor, lengths: tuple[int, ...], cache: Cache | None = None) -> Tensor:
        """ids [tokens], documents one behind the other -> hidden [tokens, width] after the final norm.

        A classifier returns one row a document, [documents, width]: that of its last token that is not padding.
        cache: an empty one is filled with the documents; a filled one is continued by one token a document.
        """
        if cache is not None and max(cache.lengths, default=0) > 0:
            return self._continue(ids, cache)
        check_lengths(ids, lengths, self.context)
        layout = Layout(lengths, causal=True, device=ids.device)

        def see(layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None, dropout: float) -> Tensor:
            if cache is not None:
                cache.fill(layer, k, v, lengths)
            return attend(q, k, v, layout, dropout, window)

        hidden = self._layers(ids, layout.positions, max(lengths), see)
        if cache is not None:
            cache.advance(lengths)
        return hidden[self._last(ids, layout)] if self.task == "classification" else hidden

    def _continue(self, ids: Tensor, cache: Cache) -> Tensor:
        def see(layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None, _: float) -> Tensor:
            return cache.attend(layer, q, k, v, window)

        hidden = self._layers(ids, torch.tensor(cache.lengths, device=ids.device), max(cache.lengths) + 1, see)
        cache.advance([length + 1 for length in cache.lengths])
        return hidden

    def _layers(self, ids: Tensor, positions: Tensor, longest: int, see: Attend) -> Tensor:
        x = residual(self.model.embed_tokens(ids))
        cos, sin = self.rotary(positions, longest, x)
        for layer in self.model.layers:
            x = layer(x, cos, sin, see)
        return cast(Tensor, self.model.norm(x))

    def _last(self, ids: Tensor, layout: Layout) -> Tensor:
        """[documents]: the row a classifier reads. As in transformers, a padding token at the end of a text does not count."""
        pad = self.config.get("pad_token_id")
        if pad is None:
            return layout.last
        counts = torch.tensor(layout.lengths, device=ids.device)
        owner = torch.arange(len(layout.lengths), device=ids.device).repeat_interleave(counts)
        place = layout.positions * (ids != pad)
        return layout.first + torch.zeros_like(layout.first).scatter_reduce_(0, owner, place, "amax")

    @property
    def unembedding(self) -> Tensor | None:
        """[vocabulary, width], for a loss that never holds all logits; None for a classifier."""
        if self.task == "classification":
            return None
        return self.lm_head.weight if hasattr(self, "lm_head") else self.model.embed_tokens.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [n, width] -> [n, vocabulary]; of a classifier, [documents, width] -> [documents, labels]"""
        if self.task == "classification":
            return cast(Tensor, self.score(hidden))
        if hasattr(self, "lm_head"):
            return cast(Tensor, self.lm_head(hidden))
        return F.linear(hidden, self.model.embed_tokens.weight)
