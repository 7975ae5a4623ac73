"""The BERT family in one file: BERT, MiniLM, RoBERTa, XLM-R and CamemBERT, from and to Hugging Face checkpoints by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.core.errors import UserError
from danlu.models.attention import Layout, attend
from danlu.models.blocks import LayerNorm, check_lengths, count_labels, initialise, wide
from danlu.models.dropout import Dropout, chance
from danlu.models.linear import project


_BERT = {
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "classifier_dropout": None,
    "tie_word_embeddings": True,
}
_ROBERTA = _BERT | {"pad_token_id": 1}
FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", _BERT),
    "roberta": ("roberta", _ROBERTA),
    "xlm-roberta": ("roberta", _ROBERTA),
    "camembert": ("roberta", _ROBERTA),
}
"""`model_type` -> the prefix of its parameters, and what a `config.json` that leaves a key out means by it."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def describe(depth: int, vocabulary: int, context: int) -> dict[str, Any]:
    """The config.json of a BERT of `depth` layers from random weights: 64 wide a layer, heads of 64, MLP of four times the width."""
    return {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": 64 * depth,
        "num_hidden_layers": depth,
        "num_attention_heads": depth,
        "intermediate_size": 256 * depth,
        "max_position_embeddings": context,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "layer_norm_eps": 1e-12,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
    }


def supports(config: Mapping[str, Any]) -> bool:
    """Whether `Encoder` computes what transformers would for this `config.json`."""
    return (
        config.get("model_type") in FAMILY
        and config.get("hidden_act", "gelu") in ACTIVATIONS
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder", False)
        and not config.get("add_cross_attention", False)
        and config.get("quantization_config") is None
    )


