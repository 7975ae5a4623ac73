"""The contracts that every folder above speaks: what a task promises and who learns. Nothing here runs anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol


if TYPE_CHECKING:
    import torch

CORPUS_TASKS = ("language-model", "masked-language-model")
TEXT_TASKS = ("chat", "text-classification", *CORPUS_TASKS)
IMAGE_TASKS = ("image-classification", "autoencoder", "gan")
CLASSIFIERS = ("text-classification", "image-classification")

Position = dict[str, Any]
"""Where a loader stands: opaque JSON, written into the checkpoint and given back to the loader as it was."""


@dataclass(frozen=True)
class Documents:
    """Rows joined without padding: a micro-batch of text.

    ids: int64 [tokens], all documents one behind the other.
    lengths: tokens of each document; `sum(lengths) == len(ids)`.
    targets: int64. For language [tokens]: the id each position must predict, -100 where nothing is learned
        (already shifted: `targets[i]` is the token after `ids[i]`). For classification [documents]: the label.
    rows: the number of each document's row in its data set, to say which row broke something.
    """

    ids: torch.Tensor
    lengths: tuple[int, ...]
    targets: torch.Tensor
    rows: tuple[int, ...]

    unit: ClassVar[str] = "tokens"

    @property
    def size(self) -> int:
        """How much is learned from at once, in `unit`."""
        return len(self.ids)


@dataclass(frozen=True)
class Examples:
    """Rows of one shape: a micro-batch of images.

    inputs: float32 [examples, channels, height, width], normalised.
    targets: int64 [examples], the label; -1 where there is none.
    rows: the number of each example's row in its data set.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    rows: tuple[int, ...]

    unit: ClassVar[str] = "images"

    @property
    def size(self) -> int:
        """How much is learned from at once, in `unit`."""
        return len(self.inputs)


Batch = Documents | Examples


@dataclass(frozen=True)
class Privacy:
    """Differentially private learning (DP-SGD, Abadi et al. 2016): every example's gradient is clipped to `clip` (L2 norm),
    and Gaussian noise of standard deviation `noise * clip` is added to their sum before it is divided by the count."""

    clip: float
    noise: float


@dataclass
class Learner:
    """Someone who is trained. Most tasks have one; a GAN has two.

    parameters: named parameters this learner owns; every other learner's are frozen while it learns.
    optimizer: a torch optimizer over exactly those parameters; a group's learning rate is its peak.
    schedule: step -> factor on the learning rate of every group.
    every: learn on each `every`-th step only.
    weights: weight of each loss term; a term not named counts once.
    clip: largest L2 norm of the whole gradient; None leaves it alone.
    ema: decay of an exponential moving average of the parameters, kept in `average`; None keeps none.
    """

    parameters: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float] = lambda _: 1.0
    every: int = 1
    weights: dict[str, float] = field(default_factory=dict)
    clip: float | None = None
    privacy: Privacy | None = None
    ema: float | None = None
    average: dict[str, torch.Tensor] = field(default_factory=dict)


class Task(Protocol):
    """Batch -> loss. `fit` knows nothing else of a task.

    A *window* is everything one update sees: its micro-batches, uneven as they may be.
    """

    def learners(self) -> dict[str, Learner]:
        """Who is trained."""

    def begin(self, window: Sequence[Any], learner: str, rng: torch.Generator) -> None:
        """Once per update, before it; sees the whole window, changes no weights: rollouts, embeddings of the window."""

    def counts(self, batch: Any, learner: str) -> dict[str, float]:
        """Each loss term's denominator in this micro-batch, known before the forward pass."""

    def losses(self, batch: Any, learner: str) -> dict[str, torch.Tensor]:
        """Each loss term, summed within each example: [examples], one for each of `batch.rows`."""

    def end(self, learner: str) -> None:
        """Once per update, after it: queues, moving targets."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What the task itself must remember, as copies; it goes into the checkpoint, and back when an update is skipped."""

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None: ...


class Backbone(Protocol):
    """A text model as the tasks see it: documents in, one vector a token out, and a head over chosen rows.

    Own architectures (`models.decoder`, `models.encoder`) and every other one (`models.foreign`, through transformers) keep to it.
    """

    def __call__(self, ids: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
        """ids [tokens], lengths of the documents in it -> hidden [tokens, width]; documents never see each other."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Language models: hidden [n, width] -> [n, vocabulary]. Classifiers: one row a document -> [documents, labels]."""
