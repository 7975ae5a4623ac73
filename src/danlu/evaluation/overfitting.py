"""A model that learns its training rows by heart is noticed, and what can be done about it is said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from danlu.core.types import IMAGE_TASKS


RISE = 1.02
"""The validation loss must have risen by this factor: less is the noise of a small validation set."""
FAR = 3.0
"""How many times the loss of the first step a validation loss is that nobody learned anything good by."""


def diverged(lines: Sequence[Mapping[str, Any]], used: Mapping[str, Any]) -> str | None:
    """One sentence, if the last validation loss is not finite or FAR times that of the first step, before anything was learned; else None.

    lines: of metrics.jsonl. used: the settings, key: value.
    """
    validated = [(line["step"], line["validation"]["loss"]) for line in lines if "validation" in line]
    first = next((line["loss"] for line in lines if isinstance(line.get("loss"), float)), None)
    if not validated or not first or first < 0 or validated[-1][1] <= FAR * first:  # NaN is not
        return None
    (step, last), rate = validated[-1], used.get("learning_rate")
    return (
        f"diverged: the validation loss of step {step} is {last:.4g}, that of the first step was {first:.4g}, before anything was learned. "
        f"Lower learning_rate (it was {rate:g})"
    )


def overfitting(lines: Sequence[Mapping[str, Any]], used: Mapping[str, Any], steps_per_epoch: float) -> str | None:
    """One sentence, if the validation loss rose for two validations or more while the training loss went on falling; else None.

    lines: of metrics.jsonl. used: the settings, key: value. Training losses are compared as means over the steps up to the best
    validation and up to the last one, each from the validation before it.
    """
    validated = [(line["step"], line["validation"]["loss"]) for line in lines if "validation" in line]
    validated = [(step, loss) for step, loss in validated if math.isfinite(loss)]
    losses = [(line["step"], line["loss"]) for line in lines if isinstance(line.get("loss"), float)]
    if len(validated) < 3:
        return None
    best = min(range(len(validated)), key=lambda place: validated[place][1])
    (step, lowest), (end, last) = validated[best], validated[-1]
    if len(validated) - best < 3 or last < RISE * lowest:
        return None

    def learned(place: int) -> float:
        start = validated[place - 1][0] if place else 0
        part = [loss for number, loss in losses if start < number <= validated[place][0]]
        return sum(part) / len(part) if part else float("nan")

    before, after = learned(best), learned(len(validated) - 1)
    if not after < before:
        return None
    remedies = [f"fewer passes (epochs={max(0.1, step / steps_per_epoch):.2g})", "more rows"]
    remedies += ["weight_decay=0.1"] * (float(used.get("weight_decay") or 0) < 0.1)
    drops = used.get("task") not in IMAGE_TASKS or str(used.get("model")) in ("mlp", "vit")
    remedies += ["dropout=0.1"] * (drops and not used.get("dropout"))
    remedies += ["augment=crop,flip"] * (used.get("task") == "image-classification" and not used.get("augment"))
    remedies += ["method=lora, which changes less"] * (
        used.get("task") not in IMAGE_TASKS and used.get("method") == "full"
    )
    return (
        f"overfitting: from step {step} to step {end} the validation loss rose from {lowest:.4f} to {last:.4f} while the training "
        f"loss fell from {before:.4f} to {after:.4f}; the weights of step {step} are kept. It may help: {', '.join(remedies)}"
    )
