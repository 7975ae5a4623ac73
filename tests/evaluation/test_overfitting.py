"""Overfitting is told from learning, from divergence and from the noise of a small validation set."""

from __future__ import annotations

import pytest

from danlu.evaluation.overfitting import diverged, overfitting


def lines(validation, training):
    """Ten steps between validations."""
    found = []
    for place, loss in enumerate(validation):
        found += [{"step": 10 * place + step, "loss": training[place]} for step in range(1, 11)]
        found.append({"step": 10 * place + 10, "validation": {"loss": loss}})
    return found


@pytest.mark.parametrize(
    ("validation", "training", "noticed"),
    [
        ([1.0, 0.8, 0.9, 1.1], [1.0, 0.7, 0.4, 0.2], True),
        ([1.0, 0.8, 0.7, 0.6], [1.0, 0.7, 0.4, 0.2], False),  # it learns
        ([1.0, 0.8, 0.9, 1.1], [1.0, 0.7, 0.9, 1.2], False),  # it diverges
        ([1.0, 0.8, 0.805, 0.81], [1.0, 0.7, 0.4, 0.2], False),  # noise
        ([1.0, 0.9, 0.8, 1.1], [1.0, 0.7, 0.4, 0.2], False),  # once is not enough
        ([1.0, 1.1], [1.0, 0.5], False),
    ],
)
def test_only_overfitting_is_overfitting(validation, training, noticed):
    said = overfitting(lines(validation, training), {"task": "chat", "method": "full"}, 10)
    assert (said is not None) == noticed
    if said:
        assert "from step 20 to step 40 the validation loss rose from 0.8000 to 1.1000" in said
        assert "epochs=2" in said and "method=lora" in said and "augment" not in said


def test_a_loss_far_above_the_first_one_is_told():
    """Twelve steps at a learning rate of 10, as they came out; and NaN at the end; a usual one says nothing."""
    lines = [{"step": 1, "loss": 1.61}, {"step": 12, "loss": 910.0}, {"step": 12, "validation": {"loss": 1193.95}}]
    said = diverged(lines, {"learning_rate": 10.0})
    assert (
        said is not None
        and "1194, that of the first step was 1.61" in said
        and "Lower learning_rate (it was 10)" in said
    )
    assert diverged([*lines[:2], {"step": 12, "validation": {"loss": float("nan")}}], {"learning_rate": 10.0})
    assert diverged([*lines[:2], {"step": 12, "validation": {"loss": 1.2}}], {"learning_rate": 10.0}) is None
