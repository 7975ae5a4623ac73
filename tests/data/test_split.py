"""Splits: no leak, the shares asked for, the same for the same content, every class learned."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.core.errors import UserError
from danlu.data.split import split


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
