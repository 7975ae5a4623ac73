"""Training, validation and test rows: the same rows for the same content and seed, and nothing in two of them."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

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
    part: str = "train"


def split(
    keys: Sequence[Hashable],
    *,
    validation_share: float,
    test_share: float,
    seed: int,
    labels: Sequence[Hashable] | None = None,
) -> Split:
    """Set shares of the rows aside for validation and for the test.

    keys: one a row. Rows with equal keys stay in one part: the normal form of the text, so that no duplicate leaks, or
        a group (a customer, a file). Text, numbers and tuples of them.
    labels: one a row; each class then has its share in every part (stratified by a group's most frequent label), and
        every class found in three groups or more is in the training part.

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
    groups = _groups(keys, labels, seed)
    shares = {name: share for name, share in (("test", test_share), ("validation", validation_share)) if share > 0}
    needed = 1 + len(shares)
    if len(groups) < needed:
        raise UserError(
            f"split: found {len(groups)} distinct rows, expected at least {needed}: one for training and one for each of {', '.join(shares)}"
            if shares
            else "split: there is no row",
            f"add {needed - len(groups)} or more distinct rows, or give validation= and test= files of their own",
        )
    classes: defaultdict[str, list[_Group]] = defaultdict(list)
    for group in groups:
        classes[group.label].append(group)
    for name, share in shares.items():
        _set_aside(classes, name, share)
    for name in shares:
        _fill(classes, groups, name)
    _cover(groups)
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for group in groups:
        parts[group.part] += group.rows
    return Split(*(tuple(sorted(parts[name])) for name in ("train", "validation", "test")))


def _groups(keys: Sequence[Hashable], labels: Sequence[Hashable] | None, seed: int) -> list[_Group]:
    rows: defaultdict[Hashable, list[int]] = defaultdict(list)
    for position, key in enumerate(keys):
        rows[key].append(position)
    groups = []
    for key, positions in rows.items():
        # `hash()` of a text differs from one Python to the next; a digest does not.
        order = hashlib.blake2b(f"{seed}\0{key!r}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
        counted = (
            Counter(repr(labels[position]) for position in positions)
            if labels is not None
            else Counter({"": len(positions)})
        )
        most = min(counted, key=lambda label: (-counted[label], label))
        groups.append(_Group(order, positions, most, frozenset(counted)))
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


def _fill(classes: dict[str, list[_Group]], groups: list[_Group], name: str) -> None:
    """At least one row: the smallest group of the class that can best spare one."""
    if any(group.part == name for group in groups):
        return
    left = {label: [group for group in members if group.part == "train"] for label, members in classes.items()}
    candidates = [group for group in groups if group.part == "train"]
    chosen = min(
        candidates,
        key=lambda group: (len(left[group.label]) < 2, len(group.rows), -len(left[group.label]), group.order),
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
