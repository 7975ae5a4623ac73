"""Two models on the same rows: the difference, how sure, and the sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import binomtest, permutation_test

from danlu.core.errors import UserError
from danlu.evaluation import metrics as m
from danlu.evaluation.compare import compare, mcnemar, permutation, verdict


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
        f"B did better than A by {100 * found['difference']:.1f} points of accuracy "
        f"[{100 * found['low']:.1f}, {100 * found['high']:.1f}] on 550 rows, p < 0.001"
    )
    other = compare(m.accuracy, b, a, true, names=("B", "A"), metric="accuracy")
    assert (
        other["better"] == "B"
        and other["difference"] == pytest.approx(-found["difference"])
        and other["verdict"].startswith("B did better than A by")
    )


def test_no_difference_is_said():
    true, a, _ = sides()
    found = compare(m.accuracy, a, a, true, names=AB, metric="accuracy")
    assert (found["better"], found["p"], found["low"], found["high"]) == (None, 1.0, 0.0, 0.0)
    assert found["verdict"] == (
        "no clear difference: A and B scored the same in accuracy [0.0, 0.0] on 550 rows, p = 1.00"
    )


def right_on(rows, *right):
    """(truth, side, …): 0/1 labels of which each side gets the named rows right."""
    return np.ones(rows, int), *(np.isin(np.arange(rows), list(which)).astype(int) for which in right)


@pytest.mark.parametrize("turned", [False, True])
def test_an_interval_without_0_is_never_called_no_difference(turned):
    """A newcomer's run: 57 right against 51 of 60, 7 rows against 1; the interval leaves out 0, McNemar's p does not reach 0.05."""
    true, a, b = right_on(60, range(57), [*range(50), 57])
    names, first, second = (("B", "A"), b, a) if turned else (("A", "B"), a, b)
    found = compare(m.accuracy, first, second, true, names=names, metric="accuracy")
    low, high = (found["low"], found["high"]) if turned else (-found["high"], -found["low"])
    assert sorted(found["discordant"]) == [1, 7] and low > 0 and found["p"] == pytest.approx(0.0703125)
    assert found["better"] is None
    assert found["verdict"] == (
        f"A scored 10.0 points higher in accuracy than B [{100 * low:.1f}, {100 * high:.1f}], "
        "but with 60 rows chance is not ruled out (p = 0.070)"
    )


def test_an_interval_around_0_is_no_clear_difference_and_names_who_is_ahead():
    true, a, b = right_on(60, range(40), range(2, 44))
    for names, first, second in ((("A", "B"), a, b), (("B", "A"), b, a)):
        found = compare(m.accuracy, first, second, true, names=names, metric="accuracy")
        assert found["low"] <= 0 <= found["high"] and found["better"] is None
        assert found["verdict"].startswith("no clear difference: B scored 3.3 points higher in accuracy than A [")


def test_what_is_not_0_is_not_shown_as_0():
    found = {
        "metric": "loss",
        "names": ["A", "B"],
        "difference": -4e-4,
        "low": -6e-4,
        "high": -2e-4,
        "p": 0.001,
        "rows": 9,
    }
    assert verdict(found | {"better": "B"}, points=False, higher_is_better=False) == (
        "B did better than A by 0.0004 in loss [0.0002, 0.0006] on 9 rows, p = 0.001"
    )
    assert verdict(found | {"better": None, "p": 0.2}, points=False, higher_is_better=False) == (
        "B scored 0.0004 lower in loss than A [0.0002, 0.0006], but with 9 rows chance is not ruled out (p = 0.20)"
    )


def test_without_p_the_interval_decides_and_rows_have_a_name_of_their_own():
    found = {"metric": "accuracy", "names": ["random weights", "pretrained weights"], "difference": 0.042, "low": 0.01, "high": 0.08, "rows": 90, "unit": "test image"}  # fmt: skip
    assert verdict(found) == (
        "pretrained weights did better than random weights by 4.2 points of accuracy [1.0, 8.0] on 90 test images"
    )
    assert verdict(found | {"low": -0.01}) == (
        "no clear difference: pretrained weights scored 4.2 points higher in accuracy than random weights [-1.0, 8.0] on 90 test images"
    )


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
    assert found["verdict"].startswith("B did better than A by 0.300 in loss [0.300, 0.300] on 90 rows, p < 0.001")


def test_different_rows_are_refused():
    with pytest.raises(UserError, match="found 3 and 2 rows"):
        compare(m.accuracy, [0, 1, 1], [0, 1], [0, 1, 1], names=AB, metric="accuracy")
