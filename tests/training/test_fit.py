"""What every task may rely on, each proven through `fit` itself: on toys in float64, and on real weights."""

from __future__ import annotations

import io
import itertools
import os
import random
import re
import runpy
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from danlu.core import checkpoint
from danlu.core.errors import UserError
from danlu.core.track import Tracker, read_lines
from danlu.core.types import Documents, Learner, Position, Privacy
from danlu.models.decoder import Decoder
from danlu.models.options import ModelOptions
from danlu.models.pretrained import load
from danlu.models.vision import describe, from_config
from danlu.surgery.adapter import add_lora
from danlu.tasks.language import Language
from danlu.tasks.supervised import Classification
from danlu.training.fit import State, Step, averaged, fit, swap_averages, usual_rate
from danlu.training.hooks import (
    Best,
    Interrupt,
    Progress,
    Record,
    Save,
    Skipped,
    Validate,
    restore,
    restore_learned,
    restore_weights,
    snapshot,
)
from danlu.training.optimizer import optimizer, schedule
from danlu.training.options import TrainingOptions


# ------------------------------------------------------------------------------------------------------------------ toys


@dataclass(frozen=True)
class Batch:
    x: Tensor
    y: Tensor
    rows: tuple[int, ...]
    unit: ClassVar[str] = "rows"

    @property
    def size(self) -> int:
        return len(self.rows)


