"""What an experiment says about its task."""

from __future__ import annotations

from dataclasses import dataclass

from danlu.core.config import option


@dataclass(frozen=True)
class TaskOptions:
    """The task, its loss, and how it is measured at the end."""

    task: str = option("chat", "what is learned", choices=("chat", "text-classification"))
    system: str | None = option(None, "chat: a system message put before rows that have none")
    label_smoothing: float = option(
        0.0, "share of the target spread over all classes (Szegedy et al. 2016)", low=0.0, high=0.5
    )
    class_weights: str = option(
        "none", "classification: count classes equally (balanced) or rows equally (none)", choices=("none", "balanced")
    )
    answers: int = option(24, "chat: held-out rows answered in words at the end, before and after (0: none)", low=0)
    answer_tokens: int = option(128, "chat: longest such answer in tokens", low=1)
    baselines: bool = option(True, "classification: majority and TF-IDF baselines on the same split")
