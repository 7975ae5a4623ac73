"""Every equation of docs/formulas.md once more, in plain loops, beside the function danlu computes it with.

Where the usual mistake can be computed it is, so that the numbers chosen here would show it: `same` holds what is right, `unlike` what is not.
In the order of the page.
"""

from __future__ import annotations

import importlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from danlu.core.types import Documents, Examples, Learner, Privacy
from danlu.data.loader import IGNORED
from danlu.data.processor import Processor
from danlu.evaluation import metrics
from danlu.evaluation import text as written
from danlu.evaluation.compare import mcnemar, permutation
from danlu.models.attention import LONG, Cache, Layout, attend
from danlu.models.blocks import LayerNorm, RMSNorm, Rotary, rotate
from danlu.models.cross_entropy import loss_and_slope, token_losses
from danlu.models.decoder import MLP, Decoder
from danlu.models.encoder import ACTIVATIONS, Encoder
from danlu.models.generate import Sampling, choose
from danlu.models.generative import Discriminator
from danlu.models.initialise import initialise as initialise_by_name
from danlu.models.options import ModelOptions
from danlu.models.vision import describe, from_config, initialise
from danlu.stages.build import class_weights
from danlu.surgery.adapter import add_lora, merge
from danlu.tasks.generative import Adversarial, Autoencoding
from danlu.tasks.language import Language
from danlu.tasks.supervised import Classification
from danlu.training.fit import PrivateSum, State, Update, fit
from danlu.training.optimizer import optimizer, orthogonalised, schedule
from danlu.training.options import TrainingOptions


ROOT = Path(__file__).parents[1]
PAGE, CHINESE = ROOT / "docs" / "formulas.md", ROOT / "docs" / "zh" / "formulas.md"
CPU = torch.device("cpu")
FLOAT32 = 1e-5  # how closely numbers agree that danlu computes in float32


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal float64 numbers, others for each seed."""
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def tensor(array: Any) -> Tensor:
    return torch.tensor(np.asarray(array))


def plain(found: Any) -> np.ndarray:
    return found.detach().double().numpy() if isinstance(found, Tensor) else np.asarray(found, dtype=np.float64)


def same(found: Any, wanted: Any, within: float = 1e-10) -> None:
    """Equal up to rounding."""
    np.testing.assert_allclose(plain(found), plain(wanted), rtol=within, atol=within)


def unlike(found: Any, wrong: Any) -> None:
    """So far apart that the mistake would be seen."""
    assert not np.allclose(plain(found), plain(wrong), rtol=1e-4, atol=1e-4)


def shaken(module: Any) -> Any:
    """The module in float64, every weight (norms and biases too) drawn anew, so that none is 0 or 1 by chance."""
    module = module.double().eval()
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = tensor(0.5 * numbers(*parameter.shape, seed=seed))
    return module


def softmax(z: Sequence[float]) -> list[float]:
    below = sum(math.exp(x) for x in z)
    return [math.exp(x) / below for x in z]


def cross_entropy(z: Sequence[float], y: int) -> float:
    return math.log(sum(math.exp(x) for x in z)) - z[y]


def norm_of(parts: Iterable[np.ndarray]) -> float:
    return math.sqrt(sum(float(x) ** 2 for part in parts for x in part.ravel()))


# --------------------------------------------------------------------------------------------------------------- losses


SCORES, BIAS, LABELS = 2 * numbers(5, 3), numbers(3), [0, 2, 1, 2, 2]
LOGITS = SCORES + BIAS
ROWS = list(zip(LOGITS, LABELS, strict=True))
NOBODY: Any = None  # learns: the task only measures


class Given(nn.Module):
    """A classifier whose logits are weights, a row of `scores` each, plus `bias`: its gradient is that of the formula."""

    def __init__(self, scores: np.ndarray = SCORES, bias: np.ndarray = BIAS) -> None:
        super().__init__()
        self.scores, self.bias = nn.Parameter(tensor(scores)), nn.Parameter(tensor(bias))

    def forward(self, ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
        return self.scores[ids]

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden + self.bias


def rows(chosen: Sequence[int]) -> Documents:
    """Documents of one token, which is the number of their row."""
    return Documents(
        torch.tensor(chosen), (1,) * len(chosen), torch.tensor([LABELS[row] for row in chosen]), tuple(chosen)
    )


def train(
    model: nn.Module,
    parts: Sequence[Sequence[int]] = ((0, 1, 2, 3, 4),),
    per_class: Sequence[float] | None = None,
    smoothing: float = 0.0,
    steps: int = 1,
    **options: Any,
) -> tuple[list[Update], list[np.ndarray]]:
    """Updates by `fit` with a learning rate of 1, each on the same micro-batches; and the scores after each."""
    learner = Learner(dict(model.named_parameters()), torch.optim.SGD(model.parameters(), lr=1.0), **options)
    task = Classification(model, learner, None if per_class is None else torch.tensor(per_class).double(), smoothing)
    updates: list[Update] = []
    after: list[np.ndarray] = []

    def hook(state: State, step: Any) -> None:
        updates.append(step.updates["model"])
        after.append(model.get_parameter("scores").detach().numpy().copy())

    fit(State(task, lambda _: itertools.repeat(([rows(part) for part in parts], {}))), steps, [hook])
    return updates, after


def slopes(z: Sequence[float], y: int) -> np.ndarray:
    """d cross-entropy / d z of one row."""
    return np.array([p - (c == y) for c, p in enumerate(softmax(z))])


def test_cross_entropy() -> None:
    hidden, matrix, wanted = numbers(7, 4), numbers(11, 4), [3, 0, 10, 3, 7, 1, 2]
    logits = hidden @ matrix.T
    losses = token_losses(tensor(hidden), tensor(matrix), torch.tensor(wanted))
    same(losses, [cross_entropy(z, y) for z, y in zip(logits, wanted, strict=True)])
    task = Classification(Given(), NOBODY)
    same(task.losses(rows(range(5)), "model")["rows"], [cross_entropy(z, y) for z, y in ROWS])

    unlike(losses, [cross_entropy(softmax(z), y) for z, y in zip(logits, wanted, strict=True)])  # softmax twice
    with pytest.raises(ValueError):  # label and prediction swapped
        -sum(p * math.log(label) for p, label in zip(softmax(LOGITS[0]), (1.0, 0.0, 0.0), strict=True))
    surely_wrong = token_losses(tensor([[1.0]]), tensor([[-1000.0], [0.0]]), torch.tensor([0]))
    same(surely_wrong, [1000.0])
    with pytest.raises(ValueError):  # softmax first, logarithm after it
        math.log(softmax([-1000.0, 0.0])[0])


def test_gradient_of_the_cross_entropy() -> None:
    hidden, matrix, wanted = numbers(6, 4), numbers(9, 4), [3, 0, 8, 3, 7, 1]
    logits = hidden @ matrix.T
    by_logit = np.array([slopes(z, y) for z, y in zip(logits, wanted, strict=True)])
    chances = np.array([softmax(z) for z in logits])
    losses, found = loss_and_slope(tensor(logits), torch.tensor(wanted), 0.0)
    same(losses, [-math.log(p[y]) for p, y in zip(chances, wanted, strict=True)])
    same(found, by_logit)
    unlike(found, -by_logit)
    unlike(found, by_logit * chances * (1 - chances))

    for frozen in (False, True):  # with the output matrix frozen the gradient is made on the way forward
        h, W = tensor(hidden).requires_grad_(), tensor(matrix).requires_grad_(not frozen)
        token_losses(h, W, torch.tensor(wanted)).sum().backward()
        same(h.grad, by_logit @ matrix)
        if not frozen:
            same(W.grad, by_logit.T @ hidden)


def test_label_smoothing() -> None:
    share, K = 0.2, 3

    def smoothed(z: Sequence[float], y: int, others: int, kept: bool) -> float:
        q = [(1 - share) * (c == y) + (share / others if c != y or kept else 0.0) for c in range(K)]
        return -sum(q[c] * math.log(p) for c, p in enumerate(softmax(z)))

    wanted = [smoothed(z, y, K, True) for z, y in ROWS]
    task = Classification(Given(), NOBODY, label_smoothing=share)
    same(task.losses(rows(range(5)), "model")["rows"], wanted)
    same(token_losses(tensor(LOGITS), torch.eye(K).double(), torch.tensor(LABELS), share), wanted)
    unlike(wanted, [smoothed(z, y, K - 1, False) for z, y in ROWS])
    measured = task.measures(rows(range(5)))["loss"][0]  # validation: without
    same(measured, [cross_entropy(z, y) for z, y in ROWS])


def test_class_weights() -> None:
    w, share, K = [0.5, 2.0, 5.0], 0.1, 3
    above = below = 0.0
    for z, y in ROWS:
        for c, p in enumerate(softmax(z)):
            above += w[c] * ((1 - share) * (c == y) + share / K) * -math.log(p)
        below += w[y]
    for parts in ([range(5)], [[3], [0, 1, 2], [4]]):  # however the rows are cut
        (update,), _ = train(Given(), parts, per_class=w, smoothing=share)
        same(update.loss, above / below)
    unlike(update.loss, above / len(LABELS))
    unlike(update.loss, above / K)


def test_balanced_class_weights() -> None:
    labels, found = ["a", "b", "c", "never"], [0, 0, 0, 0, 1, 2, 2]
    prepared: Any = SimpleNamespace(
        experiment=SimpleNamespace(task=SimpleNamespace(class_weights="balanced")),
        rows={"train": SimpleNamespace(targets=np.array(found)), "test": SimpleNamespace(targets=np.array([3] * 9))},
        labels=labels,
    )
    wanted = [len(found) / (len(labels) * max(1, found.count(c))) for c in range(len(labels))]
    weights = class_weights(prepared)
    same(weights, wanted, FLOAT32)
    unlike(weights, [1 / x for x in wanted])


def decoder(task: str = "language", **more: Any) -> Decoder:
    """A small Llama with random weights, in float64."""
    sizes = {"vocab_size": 29, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 3, "num_key_value_heads": 1, "max_position_embeddings": 32}
    return shaken(Decoder({"model_type": "llama", **sizes, **heads, **more}, task, labels=["no", "maybe", "yes"]))


def test_next_token() -> None:
    model = decoder()
    texts, learned = [[5, 6, 7, 8, 9], [3, 4, 2]], [[2, 3, 4], [2]]  # the places of the assistant's tokens
    ids = [token for text in texts for token in text]
    targets = [
        text[t + 1] if t + 1 in places else IGNORED
        for text, places in zip(texts, learned, strict=True)
        for t in range(len(text))
    ]
    batch = Documents(torch.tensor(ids), (5, 3), torch.tensor(targets), (1, 2))
    sums = Language(model).losses(batch, "model")["tokens"]
    found = float(sums.detach().sum()) / Language(model).counts(batch, "model")["tokens"]

    def surprises(behind: int) -> list[list[float]]:
        """-log p(token | text up to `behind` places after it), of each learned token."""
        result = []
        for text, places in zip(texts, learned, strict=True):
            seen = [torch.tensor(text[: t + behind]) for t in places]
            logits = [plain(model.logits(model(ids, (len(ids),))))[-1] for ids in seen]
            result.append([cross_entropy(z, text[t]) for z, t in zip(logits, places, strict=True)])
        return result

    one, two = surprises(behind=0)
    same(sums, [sum(one), sum(two)])
    same(found, (sum(one) + sum(two)) / 4)
    unlike(found, (sum(one) / 3 + sum(two) / 1) / 2)
    unlike(sums, [sum(row) for row in surprises(behind=1)])  # targets not shifted


def test_sums_over_counts() -> None:
    parts, term = [[0], [1, 2, 3], [4]], 2.5
    (update,), (after,) = train(Given(), parts, weights={"rows": term})
    losses = [cross_entropy(z, y) for z, y in ROWS]
    gradient = np.array([slopes(z, y) for z, y in ROWS])
    same(update.loss, term * sum(losses) / 5)
    same(SCORES - after, term * gradient / 5)
    means = [sum(losses[row] for row in part) / len(part) for part in parts]
    unlike(update.loss, term * sum(means) / len(means))


PICTURES = numbers(4, 1, 3, 2).astype(np.float32)
BATCH = Examples(tensor(PICTURES), torch.full((4,), -1), (0, 1, 2, 3))


class Twice(nn.Module):
    """An autoencoder that gives back a multiple of what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.7))

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.factor * images


