"""Two models on the same rows: the difference, how sure, and the sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import binomtest, permutation_test

from danlu.core.errors import UserError
from danlu.evaluation import metrics as m
from danlu.evaluation.compare import compare, mcnemar, permutation


AB = ("A", "B")


def sides(rows=550, first=0.85, second=0.93, seed=0):
    rng = np.random.default_rng(seed)
    true = rng.integers(2, size=rows)
    return true, *(np.where(rng.random(rows) < share, true, 1 - true) for share in (first, second))


def test_the_better_one_is_named_with_interval_p_and_rows():
    true, a, b = sides()
    found = json.loads(json.dumps(compare(m.accuracy, a, b, true, names=AB, metric="accuracy"), allow_nan=False))
    assert found["better"] == "B" and found["low"] > 0
    assert found["difference"] == pytest.approx(found["second"] - found["first"])
    assert found["verdict"] == (
        f"B is better than A by {100 * found['difference']:.1f} points of accuracy "
        f"[{100 * found['low']:.1f}, {100 * found['high']:.1f}], p < 0.001, 550 rows"
    )
    other = compare(m.accuracy, b, a, true, names=("B", "A"), metric="accuracy")
    assert (
        other["better"] == "B"
        and other["difference"] == pytest.approx(-found["difference"])
        and other["verdict"].startswith("B is better than A by")
    )


def test_no_difference_is_said():
    true, a, _ = sides()
    found = compare(m.accuracy, a, a, true, names=AB, metric="accuracy")
    assert (found["better"], found["p"], found["low"], found["high"]) == (None, 1.0, 0.0, 0.0)
    assert found["verdict"].startswith("no clear difference between A and B: +0.0 points of accuracy")


def test_mcnemar_is_the_exact_binomial_of_the_differing_rows():
    true, a, b = sides(120, 0.8, 0.88)
    right = [true == a, true == b]
    only = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    assert mcnemar(*right) == pytest.approx(binomtest(only[0], sum(only)).pvalue)
    assert compare(m.accuracy, a, b, true, names=AB, metric="accuracy")["discordant"] == list(only)
    assert mcnemar([True, True, False, False, False, False], [False, False, True, True, True, True]) == pytest.approx(
        0.6875
    )


def test_permutation_agrees_with_scipy():
    rng = np.random.default_rng(1)
    a = rng.normal(size=60)
    b = a + rng.normal(0.12, 0.5, size=60)
    ours = permutation(lambda one, two: m.mean(two) - m.mean(one), a, b)
    theirs = permutation_test(
        (a, b),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=4999,
        rng=rng,
    )
    assert ours == pytest.approx(theirs.pvalue, abs=0.03)


def test_a_test_of_equal_models_is_rarely_sure():
    sure = 0
    for seed in range(60):
        true, a, b = sides(80, 0.8, 0.8, seed)
        sure += (
            compare(lambda t, p: m.f1(t, p, 2), a, b, true, names=AB, metric="macro F1", resamples=200)["better"]
            is not None
        )
    assert sure <= 7


def test_losses_are_ratios_of_sums_and_lower_is_better():
    rng = np.random.default_rng(2)
    tokens = rng.integers(1, 200, size=90)
    a = tokens * rng.normal(2.0, 0.2, size=90)
    b = a - 0.3 * tokens
    found = compare(
        lambda n, sums: m.ratio(sums, n), a, b, tokens, names=AB, metric="loss", higher_is_better=False, points=False
    )
    assert found["better"] == "B" and found["difference"] == pytest.approx(-0.3)
    assert found["verdict"].startswith("B is better than A by 0.300 in loss [0.300, 0.300], p < 0.001, 90 rows")


def test_different_rows_are_refused():
    with pytest.raises(UserError, match="found 3 and 2 rows"):
        compare(m.accuracy, [0, 1, 1], [0, 1], [0, 1, 1], names=AB, metric="accuracy")
