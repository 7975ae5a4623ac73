"""Splits: no leak, the shares asked for, the same for the same content, every class learned."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from datetime import UTC, date, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.core.errors import UserError
from danlu.data.split import moments, split


SHARES = st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.45])


def parts(result):
    return {"train": result.train, "validation": result.validation, "test": result.test}


@given(
    keys=st.lists(st.integers(0, 30), min_size=3, max_size=80),
    data=st.data(),
    validation=SHARES,
    test=SHARES,
    seed=st.integers(0, 3),
)
@settings(deadline=None, max_examples=300)
def test_properties(keys, data, validation, test, seed):
    labels = data.draw(st.none() | st.lists(st.sampled_from("abc"), min_size=len(keys), max_size=len(keys)))
    needed = 1 + (validation > 0) + (test > 0)
    if len(set(keys)) < needed:
        with pytest.raises(UserError, match=f"at least {needed}"):
            split(keys, validation_share=validation, test_share=test, seed=seed, labels=labels)
        return
    result = split(keys, validation_share=validation, test_share=test, seed=seed, labels=labels)
    # Every row is in exactly one part, and equal keys are in one part.
    assert sorted(result.train + result.validation + result.test) == list(range(len(keys)))
    sets = [{keys[row] for row in rows} for rows in parts(result).values()]
    assert sum(map(len, sets)) == len(set(keys))
    # Each share that is asked for has a row, and the others have none.
    assert bool(result.validation) == (validation > 0) and bool(result.test) == (test > 0) and result.train
    # Every class with three distinct keys is learned.
    if labels is not None:
        learned = {labels[row] for row in result.train}
        assert all(
            label in learned
            for label in "abc"
            if len({key for key, mark in zip(keys, labels, strict=True) if mark == label}) >= 3
        )
    # The order of the rows makes no difference to what is where.
    order = data.draw(st.permutations(range(len(keys))))
    moved = split(
        [keys[row] for row in order],
        validation_share=validation,
        test_share=test,
        seed=seed,
        labels=labels and [labels[row] for row in order],
    )
    assert {name: sorted(order[row] for row in rows) for name, rows in parts(moved).items()} == {
        name: list(rows) for name, rows in parts(result).items()
    }


def test_shares_are_exact_and_each_class_has_its_share():
    labels = ["common"] * 800 + ["rare"] * 150 + ["odd"] * 50
    keys = [f"text {number}" for number in range(1000)]
    result = split(keys, validation_share=0.1, test_share=0.2, seed=7, labels=labels)
    assert {name: len(rows) for name, rows in parts(result).items()} == {"train": 700, "validation": 100, "test": 200}
    assert Counter(labels[row] for row in result.test) == {"common": 160, "rare": 30, "odd": 10}
    assert Counter(labels[row] for row in result.validation) == {"common": 80, "rare": 15, "odd": 5}


def test_many_small_classes_still_add_up():
    labels = [number // 4 for number in range(400)]
    result = split(list(range(400)), validation_share=0.1, test_share=0.1, seed=0, labels=labels)
    assert len(result.test) == len(result.validation) == 40
    assert {labels[row] for row in result.train} == set(labels)


def test_seeds_differ_and_hash_randomisation_does_not():
    keys = [f"text {number}" for number in range(50)]
    results = [split(keys, validation_share=0.2, test_share=0.2, seed=seed) for seed in (0, 0, 1)]
    assert results[0] == results[1] != results[2]
    code = "from danlu.data.split import split; print(split([f'text {n}' for n in range(50)], validation_share=0.2, test_share=0.2, seed=0))"
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
        )
        assert run.stdout.decode().strip() == str(results[0])


def test_a_class_with_one_row_is_in_training():
    labels = ["a"] * 20 + ["b"]
    for seed in range(20):
        assert 20 in split(list(range(21)), validation_share=0.3, test_share=0.3, seed=seed, labels=labels).train


@given(
    keys=st.lists(st.integers(0, 40), min_size=1, max_size=80),
    data=st.data(),
    folds=st.integers(3, 6),
    validation=SHARES,
)
@settings(deadline=None, max_examples=200)
def test_every_row_is_in_the_test_of_exactly_one_fold(keys, data, folds, validation):
    labels = data.draw(st.none() | st.lists(st.sampled_from("abc"), min_size=len(keys), max_size=len(keys)))
    if len(set(keys)) < folds + (validation > 0):
        with pytest.raises(UserError, match=f"for {folds} folds"):
            split(keys, validation_share=validation, test_share=0.1, seed=0, labels=labels, folds=folds)
        return
    tested = []
    for fold in range(folds):
        result = split(keys, validation_share=validation, test_share=0.1, seed=0, labels=labels, folds=folds, fold=fold)
        assert result.train and result.test and bool(result.validation) == (validation > 0)
        assert sorted(result.train + result.validation + result.test) == list(range(len(keys)))
        sets = [{keys[row] for row in rows} for rows in parts(result).values()]
        assert sum(map(len, sets)) == len(set(keys))
        tested += result.test
    assert sorted(tested) == list(range(len(keys)))


def test_two_folds_of_which_one_is_a_single_group_leave_none_for_validation():
    with pytest.raises(UserError, match="leave nothing to learn from in fold 1 of 2") as raised:
        split([0, 0, 0, 1, 2], validation_share=0.1, test_share=0, seed=0, folds=2, fold=1)
    assert "validation_share=0" in raised.value.fix


def test_each_fold_has_its_share_of_every_class():
    labels = ["common"] * 801 + ["rare"] * 149 + ["odd"] * 50
    for fold in range(5):
        result = split(
            list(range(1000)), validation_share=0.1, test_share=0.3, seed=7, labels=labels, folds=5, fold=fold
        )
        counts = Counter(labels[row] for row in result.test)
        assert len(result.test) == 200 and len(result.validation) == 100
        assert counts["common"] in (160, 161) and counts["rare"] in (29, 30) and counts["odd"] == 10


@given(
    rows=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20)), min_size=3, max_size=80),
    validation=SHARES,
    test=SHARES,
)
@settings(deadline=None, max_examples=300)
def test_nothing_learned_is_newer_than_what_it_is_measured_on(rows, validation, test):
    keys, times = zip(*rows, strict=True)
    if len(set(keys)) < 1 + (validation > 0) + (test > 0):
        return
    result = split(keys, validation_share=validation, test_share=test, seed=0, times=times)
    assert bool(result.validation) == (validation > 0) and bool(result.test) == (test > 0) and result.train
    assert sorted(result.train + result.validation + result.test) == list(range(len(keys)))
    sets = [{keys[row] for row in rows} for rows in parts(result).values()]
    assert sum(map(len, sets)) == len(set(keys))
    newest = {key: max(time for other, time in rows if other == key) for key in keys}
    for earlier, later in (
        (result.train, result.validation),
        (result.train, result.test),
        (result.validation, result.test),
    ):
        if earlier and later:
            assert max(times[row] for row in earlier) <= min(newest[keys[row]] for row in later)


def test_the_newest_rows_are_the_test_and_those_before_them_validation():
    result = split(list(range(100)), validation_share=0.1, test_share=0.2, seed=0, times=[-row for row in range(100)])
    assert (result.test, result.validation) == (tuple(range(20)), tuple(range(20, 30)))


@pytest.mark.parametrize(
    "values",
    [
        [3, 20.5, 100],
        ["3", "20.5", "1e2"],
        [np.int64(3), np.float32(20.5), 100],
        ["2024-01-31", "2024-02-01", "2025-01-01T00:00:01"],
        ["2024-01-31T23:00:00-05:00", "2024-02-01T04:00:01Z", "2024-02-01T04:00:00.5-00:01"],
        [date(2024, 1, 31), datetime(2024, 1, 31, 1), "2024-02-01"],  # noqa: DTZ001
        [datetime(2024, 1, 31, tzinfo=UTC), "2024-01-31T00:01:00Z", "2024-02-01T00:00:00+00:00"],
    ],
)
def test_times_are_in_order(values):
    found = moments([(f"my.csv:{row}", value) for row, value in enumerate(values)])
    assert found == sorted(found) and len(set(found)) == len(values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["2024-01-31", None], "my.csv:2: None"),
        (["2024-01-31", "yesterday"], "my.csv:2: 'yesterday'"),
        ([5, float("nan")], "my.csv:2: nan"),
        ([5, True], "my.csv:2: True"),
        ([5, 10**400], "my.csv:2: 1000"),
        (["2024-01-31", 5], "my.csv:1: '2024-01-31' is a date without a time zone, my.csv:2: 5 is a number"),
        (["2024-01-31", "2024-01-31T00:00Z"], "my.csv:2: '2024-01-31T00:00Z' is a date with a time zone"),
    ],
)
def test_times_of_two_kinds_or_none_are_one_error(values, said):
    with pytest.raises(UserError) as raised:
        moments([(f"my.csv:{row}", value) for row, value in enumerate(values, 1)])
    assert said in raised.value.message and raised.value.fix


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"keys": ["a", "a", "b"], "validation_share": 0.1, "test_share": 0.1},
            "found 2 distinct rows, expected at least 3",
        ),
        ({"keys": [], "validation_share": 0, "test_share": 0}, "there is no row"),
        ({"keys": list(range(9)), "validation_share": 0.5, "test_share": 0.5}, "leave nothing to learn from"),
        ({"keys": list(range(9)), "validation_share": 0.1, "test_share": 0.1, "labels": [1]}, "1 labels for 9 rows"),
    ],
)
def test_too_little_is_an_error_that_says_what_is_needed(arguments, message):
    with pytest.raises(UserError, match=message) as raised:
        split(arguments.pop("keys"), seed=0, **arguments)
    assert raised.value.fix