def test_reconstruction_error() -> None:
    task = Autoencoding(Twice())
    found = task.losses(BATCH, "model")["pixels"].sum() / task.counts(BATCH, "model")["pixels"]
    squares = [(1.7 * float(x) - float(x)) ** 2 for x in PICTURES.ravel()]
    same(found, sum(squares) / (4 * 6), FLOAT32)
    unlike(found, sum(squares) / 4)


def test_denoising() -> None:
    task = Autoencoding(Twice(), noise=0.5)
    torch.manual_seed(3)
    found = task.losses(BATCH, "model")["pixels"]
    torch.manual_seed(3)
    seen = PICTURES + 0.5 * torch.randn(PICTURES.shape).numpy()
    same(found, ((1.7 * seen - PICTURES) ** 2).reshape(4, 6).sum(1), FLOAT32)
    unlike(found, ((1.7 * seen - seen) ** 2).reshape(4, 6).sum(1))
    same(task.measures(BATCH)["loss"][0], ((1.7 * PICTURES - PICTURES) ** 2).reshape(4, 6).sum(1), FLOAT32)


def sigmoid(a: float) -> float:
    return 1 / (1 + math.exp(-a))


class Game(nn.Module):
    """A generator and a discriminator of one matrix each, in float64."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.config = {"code": 3}
        self.make, self.judge = nn.Parameter(tensor(numbers(3, 6))), nn.Parameter(tensor(numbers(6)))
        self.offset = offset

    def generator(self, noise: Tensor) -> Tensor:
        return (noise.double() @ self.make).view(-1, 1, 3, 2)

    def discriminator(self, images: Tensor) -> Tensor:
        return images.double().flatten(1) @ self.judge + self.offset


def played(model: Game, learner: str) -> tuple[dict[str, Tensor], list[float], list[float], np.ndarray]:
    """The losses of a learner, D of the real images and of the generated ones, and the noise these came from."""
    torch.manual_seed(7)
    losses = Adversarial(model, NOBODY, NOBODY).losses(BATCH, learner)
    torch.manual_seed(7)
    noise = torch.randn(4, 3).double().numpy()
    judge = plain(model.judge)
    real = [sigmoid(float(x @ judge) + model.offset) for x in PICTURES.reshape(4, 6).astype(np.float64)]
    return losses, real, [sigmoid(float(x @ judge) + model.offset) for x in noise @ plain(model.make)], noise


def test_discriminator() -> None:
    model = Game()
    losses, real, generated, _ = played(model, "discriminator")
    same(losses["real"], [-math.log(D) for D in real])
    same(losses["generated"], [-math.log(1 - D) for D in generated])
    counts = Adversarial(model, NOBODY, NOBODY).counts(BATCH, "discriminator")
    assert counts == {"real": 4, "generated": 4}
    (losses["real"] + losses["generated"]).sum().backward()
    assert model.make.grad is None and model.judge.grad is not None  # nothing reaches the generator
    losses, _, generated, _ = played(Game(offset=100.0), "discriminator")
    assert set(generated) == {1.0}  # so sure that 1 - D rounds to 0
    assert (abs(plain(losses["generated"]) - 100) < 20).all()


def test_generator() -> None:
    losses, _, generated, _ = played(Game(), "generator")
    same(losses["fooled"], [-math.log(D) for D in generated])
    unlike(losses["fooled"], [math.log(1 - D) for D in generated])

    model = Game(offset=-40.0)  # the discriminator is right: what is there to learn?
    losses, _, generated, noise = played(model, "generator")
    losses["fooled"].sum().backward()
    slopes = [np.outer(z, plain(model.judge)) for z in noise]  # of the logit d(G(z)), by the generator's weights
    same(model.make.grad, sum(-(1 - D) * slope for D, slope in zip(generated, slopes, strict=True)))
    saturated = sum(-D * slope for D, slope in zip(generated, slopes, strict=True))  # of log(1 - D)
    assert abs(saturated).max() < 1e-10 < 0.1 < abs(plain(model.make.grad)).max()


# ---------------------------------------------------------------------------------------------- attention and positions


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, root: float, sees: Callable[[int, int], bool] = lambda i, j: True
) -> np.ndarray:
    """One head in one document: q, k and v [tokens, d]."""
    out = []
    for i in range(len(q)):
        seen = [j for j in range(len(k)) if sees(i, j)]
        shares = softmax([float(q[i] @ k[j]) / root for j in seen])
        out.append(sum(share * v[j] for share, j in zip(shares, seen, strict=True)))
    return np.array(out)


def test_attention() -> None:
    d = 4
    for lengths in ((5, 3), (16, 16)):  # two documents, with padding in the computation and without
        q, k, v = (numbers(sum(lengths), 2, d, seed=seed) for seed in range(3))
        found = attend(tensor(q), tensor(k), tensor(v), Layout(lengths, causal=False, device=CPU))
        for h in range(2):
            for p in (slice(0, lengths[0]), slice(lengths[0], None)):
                one = q[p, h], k[p, h], v[p, h]
                same(found[p, h], attention(*one, math.sqrt(d)))
                unlike(found[p, h], attention(*one, d))
                unlike(found[p, h], attention(*one, math.sqrt(2 * d)))  # the width of the model
            unlike(found[:, h], attention(q[:, h], k[:, h], v[:, h], math.sqrt(d)))  # both as one document

    q, k, v = (numbers(LONG + 1, 1, d, seed=seed) for seed in range(3))  # so long that it is computed in pieces
    found = attend(tensor(q), tensor(k), tensor(v), Layout((LONG + 1,), causal=False, device=CPU))
    some = [0, 700, LONG]
    same(found[some, 0], attention(q[some, 0], k[:, 0], v[:, 0], math.sqrt(d)))


@pytest.mark.parametrize("w", [99, 3])
def test_causal_and_windowed_attention(w: int) -> None:
    n, d = 7, 4
    q, k, v = (numbers(n, 1, d, seed=seed) for seed in range(3))
    wanted = attention(q[:, 0], k[:, 0], v[:, 0], math.sqrt(d), lambda i, j: i - w < j <= i)
    found = attend(tensor(q), tensor(k), tensor(v), Layout((n,), causal=True, device=CPU), window=w)[:, 0]
    same(found, wanted)
    wider = attention(q[:, 0], k[:, 0], v[:, 0], math.sqrt(d), lambda i, j: i - w <= j <= i)
    assert w == 99 or not np.allclose(found, wider)
    shares = np.array([softmax([float(q[i, 0] @ k[j, 0]) / math.sqrt(d) for j in range(n)]) for i in range(n)])
    unlike(found, np.tril(shares) @ v[:, 0])  # set to 0 after the softmax

    cache = Cache(documents=1, layers=1)  # the last token alone, the others remembered
    cache.fill(0, tensor(k[:-1]), tensor(v[:-1]), [n - 1])
    cache.advance([n - 1])
    same(cache.attend(0, tensor(q[-1:]), tensor(k[-1:]), tensor(v[-1:]), w)[0], wanted[-1:])


def test_grouped_heads() -> None:
    n, d, H, H_kv = 5, 4, 6, 2
    q, k, v = numbers(n, H, d), numbers(n, H_kv, d, seed=1), numbers(n, H_kv, d, seed=2)
    found = attend(tensor(q), tensor(k), tensor(v), Layout((n,), causal=False, device=CPU))

    def by_head(g: Callable[[int], int]) -> np.ndarray:
        return np.stack([attention(q[:, h], k[:, g(h)], v[:, g(h)], math.sqrt(d)) for h in range(H)], axis=1)

    same(found, by_head(lambda h: h * H_kv // H))
    unlike(found, by_head(lambda h: h % H_kv))


def turned(x: np.ndarray, t: float, base: float = 10000.0) -> np.ndarray:
    """x [d] at position t."""
    d = len(x)
    out = np.empty(d)
    for i in range(d // 2):
        angle = t * base ** (-2 * i / d)
        out[i] = x[i] * math.cos(angle) - x[i + d // 2] * math.sin(angle)
        out[i + d // 2] = x[i + d // 2] * math.cos(angle) + x[i] * math.sin(angle)
    return out


def test_rotary_positions() -> None:
    d, heads, lengths = 8, 2, (4, 3)
    x = numbers(7, heads, d)
    layout = Layout(lengths, causal=True, device=CPU)
    rotary = Rotary(d, {"rope_theta": 500.0, "max_position_embeddings": 32})
    cos, sin = rotary(layout.positions, 4, tensor(x))
    found = rotate(tensor(x), cos, sin)

    def at(places: Sequence[int]) -> np.ndarray:
        return np.array([[turned(head, t, 500.0) for head in heads] for heads, t in zip(x, places, strict=True)])

    same(found, at([0, 1, 2, 3, 0, 1, 2]), FLOAT32)  # the angles are float32
    unlike(found, at(range(7)))
    angles = np.array([[[t * 10000.0 ** (-2 * i / d) for i in range(d // 2)]] for t in range(7)])
    found = rotate(tensor(x), tensor(np.cos(angles)), tensor(np.sin(angles)))
    same(found, [[turned(head, t) for head in heads] for t, heads in enumerate(x)])
    neighbours = x.reshape(7, heads, d // 2, 2).swapaxes(2, 3).reshape(x.shape)  # 2i and 2i + 1 as a pair
    unlike(found, [[turned(head, t) for head in heads] for t, heads in enumerate(neighbours)])
    q, k = x[0, 0], x[0, 1]
    same(turned(q, 7) @ turned(k, 4), turned(q, 23) @ turned(k, 20))  # only the distance counts
    unlike(turned(q, 7) @ turned(k, 4), turned(q, 7) @ turned(k, 5))


def test_stretched_rotary_positions() -> None:
    d, base, s, alpha, beta, C = 16, 10000.0, 8.0, 1.0, 4.0, 256
    theta = [base ** (-2 * i / d) for i in range(d // 2)]
    config: dict[str, Any] = {"rope_theta": base, "max_position_embeddings": 2048}
    linear = Rotary(d, config | {"rope_scaling": {"rope_type": "linear", "factor": s}}).frequencies(CPU)
    same(linear, [x / s for x in theta], FLOAT32)

    def stretched(context: int) -> list[float]:
        gamma = [min(1.0, max(0.0, (context * x / (2 * math.pi) - alpha) / (beta - alpha))) for x in theta]
        return [(1 - g) * x / s + g * x for g, x in zip(gamma, theta, strict=True)]

    scaling = {"rope_type": "llama3", "factor": s, "low_freq_factor": alpha, "high_freq_factor": beta}
    found = Rotary(d, config | {"rope_scaling": scaling | {"original_max_position_embeddings": C}}).frequencies(CPU)
    same(found, stretched(C), FLOAT32)
    unlike(found, stretched(2048))
    unlike(found, linear)
    assert any(x / s < f < x for x, f in zip(theta, plain(found), strict=True))  # one in between


def rms_norm(x: Sequence[float], w: Sequence[float], epsilon: float) -> list[float]:
    root = math.sqrt(sum(a * a for a in x) / len(x) + epsilon)
    return [b * a / root for a, b in zip(x, w, strict=True)]


def layer_norm(x: Sequence[float], w: Sequence[float], b: Sequence[float], epsilon: float) -> list[float]:
    mean = sum(x) / len(x)
    root = math.sqrt(sum((a - mean) ** 2 for a in x) / len(x) + epsilon)
    return [c * (a - mean) / root + e for a, c, e in zip(x, w, b, strict=True)]


def normed(norm: LayerNorm, x: np.ndarray) -> np.ndarray:
    """`layer_norm` of each row, with the weights of `norm`."""
    return np.array([layer_norm(row, plain(norm.weight), plain(norm.bias), norm.eps) for row in x])


def encoder(kind: str = "bert") -> Any:
    """A small BERT or RoBERTa with random weights, in float64."""
    sizes = {"vocab_size": 29, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "max_position_embeddings": 16}
    return shaken(Encoder({"model_type": kind, **sizes, **heads}, labels=["no", "maybe", "yes"]))


@pytest.mark.parametrize(("kind", "o"), [("bert", 0), ("roberta", 2)])
def test_learned_positions(kind: str, o: int) -> None:
    table = encoder(kind).trunk.embeddings
    ids, places = [5, 6, 7, 5, 9], [0, 1, 2, 0, 1]
    E, P, S = (
        plain(part.weight) for part in (table.word_embeddings, table.position_embeddings, table.token_type_embeddings)
    )
    found = table(torch.tensor(ids), torch.tensor(places))
    same(found, normed(table.LayerNorm, np.array([E[u] + P[t + o] + S[0] for u, t in zip(ids, places, strict=True)])))
    wrong = np.array([E[u] + P[t + 2 - o] + S[0] for u, t in zip(ids, places, strict=True)])
    unlike(found, normed(table.LayerNorm, wrong))
    unlike(found, normed(table.LayerNorm, np.array([E[u] + P[t + o] for u, t in zip(ids, places, strict=True)])))


def test_one_vector_a_document() -> None:
    ids, lengths = torch.tensor([5, 6, 7, 8, 9]), (3, 2)
    bert = encoder()
    x = plain(bert.trunk(ids, Layout(lengths, causal=False, device=CPU)))
    V, c, U, b = (
        plain(part) for layer in (bert.trunk.pooler.dense, bert.classifier) for part in (layer.weight, layer.bias)
    )
    found = bert.logits(bert(ids, lengths))
    same(found, [U @ np.tanh(V @ x[first] + c) + b for first in (0, 3)])
    unlike(found, [U @ x[first] + b for first in (0, 3)])

    ids = torch.tensor([5, 6, 0, 8, 9])  # 0 pads the first document
    llama, bare = decoder("classification", pad_token_id=0), decoder()
    bare.model.load_state_dict(llama.model.state_dict())
    x = plain(bare(ids, lengths))
    found = llama.logits(llama(ids, lengths))
    same(found, [plain(llama.score.weight) @ x[last] for last in (1, 4)])
    unlike(found, [plain(llama.score.weight) @ x[last] for last in (2, 4)])


# --------------------------------------------------------------------------------------------------------- normalisation


def test_root_mean_square_normalisation() -> None:
    x, w = 0.01 * numbers(5, 8) + 0.005, numbers(8, seed=1)
    norm = RMSNorm(8, 1e-4).double()
    norm.weight.data = tensor(w)
    found = norm(tensor(x))
    same(found, [rms_norm(row, w, 1e-4) for row in x])
    unlike(found, [rms_norm(row - row.mean(), w, 1e-4) for row in x])
    unlike(found, [row * w / math.sqrt(sum(row**2) + 1e-4) for row in x])


def test_layer_normalisation() -> None:
    x, w, b = 0.01 * numbers(5, 8), numbers(8, seed=1), numbers(8, seed=2)
    norm = LayerNorm(8, 1e-4).double()
    norm.weight.data, norm.bias.data = tensor(w), tensor(b)
    found = norm(tensor(x))
    same(found, [layer_norm(row, w, b, 1e-4) for row in x])
    unlike(found, [w * (row - row.mean()) / np.sqrt(row.var(ddof=1) + 1e-4) + b for row in x])
    unlike(found, [w * (row - row.mean()) / (row.std() + 1e-4) + b for row in x])


def test_batch_normalisation() -> None:
    network: Any = from_config(describe("vgg11_bn", channels=1, size=8, labels=["no", "yes"])).double()
    convolution, norm = network.features[0], network.features[1]
    for seed, part in enumerate((norm.weight, norm.bias, norm.running_mean)):
        part.data = tensor(numbers(64, seed=seed))
    before = plain(norm.running_mean).copy(), plain(norm.running_var).copy()
    images = numbers(3, 1, 8, 8)
    x = plain(convolution(tensor(images)))
    M = 3 * 8 * 8
    mu = x.sum((0, 2, 3)) / M
    squared = ((x - mu[:, None, None]) ** 2).sum((0, 2, 3)) / M

    def normal(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
        scale, shift = plain(norm.weight)[:, None, None], plain(norm.bias)[:, None, None]
        return scale * (x - mean[:, None, None]) / np.sqrt(variance[:, None, None] + norm.eps) + shift

    same(network.train().features[:2](tensor(images)), normal(mu, squared))
    r, v = 0.9 * before[0] + 0.1 * mu, 0.9 * before[1] + 0.1 * M / (M - 1) * squared
    same(norm.running_mean, r)
    same(norm.running_var, v)
    unlike(norm.running_mean, 0.1 * before[0] + 0.9 * mu)
    unlike(norm.running_var, 0.9 * before[1] + 0.1 * squared)
    same(network.eval().features[:2](tensor(images)), normal(r, v))
    same(norm.running_mean, r)
    unlike(normal(r, v), normal(mu, squared))

    for training in (False, True):  # whether an answer depends on the images beside it
        network.train(training)
        alone, together = (network.features(tensor(images[:n]))[0] for n in (1 + training, 3))
        assert np.allclose(plain(alone), plain(together)) is not training
    assert {"features.1.running_mean", "features.1.running_var"} < network.state_dict().keys()


def test_spectral_normalisation() -> None:
    torch.manual_seed(0)
    judge = Discriminator({"hidden_sizes": [6, 8], "num_channels": 1, "image_size": 8}).double().train()
    for layer in (judge.layers[0], judge.layers[2], judge.score):
        for _ in range(300):  # one step of power iteration each
            layer.weight  # noqa: B018
        rows = plain(layer.parametrizations.weight.original).reshape(len(layer.weight), -1)
        x = np.ones(rows.shape[1])
        for _ in range(3000):  # the same, from elsewhere
            x = rows.T @ (rows @ x)
            x /= norm_of([x])
        sigma = norm_of([rows @ x])
        same(plain(layer.weight).reshape(rows.shape), rows / sigma, FLOAT32)
        if len(rows) > 1:
            unlike(plain(layer.weight).reshape(rows.shape), rows / norm_of([rows]))


def test_normalised_pixels() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(6, 3, 4, 4)).astype(np.uint8)
    pixels[:, 1] //= 3  # a dark channel
    training = [0, 1, 2, 3]
    fitted = Processor(4, 3, (0.0,) * 3, (1.0,) * 3).fit(pixels, training)
    found = fitted.normalise(pixels)
    for c in range(3):
        seen = [int(p) / 255 for image in training for p in pixels[image, c].ravel()]
        mean = sum(seen) / len(seen)
        deviation = math.sqrt(sum((a - mean) ** 2 for a in seen) / len(seen))
        same([fitted.mean[c], fitted.std[c]], [mean, deviation])
        same(found[:, c], (pixels[:, c] / 255 - mean) / deviation, FLOAT32)
        unlike(fitted.mean[c], pixels[:, c].mean() / 255)  # the others included


def test_where_the_norm_stands() -> None:
    n, lengths, x = 5, (3, 2), numbers(5, 12)
    model = decoder()
    layer: Any = model.model.layers[0]
    layout = Layout(lengths, causal=True, device=CPU)
    cos, sin = model.rotary(layout.positions, n, tensor(x))

    def see(_: int, q: Tensor, k: Tensor, v: Tensor, window: int | None, dropout: float) -> Tensor:
        return attend(q, k, v, layout, dropout, window)

    def norm(part: RMSNorm, rows: np.ndarray) -> Tensor:
        return tensor([rms_norm(row, plain(part.weight), part.epsilon) for row in rows])

    h = x + plain(layer.self_attn(norm(layer.input_layernorm, x), cos, sin, see))
    found = layer(tensor(x), cos, sin, see)
    same(found, h + plain(layer.mlp(norm(layer.post_attention_layernorm, h))))
    unlike(found, plain(norm(layer.post_attention_layernorm, h + plain(layer.mlp(tensor(h))))))

    layer = encoder().trunk.encoder.layer[0]
    layout = Layout(lengths, causal=False, device=CPU)
    attended = plain(layer.attention.output.dense(layer.attention.self(tensor(x), layout)))
    h = normed(layer.attention.output.LayerNorm, x + attended)
    widened = plain(layer.output.dense(layer.intermediate(tensor(h))))
    found = layer(tensor(x), layout)
    same(found, normed(layer.output.LayerNorm, h + widened))
    unlike(found, h + widened)


# ----------------------------------------------------------------------------------- layers, initial weights and dropout


def perceptron(activation: str, dropout: float = 0.0) -> Any:
    config = describe(
        "mlp", channels=2, size=8, labels=["no", "yes"], hidden=(5, 4), activation=activation, dropout=dropout
    )
    return shaken(from_config(config))


def test_multilayer_perceptron() -> None:
    curves: dict[str, Callable[[float], float]] = {
        "relu": lambda x: max(0.0, x),
        "sigmoid": sigmoid,
        "tanh": lambda x: (math.exp(x) - math.exp(-x)) / (math.exp(x) + math.exp(-x)),
    }
    images = 0.2 * numbers(3, 2, 8, 8)
    for name, curve in curves.items():
        network = perceptron(name)
        found = network.logits(network(tensor(images)))

        def answers(curve: Callable[[float], float], last: bool = False, network: Any = network) -> np.ndarray:
            h = images.reshape(3, -1)
            for layer in (*network.layers, network.classifier):
                h = h @ plain(layer.weight).T + plain(layer.bias)
                if layer is not network.classifier or last:
                    h = np.vectorize(curve)(h)
            return h

        same(found, answers(curve))
        unlike(found, answers(curve, last=True))
        unlike(found, answers(lambda x: x))
        for other in curves.keys() - {name}:
            unlike(found, answers(curves[other]))
    leaky = Discriminator({"hidden_sizes": [4], "num_channels": 1, "image_size": 8}).layers[1]
    same(leaky(tensor([-2.0, -0.5, 3.0])), [max(x, 0.2 * x) for x in (-2.0, -0.5, 3.0)])
    sizes = describe("mlp", channels=1, size=28, labels=list("0123456789"), hidden=(64, 64))
    assert sum(weight.numel() for weight in from_config(sizes).parameters()) == 55_050  # 784-64-64-10


def test_initial_weights() -> None:
    torch.manual_seed(0)
    parts = nn.ModuleList([nn.Linear(300, 500), nn.Conv2d(40, 90, 3)])
    sides = [(300, 500), (40 * 9, 90 * 9)]
    for activation in ("relu", "gelu", "sigmoid", "tanh"):
        initialise(parts, activation)
        for part, (n, m) in zip(parts, sides, strict=True):
            w = plain(part.weight)
            u = {"sigmoid": 1.0, "tanh": 5 / 3}.get(activation, 0.0) * math.sqrt(6 / (n + m))
            variance = (2 * u) ** 2 / 12 if u else 2 / n
            assert (plain(part.bias) == 0).all() and abs(w.mean()) < 5 * math.sqrt(variance / w.size)
            assert (w**2).mean() == pytest.approx(variance, rel=5 * math.sqrt(2 / w.size))  # five deviations
            assert abs(w).max() <= u * (1 + 1e-6) if u else abs(w).max() > 3 * math.sqrt(variance)


def deviates(w: np.ndarray, deviation: float) -> None:
    """Of mean 0 and this standard deviation, to five deviations of what so many numbers can say."""
    assert abs(w.mean()) < 5 * deviation / math.sqrt(w.size)
    assert (w**2).mean() == pytest.approx(deviation**2, rel=5 * math.sqrt(2 / w.size))


def test_named_initial_weights() -> None:
    parts = nn.ModuleList([nn.Linear(300, 500), nn.Conv2d(40, 90, 3), nn.ConvTranspose2d(70, 30, 4)])
    sides = [(300, 500), (40 * 9, 90 * 9), (70 * 16, 30 * 16)]
    rules: dict[str, Callable[[int, int], float]] = {
        "normal": lambda n, m: 0.02,
        "xavier_uniform": lambda n, m: math.sqrt(2 / (n + m)),
        "kaiming_normal": lambda n, m: math.sqrt(2 / n),
    }
    for name, rule in rules.items():
        initialise_by_name(parts, name, 1)
        for part, (n, m) in zip(parts, sides, strict=True):
            w = plain(part.weight)
            deviates(w, rule(n, m))
            assert (plain(part.bias) == 0).all()
            u = math.sqrt(6 / (n + m))
            assert abs(w).max() <= u * (1 + 1e-6) if name == "xavier_uniform" else abs(w).max() > 3 * rule(n, m)
    initialise_by_name(parts, "orthogonal", 1)
    linear, kernel, transposed = (plain(part.weight) for part in parts)
    same(linear.T @ linear, np.eye(300), FLOAT32)  # 500 rows of 300: its columns
    same(kernel.reshape(90, -1) @ kernel.reshape(90, -1).T, np.eye(90), FLOAT32)
    turned = transposed.swapaxes(0, 1).reshape(30, -1)
    same(turned @ turned.T, np.eye(30), FLOAT32)

    L = 3
    config = {"model_type": "llama", "vocab_size": 400, "hidden_size": 64, "intermediate_size": 96}
    model = Decoder(config | {"num_hidden_layers": L, "num_attention_heads": 4})
    for kind, ending in (("gpt2", 0.02 / math.sqrt(2 * L)), ("zero_residual", 0.0)):
        initialise_by_name(model, kind, 1)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                residual = "o_proj" in name or "down_proj" in name
                if residual and not ending:
                    assert (plain(parameter) == 0).all()
                else:
                    deviates(plain(parameter), ending if residual else 0.02)
            else:
                assert (plain(parameter) == 1).all()  # norms


def test_swiglu() -> None:
    mlp = shaken(MLP({"hidden_size": 6, "intermediate_size": 10, "mlp_bias": False}))
    gate, up, down = (plain(part.weight) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    x = numbers(4, 6)
    found = mlp(tensor(x))

    def by(act: Callable[[float], float], gate: np.ndarray, up: np.ndarray) -> list[np.ndarray]:
        return [down @ [act(g) * u for g, u in zip(gate @ row, up @ row, strict=True)] for row in x]

    same(found, by(lambda a: a * sigmoid(a), gate, up))
    unlike(found, by(lambda a: a * sigmoid(a), up, gate))
    unlike(found, by(sigmoid, gate, up))


def test_gelu() -> None:
    x = [*numbers(40), -30.0, 30.0]
    exact = [a / 2 * (1 + math.erf(a / math.sqrt(2))) for a in x]
    curve = [a / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3))) for a in x]
    same(ACTIVATIONS["gelu"](tensor(x)), exact)
    same(ACTIVATIONS["gelu_new"](tensor(x)), curve)
    same(ACTIVATIONS["gelu_pytorch_tanh"](tensor(x)), curve)
    unlike(exact, curve)


def test_dropout() -> None:
    n, p = 24, 0.4
    q, k, v = numbers(n, 1, n), numbers(n, 1, n, seed=1), np.eye(n)[:, None]  # what comes out are the weights
    full = attention(q[:, 0], k[:, 0], v[:, 0], math.sqrt(n))
    layout = Layout((n,), causal=False, device=CPU)
    torch.manual_seed(0)
    dropped(attend(tensor(q), tensor(k), tensor(v), layout, dropout=p)[:, 0], full, p)
    same(attend(tensor(q), tensor(k), tensor(v), layout)[:, 0], full)

    table = encoder().trunk.embeddings
    ids = torch.arange(15)
    calm = table(ids, ids)
    dropped(table.train()(ids, ids), plain(calm), 0.1)
    same(table.eval()(ids, ids), calm)

    network, images = perceptron("sigmoid", dropout=0.3), tensor(numbers(300, 2, 8, 8))
    network.layers[1].weight.data.zero_()  # what the first layer dropped makes no difference
    full = np.tile([sigmoid(b) for b in plain(network.layers[1].bias)], (300, 1))
    dropped(network.train()(images), full, 0.3)
    same(network.eval()(images), full)


def dropped(found: Tensor, x: np.ndarray, p: float) -> None:
    """Each number is 0 or x / (1 - p), and about p of them are 0."""
    gone = plain(found) == 0
    same(found, np.where(gone, 0.0, x / (1 - p)))
    assert abs(gone.mean() - p) < 4 * math.sqrt(p * (1 - p) / gone.size)


# ------------------------------------------------------------------------------------------------ choosing the next token


Z = [2.0, -1.0, 0.5, -0.2, 1.5, 0.5]


def drawn(logits: Sequence[float], seen: Sequence[int] = (), **settings: Any) -> list[int]:
    """What danlu draws, with 300 seeds."""
    sampling = Sampling(**({"temperature": 1.0} | settings))
    return [choose(torch.tensor(logits), seen, sampling, torch.Generator().manual_seed(seed)) for seed in range(300)]


def cast(p: Sequence[float]) -> list[int]:
    """What is drawn from these probabilities, which need not sum to 1, with the same 300 seeds."""
    dice = [torch.Generator().manual_seed(seed) for seed in range(300)]
    return [int(torch.multinomial(torch.tensor(p, dtype=torch.float32), 1, generator=die)) for die in dice]


def test_repetition_penalty() -> None:
    seen, r = [0, 3, 3], 1.5

    def shrunk(z: float, times: int) -> float:
        return z / r**times if z >= 0 else z * r**times

    found = drawn(Z, seen, repetition_penalty=r)
    assert found == cast(softmax([shrunk(z, c in seen) for c, z in enumerate(Z)]))
    assert found != cast(softmax([shrunk(z, seen.count(c)) for c, z in enumerate(Z)]))
    assert found != cast(softmax([z / r if c in seen else z for c, z in enumerate(Z)]))


def test_temperature() -> None:
    T = 0.5
    found = drawn(Z, temperature=T)
    assert found == cast(softmax([z / T for z in Z]))
    assert found != cast(softmax([z * T for z in Z]))
    assert found != cast([p / T for p in softmax(Z)]) == cast(softmax(Z))  # which changes nothing
    assert set(drawn(Z, temperature=0.0)) == {Z.index(max(Z))}


def test_top_k() -> None:
    for k in (1, 2, 3, 6):
        least = sorted(Z, reverse=True)[k - 1]
        found = drawn(Z, top_k=k)
        assert found == cast([p if z >= least else 0.0 for z, p in zip(Z, softmax(Z), strict=True)])
        assert (k == 6) == (found == cast(softmax([z if z >= least else 0.0 for z in Z])))
    assert set(drawn(Z, top_k=3)) == {0, 2, 4, 5}  # 2 and 5 are equally likely


def test_top_p() -> None:
    P, T = 0.8, 0.7

    def left(p: Sequence[float], crossing: bool = True) -> list[float]:
        kept, before = [0.0] * len(p), 0.0
        for c in sorted(range(len(p)), key=lambda c: -p[c]):
            if before + (0 if crossing else p[c]) < P:
                kept[c] = p[c]
            before += p[c]
        return kept

    at = softmax([z / T for z in Z])
    found = drawn(Z, top_p=P, temperature=T)
    assert found == cast(left(at))
    assert found != cast(left(at, crossing=False))
    assert found != cast([a if kept else 0.0 for a, kept in zip(at, left(softmax(Z)), strict=True)])
    assert set(drawn([9.0, 0.0, 0.0], top_p=0.5)) == {0} and sum(left([0.9, 0.05, 0.05], crossing=False)) == 0


# --------------------------------------------------------------------------------------------------------------- updates


GRADIENT = np.array([slopes(z, y) for z, y in ROWS])  # of each row's loss, by its logits


def test_gradient_clipping() -> None:
    c = 0.05
    by_scores, by_bias = GRADIENT / 5, GRADIENT.sum(0) / 5
    norm = norm_of([by_scores, by_bias])
    (update,), (after,) = train(Given(), [[0, 1], [2, 3, 4]], clip=c)
    same(SCORES - after, by_scores * min(1.0, c / (norm + 1e-6)))
    unlike(SCORES - after, by_scores * min(1.0, c / norm_of([by_scores])))
    same(update.gradient_norm, norm)
    _, (after,) = train(Given(), clip=10.0)
    same(SCORES - after, by_scores)


START = {"matrix": numbers(3, 2), "vector": numbers(4)}
RATES, DECAY = [0.1, 0.1, 0.05, 0.02, 0.2], 0.3


def descend(**options: Any) -> dict[str, np.ndarray]:
    """The weights after five updates by the optimizer of danlu; the gradient of update `t` is `numbers(…, seed=t)`."""
    weights = {name: nn.Parameter(tensor(value)) for name, value in START.items()}
    found = optimizer(weights, TrainingOptions(**options), RATES[0])
    for t, rate in enumerate(RATES, 1):
        for weight in weights.values():
            weight.grad = tensor(numbers(*weight.shape, seed=t))
        for group in found.param_groups:
            group["lr"] = rate
        found.step()
    return {name: plain(weight) for name, weight in weights.items()}


Rule = Callable[[np.ndarray, list[np.ndarray], float], np.ndarray]
"""(θ, its gradients, λ) -> θ after the updates."""


def check(found: dict[str, np.ndarray], rule: Rule, *wrong: Rule) -> None:
    """A matrix decays, a vector does not; and every wrong rule gives another matrix."""
    gradients = {name: [numbers(*value.shape, seed=t) for t in range(1, 6)] for name, value in START.items()}
    matrix = START["matrix"], gradients["matrix"]
    same(found["matrix"], rule(*matrix, DECAY))
    same(found["vector"], rule(START["vector"], gradients["vector"], 0.0))
    unlike(found["matrix"], rule(*matrix, 0.0))
    for mistaken in wrong:
        unlike(found["matrix"], mistaken(*matrix, DECAY))


def sgd(
    theta: np.ndarray,
    gradients: list[np.ndarray],
    decay: float,
    mu: float = 0.8,
    share: float = 1.0,
    inside: bool = False,
) -> np.ndarray:
    v = np.zeros_like(theta)
    for g, rate in zip(gradients, RATES, strict=True):
        v = mu * v + (rate if inside else share) * (g + decay * theta)
        theta = theta - (v if inside else rate * v)
    return theta


def test_stochastic_gradient_descent() -> None:
    found = descend(optimizer="sgd", momentum=0.8, weight_decay=DECAY)
    check(found, sgd, partial(sgd, share=1 - 0.8), partial(sgd, inside=True))
    check(descend(optimizer="sgd", momentum=0, weight_decay=DECAY), partial(sgd, mu=0.0), sgd)
    check(descend(optimizer="sgd", weight_decay=DECAY), partial(sgd, mu=0.9), sgd)


def nesterov(theta: np.ndarray, gradients: list[np.ndarray], decay: float, late: bool = False) -> np.ndarray:
    v = np.zeros_like(theta)
    for g, rate in zip(gradients, RATES, strict=True):
        whole, old = g + decay * theta, v
        v = 0.8 * v + whole
        theta = theta - rate * (whole + 0.8 * (old if late else v))
    return theta


def test_nesterovs_momentum() -> None:
    found = descend(optimizer="sgd", momentum=0.8, nesterov=True, weight_decay=DECAY)
    check(found, nesterov, partial(nesterov, late=True), sgd)


def adam(
    theta: np.ndarray,
    gradients: list[np.ndarray],
    decay: float,
    decoupled: bool = False,
    corrected: bool = True,
    inside: bool = False,
) -> np.ndarray:
    b1, b2, epsilon = 0.8, 0.95, 1e-3
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, (g, rate) in enumerate(zip(gradients, RATES, strict=True), 1):
        if decoupled:
            theta = theta - rate * decay * theta
        else:
            g = g + decay * theta
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        mean, square = (m / (1 - b1**t), v / (1 - b2**t)) if corrected else (m, v)
        theta = theta - rate * mean / (np.sqrt(square + epsilon) if inside else np.sqrt(square) + epsilon)
    return theta


def test_adam() -> None:
    found = descend(optimizer="adam", beta1=0.8, beta2=0.95, epsilon=1e-3, weight_decay=DECAY)
    check(found, adam, partial(adam, corrected=False), partial(adam, inside=True), partial(adam, decoupled=True))


def test_adamw() -> None:
    found = descend(optimizer="adamw", beta1=0.8, beta2=0.95, epsilon=1e-3, weight_decay=DECAY)
    check(found, partial(adam, decoupled=True), adam)


def muon(
    theta: np.ndarray,
    gradients: list[np.ndarray],
    decay: float,
    long: bool = True,
    ahead: bool = True,
    by_largest: bool = False,
) -> np.ndarray:
    B, (n, m) = np.zeros_like(theta), theta.shape
    for g, rate in zip(gradients, RATES, strict=True):
        B = 0.8 * B + (1 - 0.8) * g
        G = (1 - 0.8) * g + 0.8 * B if ahead else B
        X = G / (np.abs(G).max() if by_largest else norm_of([G]))
        for _ in range(5):
            X = 3.4445 * X - 4.7750 * X @ X.T @ X + 2.0315 * X @ X.T @ X @ X.T @ X
        theta = theta - rate * decay * theta - (0.2 * math.sqrt(max(n, m)) if long else 1.0) * rate * X
    return theta


def test_muon() -> None:
    found = descend(optimizer="muon", momentum=0.8, beta1=0.8, beta2=0.95, epsilon=1e-3, weight_decay=DECAY)
    vector = [numbers(4, seed=t) for t in range(1, 6)]
    same(found["vector"], adam(START["vector"], vector, 0.0, decoupled=True))
    matrix = START["matrix"], [numbers(3, 2, seed=t) for t in range(1, 6)]
    same(found["matrix"], muon(*matrix, DECAY))
    with np.errstate(all="ignore"):
        for wrong in (partial(muon, long=False), partial(muon, ahead=False), partial(muon, by_largest=True), adam):
            unlike(found["matrix"], wrong(*matrix, DECAY))
    unlike(found["matrix"], muon(*matrix, 0.0))
    for sides in ((30, 20), (20, 30), (9, 30)):
        values = np.linalg.svd(plain(orthogonalised(tensor(numbers(*sides)))), compute_uv=False)
        assert min(values) > 0.68 and max(values) < 1.21 < np.linalg.svd(numbers(*sides), compute_uv=False).max()


def test_moving_average_of_the_weights() -> None:
    beta = 0.3
    average: dict[str, Tensor] = {}
    _, after = train(Given(), steps=5, ema=beta, average=average)
    a, from_zero, at_once = after[0], np.zeros_like(after[0]), after[0]
    for t, theta in enumerate(after[1:], 2):
        b = min(beta, t / (9 + t))
        a = b * a + (1 - b) * theta
        from_zero = beta * from_zero + (1 - beta) * theta
        at_once = beta * at_once + (1 - beta) * theta
    same(average["scores"], a)
    unlike(average["scores"], from_zero)
    unlike(average["scores"], at_once)
    unlike(average["scores"], after[-1])
    assert 0.72 < 0.999**300 < 0.75


def test_private_gradients() -> None:
    C = 0.5
    norms = [
        norm_of([g, g]) for g in GRADIENT
    ]  # a row's gradient is that of its scores, and the same again of the bias
    assert min(norms) < C < max(norms)
    clipped = np.array([g * min(1.0, C / norm) for g, norm in zip(GRADIENT, norms, strict=True)])
    _, (after,) = train(Given(), [[0, 1], [2, 3, 4]], privacy=Privacy(clip=C, noise=0.0))
    same(SCORES - after, clipped / 5)
    mean = [GRADIENT / 5, GRADIENT.sum(0) / 5]
    unlike(SCORES - after, mean[0] * min(1.0, C / norm_of(mean)))

    sigma, weight, gradients = 2.0, nn.Parameter(torch.zeros(3, 2).double()), [numbers(3, 2, seed=i) for i in range(4)]
    private = PrivateSum([weight], Privacy(clip=C, noise=sigma))
    for gradient in gradients:
        weight.grad = tensor(gradient)
        private.take()
    private.finish(4, torch.Generator().manual_seed(5))
    xi = torch.randn(3, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64).numpy()
    total = sum((g * min(1.0, C / norm_of([g])) for g in gradients), np.zeros((3, 2)))
    same(weight.grad, (total + sigma * C * xi) / 4)
    unlike(weight.grad, total / 4 + sigma * C * xi)


def test_warm_up() -> None:
    S, w = 40, 0.25
    W = round(w * S)
    for kind in ("constant", "linear", "cosine", "wsd"):
        found = [schedule(kind, S, w)(s) for s in range(W)]
        same(found, [(s + 1) / W for s in range(W)])
        unlike(found, [s / W for s in range(W)])
    same([schedule("constant", S, w)(s) for s in range(W, S)], [1.0] * (S - W))


def test_linear_cosine_and_wsd() -> None:
    S, w = 40, 0.25
    W = round(w * S)
    rules: dict[str, Callable[[float, float], float]] = {
        "linear": lambda d, e: e + (1 - e) * (1 - d),
        "cosine": lambda d, e: e + (1 - e) * (1 + math.cos(math.pi * d)) / 2,
        "wsd": lambda d, e: e + (1 - e) * min(1.0, (1 - d) / 0.5),
    }
    for kind, rule in rules.items():
        for asked in (None, 0.0, 0.3):
            e = asked if asked is not None else 0.1 if kind == "cosine" else 0.0
            factor = schedule(kind, S, w, asked)
            found = [factor(s) for s in range(W, S)]
            same(found, [rule((s - W) / (S - W), e) for s in range(W, S)])
            unlike(found, [rule(s / S, e) for s in range(W, S)])
            assert factor(S) == factor(S + 9) == pytest.approx(e)


# -------------------------------------------------------------------------------------------------------------- adapters


class Adapted:
    """A linear layer with LoRA of rank 3 and alpha 7, beside its weight and bias before."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.model: Any = nn.Sequential(nn.Linear(inputs, outputs)).double()
        self.W, self.b = plain(self.model[0].weight).copy(), plain(self.model[0].bias).copy()
        add_lora(self.model, ModelOptions(rank=3, alpha=7.0), seed=0)
        self.A, self.B = (getattr(self.model[0], name).weight for name in ("lora_A", "lora_B"))

    def trained(self) -> tuple[np.ndarray, np.ndarray]:
        """A and B, after B has moved away from 0."""
        self.B.data = tensor(numbers(*self.B.shape))
        return plain(self.A), plain(self.B)


