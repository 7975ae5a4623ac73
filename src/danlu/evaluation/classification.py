"""A classifier's answers, its figures beside others on the same rows, and rows worth looking at; the same for texts and images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from danlu.evaluation import metrics
from danlu.evaluation.baselines import Baseline
from danlu.evaluation.compare import compare


def named(chances: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Each row's likeliest label, and the probabilities of all; JSON-ready. chances: float [rows, labels]."""
    return [
        {
            "label": labels[int(row.argmax())],
            "probabilities": {label: round(float(p), 6) for label, p in zip(labels, row, strict=True)},
        }
        for row in chances
    ]


def beside(
    found: Iterable[Baseline], truth: np.ndarray, chances: np.ndarray, labels: Sequence[str], unit: str = "row"
) -> list[dict[str, Any]]:
    """Each baseline's figures, and the model compared with it row by row; JSON-ready.

    truth: int [rows]. chances: of the model, float [rows, labels]. unit: what a row is called.
    """
    result = []
    for each in found:
        report = metrics.classification_report(truth, each.predicted, each.probabilities, labels)
        said: dict[str, Any] = {"names": (each.name, "the model"), "metric": "accuracy", "unit": unit}
        comparison = compare(metrics.accuracy, each.predicted, chances.argmax(1), truth, **said)
        entry = {"name": each.name, "settings": each.settings, "notes": each.notes}
        result.append({**entry, "metrics": report["metrics"], "comparison": comparison})
    return result


def right_and_wrong(
    truth: np.ndarray,
    chances: np.ndarray,
    labels: Sequence[str],
    show: Callable[[int], dict[str, Any]],
    each: int = 12,
) -> list[dict[str, Any]]:
    """The most confident mistakes, and some right answers; show: what a person sees of a row."""
    right, sure = chances.argmax(1) == truth, chances.max(1)
    order = np.argsort(-sure, kind="stable")
    wrong, fine = (order[right[order] == wanted] for wanted in (False, True))
    return [
        {
            **show(int(place)),
            "expected": labels[truth[place]],
            "answer": labels[int(chances[place].argmax())],
            "right": bool(right[place]),
            "confidence": round(float(sure[place]), 4),
        }
        for place in (*wrong[:each], *fine[:: max(1, len(fine) // each)][:each])
    ]
