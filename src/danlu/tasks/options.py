"""What an experiment says about its task."""

from __future__ import annotations

from dataclasses import dataclass

from danlu.core.config import option
from danlu.core.types import CLASSIFIERS, CORPUS_TASKS, IMAGE_TASKS, TEXT_TASKS


@dataclass(frozen=True)
class TaskOptions:
    """The task, its loss, and how it is measured at the end."""

    task: str = option("chat", "what is learned", choices=(*TEXT_TASKS, *IMAGE_TASKS))
    system: str | None = option(None, "a system message put before rows that have none", tasks=("chat",))
    label_smoothing: float = option(
        0.0,
        "share of the target spread over all classes (Szegedy et al. 2016)",
        low=0.0,
        high=0.5,
        tasks=("chat", "language-model", *CLASSIFIERS),
    )
    mask_share: float = option(
        0.15,
        "share of the tokens that is hidden (Devlin et al. 2019)",
        low=0.01,
        high=0.9,
        tasks=("masked-language-model",),
    )
    class_weights: str = option(
        "none",
        "count classes equally (balanced) or rows equally (none)",
        choices=("none", "balanced"),
        tasks=CLASSIFIERS,
    )
    answers: int = option(
        24, "held-out rows answered in words at the end, before and after (0: none)", low=0, tasks=("chat",)
    )
    answer_tokens: int = option(128, "longest such answer in tokens", low=1, tasks=("chat",))
    baselines: bool = option(
        True, "honest baselines on the same split", tasks=(*CLASSIFIERS, "language-model", "autoencoder")
    )
    augment: tuple[str, ...] = option(
        (), "changes to training images: crop, flip, rotate, colour, erase", tasks=("image-classification",)
    )
    noise: float = option(
        0.0,
        "deviation of the noise added to what is reconstructed, in units of a whole pixel's range (Vincent et al. 2008)",
        low=0.0,
        tasks=("autoencoder",),
    )
    gain_seeds: int | None = option(
        None,
        "from a run: seeds of the comparison with random weights, and with those before it, at 100, 500, 5,000 and all labels; from vectors=: with an embedding that starts at random (0: none)",
        low=0,
        tasks=(*CLASSIFIERS, *CORPUS_TASKS),
    )