def test_lora() -> None:
    it, x = Adapted(6, 5), numbers(4, 6)
    assert it.A.shape == (3, 6) and bool((it.A != 0).all()) and it.B.shape == (5, 3) and bool((it.B == 0).all())
    same(it.model(tensor(x)), [it.W @ row + it.b for row in x])  # untouched at first
    it.model(tensor(x)).sum().backward()
    assert it.B.grad.any() and not it.A.grad.any()  # the gradient of each contains the other, and B is 0
    A, B = it.trained()
    same(it.model(tensor(x)), [it.W @ row + it.b + 7 / 3 * (B @ (A @ row)) for row in x])
    unlike(it.model(tensor(x)), [it.W @ row + it.b + B @ (A @ row) for row in x])


def test_merged_weights() -> None:
    it = Adapted(5, 5)
    A, B = it.trained()
    layer = merge(it.model)[0]
    assert type(layer) is nn.Linear
    same(layer.weight, it.W + 7 / 3 * B @ A, FLOAT32)
    same(layer.bias, it.b)
    unlike(layer.weight, it.W + 7 / 3 * (B @ A).T)


# ------------------------------------------------------------------------------------------ metrics of labels and numbers


TRUE, GUESS, K = [0, 0, 0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 1, 3, 1, 1, 2, 2, 0], 5  # 3 only predicted, 4 nowhere
PAIRS = list(zip(TRUE, GUESS, strict=True))


