"""The decoder computes what transformers computes, and its documents never see each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from danlu.core.errors import UserError
from danlu.models.decoder import Decoder, supports


SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.15,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied, biases, own head width": (
        "Llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 16},
    ),
    "llama 3.1 rope": ("Llama", {"rope_parameters": LLAMA3}),
    "linear rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5}}),
    "mistral, window of 16": ("Mistral", {"sliding_window": 16}),
    "mistral, no window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, window in the last layer": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
}


def peer(kind: str, head: str = "ForCausalLM", **more: Any) -> Any:
    import transformers

    family, changes = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(SIZES | changes | more))
    model = getattr(transformers, f"{family}{head}")._from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():  # biases and norms too, so that none can be left out unseen
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1.0, 0.2)
    return model


def ours(model: Any, task: str = "language", **options: Any) -> Decoder:
    built = Decoder(model.config.to_diff_dict(), task, **options).eval()
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    built.load_state_dict(state, strict=True)
    return built


def documents(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 97, (length,), generator=rng) for length in lengths]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_transformers(kind: str) -> None:
    theirs = peer(kind)
    mine, texts = ours(theirs), documents(5, 70, 33, 1, 32, 64)
    with torch.no_grad():
        got = mine.logits(mine(torch.cat(texts), tuple(map(len, texts)))).split([len(text) for text in texts])
        for text, logits in zip(texts, got, strict=True):
            torch.testing.assert_close(logits, theirs(text[None]).logits[0], rtol=1e-4, atol=2e-5)


def test_names_and_shapes_are_those_of_transformers_when_built_on_meta() -> None:
    theirs = peer("qwen3")
    with torch.device("meta"):
        mine = Decoder(theirs.config.to_diff_dict())
    assert {name: p.shape for name, p in mine.state_dict().items()} == {
        name: p.shape for name, p in theirs.state_dict().items()
    }
    mine.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    text = documents(9)[0]
    torch.testing.assert_close(mine.logits(mine(text, (9,))), theirs(text[None]).logits[0], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral, window of 16"])
def test_gradients_equal_transformers(kind: str) -> None:
    theirs, texts = peer(kind).double(), documents(40, 7, 21)
    mine = ours(theirs).double()
    mine.load_state_dict(theirs.state_dict())
    logits = mine.logits(mine(torch.cat(texts), (40, 7, 21)))
    nn.functional.cross_entropy(logits, torch.cat(texts).roll(1), reduction="sum").backward()
    targets = torch.cat(texts).roll(1).split([40, 7, 21])
    for text, target in zip(texts, targets, strict=True):
        nn.functional.cross_entropy(theirs(text[None]).logits[0], target, reduction="sum").backward()
    grads = dict(mine.named_parameters())
    for name, parameter in theirs.named_parameters():
        found, wanted = grads[name].grad, parameter.grad
        assert float((found - wanted).norm()) <= 1e-5 * float(wanted.norm()), name  # theirs has norms in float32


def test_classifier_equals_transformers_and_does_not_read_padding() -> None:
    theirs = peer("llama", "ForSequenceClassification", num_labels=3)
    mine, texts = ours(theirs, "classification", labels=["a", "b", "c"]), documents(5, 20, 11)
    texts[1][-2:] = 0  # padding at the end of a text
    with torch.no_grad():
        got = mine.logits(mine(torch.cat(texts), (5, 20, 11)))
        want = torch.cat([theirs(text[None]).logits for text in texts])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("lengths", [(40, 7, 21, 40), (30, 30, 30), (1600, 50)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_document_changes_no_bit_of_another(lengths: tuple[int, ...], precision: str) -> None:
    mine = ours(peer("llama, tied, biases, own head width"))
    seen: list[torch.Tensor] = []

    def watch(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    mine.model.embed_tokens.register_forward_hook(watch)
    results = []
    for changed in (0, 1):
        texts = documents(*lengths)
        texts[1] = documents(*lengths, seed=changed)[1]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = mine.logits(mine(torch.cat(texts), lengths)).float()
        logits.square().sum().backward()
        results.append((logits.detach().split(list(lengths)), seen[-1].grad.split(list(lengths))))  # type: ignore[union-attr]
    for before, after in zip(*results, strict=True):
        for document in range(len(lengths)):
            assert torch.equal(before[document], after[document]) == (document != 1)


def test_documents_longer_than_a_whole_score_matrix_agree_with_transformers() -> None:
    for kind in ("llama", "mistral, window of 16"):
        theirs, texts = peer(kind), documents(1537, 30)
        mine = ours(theirs)
        with torch.no_grad():
            got = mine.logits(mine(torch.cat(texts), (1537, 30)))
            torch.testing.assert_close(got[:1537], theirs(texts[0][None]).logits[0], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(got[1537:], theirs(texts[1][None]).logits[0], rtol=1e-4, atol=2e-5)


def test_bfloat16_autocast_stays_near_float32() -> None:
    mine = ours(peer("qwen3", initializer_range=0.05))
    texts = documents(60, 20)
    exact = mine.logits(mine(torch.cat(texts), (60, 20)))
    with torch.autocast("cpu", torch.bfloat16):
        rough = mine.logits(mine(torch.cat(texts), (60, 20)))
    assert rough.dtype == torch.bfloat16
    assert float((rough.float() - exact).detach().norm()) < 0.03 * float(exact.detach().norm())


def test_attention_dropout_acts_in_training_only() -> None:
    mine = ours(peer("llama"), dropout=0.5)
    ids = documents(12)[0]
    assert torch.equal(mine(ids, (12,)), mine(ids, (12,)))
    mine.train()
    assert not torch.equal(mine(ids, (12,)), mine(ids, (12,)))


def test_what_it_cannot_compute_it_refuses() -> None:
    assert supports(SIZES | {"model_type": "llama"})
    for changes in (
        {"model_type": "gemma2"},
        {"hidden_act": "gelu"},
        {"rope_scaling": {"type": "yarn", "factor": 2.0}},
    ):
        config = SIZES | {"model_type": "llama"} | changes
        assert not supports(config)
        with pytest.raises(UserError, match="model_type"):
            Decoder(config)


def test_a_document_beyond_the_context_is_refused() -> None:
    mine = Decoder(SIZES | {"model_type": "llama", "max_position_embeddings": 16})
    with pytest.raises(UserError, match=r"17 tokens.*context of 16"):
        mine(documents(17)[0], (17,))
