"""Training, validation and test rows: the same rows for the same content and seed, and nothing in two of them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any

import numpy as np

from danlu.core.errors import UserError


@dataclass(frozen=True)
class Split:
    """Positions of the rows in each part, ascending."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


@dataclass
class _Group:
    """Rows that must stay together, because their keys are equal."""

    order: bytes  # a seeded hash of the key: the shuffle
    rows: list[int]
    label: str
    labels: frozenset[str]
    newest: float
    part: str = "train"


def split(
    keys: Sequence[Hashable],
    *,
    validation_share: float,
    test_share: float,
    seed: int,
    labels: Sequence[Hashable] | None = None,
    times: Sequence[float] | None = None,
    folds: int = 0,
    fold: int = 0,
) -> Split:
    """Set shares of the rows aside for validation and for the test.

    keys: one a row. Rows with equal keys stay in one part: the normal form of the text, so that no duplicate leaks, or
        a group (a customer, a file). Text, numbers and tuples of them.
    labels: one a row; each class then has its share in every part (stratified by a group's most frequent label), and
        every class found in three groups or more is in the training part.
    times: one a row; the newest rows are then the test and those before them validation, whatever their labels. Rows with equal keys
        are as new as the newest of them, so that nothing is learned that is newer than what it is measured on.
    folds: cut into so many; the test is then `fold`, from 0, instead of a share, and each row is in the test of exactly one.

    The order of the rows does not matter, only their content and the seed. Each share above 0 gets at least one row.
    Raises UserError when there are too few distinct rows for that.
    """
    if labels is not None and len(labels) != len(keys):
        raise UserError(f"split: {len(labels)} labels for {len(keys)} rows", "give one label for each row")
    if min(validation_share, test_share) < 0 or validation_share + test_share >= 1:
        raise UserError(
            f"validation_share={validation_share:g} and test_share={test_share:g} leave nothing to learn from",
            "their sum must be below 1, and neither below 0",
        )
    groups = _groups(keys, labels, times, seed)
    if folds:
        test_share = 0.0
    shares = {name: share for name, share in (("test", test_share), ("validation", validation_share)) if share > 0}
    needed = max(1, folds) + len(shares)
    if len(groups) < needed:
        why = f" for {folds} folds" if folds else f": one for training and one for each of {', '.join(shares)}"
        found = f"found {len(groups)} distinct rows, expected at least {needed}{why}"
        raise UserError(
            f"split: {found if folds or shares else 'there is no row'}",
            f"add {needed - len(groups)} or more distinct rows, or give validation= and test= files of their own",
        )
    classes: defaultdict[str, list[_Group]] = defaultdict(list)
    for group in groups:
        classes[group.label].append(group)
    if folds:
        _fold(classes, folds, fold)
        if sum(group.part == "train" for group in groups) < 1 + len(shares):
            raise UserError(
                f"split: {len(groups)} distinct rows of such sizes leave nothing to learn from in fold {fold} of {folds}",
                "add distinct rows, or set validation_share=0",
            )
    for name, share in shares.items():
        if times is None:
            _set_aside(classes, name, share)
        else:
            _newest(groups, name, share, len(shares))
    if times is None:
        for name in shares:
            _fill(classes, groups, name)
        _cover([group for group in groups if not (folds and group.part == "test")])
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for group in groups:
        parts[group.part] += group.rows
    return Split(*(tuple(sorted(parts[name])) for name in ("train", "validation", "test")))


def moments(values: Sequence[tuple[str, Any]]) -> list[float]:
    """Times of rows as numbers that grow: numbers as they are (seconds, years), dates as seconds since 1970.

    values: a row's place and what its column holds: a number, a date, or the text of either (ISO 8601).
    Raises UserError unless all are of one kind.
    """
    found = [_moment(value) for _, value in values]
    kinds: dict[str, int] = {}
    for row, (kind, _) in enumerate(found):
        kinds.setdefault(kind, row)
    if len(kinds) > 1 or "" in kinds:
        seen = (f"{values[row][0]}: {values[row][1]!r:.80}{f' is {kind}' * bool(kind)}" for kind, row in kinds.items())
        raise UserError(
            f"time=: found {', '.join(seen)}; expected numbers, or dates like 2026-11-22 or 2026-11-22T08:30, all of one kind",
            "mend those rows, or name another column",
        )
    return [moment for _, moment in found]