def tally(c: int) -> tuple[int, int, int]:
    """TP, FP, FN of a class."""
    return PAIRS.count((c, c)), GUESS.count(c) - PAIRS.count((c, c)), TRUE.count(c) - PAIRS.count((c, c))


def divided(above: float, below: float) -> float:
    return above / below if below else 0.0


def scores(c: int) -> tuple[float, float, float]:
    TP, FP, FN = tally(c)
    return divided(TP, TP + FP), divided(TP, TP + FN), divided(2 * TP, 2 * TP + FP + FN)


def test_accuracy() -> None:
    found = metrics.accuracy(TRUE, GUESS)
    same(found, sum(y == guess for y, guess in PAIRS) / len(PAIRS))
    batches = [PAIRS[:4], PAIRS[4:8], PAIRS[8:]]
    unlike(found, sum(sum(y == guess for y, guess in batch) / len(batch) for batch in batches) / len(batches))


def test_precision_recall_and_f1() -> None:
    found = metrics.per_class(TRUE, GUESS, K)
    same(found, np.transpose([scores(c) for c in range(K)]))
    unlike(found[0], found[1])


def test_averages_over_classes() -> None:
    present = [c for c in range(K) if c in TRUE or c in GUESS]
    macro = [sum(scores(c)[i] for c in present) / len(present) for i in range(3)]
    same(metrics.precision_recall_f1(TRUE, GUESS, K, "macro"), macro)
    unlike(macro[2], 2 * macro[0] * macro[1] / (macro[0] + macro[1]))
    unlike(macro[2], sum(scores(c)[2] for c in range(K)) / K)
    weighted = [sum(TRUE.count(c) / len(TRUE) * scores(c)[i] for c in range(K)) for i in range(3)]
    same(metrics.precision_recall_f1(TRUE, GUESS, K, "weighted"), weighted)
    TP, FP, FN = (sum(tally(c)[i] for c in range(K)) for i in range(3))
    micro = metrics.precision_recall_f1(TRUE, GUESS, K, "micro")
    same(micro, [TP / (TP + FP), TP / (TP + FN), 2 * TP / (2 * TP + FP + FN)])
    same(micro[2], metrics.accuracy(TRUE, GUESS))
    assert len({round(x, 6) for x in (macro[2], weighted[2], micro[2])}) == 3


