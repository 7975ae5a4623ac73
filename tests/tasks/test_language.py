"""The loss of a language model is PyTorch's cross-entropy, whatever way it is computed, and its gradient too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.core.types import Documents, Learner
from danlu.models import cross_entropy
from danlu.models.cross_entropy import CHUNK, token_losses
from danlu.models.decoder import Decoder
from danlu.tasks.language import Language
from danlu.training.fit import State, fit


CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "tie_word_embeddings": True,
}


class WithMatrix(Decoder):
    """One that shows its output matrix, so that the loss need not hold all its logits."""

    @property
    def unembedding(self) -> Tensor:
        return self.model.embed_tokens.weight


def decoder(kind: type[Decoder] = Decoder) -> Decoder:
    torch.manual_seed(0)
    return kind(CONFIG).double()


def some_documents() -> Documents:
    lengths, rng = (5, 1, 9, 4), torch.Generator().manual_seed(1)
    ids = torch.randint(0, 61, (sum(lengths),), generator=rng)
    targets = ids.roll(-1)
    targets[[0, 3, 4, 5, 8, 14, 15, 16, 17, 18]] = -100  # the second and the fourth document teach nothing
    return Documents(ids, lengths, targets, (3, 1, 4, 9))


def by_torch(model: Decoder, batch: Documents, smoothing: float) -> list[Tensor]:
    """Each document alone."""
    result = []
    for ids, targets in zip(batch.ids.split(batch.lengths), batch.targets.split(batch.lengths), strict=True):
        logits = model.logits(model(ids, (len(ids),)))
        result.append(F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing))
    return result


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", [Decoder, WithMatrix])
def test_each_documents_loss_is_the_cross_entropy_of_its_learned_tokens(kind: type[Decoder], smoothing: float) -> None:
    model, batch = decoder(kind), some_documents()
    task = Language(model, label_smoothing=smoothing)
    found = task.losses(batch, "model")["tokens"]
    expected = torch.stack(by_torch(model, batch, smoothing))
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert found[1] == found[3] == 0 and found[0] > 0
    assert task.counts(batch, "model") == {"tokens": float((batch.targets != -100).sum())} == {"tokens": 9.0}
    ours = torch.autograd.grad(found.sum(), list(model.parameters()))
    theirs = torch.autograd.grad(expected.sum(), list(model.parameters()))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-11) for a, b in zip(ours, theirs, strict=True))


def test_validation_measures_without_smoothing() -> None:
    model, batch = decoder(), some_documents()
    sums, counts = Language(model, label_smoothing=0.3).measures(batch)["loss"]
    assert torch.allclose(sums, torch.stack(by_torch(model, batch, 0.0)))
    assert counts.tolist() == [2, 0, 7, 0] and sums.device.type == "cpu"


def test_documents_that_teach_nothing_move_nothing() -> None:
    model = decoder()
    batch = Documents(torch.tensor([1, 2, 3]), (3,), torch.full((3,), -100), (0,))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    task = Language(model, Learner(dict(model.named_parameters()), optimizer))
    fit(State(task, lambda _: iter([([batch], {})])), 1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("few", [1, 2, 3])
def test_a_few_learned_tokens_have_as_exact_a_gradient_as_many(few: int) -> None:
    """Skinny products over a vocabulary are summed poorly by float32 kernels."""
    config = CONFIG | {"vocab_size": 49152, "num_hidden_layers": 1, "hidden_size": 64, "initializer_range": 0.1}
    torch.manual_seed(0)
    model, exact = Decoder(config), Decoder(config).double()
    exact.load_state_dict(model.state_dict())
    ids = torch.arange(few + 1) * 5000
    batch = Documents(ids, (few + 1,), torch.cat([ids[1:], torch.tensor([-100])]), (0,))

    def gradient(of: Decoder) -> Tensor:
        return torch.autograd.grad(Language(of).row_losses(batch).sum(), of.model.norm.weight)[0].double()

    wanted = gradient(exact)
    assert float((gradient(model) - wanted).norm() / wanted.norm()) < 3e-6


# ---------------------------------------------------------------------------------------------------- without all the logits


def drawn(rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(rows)
    hidden = torch.randn((rows, 8), generator=rng, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn((37, 8), generator=rng, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, 37, (rows,), generator=rng)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("rows", [0, 1, 7, CHUNK, 2 * CHUNK + 3])
@pytest.mark.parametrize("trained", ["both", "hidden", "matrix", "both, too many to keep"])
def test_token_losses_and_their_gradients_are_autograds(
    rows: int, smoothing: float, trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "KEPT", 0 if "keep" in trained else cross_entropy.KEPT)
    hidden, weight, targets = drawn(rows)
    hidden.requires_grad_(trained != "matrix")
    weight.requires_grad_(trained != "hidden")
    inputs = [each for each in (hidden, weight) if each.requires_grad]
    found = token_losses(hidden, weight, targets, smoothing)
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="none", label_smoothing=smoothing)
    assert torch.allclose(found, expected, rtol=1e-13, atol=1e-13)
    scale = torch.linspace(-1, 2, rows, dtype=torch.float64)  # each row's loss counts differently
    ours = torch.autograd.grad(found @ scale, inputs, retain_graph=True)
    theirs = torch.autograd.grad(expected @ scale, inputs)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-11) for a, b in zip(ours, theirs, strict=True))
    again = torch.autograd.grad(found @ scale, inputs)  # nothing was used up: private learning goes through it often
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


@pytest.mark.parametrize("frozen", [True, False])
def test_token_losses_pass_gradcheck(frozen: bool) -> None:
    hidden, weight, targets = drawn(5)
    weight.requires_grad_(not frozen)
    assert torch.autograd.gradcheck(lambda h, w: token_losses(h, w, targets, 0.1), (hidden, weight))


def test_under_autocast_products_are_bfloat16_and_sums_float32() -> None:
    hidden, weight, targets = drawn(300, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = token_losses(hidden, weight, targets)
    assert found.dtype == torch.float32
    exact = token_losses(hidden, weight, targets)
    assert 0 < float((found - exact).detach().abs().mean()) < 0.02
    (slope,) = torch.autograd.grad(found.sum(), hidden)
    (wanted,) = torch.autograd.grad(exact.sum(), hidden)
    assert slope.dtype == torch.float32 and float((slope - wanted).norm() / wanted.norm()) < 0.02


def test_nothing_is_kept_when_nothing_learns() -> None:
    hidden, weight, targets = drawn(5)
    with torch.no_grad():
        assert not token_losses(hidden, weight, targets).requires_grad