X = torch.randn((12, 5), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randn((12, 5), generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def window(*parts: Sequence[int]) -> list[Batch]:
    return [Batch(X[list(part)], Y[list(part)], tuple(part)) for part in parts]


def stream(*windows: Sequence[Any]) -> Callable[[Position | None], Iterator[tuple[Sequence[Any], Position]]]:
    """The windows over and over; the position is how many are behind."""

    def data(start: Position | None) -> Iterator[tuple[Sequence[Any], Position]]:
        place = start["behind"] if start else 0
        while True:
            yield windows[place % len(windows)], {"behind": place + 1}
            place += 1

    return data


def net(*widths: int, dropout: float = 0.0, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.Tanh(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2]).double()


def learner(model: nn.Module, lr: float = 0.1, momentum: float = 0.0, **more: Any) -> Learner:
    return Learner(
        dict(model.named_parameters()), torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum), **more
    )


class Toy:
    """What most tasks leave alone."""

    def __init__(self, **learners: Learner) -> None:
        self._learners = learners

    def learners(self) -> dict[str, Learner]:
        return self._learners

    def begin(self, window: Sequence[Batch], learner: str, rng: torch.Generator) -> None: ...

    def counts(self, batch: Batch, learner: str) -> dict[str, float]:
        return {"loss": float(len(batch.rows))}

    def end(self, learner: str) -> None: ...

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class Regression(Toy):
    def __init__(self, model: nn.Module, learner: Learner) -> None:
        super().__init__(model=learner)
        self.model = model

    def losses(self, batch: Batch, learner: str) -> dict[str, Tensor]:
        return {"loss": (self.model(batch.x) - batch.y).square().sum(1)}


class TwoTerms(Regression):
    """A weighted error over its summed weights, and a penalty over rows, counted three times."""

    def counts(self, batch: Batch, learner: str) -> dict[str, float]:
        return {"error": float(batch.x[:, 0].abs().sum()), "size": float(len(batch.rows))}

    def losses(self, batch: Batch, learner: str) -> dict[str, Tensor]:
        out = self.model(batch.x)
        return {"error": batch.x[:, 0].abs() * (out - batch.y).square().sum(1), "size": out.abs().sum(1)}


def gradients(task: Any, whole: Sequence[Any], privacy_seed: int = 0) -> dict[str, Tensor]:
    """One step of SGD with momentum, whose memory is then the gradient itself, bit for bit."""
    fit(State(task, stream(whole), seed=privacy_seed), 1)
    (learner,) = task.learners().values()
    return {name: learner.optimizer.state[p]["momentum_buffer"].clone() for name, p in learner.parameters.items()}


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Relative, by norm over all weights."""
    assert left.keys() == right.keys()
    apart = torch.cat([(left[name] - right[name]).flatten() for name in left]).double().norm()
    return float(apart / torch.cat([value.flatten() for value in right.values()]).double().norm())


def autograd(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# ----------------------------------------------------------------------------------- any split is the gradient of the whole


@st.composite
def splits(draw: st.DrawFn) -> list[list[int]]:
    rows = draw(st.permutations(range(draw(st.integers(1, 12)))))
    cuts = sorted(draw(st.sets(st.integers(1, len(rows) - 1))) if len(rows) > 1 else [])
    return [list(rows[a:b]) for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]


@settings(max_examples=60, deadline=None)
@given(splits())
def test_two_terms_with_their_own_denominators_in_any_split(parts: list[list[int]]) -> None:
    model = net(5, 7, 5)
    found = gradients(
        TwoTerms(model, learner(model, 0.0, 0.9, weights={"size": 3.0})),
        window(*parts),
    )
    rows = [row for part in parts for row in part]
    out, weight = model(X[rows]), X[rows, 0].abs()
    error = (weight * (out - Y[rows]).square().sum(1)).sum() / weight.sum()
    assert distance(found, autograd(error + 3 * out.abs().sum(1).mean(), model)) < 1e-10


def test_what_an_update_reports_are_the_means_over_the_window() -> None:
    model = net(5, 7, 5)
    steps: list[Step] = []
    task = TwoTerms(model, learner(model, weights={"size": 3.0}))
    before = weights(model)
    fit(State(task, stream(window([0], [1, 2, 3, 4, 5]))), 1, [lambda _, step: steps.append(step)])
    found = steps[0].updates["model"]
    model.load_state_dict(before)
    (whole,) = window(range(6))
    sums, counts = task.losses(whole, "model"), task.counts(whole, "model")
    expected = {name: float(value.detach().sum() / counts[name]) for name, value in sums.items()}
    assert found.losses == pytest.approx(expected, rel=1e-12)
    assert found.counts == pytest.approx(counts)
    assert found.loss == pytest.approx(expected["error"] + 3 * expected["size"], rel=1e-12)
    assert steps[0].number == 1 and found.learning_rate == 0.1


def documents(tokens: Sequence[Sequence[int]], labels: Sequence[int] | None = None) -> list[Documents]:
    """One micro-batch a row. Language learns the second half of each row."""
    result = []
    for row, ids in enumerate(tokens):
        wanted = [*([-100] * (len(ids) // 2)), *ids[len(ids) // 2 + 1 :], -100]
        targets = wanted if labels is None else [labels[row]]
        result.append(Documents(torch.tensor(ids), (len(ids),), torch.tensor(targets), (row,)))
    return result


def together(batches: Sequence[Documents]) -> Documents:
    return Documents(
        torch.cat([batch.ids for batch in batches]),
        tuple(length for batch in batches for length in batch.lengths),
        torch.cat([batch.targets for batch in batches]),
        tuple(row for batch in batches for row in batch.rows),
    )


def some_tokens(*lengths: int) -> list[list[int]]:
    rng = torch.Generator().manual_seed(3)
    return [torch.randint(1000, 20000, (length,), generator=rng).tolist() for length in lengths]


def real_splits(batches: list[Documents]) -> list[list[Documents]]:
    whole = [together(batches)]
    return [whole, batches, [together(batches[3:]), batches[1], together([batches[2], batches[0]])]]


def test_any_split_on_the_real_smollm2_with_lora(smollm2: Path) -> None:
    model = add_lora(load(smollm2, task="language"), ModelOptions(rank=4), seed=0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    torch.manual_seed(0)
    for name, parameter in trained.items():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    batches = documents(some_tokens(5, 21, 9, 2, 14))
    found = []
    for split in real_splits(batches):
        optimizer = torch.optim.SGD(trained.values(), lr=0.0, momentum=0.9)
        found.append(gradients(Language(model, Learner(trained, optimizer)), split))
    assert max(distance(other, found[0]) for other in found[1:]) < 1e-5


def test_any_split_on_the_real_minilm_with_all_weights_and_class_weights(minilm: Path) -> None:
    model = load(minilm, task="classification", labels=["a", "b", "c"], dropout=0.0, log=lambda _: None)
    trained = dict(model.named_parameters())
    batches = documents(some_tokens(7, 16, 3, 11, 5), labels=[0, 2, 1, 2, 0])
    found = []
    for split in real_splits(batches):
        optimizer = torch.optim.SGD(trained.values(), lr=0.0, momentum=0.9)
        task = Classification(model, Learner(trained, optimizer), torch.tensor([0.3, 1.0, 2.5]))
        found.append(gradients(task, split))
    assert max(distance(other, found[0]) for other in found[1:]) < 1e-5


# -------------------------------------------------------------------------------------------------------------- two networks


class GAN(Toy):
    """Non-saturating (Goodfellow et al. 2014): `x` is the noise, `y` what is real."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__(discriminator=learner(discriminator, 0.3), generator=learner(generator, 0.2, every=2))
        self.generator, self.discriminator = generator, discriminator
        self.frozen: list[tuple[str, set[bool], set[bool]]] = []

    def counts(self, batch: Batch, learner: str) -> dict[str, float]:
        terms = ("real", "made") if learner == "discriminator" else ("fooled",)
        return dict.fromkeys(terms, float(len(batch.rows)))

    def losses(self, batch: Batch, learner: str) -> dict[str, Tensor]:
        trained = [{p.requires_grad for p in module.parameters()} for module in (self.generator, self.discriminator)]
        self.frozen.append((learner, *trained))
        made = self.discriminator(self.generator(batch.x))[:, 0]
        if learner == "generator":
            return {"fooled": F.softplus(-made)}
        return {"real": F.softplus(-self.discriminator(batch.y)[:, 0]), "made": F.softplus(made)}


def test_a_gan_with_two_discriminator_steps_to_one_of_the_generator() -> None:
    windows = [window([0, 1], [2]), window([3, 4, 5]), window([6], [7, 8]), window([9, 10, 11])]
    task = GAN(net(5, 6, 5, seed=1), net(5, 6, 1, seed=2))
    learned: list[list[str]] = []
    fit(State(task, stream(*windows)), 4, [lambda _, step: learned.append(list(step.updates))])

    G, D = net(5, 6, 5, seed=1), net(5, 6, 1, seed=2)  # the same by hand
    of_G, of_D = torch.optim.SGD(G.parameters(), lr=0.2), torch.optim.SGD(D.parameters(), lr=0.3)
    for step, batches in enumerate(windows):
        rows = [row for batch in batches for row in batch.rows]
        of_D.zero_grad()
        made = D(G(X[rows]).detach())
        (F.binary_cross_entropy_with_logits(D(Y[rows]), torch.ones_like(made))
         + F.binary_cross_entropy_with_logits(made, torch.zeros_like(made))).backward()  # fmt: skip
        of_D.step()
        if step % 2 == 0:
            of_G.zero_grad()
            made = D(G(X[rows]))
            F.binary_cross_entropy_with_logits(made, torch.ones_like(made)).backward()
            of_G.step()

    assert learned == [["discriminator", "generator"], ["discriminator"]] * 2
    assert distance(weights(task.generator), weights(G)) < 1e-12
    assert distance(weights(task.discriminator), weights(D)) < 1e-12
    assert {each[0] for each in task.frozen} == {"generator", "discriminator"}
    for name, generator, discriminator in task.frozen:
        assert generator == {name == "generator"} and discriminator == {name == "discriminator"}
    assert all(p.requires_grad for module in (task.generator, task.discriminator) for p in module.parameters())


# ---------------------------------------------------------------------------------------------------------- the whole window


class InfoNCE(Toy):
    """Contrastive loss (van den Oord et al. 2018) over a window of micro-batches, exact by GradCache (Gao et al. 2021):
    `begin` finds each embedding's gradient, `losses` carries it into the network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model=learner(model, 0.0, 0.9))
        self.model = model

    def embed(self, x: Tensor) -> Tensor:
        return F.normalize(self.model(x), dim=1)

    @staticmethod
    def loss(left: Tensor, right: Tensor) -> Tensor:
        return F.cross_entropy(left @ right.T / 0.1, torch.arange(len(left)), reduction="none")

    def begin(self, window: Sequence[Batch], learner: str, rng: torch.Generator) -> None:
        with torch.no_grad():
            pairs = [(self.embed(batch.x), self.embed(batch.y)) for batch in window]
        left, right = (torch.cat(side).requires_grad_() for side in zip(*pairs, strict=True))
        losses = self.loss(left, right)
        slopes = torch.autograd.grad(losses.sum(), (left, right))
        rows = [row for batch in window for row in batch.rows]
        places = {row: place for place, row in enumerate(rows)}
        self.cached = losses.detach(), *slopes, places

    def losses(self, batch: Batch, learner: str) -> dict[str, Tensor]:
        losses, left, right, places = self.cached
        mine = [places[row] for row in batch.rows]
        carried = (self.embed(batch.x) * left[mine] + self.embed(batch.y) * right[mine]).sum(1)
        return {"loss": carried + (losses[mine] - carried).detach()}


@settings(max_examples=25, deadline=None)
@given(splits())
def test_a_contrastive_loss_sees_more_than_its_micro_batch(parts: list[list[int]]) -> None:
    task = InfoNCE(net(5, 7, 4))
    reported: list[float] = []
    fit(State(task, stream(window(*parts))), 1, [lambda _, step: reported.append(step.updates["model"].loss)])
    found = gradients(InfoNCE(task.model), window(*parts))
    rows = [row for part in parts for row in part]
    whole = task.loss(task.embed(X[rows]), task.embed(Y[rows])).mean()
    assert reported == [pytest.approx(float(whole.detach()), rel=1e-12)]
    expected = autograd(whole, task.model)
    assert all((found[name] - value).abs().max() < 1e-10 for name, value in expected.items())


# -------------------------------------------------------------------------------------------------------------------- privacy


def clipped_mean(model: nn.Module, rows: Sequence[int], clip: float) -> dict[str, Tensor]:
    """The naive loop: one example, one backward, one clipping."""
    total: dict[str, Tensor] = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in rows:
        own = autograd((model(X[row : row + 1]) - Y[row : row + 1]).square().sum(), model)
        norm = float(torch.nn.utils.get_total_norm(list(own.values())))
        for name, value in own.items():
            total[name] += value * min(1.0, clip / norm)
    return {name: value / len(rows) for name, value in total.items()}


def private(parts: Sequence[Sequence[int]], noise: float, seed: int = 0, clip: float = 9.0) -> dict[str, Tensor]:
    model = net(5, 7, 5)
    return gradients(
        Regression(model, learner(model, 0.0, 0.9, privacy=Privacy(clip, noise))), window(*parts), privacy_seed=seed
    )


def test_per_example_gradients_are_clipped_one_by_one() -> None:
    expected = clipped_mean(net(5, 7, 5), range(7), 9.0)
    norms = {
        float(torch.nn.utils.get_total_norm(list(clipped_mean(net(5, 7, 5), [row], 1e9).values()))) for row in range(7)
    }
    assert min(norms) < 9.0 < max(norms)  # some are clipped, others are not
    alone = private([[row] for row in range(7)], 0.0)
    assert all(torch.allclose(alone[name], value, rtol=0, atol=1e-15) for name, value in expected.items())
    for parts in ([range(7)], [[3], [0, 1, 2], [4, 5, 6]]):
        assert distance(private(parts, 0.0), expected) < 1e-12


def test_noise_is_drawn_once_by_seed_and_has_its_deviation() -> None:
    first = private([range(4), range(4, 7)], 1.5)
    assert equal(first, private([range(4), range(4, 7)], 1.5))
    assert distance(private([range(7)], 1.5), first) < 1e-12  # not once a micro-batch
    assert distance(private([range(7)], 1.5, seed=1), first) > 0.1
    quiet, drawn = private([range(7)], 0.0), []
    for seed in range(30):
        noisy = private([range(7)], 1.5, seed)
        drawn += [7 * (noisy[name] - value).flatten() for name, value in quiet.items()]
    noise = torch.cat(drawn)
    assert float(noise.std()) == pytest.approx(1.5 * 9.0, rel=0.05)
    assert abs(float(noise.mean())) < 0.7


# --------------------------------------------------------------------------------------------------------------------- policy


class Bandit(Toy):
    """REINFORCE (Williams 1992) on arms, of which the third pays; the actions are sampled from the weights as they are."""

    def __init__(self) -> None:
        self.model = nn.Linear(5, 4, bias=False).double()
        nn.init.zeros_(self.model.weight)
        super().__init__(model=learner(self.model, 1.0))
        self.sampled: list[Tensor] = []

    def begin(self, window: Sequence[Batch], learner: str, rng: torch.Generator) -> None:
        with torch.no_grad():
            chances = [self.model(batch.x.abs()).softmax(1) for batch in window]
        self.actions = {
            batch.rows: torch.multinomial(chance, 1, generator=rng)
            for batch, chance in zip(window, chances, strict=True)
        }
        self.sampled.append(torch.cat(list(self.actions.values()))[:, 0])

    def losses(self, batch: Batch, learner: str) -> dict[str, Tensor]:
        actions = self.actions[batch.rows]
        chosen = self.model(batch.x.abs()).log_softmax(1).gather(1, actions)[:, 0]
        return {"loss": -((actions[:, 0] == 2).double() - 0.25) * chosen}


def test_a_policy_learns_from_what_it_samples_of_its_own_live_weights() -> None:
    def trained(seed: int) -> Bandit:
        task = Bandit()
        fit(State(task, stream(window(range(6), range(6, 12))), seed=seed), 60)
        return task

    task = trained(0)
    assert float((torch.cat(task.sampled[:5]) == 2).double().mean()) < 0.6
    assert float((torch.cat(task.sampled[-5:]) == 2).double().mean()) > 0.9
    assert equal(weights(task.model), weights(trained(0).model))
    assert not all(torch.equal(a, b) for a, b in zip(task.sampled, trained(1).sampled, strict=True))
    assert len({tuple(actions.tolist()) for actions in task.sampled[:5]}) > 1  # every step draws anew


def test_learners_draw_random_numbers_of_their_own() -> None:
    class Drawing(GAN):
        drawn: dict[str, Tensor] = {}  # noqa: RUF012

        def begin(self, window: Sequence[Batch], learner: str, rng: torch.Generator) -> None:
            self.drawn[learner] = torch.randn(8, generator=rng)

    task = Drawing(net(5, 5), net(5, 1))
    fit(State(task, stream(window([0, 1]))), 1)
    assert not torch.equal(task.drawn["generator"], task.drawn["discriminator"])


# ------------------------------------------------------------------------------------------------------------- two processes


def test_two_processes_under_torchrun_are_one(tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_processes.py")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, tmp_path],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    train = runpy.run_path(str(script))["train"]
    for private in (False, True):
        alone = train(private)
        shares = [load_file(tmp_path / f"{private}-{rank}.safetensors") for rank in (0, 1)]
        assert equal(shares[0], shares[1])
        assert distance(shares[0], alone) < 1e-10
    for rank in (0, 1):
        whole, parts = (load_file(tmp_path / name / f"end-{rank}.safetensors") for name in ("whole", "parts"))
        assert equal(whole, parts)
        lines = [tmp_path / name / f"numbers-{rank}" / "metrics.jsonl" for name in ("whole", "parts")]
        assert lines[0].read_bytes() == b"".join(lines[1].read_bytes().splitlines(keepends=True)[:6])
        assert re.search(
            "step-00000007: the checkpoint could not be written", (tmp_path / "parts" / f"said-{rank}").read_text()
        )
    ends = [load_file(tmp_path / "whole" / f"end-{rank}.safetensors") for rank in (0, 1)]
    assert not torch.equal(ends[0]["task/seen"], ends[1]["task/seen"]), "nothing differs between the processes"
    found, complaints = checkpoint.newest(tmp_path / "parts" / "checkpoints")
    assert found is not None and found.step == 6 and not complaints
    shared, own = (
        {"weights", "optimizer", "average"},
        {f"{name}-{rank}-of-2" for name in ("task", "random") for rank in (0, 1)},
    )
    assert {path.stem for path in found.path.glob("*.safetensors")} == shared | own
    assert not list(found.path.parent.glob(".building-*"))
    for read in (found.state, lambda: found.tensors("weights")):
        with pytest.raises(UserError, match="was written by 2 processes and cannot be read by 1"):
            read()
    (found.path / "random-1-of-2.safetensors").unlink()
    assert checkpoint.verify(found.path) == "random-1-of-2.safetensors is missing"


# ----------------------------------------------------------------------------------------------------- around the gradient


@pytest.mark.parametrize("clip", [0.5, 1e6])
def test_clipping_scales_the_whole_gradient(clip: float) -> None:
    model = net(5, 7, 5)
    before = weights(model)
    free = gradients(Regression(model, learner(model, 0.0, 0.9)), window(range(6)))
    norm = float(torch.nn.utils.get_total_norm(list(free.values())))
    steps: list[Step] = []
    state = State(Regression(model, learner(model, 1.0, clip=clip)), stream(window([0], [1, 2, 3, 4, 5])))
    fit(state, 1, [lambda _, step: steps.append(step)])
    assert steps[0].updates["model"].gradient_norm == pytest.approx(norm)
    moved = {name: before[name] - value for name, value in weights(model).items()}
    expected = {name: value * min(1.0, clip / norm) for name, value in free.items()}
    assert distance(moved, expected) < 1e-5


def test_the_schedule_scales_every_group_from_its_peak() -> None:
    model = net(5, 7, 5)
    options = TrainingOptions(optimizer="sgd", learning_rates={"3.": 0.4}, weight_decay=0.0)
    built = optimizer(dict(model.named_parameters()), options, 0.1)
    factor = schedule("linear", 4, 0.5)
    who = Learner(dict(model.named_parameters()), built, schedule=factor)
    rates: list[list[float]] = []
    fit(
        State(Regression(model, who), stream(window([0]))),
        4,
        [lambda *_: rates.append(sorted({group["lr"] for group in built.param_groups}))],
    )
    assert rates == [pytest.approx([0.1 * f, 0.4 * f]) for f in (0.5, 1.0, 1.0, 0.5)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ("wsd", [0.5, 1, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]),
    ],
)
def test_schedules_rise_and_fall(kind: str, expected: list[float]) -> None:
    factor = schedule(kind, 12, 2 / 12)
    assert [factor(step) for step in range(12)] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd"])
def test_schedules_end_where_they_are_told(kind: str) -> None:
    factor = schedule(kind, 12, 2 / 12, 0.25)
    assert factor(1) == factor(2) == 1.0 and factor(12) == factor(99) == pytest.approx(0.25)
    assert factor(11) > 0.25 and (kind != "wsd" or (factor(7) == pytest.approx(1.0) and factor(8) < 0.9))


def test_a_schedule_that_there_is_not_is_an_error_that_lists_them() -> None:
    with pytest.raises(UserError, match="found 'cosinus', expected one of constant, linear, cosine, wsd"):
        schedule("cosinus", 10, 0.1)
    with pytest.raises(UserError, match=r"final_rate=0\.1: schedule=constant stays at its peak"):
        schedule("constant", 10, 0.1, 0.1)


def test_the_cosine_ends_at_a_tenth() -> None:
    factor = schedule("cosine", 10, 0.0)
    assert factor(0) == 1.0 and factor(5) == pytest.approx(0.55) and factor(10) == pytest.approx(0.1)
    assert factor(1000) == pytest.approx(0.1)  # past the end
    assert all(factor(step) > factor(step + 1) for step in range(10))


def test_a_pattern_of_learning_rates_that_means_nothing_is_an_error() -> None:
    model = net(5, 7, 5)
    with pytest.raises(UserError, match=r"learning_rates: 'layers\.9' matches none of the 4 trained weights"):
        optimizer(dict(model.named_parameters()), TrainingOptions(learning_rates={"layers.9": 1.0}), 0.1)


def test_the_rate_that_is_recorded_is_that_of_most_weights() -> None:
    def recorded(*groups: tuple[int, float]) -> float:
        return usual_rate(torch.optim.SGD([{"params": [torch.zeros(n)], "lr": rate} for n, rate in groups]))

    assert recorded((3, 0.5), (5, 0.1), (1, 0.9)) == 0.1
    assert recorded((3, 0.1), (5, 0.5), (3, 0.1)) == 0.1, "two groups of one rate are together"
    assert recorded((3, 0.2), (3, 0.1)) == 0.1, "of equally many the lower"


def test_vectors_do_not_decay() -> None:
    model = net(5, 7, 5)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = optimizer(dict(model.named_parameters()), TrainingOptions(weight_decay=0.3), 0.1).param_groups
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decay == {"0.weight": 0.3, "0.bias": 0.0, "3.weight": 0.3, "3.bias": 0.0}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("rate", [0.5, 0.02, 0.0])
def test_a_higher_rate_of_a_group_is_no_faster_decay(kind: str, rate: float) -> None:
    model = net(5, 7, 5)
    still = model[3].weight.detach().clone()
    options = TrainingOptions(optimizer=kind, weight_decay=0.3, learning_rates={"3.": rate})
    built = optimizer(dict(model.named_parameters()), options, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    built.step()
    torch.testing.assert_close(model[3].weight, still * (1 - min(rate, 0.1) * 0.3), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "momentum", "said"),
    [("adamw", None, "adamw with momentum=0.9"), ("muon", 0.8, "muon with momentum=0.8"), ("sgd", 0.0, "momentum=0 ")],
)
def test_nesterov_without_momentum_to_look_along_is_an_error(kind: str, momentum: float | None, said: str) -> None:
    options = TrainingOptions(optimizer=kind, momentum=momentum, nesterov=True)
    with pytest.raises(UserError, match=said):
        optimizer(dict(net(5, 5).named_parameters()), options, 0.1)


def decoder() -> Decoder:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    return Decoder(sizes | {"model_type": "llama", "vocab_size": 300, "tie_word_embeddings": False})


def toy_documents(*lengths: int) -> list[Documents]:
    """Of the decoder's 300 tokens."""
    return documents([[token % 300 for token in row] for row in some_tokens(*lengths)])


def by_muon(model: nn.Module) -> set[str]:
    """The weights that Muon takes."""
    names = {id(p): name for name, p in model.named_parameters()}
    built = optimizer(dict(model.named_parameters()), TrainingOptions(optimizer="muon", weight_decay=0.1), 0.01)
    assert sorted(id(p) for group in built.param_groups for p in group["params"]) == sorted(names)
    return {names[id(p)] for group in built.param_groups if "muon_momentum" in group for p in group["params"]}


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest() -> None:
    projections = {f"self_attn.{name}_proj" for name in "qkvo"} | {
        f"mlp.{name}_proj" for name in ("gate", "up", "down")
    }
    assert by_muon(decoder()) == {f"model.layers.{layer}.{name}.weight" for layer in (0, 1) for name in projections}
    size = {"channels": 1, "size": 28, "labels": ["a", "b"]}
    assert by_muon(from_config(describe("mlp", hidden=(8, 6), **size))) == {"layers.0.weight", "layers.1.weight"}
    assert by_muon(from_config(describe("resnet18", **size))) == set()  # kernels, norms and a head: all AdamW's


@pytest.mark.parametrize("sides", [(24, 40), (40, 24), (32, 32)])
def test_muon_is_torchs_own_up_to_its_bfloat16(sides: tuple[int, int]) -> None:
    ours, theirs = (nn.Parameter(torch.ones(sides)) for _ in range(2))
    mine = optimizer({"w": ours}, TrainingOptions(optimizer="muon", weight_decay=0.1), 0.1)
    torchs = torch.optim.Muon([theirs], 0.1, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    rng = torch.Generator().manual_seed(0)
    for _ in range(10):
        ours.grad = torch.randn(sides, generator=rng)
        theirs.grad = ours.grad.clone()
        mine.step()
        torchs.step()
    start = torch.ones(sides) * (1 - 0.1 * 0.1) ** 10
    assert distance({"w": ours.detach() - start}, {"w": theirs.detach() - start}) < 0.02


def test_the_moving_average_follows_the_weights() -> None:
    model = net(5, 7, 5)
    task = Regression(model, learner(model, ema=0.3))
    seen: list[dict[str, Tensor]] = []
    fit(State(task, stream(window([0, 1]), window([2]))), 7, [lambda *_: seen.append(weights(model))])
    expected = seen[0]
    for decay, each in zip([2 / 11, 3 / 12, 0.3, 0.3, 0.3, 0.3], seen[1:], strict=True):
        expected = {name: decay * value + (1 - decay) * each[name] for name, value in expected.items()}
    assert distance(task.learners()["model"].average, expected) < 1e-12
    assert not equal(task.learners()["model"].average, weights(model))


def test_the_moving_average_is_validated_and_kept_and_the_weights_learn_on(tmp_path: Path) -> None:
    windows = [window([0, 1]), window([2, 3])]
    plain = net(5, 7, 5)
    fit(State(Regression(plain, learner(plain)), stream(*windows)), 12)

    model = net(5, 7, 5)
    task = Regression(model, learner(model, ema=0.99))
    who, tracker, rows = task.learners()["model"], Tracker(tmp_path), window([4, 5], [6])

    def measures(batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        return {"loss": (task.losses(batch, "model")["loss"], torch.ones(len(batch.rows)))}

    @torch.no_grad()
    def loss() -> float:
        return sum(float(task.losses(batch, "model")["loss"].sum()) for batch in rows) / 3

    said: list[str] = []
    nothing = Validate(model, lambda batch: {"loss": (torch.zeros(1), torch.zeros(1))}, rows, 1, 12, 1, tracker, Best(), said.append)  # fmt: skip
    state = State(task, stream(*windows))
    nothing(state, Step(0, windows[0]))
    assert "no validation" in said[0] and state.stop is None, "nothing to measure is not a bad measurement"
    hook = Validate(model, measures, rows, 4, 12, None, tracker, Best(), lambda _: None)
    fit(state, 12, [hook])
    tracker.close()
    assert equal(weights(model), weights(plain))  # bit for bit as without an average
    average = {name: value.clone() for name, value in who.average.items()}
    with averaged(task.learners()):
        assert equal(weights(model), average) and equal(who.average, weights(plain))
        inside = loss()
    assert equal(weights(model), weights(plain)) and equal(who.average, average)
    found = [line["validation"]["loss"] for line in read_lines(tmp_path / "metrics.jsonl") if "validation" in line]
    assert len(found) == 3 and found[-1] == pytest.approx(inside, rel=1e-12) != loss()

    saved = checkpoint.save(tmp_path / "checkpoints", 12, *snapshot(state))
    other = net(5, 7, 5, seed=3)
    again = Regression(other, learner(other, ema=0.99))
    restore_weights(State(again, stream(*windows)), saved)
    swap_averages(again.learners())
    assert equal(weights(other), average)


def test_every_step_records_the_learning_rate_and_the_norm_before_clipping(tmp_path: Path) -> None:
    model, tracker, (batch,) = decoder(), Tracker(tmp_path), toy_documents(20)
    loss = F.cross_entropy(model.logits(model(batch.ids, batch.lengths)), batch.targets)
    norm = float(torch.nn.utils.get_total_norm(torch.autograd.grad(loss, list(model.parameters()))))
    who = learner(model, 0.5, schedule=schedule("linear", 4, 0.5), clip=norm / 3)
    fit(State(Language(model, who), stream([batch])), 4, [Record(tracker, 1)])
    tracker.close()
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert lines[0]["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.25, 0.5, 0.5, 0.25])


def test_a_hook_ends_training_and_a_finished_state_is_left_alone() -> None:
    model = net(5, 5)
    state = State(Regression(model, learner(model)), stream(window([0]), window([1])))

    def third(state: State, step: Step) -> None:
        state.stop = "enough" if step.number == 3 else None

    fit(state, 10, [third])
    assert (state.step, state.stop, state.position) == (3, "enough", {"behind": 3})
    before = weights(model)
    fit(state, 10)
    state.stop = None
    fit(state, 3)
    assert state.step == 3 and equal(before, weights(model))


# ----------------------------------------------------------------------------------------------------------------- not finite


@pytest.mark.parametrize("private", [None, Privacy(1.0, 0.0)])
def test_a_loss_that_is_not_finite_names_its_rows_and_changes_no_weight(private: Privacy | None) -> None:
    model = net(5, 7, 5)
    good, bad = window([0, 1], [2]), window([3, 4], [5, 6, 7], [8])
    bad[1].x[1, 2] = float("nan")
    bad[2] = Batch(bad[2].x, bad[2].y * float("inf"), (8,))
    task = Regression(model, learner(model, momentum=0.9, privacy=private, ema=0.5))
    state = State(task, stream(good, bad))
    fit(state, 1)
    before, (memory, content) = weights(model), snapshot(state)
    memory = {file: {name: value.clone() for name, value in part.items()} for file, part in memory.items()}
    with pytest.raises(UserError) as error:
        fit(state, 2)
    assert "step 2: loss nan" in str(error.value) or "step 2: loss inf" in str(error.value)
    assert "(rows 6, 8)" in str(error.value) and "learning_rate" in error.value.fix
    assert equal(before, weights(model)) and state.step == 1
    after, again = snapshot(state)
    assert again == content
    assert all(equal(dict(memory[file]), dict(after[file])) for file in ("weights", "optimizer", "average"))


def test_a_gradient_that_is_not_finite_names_the_rows_of_the_window() -> None:
    class Root(Regression):
        def losses(self, batch: Batch, learner: str) -> dict[str, Tensor]:
            return {"loss": (self.model(batch.x) * 0).abs().sum(1).sqrt()}  # 0, with a slope of infinity times 0

    model = net(5, 5)
    before = weights(model)
    with pytest.raises(UserError, match=r"step 1: loss 0, gradient norm nan: not finite \(rows 3, 4, 10\)"):
        fit(State(Root(model, learner(model)), stream(window([10, 3], [4]))), 1)
    assert equal(before, weights(model))


class Normed(Regression):
    """With running statistics, which every forward pass changes, and a slope of 0 times infinity where a target is 77."""

    def losses(self, batch: Batch, learner: str) -> dict[str, Tensor]:
        out = self.model(batch.x)
        return {"loss": (out - batch.y).square().sum(1) + 0 * (out.sum(1) * (batch.y[:, 0] != 77)).abs().sqrt()}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: each.clone() for name, each in self.model.named_buffers()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.model.load_state_dict(state, strict=False)


def normed() -> Normed:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 5)).double()
    return Normed(model, learner(model, 0.05, momentum=0.9, ema=0.9, clip=1.0))


def noisy(step: int, harm: str | None = None) -> list[Batch]:
    """A window like no other, of rows 10 * step to 10 * step + 7; with `harm`, row 10 * step + 6 is what no training wants."""
    rng = torch.Generator().manual_seed(step)
    x = torch.randn((8, 5), generator=rng, dtype=torch.float64)
    y = torch.randn((8, 5), generator=rng, dtype=torch.float64)
    rows = tuple(range(10 * step, 10 * step + 8))
    if harm in ("nan", "inf"):
        x[6, 2] = float(harm)
    elif harm == "target":
        y[6] = float("nan")
    elif harm == "slope":
        y[6] = 77.0
    elif harm == "spike":
        y[6] = 300.0
    return [Batch(x[:3], y[:3], rows[:3]), Batch(x[3:], y[3:], rows[3:])]


HARMS = ("nan", "inf", "target", "slope", "spike")


def test_fifty_harmful_updates_are_skipped_and_no_other() -> None:
    """Weights, optimizer, averages and running statistics stay bit for bit; the row is named; the harm enters no statistic."""
    dice = random.Random(7)
    places = sorted(dice.sample(range(140, 600, 2), 50))
    harms = {place: HARMS[number % len(HARMS)] for number, place in enumerate(places)}
    state = State(normed(), stream(*(noisy(step, harms.get(step)) for step in range(600))), skips=1, spike=2.0)
    held: dict[str, Tensor] = {}
    handled: dict[int, str] = {}

    def everything() -> dict[str, Tensor]:
        return {f"{file}/{key}": value.clone() for file, part in snapshot(state)[0].items() if file != "random" for key, value in part.items()}  # fmt: skip

    def look(state: State, step: Step) -> None:
        update, now = step.updates["model"], everything()
        assert (update.skipped is not None) == equal(held, now)
        if update.skipped:
            handled[step.number - 1] = update.skipped
            bad, harm = 10 * (step.number - 1) + 6, harms[step.number - 1]
            assert (
                update.rows[0] == bad or bad in update.rows[: {"nan": 5, "inf": 5}[harm]]
            )  # normalised with the other four
            assert len(update.rows) == {"nan": 5, "inf": 5, "target": 1, "slope": 8, "spike": 8}[harm]
        held.clear()
        held.update(now)

    fit(state, 600, [look])
    assert handled.keys() == harms.keys()
    assert all(("far above the last 128" in handled[place]) == (harms[place] == "spike") for place in places)
    recent = state.recent["model"]
    assert len(recent.losses) == len(recent.norms) == 128 and max(recent.losses) < 50


def test_without_spike_only_what_is_not_finite_is_skipped() -> None:
    state = State(normed(), stream(*(noisy(step, "spike" if step == 150 else None) for step in range(160))), skips=1)
    skipped: list[int] = []

    def look(state: State, step: Step) -> None:
        skipped.extend([step.number] if step.updates["model"].skipped else [])

    fit(state, 160, [look])
    assert not skipped


def test_after_too_many_in_a_row_it_goes_back_and_on_behind_the_rows(tmp_path: Path) -> None:
    """Three harmful windows after step 10: the weights of the checkpoint of step 8, and on with the fourth; killed anywhere, the same."""
    windows = [noisy(step, "nan" if step in (10, 11, 12) else None) for step in range(20)]
    said: list[str] = []

    def run(state: State, until: int, folder: Path) -> State:
        folder.mkdir(exist_ok=True)
        with closing(Tracker(folder)) as tracker:
            save = Save(folder, 4, 20, tracker, Best(), lambda: 0.0)
            fit(state, until, [Record(tracker, 20), Skipped(save, said.append), save])
            save.wait()
            return state

    whole = run(State(normed(), stream(*windows), skips=3), 20, tmp_path / "whole")
    assert any("back to the weights of step 8" in line for line in said) and len(said) == 4
    lines = read_lines(tmp_path / "whole" / "metrics.jsonl")
    assert [line["step"] for line in lines if "skipped" in line] == [11, 12, 13] and 106 in lines[10]["rows"]
    assert not (tmp_path / "whole" / "step-00000012").exists(), "a checkpoint between two skipped updates"
    # by hand: eight windows, then those from the fourteenth on with the same step numbers
    alone = State(normed(), stream(*windows))
    fit(alone, 8)
    alone.step, alone.position = 13, {"behind": 13}
    fit(alone, 20)
    assert equal(weights(whole.task.model), weights(alone.task.model))
    for stop in (9, 11, 12, 13, 15):
        folder = tmp_path / f"killed-{stop}"
        run(State(normed(), stream(*windows), skips=3), stop, folder)
        found, _ = checkpoint.newest(folder)
        again = State(normed(), stream(*windows), skips=3)
        assert found is not None
        restore(again, found)
        run(again, 20, folder)
        assert equal(weights(whole.task.model), weights(again.task.model))


class Measured(nn.Module):
    """Validation that finds every step better than the one before."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.losses = model, itertools.count(100, -1)

    def measures(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        return {"loss": (torch.full((1,), float(next(self.losses))), torch.ones(1))}


def test_a_skipped_update_is_neither_validated_nor_the_best(tmp_path: Path) -> None:
    """Where no checkpoint is taken there is no validation: the best step has one that stays."""
    state = State(normed(), stream(*(noisy(step, "nan" if step == 11 else None) for step in range(24))), skips=3)
    best, found = Best(), Measured(state.task.model)
    with closing(Tracker(tmp_path)) as tracker:
        save = Save(tmp_path, 4, 22, tracker, best, lambda: 0.0)
        check = Validate(found, found.measures, [noisy(99)[0]], 4, 22, 1, tracker, best, lambda _: None)
        fit(state, 22, [Record(tracker, 24), Skipped(save, lambda _: None), check, save])
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "validation" in line] == [4, 8, 16, 20, 22]
    assert best.step == 22 and checkpoint.verify(checkpoint.place(tmp_path, 22)) is None


def test_an_interrupt_before_harm_changes_nothing(tmp_path: Path) -> None:
    """The weights gone back to are those of the last checkpoint by its turn, not of the one that an interrupt took, and stay on the disk."""
    windows = [noisy(step, "nan" if step in (11, 12, 13) else None) for step in range(20)]

    def run(state: State, until: int, folder: Path, interrupted: bool = False) -> State:
        folder.mkdir(exist_ok=True)
        with closing(Tracker(folder)) as tracker:
            save = Save(folder, 4, 20, tracker, Best(), lambda: 0.0)
            hooks: list[Any] = [Skipped(save, lambda _: None), save]
            fit(state, until, [Interrupt("TERM"), *hooks] if interrupted else hooks)
            save.wait()
            return state

    whole = run(State(normed(), stream(*windows), skips=3), 20, tmp_path / "whole")
    folder, state = tmp_path / "stopped", State(normed(), stream(*windows), skips=3)
    run(state, 8, folder)
    for _ in range(3):  # steps 9, 10 and 11, each with a checkpoint of its own
        state.stop = None
        run(state, 20, folder, interrupted=True)
        found, _ = checkpoint.newest(folder)
        assert found is not None and found.step == state.step
        state = State(normed(), stream(*windows), skips=3)
        restore(state, found)
    assert state.step == 11 and checkpoint.verify(checkpoint.place(folder, 8)) is None
    assert equal(weights(whole.task.model), weights(run(state, 20, folder).task.model))


def test_after_going_back_a_spike_is_told_from_what_those_weights_did(tmp_path: Path) -> None:
    """What was remembered of the updates since is forgotten with them."""
    windows = [noisy(step, "nan" if 290 <= step < 293 else None) for step in range(300)]
    state = State(normed(), stream(*windows), skips=3, spike=2.0)
    with closing(Tracker(tmp_path)) as tracker:
        save = Save(tmp_path, 140, 300, tracker, Best(), lambda: 0.0)
        fit(state, 280, [save])
        save.wait()
        then = [*state.recent["model"].losses]
        fit(state, 293, [Skipped(save, lambda _: None), save])
        save.wait()
    assert state.step == 293 and state.recent["model"].losses == then and state.recent["model"].returned == 280
    assert len(then) == 128


def test_harm_without_end_stops_with_the_weights_before_it(tmp_path: Path) -> None:
    state = State(normed(), stream(*(noisy(step, "nan" if step >= 10 else None) for step in range(30))), skips=3)
    again = r"step 17: .*not finite \(rows 163, 164, 165, 166, 167\), after 3 updates in a row that were skipped; its weights are those of step 8"
    with closing(Tracker(tmp_path)) as tracker:
        save = Save(tmp_path, 4, 30, tracker, Best(), lambda: 0.0)
        with pytest.raises(UserError, match=again) as error:
            fit(state, 30, [Skipped(save, lambda _: None), save])
    assert "learning_rate" in error.value.fix
    alone = State(normed(), stream(*(noisy(step) for step in range(30))))
    assert equal(weights(state.task.model), weights(fit(alone, 8).task.model))


@pytest.mark.parametrize("harmful", [range(5, 40, 2), range(7, 40, 4), (7, 8, 9, *range(11, 40, 2))])
def test_it_goes_back_to_a_checkpoint_once_and_then_only_skips(tmp_path: Path, harmful: Sequence[int]) -> None:
    """Every second update is harmful, or each at which a checkpoint is due: the others are learned, none twice from the same weights."""
    state = State(normed(), stream(*(noisy(step, "nan" if step in harmful else None) for step in range(40))), skips=1)
    said: list[str] = []
    shown_on = io.StringIO()
    with closing(Tracker(tmp_path)) as tracker:
        save = Save(tmp_path, 4, 40, tracker, Best(), lambda: 0.0)
        hooks = [Record(tracker, 40), Skipped(save, said.append), save, Progress(40, shown_on, seconds_between=0.0)]
        if harmful[1] == harmful[0] + 1:
            with pytest.raises(UserError, match=r"step 10: .* its weights are those of step 4"):
                fit(state, 40, hooks)
            save.wait()
            return
        fit(state, 40, hooks)
    back = [line.split("back to the weights of ")[1] for line in said if "back to" in line]
    assert back and len(back) == len(set(back))
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "skipped" in line] == [step + 1 for step in harmful]
    shown = shown_on.getvalue().splitlines()
    assert len(shown) == 40 and not [line for line in shown if "nan" in line]
    assert next(line for line in shown if "skipped" in line).startswith(f"step {harmful[0] + 1}/40  loss skipped  ")
    # by hand: what was learned since the checkpoint that it went back to
    alone = State(normed(), stream(*(noisy(step, "nan" if step in harmful else None) for step in range(40))), skips=40)
    again = {int(line.split(":")[0].removeprefix("step ")): int(line.split("of step ")[1].split(",")[0]) for line in said if "back to" in line}  # fmt: skip
    kept: dict[int, Any] = {}
    for step in range(1, 41):
        fit(alone, step)
        if step in again:
            restore_learned(alone, kept[again[step]])
        elif step % 4 == 0 and step - 1 not in harmful:
            kept[step] = checkpoint.save(tmp_path / "by-hand", step, *snapshot(alone))
    assert equal(weights(state.task.model), weights(alone.task.model))


# --------------------------------------------------------------------------------------------------------------------- resume


class Moving(GAN):
    """Two learners with dropout, and a memory of the task's own that enters the loss."""

    def __init__(self, kind: str) -> None:
        super().__init__(net(5, 6, 5, dropout=0.3, seed=1), net(5, 6, 1, dropout=0.3, seed=2))
        for name, module in (("generator", self.generator), ("discriminator", self.discriminator)):
            named = dict(module.named_parameters())
            options = TrainingOptions(optimizer=kind, weight_decay=0.1)
            self._learners[name] = Learner(
                named,
                optimizer(named, options, 0.05),
                schedule=schedule("cosine", 9, 0.3),
                every=self._learners[name].every,
                clip=1.0,
                ema=0.9,
            )
        self.seen = torch.zeros(5, dtype=torch.float64)

    def begin(self, window: Sequence[Batch], learner: str, rng: torch.Generator) -> None:
        self.seen = 0.9 * self.seen + torch.randn(5, generator=rng, dtype=torch.float64)

    def losses(self, batch: Batch, learner: str) -> dict[str, Tensor]:
        return super().losses(Batch(batch.x + 0.1 * self.seen, batch.y, batch.rows), learner)

    def state_dict(self) -> dict[str, Tensor]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.seen = state["seen"]


def test_training_goes_on_while_a_copy_is_written(tmp_path: Path) -> None:
    """Step 2 is written only after step 5 was trained: what it then holds are the weights of step 2."""
    go_on = threading.Event()

    class Held(Save):
        def write(self, *what: Any) -> None:
            assert go_on.wait(60)
            super().write(*what)

    was: dict[int, dict[str, Tensor]] = {}

    def look(state: State, step: Step) -> None:
        was[step.number] = {f"generator/{key}": value for key, value in weights(state.task.generator).items()}
        if step.number == 5:
            assert not list(tmp_path.glob("step-*"))
            go_on.set()

    with closing(Tracker(tmp_path)) as tracker:
        save = Held(tmp_path, 2, 6, tracker, Best(), lambda: 0.0)
        # the save of step 4 would wait for that of step 2, and step 5 would never come
        fit(
            State(Moving("adamw"), stream(window([0, 1]))),
            6,
            [look, lambda state, step: save(state, step) if step.number != 4 else None],
        )
    for step in (2, 6):
        path = tmp_path / f"step-{step:08d}"
        saved = checkpoint.Checkpoint(path, step)
        assert checkpoint.verify(path) is None and saved.state()["step"] == step
        assert equal({key: saved.tensors("weights")[key] for key in was[step]}, was[step])


def test_what_goes_wrong_in_the_background_is_raised_at_the_next_step(tmp_path: Path) -> None:
    (folder := tmp_path / "checkpoints").write_text("in the way")
    state = State(Moving("sgd"), stream(window([0, 1])))
    with closing(Tracker(tmp_path)) as tracker:
        save = Save(folder, 2, 9, tracker, Best(), lambda: 0.0)
        join = lambda *_: save.writing and save.writing.join()  # noqa: E731
        with pytest.raises(UserError, match="step-00000002: the checkpoint could not be written"):
            fit(state, 9, [save, join])
    assert state.step == 3 and save.writing is None


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd", "muon"])
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(kind: str, tmp_path: Path) -> None:
    windows = [window([0, 1], [2]), window([3, 4, 5]), window([6], [7, 8], [9]), window([10])]

    def fresh() -> State:
        return State(Moving(kind), stream(*windows), seed=5)

    def everything(state: State) -> tuple[dict[str, Any], dict[str, Any]]:
        tensors, content = snapshot(state)
        return {f"{file}/{name}": t.clone() for file, part in tensors.items() for name, t in part.items()}, content

    whole = everything(fit(fresh(), 9))
    assert any("average/generator" in name for name in whole[0]) and "task/seen" in whole[0]
    for stop in (1, 4, 7):
        saved = checkpoint.save(tmp_path, stop, *snapshot(fit(fresh(), stop)))
        torch.manual_seed(stop)
        state = fresh()
        state.task.learners()["generator"].parameters["0.weight"].data.zero_()  # what was built does not matter
        assert restore(state, saved)["step"] == stop
        tensors, content = everything(fit(state, 9))
        assert content == whole[1] and equal(tensors, whole[0])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_language_model_resumed_under_muon_is_the_uninterrupted_one(precision: torch.dtype, tmp_path: Path) -> None:
    windows = [toy_documents(9, 30, 17), toy_documents(12, 5)]

    def fresh() -> State:
        model = decoder()
        named, options = dict(model.named_parameters()), TrainingOptions(optimizer="muon", weight_decay=0.1)
        who = Learner(named, optimizer(named, options, 0.01), schedule("wsd", 20, 0.1), clip=1.0, ema=0.99)
        return State(Language(model, who), stream(*windows), seed=5, precision=precision)

    losses: list[float] = []
    whole = fit(fresh(), 20, [lambda _, step: losses.append(step.updates["model"].loss)])
    assert losses[-1] < 0.7 * losses[0]
    saved = checkpoint.save(tmp_path, 10, *snapshot(fit(fresh(), 10)))
    state = fresh()
    restore(state, saved)
    fit(state, 20)
    left, right = snapshot(whole)[0], snapshot(state)[0]
    assert all(equal(dict(left[file]), dict(right[file])) for file in ("weights", "optimizer", "average"))


def test_splitting_fit_into_calls_changes_nothing() -> None:
    once, often = State(Moving("adamw"), stream(window([0, 1]))), State(Moving("adamw"), stream(window([0, 1])))
    fit(once, 5)
    for until in (1, 2, 5):
        fit(often, until)
    assert equal(weights(once.task.generator), weights(often.task.generator))
