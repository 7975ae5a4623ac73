"""Architectures that are not ours keep to the same contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from danlu.models.foreign import Foreign
from danlu.models.generate import Sampling, generate


def documents(*lengths: int) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(2, 97, (length,), generator=rng) for length in lengths]


def gpt2(**more: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 97, "initializer_range": 0.3}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1, **more))


def test_language_model() -> None:
    theirs = gpt2()
    model, texts = Foreign(theirs).eval(), documents(5, 20, 11)
    assert not theirs.training and (model.layers_count, model.context) == (2, 64)
    logits = model.logits(model(torch.cat(texts), (5, 20, 11))).split([5, 20, 11])
    for text, found in zip(texts, logits, strict=True):
        torch.testing.assert_close(found, theirs(text[None]).logits[0], rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == theirs.state_dict().keys()
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in theirs.named_parameters()]


def test_a_replaced_part_is_replaced_in_what_runs() -> None:
    model = Foreign(gpt2()).eval()
    model.lm_head = torch.nn.Linear(32, 7)
    assert model(torch.tensor([3, 4]), (2,)).shape == (2, 7)


@pytest.mark.parametrize("pad", [None, 0])
def test_classifier(pad: int | None) -> None:
    import transformers

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 8,
    }
    config = transformers.GemmaConfig(**sizes, num_key_value_heads=2, vocab_size=97, num_labels=3, pad_token_id=pad)
    theirs = transformers.GemmaForSequenceClassification(config).eval()
    model, texts = Foreign(theirs, "classification"), documents(5, 20, 11)
    found = model.logits(model(torch.cat(texts), (5, 20, 11)))
    torch.testing.assert_close(found, torch.cat([theirs(text[None]).logits for text in texts]), rtol=1e-4, atol=1e-5)


def test_generation_equals_transformers() -> None:
    theirs, prompts = gpt2().eval(), documents(5, 20, 11)
    found = generate(Foreign(theirs), [p.tolist() for p in prompts], Sampling(max_new_tokens=8), frozenset())
    for prompt, result in zip(prompts, found, strict=True):
        want = theirs.generate(prompt[None], max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0)
        assert result.tokens == want[0, len(prompt) :].tolist()
