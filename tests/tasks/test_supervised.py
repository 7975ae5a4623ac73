"""Classification: PyTorch's own weighted mean, in any split of the window."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.core import checkpoint
from danlu.core.types import Documents, Examples, Learner
from danlu.models.vision import describe, from_config
from danlu.tasks.supervised import Classification
from danlu.training.fit import State, Step, fit
from danlu.training.hooks import restore, snapshot


class Counting(nn.Module):
    """A backbone whose document vector is the mean of its tokens' embeddings."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.classifier = nn.Embedding(30, 6).double(), nn.Linear(6, 3).double()

    def forward(self, ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
        return torch.stack([part.mean(0) for part in self.embed(ids).split(lengths)])

    def logits(self, hidden: Tensor) -> Tensor:
        return self.classifier(hidden)


def batch(*rows: int) -> Documents:
    texts = [[1, 2], [3], [4, 5, 6], [7, 8], [9, 1]]
    labels = [0, 2, 1, 2, 2]
    ids = torch.tensor([token for row in rows for token in texts[row]])
    return Documents(ids, tuple(len(texts[row]) for row in rows), torch.tensor([labels[row] for row in rows]), rows)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_window_is_torchs_mean(weighted: bool, smoothing: float) -> None:
    weights = torch.tensor([0.2, 1.0, 3.5], dtype=torch.float64) if weighted else None
    model = Counting()
    whole = batch(0, 1, 2, 3, 4)
    logits = model.logits(model(whole.ids, whole.lengths))
    expected = F.cross_entropy(logits, whole.targets, weights, label_smoothing=smoothing)
    gradient = torch.autograd.grad(expected, model.classifier.weight)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    task = Classification(model, Learner(dict(model.named_parameters()), optimizer), weights, smoothing)
    steps: list[Step] = []
    fit(
        State(task, lambda _: iter([([batch(3), batch(0, 1, 2), batch(4)], {})])),
        1,
        [lambda _, step: steps.append(step)],
    )
    assert steps[0].updates["model"].loss == pytest.approx(float(expected.detach()), rel=1e-12)
    found = optimizer.state[model.classifier.weight]["momentum_buffer"]
    assert torch.allclose(found, gradient, rtol=0, atol=1e-12)


def test_validation_counts_rows_equally() -> None:
    model = Counting()
    task = Classification(model, Learner({}, torch.optim.SGD(model.parameters())), torch.tensor([1.0, 9.0, 9.0]), 0.3)
    whole = batch(0, 1, 2, 3, 4)
    logits = model.logits(model(whole.ids, whole.lengths))
    found = task.measures(whole)
    sums, counts = found["loss"]
    assert float((sums.sum() / counts.sum()).detach()) == pytest.approx(
        float(F.cross_entropy(logits, whole.targets).detach())
    )
    right, rows = found["accuracy"]
    assert right.tolist() == (logits.argmax(1) == whole.targets).float().tolist() and rows.tolist() == [1.0] * 5


def test_logits_under_autocast_are_float32() -> None:
    model = Counting().float()
    task = Classification(model, Learner({}, torch.optim.SGD(model.parameters())))
    with torch.autocast("cpu", torch.bfloat16):
        assert task.logits(batch(0, 1)).dtype == torch.float32


def test_a_resume_remembers_the_statistics_of_batch_normalisation(tmp_path) -> None:
    """Six updates of a real ResNet at once, and three with a checkpoint behind them: equal weights and equal statistics."""
    labels = ("a", "b", "c")
    images = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    config = describe("resnet18", channels=1, size=8, labels=labels)
    config |= {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}

    def stream(start):
        row = start["row"] if start else 0
        while True:
            chosen = [(row + each) % 12 for each in range(4)]
            row += 4
            yield [Examples(images[chosen], torch.tensor([each % 3 for each in chosen]), tuple(chosen))], {"row": row}

    def fresh() -> State:
        model = from_config(config, labels, seed=1)
        weights = dict(model.named_parameters())
        optimizer = torch.optim.SGD([{"params": list(weights.values()), "peak": 0.1}], 0.1, momentum=0.9)
        return State(Classification(model, Learner(weights, optimizer)), stream)

    whole, first, second = fit(fresh(), 6), fit(fresh(), 3), fresh()
    tensors, content = snapshot(first)
    saved = checkpoint.save(tmp_path, 3, tensors, content)
    restore(second, saved)
    fit(second, 6)
    found = second.task.model.state_dict()
    assert any("running_var" in name for name in found)
    for name, tensor in whole.task.model.state_dict().items():
        assert torch.equal(tensor, found[name]), name
