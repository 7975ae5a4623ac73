"""The encoder computes what transformers computes, and its documents never see each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from danlu.core.errors import UserError
from danlu.models.encoder import Encoder, rename, supports


SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 80,
    "initializer_range": 0.2,
    "num_labels": 3,
}
FAMILIES = {"Bert": {}, "Roberta": {"pad_token_id": 1}, "XLMRoberta": {"pad_token_id": 1, "type_vocab_size": 1}}


def peer(family: str, head: str, **more: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(SIZES | FAMILIES[family] | more))
    model = getattr(transformers, f"{family}{head}")(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.5, 0.2)
    return model


def ours(model: Any, task: str = "classification", **options: Any) -> Encoder:
    built = Encoder(model.config.to_diff_dict(), task, **options).eval()
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state = {name: value for name, value in state.items() if ".decoder." not in name}
    built.load_state_dict(state, strict=True)
    return built


def documents(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 97, (length,), generator=rng) for length in lengths]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_classifier_equals_transformers(family: str, activation: str) -> None:
    theirs = peer(family, "ForSequenceClassification", hidden_act=activation)
    mine, texts = ours(theirs), documents(5, 70, 33, 1, 32)
    with torch.no_grad():
        got = mine.logits(mine(torch.cat(texts), tuple(map(len, texts))))
        want = torch.cat([theirs(text[None]).logits for text in texts])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_masked_language_model_equals_transformers(family: str, tied: bool) -> None:
    theirs = peer(family, "ForMaskedLM", tie_word_embeddings=tied)
    mine, texts = ours(theirs, "language"), documents(5, 70, 33)
    with torch.no_grad():
        got = mine.logits(mine(torch.cat(texts), (5, 70, 33))).split([5, 70, 33])
        for text, logits in zip(texts, got, strict=True):
            torch.testing.assert_close(logits, theirs(text[None]).logits[0], rtol=1e-5, atol=2e-5)


def test_gradients_equal_transformers() -> None:
    theirs, texts, labels = peer("Bert", "ForSequenceClassification"), documents(40, 7, 21), torch.tensor([0, 2, 1])
    theirs, mine = theirs.double(), ours(theirs).double()
    nn.functional.cross_entropy(mine.logits(mine(torch.cat(texts), (40, 7, 21))), labels).backward()
    nn.functional.cross_entropy(torch.cat([theirs(text[None]).logits for text in texts]), labels).backward()
    grads = dict(mine.named_parameters())
    for name, parameter in theirs.named_parameters():
        found, wanted = grads[name].grad, parameter.grad
        assert float((found - wanted).norm()) <= 1e-10 * float(wanted.norm()) + 1e-12, name


def test_a_bare_bert_model_is_renamed() -> None:
    theirs = peer("Bert", "Model")
    config = theirs.config.to_diff_dict()
    names = rename(config, theirs.state_dict())
    mine = Encoder(config, labels=["a", "b"])
    rest = mine.load_state_dict({names[name]: value for name, value in theirs.state_dict().items()}, strict=False)
    assert rest.unexpected_keys == []
    assert rest.missing_keys == ["classifier.weight", "classifier.bias"]
    old = rename(config, ["bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.beta"])
    assert list(old.values()) == ["bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.bias"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_document_changes_no_bit_of_another(precision: str) -> None:
    mine, lengths = ours(peer("Bert", "ForSequenceClassification")), (40, 7, 21, 40)
    seen: list[torch.Tensor] = []

    def watch(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    mine.bert.embeddings.word_embeddings.register_forward_hook(watch)  # type: ignore[union-attr, operator]
    results = []
    for changed in (0, 1):
        texts = documents(*lengths)
        texts[1] = documents(*lengths, seed=changed)[1]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = mine.logits(mine(torch.cat(texts), lengths)).float()
        logits.square().sum().backward()
        results.append((logits.detach().split(1), seen[-1].grad.split(list(lengths))))  # type: ignore[union-attr]
    for before, after in zip(*results, strict=True):
        for document in range(len(lengths)):
            assert torch.equal(before[document], after[document]) == (document != 1)


def test_dropout_is_the_configs_and_acts_in_training_only() -> None:
    mine, ids = ours(peer("Roberta", "ForSequenceClassification")), documents(12)[0]
    assert torch.equal(mine(ids, (12,)), mine(ids, (12,)))
    mine.train()
    assert not torch.equal(mine(ids, (12,)), mine(ids, (12,)))
    assert {m.p for m in mine.modules() if isinstance(m, nn.Dropout)} == {0.0, 0.1}
    still = ours(peer("Roberta", "ForSequenceClassification"), dropout=0.0).train()
    assert torch.equal(still(ids, (12,)), still(ids, (12,)))


def test_what_it_cannot_compute_it_refuses() -> None:
    assert supports({"model_type": "bert"})
    assert not supports({"model_type": "bert", "position_embedding_type": "relative_key"})
    with pytest.raises(UserError, match="deberta"):
        Encoder({"model_type": "deberta"})
    with pytest.raises(UserError, match=r"79 tokens.*context of 78"):  # RoBERTa keeps two positions for itself
        ours(peer("Roberta", "ForSequenceClassification"))(documents(79)[0], (79,))
