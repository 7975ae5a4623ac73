"""The loader: every row once an epoch, exact from any position, within its limits, shared without loss."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.core.errors import UserError
from danlu.core.types import Documents
from danlu.data.loader import IGNORED, Loader, Rows


def some_rows(*lengths: int) -> Rows:
    """Row r has the ids 1000 r, 1000 r + 1, …, targets shifted by one, and the number 10 r."""
    ids = [[1000 * row + place for place in range(length)] for row, length in enumerate(lengths)]
    targets = [[*each[1:], IGNORED] for each in ids]
    return Rows.build(ids, targets, (10 * row for row in range(len(lengths))))


lengths = st.lists(st.integers(1, 30), min_size=1, max_size=25)


def same(left: list[Documents], right: list[Documents]) -> bool:
    return len(left) == len(right) and all(
        a.rows == b.rows and a.lengths == b.lengths and torch.equal(a.ids, b.ids) and torch.equal(a.targets, b.targets)
        for a, b in zip(left, right, strict=True)
    )


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(1, 9), st.integers(8, 64))
def test_every_row_once_an_epoch_and_whole(sizes: list[int], batch_size: int, tokens: int) -> None:
    rows = some_rows(*sizes)
    loader = Loader(rows, batch_size, tokens, seed=3)
    windows = list(itertools.islice(loader(), 2 * loader.steps_per_epoch))
    for epoch in (0, 1):
        part = windows[epoch * loader.steps_per_epoch : (epoch + 1) * loader.steps_per_epoch]
        seen = Counter(row for window, _ in part for batch in window for row in batch.rows)
        assert seen == Counter(10 * row for row in range(len(sizes)))
        counts = [sum(len(batch.rows) for batch in window) for window, _ in part]
        assert counts == [batch_size] * (len(sizes) // batch_size) + ([r] if (r := len(sizes) % batch_size) else [])
        assert part[-1][1] == {"epoch": epoch + 1, "row": 0}
    for batch in (batch for window, _ in windows for batch in window):
        assert len(batch.ids) == sum(batch.lengths) and (len(batch.ids) <= tokens or len(batch.rows) == 1)
        for number, ids, targets in zip(
            batch.rows, batch.ids.split(batch.lengths), batch.targets.split(batch.lengths), strict=True
        ):
            assert ids.tolist() == [100 * number + place for place in range(sizes[number // 10])]
            assert targets.tolist() == [*ids.tolist()[1:], IGNORED]


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(1, 9), st.integers(0, 30))
def test_any_position_goes_on_exactly(sizes: list[int], batch_size: int, steps: int) -> None:
    loader = Loader(some_rows(*sizes), batch_size, 40, seed=7)
    whole = list(itertools.islice(loader(), steps + 5))
    position = whole[steps - 1][1] if steps else None
    again = list(itertools.islice(loader(json.loads(json.dumps(position))), 5))
    for (window, place), (expected, after) in zip(again, whole[steps:], strict=True):
        assert same(window, expected) and place == after


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    rows = some_rows(*[4] * 40)

    def order(seed: int) -> list[tuple[int, ...]]:
        return [batch.rows for window, _ in itertools.islice(Loader(rows, 1, 8, seed)(), 80) for batch in window]

    first = order(0)
    assert first == order(0) != order(1)
    assert first[:40] != first[40:] and sorted(first[:40]) == sorted(first[40:])
    assert first[:40] != sorted(first[:40])


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(1, 9), st.integers(2, 4))
def test_processes_share_a_window_without_loss(sizes: list[int], batch_size: int, processes: int) -> None:
    rows = some_rows(*sizes)
    steps = 2 * Loader(rows, batch_size, 40, 0).steps_per_epoch
    alone = list(itertools.islice(Loader(rows, batch_size, 40, 0)(), steps))
    shares = [list(itertools.islice(Loader(rows, batch_size, 40, 0, p, processes)(), steps)) for p in range(processes)]
    for step, (window, position) in enumerate(alone):
        mine = [[row for batch in share[step][0] for row in batch.rows] for share in shares]
        assert sorted(itertools.chain(*mine)) == sorted(row for batch in window for row in batch.rows)
        assert max(map(len, mine)) - min(map(len, mine)) <= 1
        assert all(share[step][1] == position for share in shares)


def test_a_row_longer_than_a_micro_batch_goes_alone() -> None:
    batches = some_rows(3, 50, 4, 60, 5).batches(range(5), 12)
    assert [batch.lengths for batch in batches] == [(3, 4, 5), (50,), (60,)]


def test_labels_stay_with_their_rows() -> None:
    rows = Rows.with_labels([[1, 2], [3], [4, 5, 6]], [2, 0, 1], [7, 8, 9])
    (batch,) = rows.batches([0, 2, 1], 100)
    assert batch.rows == (8, 7, 9) and batch.targets.tolist() == [0, 2, 1]
    assert batch.ids.tolist() == [3, 1, 2, 4, 5, 6] and batch.ids.dtype == batch.targets.dtype == torch.int64
    assert rows.lengths.tolist() == [2, 1, 3]


def test_no_rows_is_an_error_and_not_an_endless_search() -> None:
    with pytest.raises(UserError, match="no rows to learn from"):
        next(Loader(Rows.build([], [], []), 4, 100, 0)())