def _moment(value: Any) -> tuple[str, float]:
    """What kind of time it is, and when; no kind: none at all."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            try:
                value = datetime.fromisoformat(value.strip())
            except ValueError:
                return "", 0.0
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        try:
            return ("a number" if math.isfinite(value) else ""), float(value)
        except OverflowError:  # an integer of more than 308 digits
            return "", 0.0
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if isinstance(value, datetime):
        zone = "a date without a time zone" if value.tzinfo is None else "a date with a time zone"
        return zone, (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return "", 0.0


def _groups(
    keys: Sequence[Hashable], labels: Sequence[Hashable] | None, times: Sequence[float] | None, seed: int
) -> list[_Group]:
    rows: defaultdict[Hashable, list[int]] = defaultdict(list)
    for position, key in enumerate(keys):
        rows[key].append(position)
    groups = []
    for key, positions in rows.items():
        # `hash()` of a text differs from one Python to the next; a digest does not.
        order = hashlib.blake2b(f"{seed}\0{key!r}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
        counted = Counter("" if labels is None else repr(labels[position]) for position in positions)
        most = min(counted, key=lambda label: (-counted[label], label))
        newest = max(times[position] for position in positions) if times is not None else 0.0
        groups.append(_Group(order, positions, most, frozenset(counted), newest))
    return sorted(groups, key=lambda group: group.order)


def _set_aside(classes: dict[str, list[_Group]], name: str, share: float) -> None:
    """Take each class's share. What rounding leaves over goes on to the next class, so that the total is right as well."""
    due = 0.0
    for label in sorted(classes, key=lambda label: (-len(classes[label]), label)):
        members = classes[label]
        due += share * sum(len(group.rows) for group in members)
        left = [group for group in members if group.part == "train"]
        for group in left[:-1]:  # one stays: a class nobody learned cannot be tested
            if due <= 0:
                break
            if len(group.rows) <= 2 * due:
                group.part = name
                due -= len(group.rows)


def _newest(groups: list[_Group], name: str, share: float, parts: int) -> None:
    """Take the newest rows that are left, of those equally new some by the seed; each part keeps a group."""
    due = share * sum(len(group.rows) for group in groups)
    left = sorted((group for group in groups if group.part == "train"), key=lambda group: (group.newest, group.order))
    after = parts if name == "test" else 1  # groups that the parts after this one need
    while due > 1e-9 and len(left) > after:
        group = left.pop()
        group.part = name
        due -= len(group.rows)


def _fold(classes: dict[str, list[_Group]], folds: int, fold: int) -> None:
    """The largest groups first, each into the fold with the fewest rows of its class, and of all."""
    total = [0] * folds
    for label in sorted(classes, key=lambda label: (-len(classes[label]), label)):
        own = [0] * folds
        for group in sorted(classes[label], key=lambda group: (-len(group.rows), group.order)):
            chosen = min(range(folds), key=lambda each: (own[each], total[each], each))
            own[chosen] += len(group.rows)
            total[chosen] += len(group.rows)
            if chosen == fold:
                group.part = "test"


def _fill(classes: dict[str, list[_Group]], groups: list[_Group], name: str) -> None:
    """At least one row: the smallest group of the class that can best spare one."""
    if any(group.part == name for group in groups):
        return
    left = {label: sum(group.part == "train" for group in members) for label, members in classes.items()}
    chosen = min(
        (group for group in groups if group.part == "train"),
        key=lambda group: (left[group.label] < 2, len(group.rows), -left[group.label], group.order),
    )
    chosen.part = name


def _cover(groups: list[_Group]) -> None:
    """Groups of mixed labels can leave a class out of the training part; one of its groups is moved there."""
    holders: defaultdict[str, list[_Group]] = defaultdict(list)
    for group in groups:
        for label in group.labels:
            holders[label].append(group)
    sizes = Counter(group.part for group in groups)
    for label in sorted(holders):
        members = holders[label]
        if len(members) < 3 or any(group.part == "train" for group in members):
            continue
        # Three groups in two parts: one of the parts has two, so it is not emptied.
        chosen = min(
            (group for group in members if sizes[group.part] > 1), key=lambda group: (len(group.rows), group.order)
        )
        sizes[chosen.part] -= 1
        chosen.part = "train"