def rename(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Checkpoint name -> the model's name, for what other checkpoints call differently.

    A bare BertModel (all-MiniLM) has no prefix; checkpoints older than 2019 call a norm's parameters gamma and beta.
    """
    prefix = FAMILY[config["model_type"]][0]
    found = {}
    for name in names:
        new = f"{prefix}.{name}" if name.split(".")[0] in ("embeddings", "encoder", "pooler") else name
        new = new.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        found[name] = new
    return found


class Embeddings(nn.Module):
    """Words, positions and the one token type of single texts, summed and normalised."""

    def __init__(self, full: Mapping[str, Any], dropout: float) -> None:
        super().__init__()
        width, pad = full["hidden_size"], full["pad_token_id"]
        self.word_embeddings = nn.Embedding(full["vocab_size"], width)
        self.position_embeddings = nn.Embedding(full["max_position_embeddings"], width)
        self.token_type_embeddings = nn.Embedding(full["type_vocab_size"], width)
        self.LayerNorm = LayerNorm(width, full["layer_norm_eps"])
        self.dropout = Dropout(dropout)
        self.first = 0 if full["model_type"] == "bert" else pad + 1  # RoBERTa counts from behind its padding id

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids and positions [tokens] -> [tokens, width]"""
        places = self.position_embeddings(positions + self.first)
        x = wide(self.word_embeddings(ids)) + wide(self.token_type_embeddings.weight[0]) + places
        return cast(Tensor, self.dropout(self.LayerNorm(x)))


class SelfAttention(nn.Module):
    """Every token of a document sees every other."""

    def __init__(self, full: Mapping[str, Any], dropout: float) -> None:
        super().__init__()
        width = full["hidden_size"]
        self.heads, self.probability = full["num_attention_heads"], dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """[tokens, width] -> [tokens, width]"""
        q, k, v = (part.unflatten(1, (self.heads, -1)) for part in project(x, self.query, self.key, self.value))
        return attend(q, k, v, layout, self.probability if self.training else 0.0).flatten(1)


class Sum(nn.Module):
    """What BERT calls an output: a projection, dropout, the residual sum, and the norm after it."""

    def __init__(self, full: Mapping[str, Any], inner: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, full["hidden_size"])
        self.LayerNorm = LayerNorm(full["hidden_size"], full["layer_norm_eps"])
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """x [tokens, inner], before [tokens, width] -> [tokens, width]"""
        return cast(Tensor, self.LayerNorm(self.dropout(project(x, self.dense)[0]) + before))


class Attention(nn.Module):
    """Self-attention and the sum after it."""

    def __init__(self, full: Mapping[str, Any], dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.self = SelfAttention(full, attention_dropout)
        self.output = Sum(full, full["hidden_size"], dropout)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """[tokens, width] -> [tokens, width]"""
        return cast(Tensor, self.output(self.self(x, layout), x))


class Intermediate(nn.Module):
    """The widening half of the MLP; `Sum` is the other."""

    def __init__(self, full: Mapping[str, Any]) -> None:
        super().__init__()
        self.dense = nn.Linear(full["hidden_size"], full["intermediate_size"])
        self.activation = ACTIVATIONS[full["hidden_act"]]

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, width] -> [tokens, inner]"""
        return self.activation(project(x, self.dense)[0])


class Layer(nn.Module):
    """Attention and MLP, each normalised after its sum (post-norm)."""

    def __init__(self, full: Mapping[str, Any], dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.attention = Attention(full, dropout, attention_dropout)
        self.intermediate = Intermediate(full)
        self.output = Sum(full, full["intermediate_size"], dropout)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """[tokens, width] -> [tokens, width]"""
        x = self.attention(x, layout)
        return cast(Tensor, self.output(self.intermediate(x), x))


class Stack(nn.Module):
    """The layers, under the name `encoder`."""

    def __init__(self, full: Mapping[str, Any], dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(full, dropout, attention_dropout) for _ in range(full["num_hidden_layers"]))


class Pooler(nn.Module):
    """BERT's: tanh of a projection of the first token."""

    def __init__(self, full: Mapping[str, Any]) -> None:
        super().__init__()
        self.dense = nn.Linear(full["hidden_size"], full["hidden_size"])

    def forward(self, x: Tensor) -> Tensor:
        """[documents, width] -> [documents, width]"""
        return torch.tanh(self.dense(x))


class Trunk(nn.Module):
    """Everything below the head, under Hugging Face's names."""

    def __init__(self, full: Mapping[str, Any], pooler: bool, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.embeddings = Embeddings(full, dropout)
        self.encoder = Stack(full, dropout, attention_dropout)
        if pooler:
            self.pooler = Pooler(full)

    def forward(self, ids: Tensor, layout: Layout) -> Tensor:
        """[tokens] -> [tokens, width]"""
        x = self.embeddings(ids, layout.positions)
        for layer in self.encoder.layer:
            x = layer(x, layout)
        return cast(Tensor, x)


class BertHead(nn.Module):
    """`cls`: BERT's head of a masked language model."""

    def __init__(self, full: Mapping[str, Any]) -> None:
        super().__init__()
        width = full["hidden_size"]
        self.predictions = nn.Module()
        self.predictions.transform = nn.Module()
        self.predictions.transform.dense = nn.Linear(width, width)
        self.predictions.transform.LayerNorm = LayerNorm(width, full["layer_norm_eps"])
        self.activation = ACTIVATIONS[full["hidden_act"]]
        _vocabulary(self.predictions, full)

    def forward(self, x: Tensor, tied: Tensor) -> Tensor:
        """x [n, width], tied: the word embeddings -> [n, vocabulary]"""
        predictions = cast(Any, self.predictions)
        x = predictions.transform.LayerNorm(self.activation(predictions.transform.dense(x)))
        return _scores(predictions, x, tied)


class RobertaHead(nn.Module):
    """`lm_head`: RoBERTa's head of a masked language model."""

    def __init__(self, full: Mapping[str, Any]) -> None:
        super().__init__()
        self.dense = nn.Linear(full["hidden_size"], full["hidden_size"])
        self.layer_norm = LayerNorm(full["hidden_size"], full["layer_norm_eps"])
        _vocabulary(self, full)

    def forward(self, x: Tensor, tied: Tensor) -> Tensor:
        """x [n, width], tied: the word embeddings -> [n, vocabulary]"""
        return _scores(self, self.layer_norm(F.gelu(self.dense(x))), tied)


def _vocabulary(head: nn.Module, full: Mapping[str, Any]) -> None:
    head.bias = nn.Parameter(torch.zeros(full["vocab_size"]))
    if not full["tie_word_embeddings"]:
        head.decoder = nn.Linear(full["hidden_size"], full["vocab_size"])


def _scores(head: Any, x: Tensor, tied: Tensor) -> Tensor:
    return cast(Tensor, head.decoder(x)) if hasattr(head, "decoder") else F.linear(x, tied, head.bias)


class RobertaClassifier(nn.Module):
    """`classifier`: RoBERTa's head over the first token."""

    def __init__(self, full: Mapping[str, Any], labels: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(full["hidden_size"], full["hidden_size"])
        self.dropout = Dropout(dropout)
        self.out_proj = nn.Linear(full["hidden_size"], labels)

    def forward(self, x: Tensor) -> Tensor:
        """[documents, width] -> [documents, labels]"""
        return cast(Tensor, self.out_proj(self.dropout(torch.tanh(self.dense(self.dropout(x))))))


class Encoder(nn.Module):
    """A classifier on each document's first token, or a masked language model; named as *ForSequenceClassification, *ForMaskedLM.

    config: the plain dict of a Hugging Face `config.json`. Dropout is the config's and acts in train mode only. Freshly built
    weights are drawn as Hugging Face draws them; under `torch.device("meta")` there are none, for `load_state_dict` to fill. Documents are
    single texts: the token type is 0 throughout.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        task: str = "classification",
        labels: Sequence[str] | None = None,
        dropout: float | None = None,
    ) -> None:
        """labels: of a classifier; None takes their number from the config. dropout: None takes the config's."""
        super().__init__()
        if not supports(config):
            raise UserError(
                f"config.json: model_type {config.get('model_type')!r} with these settings is not one this encoder computes",
                f"it takes {', '.join(FAMILY)}; every other architecture goes through danlu.models.foreign",
            )
        self.prefix, defaults = FAMILY[config["model_type"]]
        full = defaults | dict(config)
        self.config = dict(config)
        self.task = task

        def rate(key: str) -> float:
            return chance(full, key) if dropout is None else dropout

        hidden, inside = rate("hidden_dropout_prob"), rate("attention_probs_dropout_prob")
        last = hidden if full["classifier_dropout"] is None else rate("classifier_dropout")
        bert = self.prefix == "bert"
        trunk = Trunk(full, bert and task == "classification", hidden, inside)
        self.context: int = full["max_position_embeddings"] - trunk.embeddings.first
        self.add_module(self.prefix, trunk)
        if task == "classification":
            count = count_labels(config, labels)
            self.dropout = Dropout(last if bert else 0.0)
            self.classifier = nn.Linear(full["hidden_size"], count) if bert else RobertaClassifier(full, count, last)
        elif bert:
            self.cls = BertHead(full)
        else:
            self.lm_head = RobertaHead(full)
        initialise(self, full["initializer_range"])

    @property
    def trunk(self) -> Trunk:
        return cast(Trunk, getattr(self, self.prefix))

    def forward(self, ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """ids [tokens], documents one behind the other -> hidden [tokens, width].

        A classifier returns one row a document, [documents, width]: that of its first token.
        """
        check_lengths(ids, lengths, self.context)
        layout = Layout(lengths, causal=False, device=ids.device)
        hidden = self.trunk(ids, layout)
        return cast(Tensor, hidden[layout.first] if self.task == "classification" else hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Masked language: hidden [n, width] -> [n, vocabulary]. Classifier: [documents, width] -> [documents, labels]."""
        if self.task == "classification":
            pooled = self.trunk.pooler(hidden) if self.prefix == "bert" else hidden
            return cast(Tensor, self.classifier(self.dropout(pooled)))
        head = self.cls if self.prefix == "bert" else self.lm_head
        return cast(Tensor, head(hidden, self.trunk.embeddings.word_embeddings.weight))
