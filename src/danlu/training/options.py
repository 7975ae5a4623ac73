"""What an experiment says about its training."""

from __future__ import annotations

from dataclasses import dataclass

from danlu.core.config import option
from danlu.core.types import TEXT_TASKS


@dataclass(frozen=True)
class TrainingOptions:
    """How long, how fast and in what steps the weights move."""

    steps: int | None = option(None, "updates; derived from epochs", low=1, high=10**9)
    epochs: float | None = option(None, "passes over the training rows", low=0.0, high=1e6)
    hours: float | None = option(
        None, "time limit; training stops at the first update past it; alone it decides the steps too", low=0.0
    )
    batch_size: int | None = option(None, "rows in an update; derived from the number of rows", low=1)
    micro_batch_tokens: int = option(
        2048, "tokens in one forward pass; changes memory and speed, never the gradient", low=8, tasks=TEXT_TASKS
    )
    optimizer: str = option(
        "adamw",
        "adamw; adam; muon, for matrices inside the network, with adamw for the rest; or sgd (plain with momentum=0)",
        choices=("adamw", "adam", "muon", "sgd"),
    )
    learning_rate: float | None = option(None, "peak learning rate; derived from the method and the model", low=0.0)
    learning_rates: dict[str, float] | None = option(
        None,
        "a learning rate per group of layers: head=1e-3,layers.0-3=1e-5,embeddings=1e-6; embeddings of a gpt from zero with muon have ten times the rate unless theirs is given",
        low=0.0,
    )
    momentum: float | None = option(None, "sgd and muon: momentum; 0.9 unless set, with muon 0.95", low=0.0, below=1.0)
    nesterov: bool = option(False, "sgd: Nesterov's momentum; muon always has it")
    beta1: float = option(0.9, "adam: decay of the mean", low=0.0, below=1.0)
    beta2: float = option(0.999, "adam: decay of the squared mean", low=0.0, below=1.0)
    epsilon: float = option(1e-8, "adam: added to the denominator", low=0.0)
    weight_decay: float = option(
        0.01,
        "adamw and muon: decoupled decay of matrices; sgd and adam: L2 term; of a gpt from zero with adamw or muon it follows from the passes unless set",
        low=0.0,
    )
    ema: float | None = option(
        None, "decay of a moving average of the weights, which is then what is validated and kept", low=0.0, below=1.0
    )
    schedule: str = option("cosine", "learning rate after warm-up", choices=("cosine", "linear", "constant", "wsd"))
    final_rate: float | None = option(
        None, "share of the peak at which the schedule ends; 0 unless set, with cosine 0.1", low=0.0, high=1.0
    )
    warmup: float = option(0.06, "share of the steps in which the learning rate rises", low=0.0, high=1.0)
    clip: float = option(1.0, "largest L2 norm of the gradient; 0 leaves it alone", low=0.0)
    spike: float | None = option(
        None,
        "skip an update whose loss or gradient norm is so many ranges of the last 128 above them; 2 in pretraining from a corpus unless set, else 0: never",
        low=0.0,
    )
    skips: int = option(
        5,
        "updates in a row that may be skipped before training goes back to the last checkpoint; 0: the first ends it",
        low=0,
    )
    precision: str | None = option(
        None, "of the matrix products: bfloat16 or float32; derived from the machine", choices=("bfloat16", "float32")
    )
    validate_every: int | None = option(
        None, "steps between validations, each with a checkpoint; derived from the steps", low=1
    )
    validation_rows: int | None = option(None, "largest number of validation rows looked at each time", low=1)
    patience: int | None = option(3, "stop after so many validations without a better loss; none never stops", low=1)
    seed: int = option(0, "of everything random", low=0, high=2**63 - 1)
    threads: int | None = option(None, "CPU threads; derived from the machine", low=1, high=1024)