def test_area_under_the_roc_curve() -> None:
    true = np.random.default_rng(0).integers(2, size=40)
    score = np.round(true * 0.4 + numbers(40), 1)  # rounded, so that some are equal

    def area(score: np.ndarray, tie: float) -> float:
        pairs = [(a, b) for a in score[true == 1] for b in score[true == 0]]
        return sum(1.0 if a > b else tie if a == b else 0.0 for a, b in pairs) / len(pairs)

    found = metrics.auc(true, score)
    same(found, area(score, 0.5))
    unlike(found, area(score, 1.0))
    unlike(found, area(-score, 0.5))
    unlike(found, area((score > 0).astype(float), 0.5))


CHANCES = np.array([softmax(z) for z in LOGITS])


def test_log_loss() -> None:
    found = metrics.log_losses(LABELS, CHANCES)
    same(found, [-math.log(max(p[y], 1e-15)) for p, y in zip(CHANCES, LABELS, strict=True)])
    unlike(found, [-math.log(max(p)) for p in CHANCES])
    same(metrics.log_losses([1], [[1.0, 0.0]]), [-math.log(1e-15)])
    report = metrics.classification_report(LABELS, CHANCES.argmax(1), CHANCES, ["a", "b", "c"], resamples=10)
    same(report["metrics"]["log_loss"]["value"], sum(found) / 5)


