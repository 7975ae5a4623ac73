"""Generation gives what transformers gives, with and without a cache, and stops where it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.core.errors import UserError
from danlu.models.decoder import Decoder
from danlu.models.generate import Sampling, choose, generate


KINDS = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
}
PROMPTS = [[5, 6, 7], [8] * 20, [9, 10, 11, 12, 13, 14, 15], [3]]
NEVER: frozenset[int] = frozenset()


class Uncached(torch.nn.Module):
    """A decoder without its cache, which generation then computes anew for each token."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.inner, self.context, self.logits = model, model.context, model.logits

    def forward(self, ids: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
        return self.inner(ids, lengths)  # type: ignore[no-any-return]


def tiny(kind: str = "llama", **more: Any) -> Decoder:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
    }
    config = sizes | {
        "model_type": kind,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    return Decoder(config | KINDS[kind] | more)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_transformers(kind: str) -> None:
    import transformers

    mine = tiny(kind)
    config = transformers.AutoConfig.for_model(**mine.config, bos_token_id=None, eos_token_id=None)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.load_state_dict(mine.state_dict(), strict=not config.tie_word_embeddings)
    theirs.tie_weights()
    found = generate(mine, PROMPTS, Sampling(max_new_tokens=12), NEVER)
    for prompt, result in zip(PROMPTS, found, strict=True):
        want = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert (result.tokens, result.finish) == (want[0, len(prompt) :].tolist(), "length")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampling", [Sampling(20), Sampling(150, 0.8, 0.95, 30, 3, 1.2)])
def test_cached_equals_recomputed(kind: str, sampling: Sampling) -> None:
    model = tiny(kind, max_position_embeddings=256)
    ends = frozenset({17, 44})  # rows end at different times
    cached = generate(model, PROMPTS, sampling, ends)
    assert cached == generate(Uncached(model), PROMPTS, sampling, ends)
    assert all((result.tokens[-1] in ends) == (result.finish == "stop") for result in cached)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    model, sampling = tiny(), Sampling(max_new_tokens=10, temperature=1.0, seed=5)
    together = generate(model, PROMPTS, sampling, NEVER)
    assert generate(model, PROMPTS[:1], sampling, NEVER) == together[:1]
    assert generate(model, PROMPTS, sampling, NEVER) == together
    other = Sampling(max_new_tokens=10, temperature=1.0, seed=6)
    assert generate(model, PROMPTS, other, NEVER) != together
    same = generate(model, PROMPTS[:1] * 2, sampling, NEVER)
    assert same[0] != same[1]  # the same prompt twice is not the same luck twice


def test_stops_at_an_end_a_limit_and_the_context() -> None:
    model, streamed = tiny().train(), []
    first = generate(
        model, PROMPTS[:1], Sampling(max_new_tokens=10), NEVER, lambda row, token: streamed.append((row, token))
    )[0]
    assert streamed == [(0, token) for token in first.tokens]
    end = first.tokens[3]
    stopped = generate(model, PROMPTS[:1], Sampling(max_new_tokens=10), frozenset({end}))[0]
    assert stopped.tokens == first.tokens[: first.tokens.index(end) + 1] and stopped.finish == "stop"
    full = generate(model, [[7] * 60], Sampling(max_new_tokens=10), NEVER)[0]
    assert len(full.tokens) == 4 and full.finish == "length"
    assert model.training


def test_bad_input_is_an_error_with_its_fix() -> None:
    model = tiny()
    with pytest.raises(UserError, match="prompt 2 is empty"):
        generate(model, [[1], []], Sampling(), NEVER)
    with pytest.raises(UserError, match=r"64 tokens.*context of 64"):
        generate(model, [[1] * 64], Sampling(), NEVER)
    with pytest.raises(UserError, match=r"top_p: found 1.5"):
        Sampling(top_p=1.5)
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(UserError, match="not a number"):
        generate(model, [[1]], Sampling(), NEVER)
    assert generate(tiny(), [], Sampling(), NEVER) == []


def test_choices_follow_transformers() -> None:
    import transformers

    logits, seen = torch.randn(50, generator=torch.Generator().manual_seed(1)) * 2, [3, 4, 4, 9]
    steps = transformers.LogitsProcessorList(
        [
            transformers.RepetitionPenaltyLogitsProcessor(1.3),
            transformers.TemperatureLogitsWarper(0.7),
            transformers.TopKLogitsWarper(20),
            transformers.TopPLogitsWarper(0.8),
        ]
    )
    chances = steps(torch.tensor([seen]), logits[None].clone())[0].softmax(-1)
    rng, sampling, counts = torch.Generator().manual_seed(0), Sampling(1, 0.7, 0.8, 20, 0, 1.3), torch.zeros(50)
    for _ in range(3000):
        counts[choose(logits, seen, sampling, rng)] += 1
    assert set(counts.nonzero().flatten().tolist()) <= set(chances.nonzero().flatten().tolist())
    assert float((counts / 3000 - chances).abs().sum()) < 0.12


def test_real_weights_continue_as_in_transformers(smollm2: Path) -> None:
    import transformers

    from danlu.models.pretrained import load

    model = load(smollm2, task="language")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    prompts = [[504, 3575, 282, 4649, 314], [1, 4093, 198, 1348, 314, 260, 3575, 282, 6411, 47]]
    found = generate(model, prompts, Sampling(max_new_tokens=12), frozenset({2}))
    for prompt, result in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        want = theirs.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=2, pad_token_id=2)
        assert result.tokens == want[0, len(prompt) :].tolist()