def test_brier_score() -> None:
    report = metrics.classification_report(LABELS, CHANCES.argmax(1), CHANCES, ["a", "b", "c"], resamples=10)
    squares = sum((p[c] - (y == c)) ** 2 for p, y in zip(CHANCES, LABELS, strict=True) for c in range(3))
    same(report["metrics"]["brier"]["value"], squares / 5)
    unlike(report["metrics"]["brier"]["value"], squares / 5 / 3)


def test_mean_squared_error() -> None:
    true, guess = np.array([3, 250, 7], dtype=np.uint8), np.array([5, 10, 7], dtype=np.uint8)
    found = metrics.mean_squared_error(true, guess)
    same(found, sum((int(a) - int(b)) ** 2 for a, b in zip(true, guess, strict=True)) / 3)
    unlike(found, np.mean((true - guess) ** 2))
    x = numbers(6)
    same(metrics.mean_squared_error(x, 0.5 * x), sum((0.5 * a) ** 2 for a in x) / 6)


# ------------------------------------------------------------------------------------------------------ metrics of images


def test_peak_signal_to_noise_ratio() -> None:
    squares, pixels = [0.5, 0.02, 1.3], 6
    found = metrics.reconstruction_report(squares, pixels)["metrics"]["psnr"]["value"]
    same(found, -10 * math.log10(sum(squares) / (3 * pixels)))
    unlike(found, sum(-10 * math.log10(square / pixels) for square in squares) / 3)
    unlike(found, -10 * math.log10(255**2 * sum(squares) / (3 * pixels)))


def test_frechet_distance() -> None:
    one, two = numbers(30, 3) @ numbers(3, 3), 0.4 * numbers(40, 3, seed=1) + 0.3

    def moments(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = sum(points) / len(points)
        return mean, sum(np.outer(x - mean, x - mean) for x in points) / (len(points) - 1)

    (m1, C1), (m2, C2) = moments(one), moments(two)
    root, inverse = C1 @ C2, np.eye(3)  # the root of a matrix, by Denman and Beavers' iteration
    for _ in range(60):
        root, inverse = (root + np.linalg.inv(inverse)) / 2, (inverse + np.linalg.inv(root)) / 2
    same(root @ root, C1 @ C2)
    found = metrics.frechet(one, two)
    same(found, sum((m1 - m2) ** 2) + np.trace(C1 + C2 - 2 * root))
    unlike(found, sum((m1 - m2) ** 2) + np.trace(C1 + C2 - 2 * np.sqrt(abs(C1 @ C2))))
    same(metrics.frechet(one, one), 0.0)


# -------------------------------------------------------------------------------------------------------- metrics of text


SUMS, COUNTS, BYTES = [3.0, 20.0, 0.5], [2, 30, 1], [9, 110, 4]


def test_perplexity() -> None:
    found = metrics.perplexity(SUMS, COUNTS)
    same(found, math.exp(sum(SUMS) / sum(COUNTS)))
    each = [total / count for total, count in zip(SUMS, COUNTS, strict=True)]
    unlike(found, sum(math.exp(loss) for loss in each) / 3)
    unlike(found, math.exp(sum(each) / 3))


def test_bits_per_byte() -> None:
    found = metrics.bits_per_byte(SUMS, BYTES)
    same(found, sum(SUMS) / (math.log(2) * sum(BYTES)))
    unlike(found, sum(SUMS) / sum(BYTES))
    assert len("炼丹") * 3 == len("炼丹".encode())


ANSWERS = ["the cat sat on the mat", "no no no", "猫坐在垫子上", "a b c d e f"]
EXPECTED = ["the cat lay on the mat today", "no", "猫在垫子上", "f a e b d c"]


def split(text: str) -> list[str]:
    """Words; in Chinese, characters."""
    return text.split() if text.isascii() else list(text)


def by_pair(score: Callable[[list[str], list[str]], float]) -> list[float]:
    return [score(split(a), split(e)) for a, e in zip(ANSWERS, EXPECTED, strict=True)]


def test_token_f1() -> None:
    found = written.token_f1(ANSWERS, EXPECTED)
    same(found, by_pair(lambda a, e: 2 * sum(min(a.count(u), e.count(u)) for u in {*a}) / (len(a) + len(e))))
    unlike(found, by_pair(lambda a, e: 2 * len({*a} & {*e}) / (len({*a}) + len({*e}))))


def subsequence(a: Sequence[str], e: Sequence[str]) -> int:
    """Length of the longest common subsequence: all but the last element of one, of the other, or of both."""
    table = [[0] * (len(e) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(e):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_rouge_l() -> None:
    found = written.rouge_l(ANSWERS, EXPECTED)
    same(found, by_pair(lambda a, e: 2 * subsequence(a, e) / (len(a) + len(e))))
    unlike(found, by_pair(lambda a, e: subsequence(a, e) / len(e)))
    unlike(found, written.token_f1(ANSWERS, EXPECTED))  # the order counts


def edits(a: Sequence[str], e: Sequence[str]) -> int:
    D = [[i + j if 0 in (i, j) else 0 for j in range(len(e) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(e) + 1):
            D[i][j] = min(D[i - 1][j] + 1, D[i][j - 1] + 1, D[i - 1][j - 1] + (a[i - 1] != e[j - 1]))
    return D[-1][-1]


def test_character_and_word_error_rate() -> None:
    for errors, cut in ((written.character_errors, list), (written.word_errors, str.split)):
        pairs = [(cut(a), cut(e)) for a, e in zip(ANSWERS, EXPECTED, strict=True)]
        assert [written.edit_distance(a, e) for a, e in pairs] == [edits(a, e) for a, e in pairs]
        found = metrics.ratio(*errors(ANSWERS, EXPECTED))
        same(found, sum(edits(a, e) for a, e in pairs) / sum(len(e) for _, e in pairs))
        unlike(found, sum(edits(a, e) for a, e in pairs) / sum(len(a) for a, _ in pairs))
        unlike(found, sum(edits(a, e) / len(e) for a, e in pairs) / len(pairs))


WRITTEN = ["the cat sat on the mat near the door", "a dog ran in the green park"]
WANTED = ["the cat sat on the mat by the old front door", "the dog ran in the green park today"]


def runs(items: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(items[i : i + n]) for i in range(len(items) - n + 1))


def shared(n: int, answers: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> tuple[int, int, int]:
    """M_n, A_n, E_n over all rows."""
    pairs = [(runs(a, n), runs(e, n)) for a, e in zip(answers, expected, strict=True)]
    return sum((a & e).total() for a, e in pairs), sum(a.total() for a, _ in pairs), sum(e.total() for _, e in pairs)


def test_bleu() -> None:
    answers, expected = [text.split() for text in WRITTEN], [text.split() for text in WANTED]

    def score(answers: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> float:
        a, e = sum(map(len, answers)), sum(map(len, expected))
        product = math.prod(M / A for M, A, _ in (shared(n, answers, expected) for n in range(1, 5)))
        return 100 * math.exp(min(0.0, 1 - e / a)) * product ** (1 / 4)

    found = written.bleu(WRITTEN, WANTED)
    same(found, score(answers, expected))
    unlike(found, (score(answers[:1], expected[:1]) + score(answers[1:], expected[1:])) / 2)
    assert sum(map(len, answers)) < sum(map(len, expected))  # so the penalty of short answers counts


def test_chrf() -> None:
    def score(gap: str, beta: float) -> float:
        answers, expected = ([list(text.replace(" ", gap)) for text in texts] for texts in (WRITTEN, WANTED))
        counts = [shared(n, answers, expected) for n in range(1, 7)]
        P, R = sum(M / A for M, A, _ in counts) / 6, sum(M / E for M, _, E in counts) / 6
        return 100 * (1 + beta**2) * P * R / (beta**2 * P + R)

    found = written.chrf(WRITTEN, WANTED)
    same(found, score("", 2))
    unlike(found, score("", 1))
    unlike(found, score(" ", 2))


# ---------------------------------------------------------------------------------------------------------------- how sure


def quantile(values: Iterable[float], q: float) -> float:
    """Between the two nearest of the ordered values, in proportion."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    return ordered[below] + (place - below) * (ordered[min(below + 1, len(ordered) - 1)] - ordered[below])


def test_wilson_interval() -> None:
    """Also the other way round: the shares from which what was found lies no more than z deviations away."""
    z = 1.959963984540054
    for hits, rows in ((0, 20), (1, 29), (81, 263), (24, 24)):
        found = metrics.proportion(hits, rows)
        middle, half = hits + z**2 / 2, z * math.sqrt(hits * (rows - hits) / rows + z**2 / 4)
        same(
            [found.value, found.low, found.high],
            [hits / rows, (middle - half) / (rows + z**2), (middle + half) / (rows + z**2)],
        )
        for edge in {found.low, found.high} - {found.value}:
            assert abs(hits / rows - edge) == pytest.approx(z * math.sqrt(edge * (1 - edge) / rows))
    wald = z * math.sqrt(0.9 * 0.1 / 20)
    unlike([metrics.proportion(18, 20).low, metrics.proportion(18, 20).high], [0.9 - wald, 0.9 + wald])


def test_interval_of_an_auc() -> None:
    rng, z = np.random.default_rng(0), 1.959963984540054
    true = np.arange(40) < 15
    score = rng.normal(size=40) + 1.5 * true
    value, found = metrics.auc(true, score), metrics.auc_interval(true, score)
    more = 40 / 2 - 1

    def variance(t: float) -> float:
        return t * (1 - t) / (15 * 25) * (1 + more * (1 - t) / (2 - t) + more * t / (1 + t))

    same(found.value, value)
    for edge in (found.low, found.high):
        assert abs(value - edge) == pytest.approx(z * math.sqrt(variance(edge)), abs=1e-4)
    half = z * math.sqrt(variance(value))
    unlike([found.low, found.high], [value - half, value + half])
    apart = metrics.auc_interval(true, true)
    assert apart.high == 1 and 0.8 < apart.low < 0.95 and variance(1.0) == 0


def test_bootstrap_interval() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(3, size=60)
    guess = np.where(rng.random(60) < 0.7, true, rng.integers(3, size=60))
    ((_, draws),) = metrics.resampled_rows(60, 1000, seed=4)
    again = [sum(true[i] == guess[i] for i in chosen) / 60 for chosen in draws]
    wanted = sum(true == guess) / 60, quantile(again, 0.025), quantile(again, 0.975)
    found = metrics.interval(metrics.accuracy, true, guess, seed=4)
    same([found.value, found.low, found.high], wanted)
    pseudo = np.random.default_rng([4, 3])
    kind, step = 62 * pseudo.random((1000, 60)), pseudo.integers(1, 3, (1000, 60))
    again = []
    for chosen, kinds, steps in zip(draws, kind, step, strict=True):
        right = 0
        for i, one, further in zip(chosen, kinds, steps, strict=True):
            right += true[i] == (true[i] if one < 1 else (true[i] + further) % 3 if one < 2 else guess[i])
        again.append(right / 60)
    (found,) = metrics.intervals(lambda *sides: metrics.accuracy(*sides)[..., None], true, guess, 3, seed=4)
    same([found.value, found.low, found.high], (wanted[0], quantile(again, 0.025), quantile(again, 0.975)))
    assert (draws.min(), draws.max()) == (0, 59)
    assert np.allclose(np.bincount(draws.ravel()) / 1000, 1, atol=0.16)  # every row as likely: five deviations
    assert np.mean([len({*chosen}) for chosen in draws]) == pytest.approx(60 * (1 - (59 / 60) ** 60), rel=0.01)
    apart = [sum(true[i] == guess[j] for i, j in zip(*two, strict=True)) / 60 for two in itertools.pairwise(draws)]
    unlike([found.low, found.high], [quantile(apart, 0.025), quantile(apart, 0.975)])


def test_interval_over_seeds() -> None:
    x = [0.91, 0.88, 0.93, 0.90, 0.86]
    n = len(x)
    mean = sum(x) / n
    s = math.sqrt(sum((a - mean) ** 2 for a in x) / (n - 1))

    def below(t: float) -> float:
        """The share of Student's distribution with n - 1 degrees of freedom between 0 and t, by Simpson's rule."""
        f = n - 1
        top = math.gamma((f + 1) / 2) / (math.sqrt(f * math.pi) * math.gamma(f / 2))
        at = [top * (1 + (t * i / 1000) ** 2 / f) ** (-(f + 1) / 2) for i in range(1001)]
        return t / 3000 * (at[0] + 4 * sum(at[1:-1:2]) + 2 * sum(at[2:-1:2]) + at[-1])

    low, high = 0.0, 100.0
    for _ in range(60):
        low, high = (low, (low + high) / 2) if below((low + high) / 2) > 0.475 else ((low + high) / 2, high)
    found = metrics.over_seeds(x)
    same(
        [found.value, found.low, found.high], [mean, mean - low * s / math.sqrt(n), mean + low * s / math.sqrt(n)], 1e-9
    )
    assert 0.29 < 1 - 1.96 / low < 0.3  # what 1.96 would be too narrow by
    unlike(found.high, mean + low * s / math.sqrt(n) * math.sqrt((n - 1) / n))  # divided by n
    unlike(found.high, mean + s)


@pytest.mark.parametrize(("b", "c"), [(3, 9), (9, 3), (4, 4), (0, 1), (0, 0), (1, 12)])
def test_mcnemars_test(b: int, c: int) -> None:
    first = [True] * 20 + [True] * b + [False] * c
    second = [True] * 20 + [False] * b + [True] * c
    found = mcnemar(first, second)
    one_side = sum(math.comb(b + c, i) for i in range(min(b, c) + 1)) / 2 ** (b + c)
    same(found, min(1.0, 2 * one_side))
    assert b == c or found > one_side


def test_paired_permutation_test() -> None:
    M, n = 4999, 9
    first = numbers(n)
    second = first + 0.5 * numbers(n, seed=1) + 0.2

    def difference(one: np.ndarray, two: np.ndarray) -> Any:
        return np.mean(two, axis=-1) - np.mean(one, axis=-1)

    found = permutation(difference, first, second, seed=3)
    T = abs(sum(second - first) / n)
    swaps = np.random.default_rng(3).integers(2, size=(M, n), dtype=np.int8)
    larger = sum(abs(sum(np.where(swap, first - second, second - first)) / n) >= T - 1e-12 for swap in swaps)
    same(found, (1 + larger) / (1 + M))
    every = [abs(np.dot(signs, second - first) / n) >= T - 1e-12 for signs in itertools.product((1, -1), repeat=n)]
    exact = sum(every) / len(every)  # all 512 ways to swap
    assert 0.02 < exact < 0.9 and abs(found - exact) < 4 * math.sqrt(exact * (1 - exact) / M)
    assert permutation(difference, np.zeros(40), np.ones(40)) == 1 / (1 + M)  # never 0


# ---------------------------------------------------------------------------------------------------------------- the page


FUNCTION, TEST = re.compile(r"\[`(danlu\.[\w.]+)`\]\(([^)]+)\)"), re.compile(r"\[`(test_\w+)`\]\(([^)]+)\)")


def entries(page: Path) -> dict[str, str]:
    """Heading -> what stands below it, of the third depth."""
    parts = re.split(r"^(#{1,3} .+)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {
        heading[4:]: below
        for heading, below in zip(parts[1::2], parts[2::2], strict=True)
        if heading.startswith("### ")
    }


def formulas(text: str) -> list[str]:
    return re.findall(r"^\$\$\n(.*?)\n\$\$$", text, re.MULTILINE | re.DOTALL)


def resolved(name: str) -> tuple[Any, Path]:
    """The object of a dotted name and the file of its module."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if not name.startswith(str(error.name)):
                raise  # something it imports is missing
            continue
        found: Any = module
        for part in parts[cut:]:
            found = getattr(found, part)
        assert module.__file__
        return found, Path(module.__file__)
    raise AssertionError(f"{name}: no such module")


@pytest.mark.parametrize("page", [PAGE, CHINESE], ids=["English", "Chinese"])
def test_every_name_on_the_page_is_there(page: Path) -> None:
    own = {name for name, value in globals().items() if name.startswith("test_") and callable(value)}
    for heading, text in entries(page).items():
        functions, held = FUNCTION.findall(text), TEST.findall(text)
        assert formulas(text) and functions and len(held) == 1, heading
        assert len(re.findall(r"^- \*\*", text, re.MULTILINE)) == 4, heading
        for name, link in functions:
            found, path = resolved(name)
            assert found is not None and (page.parent / link).resolve() == path.resolve(), name
        assert (page.parent / held[0][1]).resolve() == Path(__file__).resolve() and held[0][0] in own, heading
    of_the_page = {name for name in own if "page" in name.split("_") or "pages" in name.split("_")}
    tests = [name for text in entries(page).values() for name, _ in TEST.findall(text)]
    assert Counter(tests) == Counter(own - of_the_page)


def test_the_formulas_of_the_page_are_what_github_shows() -> None:
    """GitHub reads Markdown before mathematics: a backslash before anything but a letter is eaten, stars and `](` are taken."""
    text = PAGE.read_text("utf-8")
    found = formulas(text)
    assert text.count("$") == 4 * len(found) and len(found) >= len(entries(PAGE))
    for formula in found:
        assert "\n" not in formula and formula.count("{") == formula.count("}"), formula
        assert not re.search(r"\\[^a-zA-Z]|\\operatorname|[*<>]|\]\(", formula), formula
        sides = [len(re.findall(rf"\\{side}(?![a-zA-Z])", formula)) for side in ("left", "right")]
        assert sides[0] == sides[1], formula


def test_both_pages_say_the_same() -> None:
    english, chinese = (page.read_text("utf-8") for page in (PAGE, CHINESE))
    one, two = (re.findall(r"^(#+) (.+)$", text, re.MULTILINE) for text in (english, chinese))
    assert [(depth, heading.rpartition(" · ")[2]) for depth, heading in two] == one
    for (heading, here), there in zip(entries(PAGE).items(), entries(CHINESE).values(), strict=True):
        assert formulas(here) == formulas(there), heading
        links = [
            [(name, Path(link).name) for name, link in re.findall(r"\[`?([^]`]+)`?\]\(([^)]+)\)", text)]
            for text in (here, there)
        ]
        assert links[0] == links[1], heading
