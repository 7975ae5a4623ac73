"""Rows of a file -> what a task learns from: recognised, keyed, tokenized, and every row accounted for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from danlu.core.errors import UserError
from danlu.data.chat import LISTS, PAIRS, conversation, recognise, teach_all
from danlu.data.clean import normal_form
from danlu.data.loader import IGNORED, Rows
from danlu.data.options import DataOptions
from danlu.data.rows import TEXTS
from danlu.data.source import Row, Source, cell, column
from danlu.data.tokenizer import Tokenizer
from danlu.tasks.options import TaskOptions


LABELS = ("label", "labels", "category", "class", "target", "sentiment", "section", "intent")


@dataclass(frozen=True)
class Item:
    """One usable row. key: its normal form, equal for rows that say the same. values: as it is kept with the run, JSON-ready.

    alike: a key that it has in common with all rows that are nearly the same; None where that is not looked at.
    """

    number: int
    place: str
    key: str
    text: str
    values: dict[str, Any]
    label: str | None = None
    group: str | None = None
    alike: str | None = None


@dataclass
class Account:
    """What became of rows: reason -> how many, and the places of the first few."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, example: str) -> None:
        self.counts[reason] += 1
        if len(self.examples.setdefault(reason, [])) < 3:
            self.examples[reason].append(example)

    def join(self, other: Account) -> None:
        """What became of other rows too."""
        for entry in other.json():
            self.counts[entry["reason"]] += entry["count"]
            self.examples.setdefault(entry["reason"], []).extend(entry["examples"])

    def json(self) -> list[dict[str, Any]]:
        return [{"reason": r, "count": n, "examples": self.examples[r]} for r, n in self.counts.most_common()]


@dataclass(frozen=True)
class Encoded:
    """Tokenized items. unknown and tokens: counted before anything is cut. cut: what truncation took."""

    rows: Rows
    dropped: Account
    tokens: int
    unknown: int
    longest: int
    cut: dict[str, int]


class Readable(Protocol):
    """What a task sees in a source's rows."""

    said: str

    def items(self, source: Source) -> tuple[list[Item], Account]:
        """Usable rows, and what became of the others."""


class Material(Readable, Protocol):
    """What a task on text makes of a source's rows."""

    def encode(self, items: Sequence[Item], tokenizer: Tokenizer, max_tokens: int, too_long: str) -> Encoded: ...


class Conversations:
    """Chat rows in any of the three forms; learned are the assistant's turns with their end token."""

    def __init__(self, data: DataOptions, task: TaskOptions) -> None:
        if (data.text is None) != (data.label is None):
            given, missing = ("text", "label") if data.text else ("label", "text")
            raise UserError(
                f"{given}= without {missing}=", "for chat name both columns: text= the prompt, label= the answer"
            )
        self.columns = (data.text, data.label) if data.text and data.label else None
        self.group, self.system, self.bad_rows = data.group, task.system, data.bad_rows
        self.unread, self.said = partial(unread, data), ""

    def items(self, source: Source) -> tuple[list[Item], Account]:
        form = recognise(source, self.columns)
        pair = self.columns or next((pair for pair in PAIRS if set(pair) <= set(source.columns)), ())
        read = (*pair, "input", "tools") if form == "prompt/completion" else (*LISTS, "tools")
        self.said = f"chat in {form} form" + self.unread(source, *read, "system", "system_prompt")

        def item(row: Row) -> Item:
            messages = conversation(row, form, self.system, self.columns)
            text = said_in(messages)
            return Item(row.number, row.place, normal_form(text), text, {"messages": messages})

        return usable(source, item, self.group, self.bad_rows)

    def encode(self, items: Sequence[Item], tokenizer: Tokenizer, max_tokens: int, too_long: str) -> Encoded:
        account = Account()
        ids: list[list[int]] = []
        targets: list[list[int]] = []
        numbers: list[int] = []
        cut = Counter[str]()
        tokens = unknown = longest = 0
        for item, taught in zip(items, teach_all([item.values["messages"] for item in items], tokenizer), strict=True):
            if isinstance(taught, UserError):
                refuse(taught, item, self.bad_rows, account)
                continue
            if len(taught) > 1:
                cut["rows in several examples, because the template rewrites history"] += 1
            if any(example.dropped for example in taught):
                cut["rows in which what stands behind the last answer is left out: give it an answer"] += 1
            if any(m["role"] == "assistant" and said_in([m]) == "assistant: " for m in item.values["messages"]):
                cut["rows in which an empty answer is shown and not learned: fill or remove it"] += 1
            for example in taught:
                tokens += len(example.ids)
                unknown += unknown_in(example.ids, tokenizer)
                longest = max(longest, len(example.ids))
                kept = example.ids[:max_tokens]
                if len(example.ids) > max_tokens and not keep_long(
                    item, len(example.ids), max_tokens, too_long, account, cut
                ):
                    continue
                wanted = [t if learned else IGNORED for t, learned in zip(kept, example.learned, strict=False)]
                wanted = [*wanted[1:], IGNORED]
                cut["learned tokens cut off"] += sum(example.learned[max_tokens:])
                if all(target == IGNORED for target in wanted):
                    account.add(f"nothing to learn is left within {max_tokens} tokens", item.place)
                    continue
                ids.append(kept)
                targets.append(wanted)
                numbers.append(item.number)
        return Encoded(Rows.build(ids, targets, numbers), account, tokens, unknown, longest, dict(cut))


class LabelledTexts:
    """Rows with a text and one label."""

    def __init__(self, data: DataOptions, labels: Sequence[str] | None = None) -> None:
        """labels: the classes, when they are known already (evaluating a model)."""
        self.data, self.labels = data, tuple(labels) if labels else ()
        self.said = ""

    def items(self, source: Source) -> tuple[list[Item], Account]:
        text_column = column(source, self.data.text, TEXTS, "text")
        label_column = column(source, self.data.label, LABELS, "label")
        self.said = f"texts in column {text_column!r}, labels in column {label_column!r}"
        self.said += unread(self.data, source, text_column, label_column)

        def item(row: Row) -> Item:
            text, label = text_of(row, text_column), cell(row, label_column)
            if not isinstance(label, (str, int)) or not str(label).strip():
                found = f"{row.place}: {label_column}: found {label!r}"
                raise UserError(f"{found}, expected a label", "mend or remove the row")
            name = str(label).strip()
            return Item(row.number, row.place, normal_form(text), text, {"text": text, "label": name}, name)

        return usable(source, item, self.data.group, self.data.bad_rows)

    def encode(self, items: Sequence[Item], tokenizer: Tokenizer, max_tokens: int, too_long: str) -> Encoded:
        account, cut = Account(), Counter[str]()
        ids: list[list[int]] = []
        labels: list[int] = []
        numbers: list[int] = []
        number_of = {label: number for number, label in enumerate(self.labels)}
        tokens = unknown = longest = 0
        for item, encoded in zip(
            items, tokenizer.encode_batch([item.text for item in items], special=True), strict=True
        ):
            tokens += len(encoded)
            unknown += unknown_in(encoded, tokenizer)
            longest = max(longest, len(encoded))
            if len(encoded) > max_tokens:
                if not keep_long(item, len(encoded), max_tokens, too_long, account, cut):
                    continue
                encoded = cut_to(encoded, max_tokens, tokenizer)
            ids.append(encoded)
            labels.append(number_of[str(item.label)])
            numbers.append(item.number)
        return Encoded(Rows.with_labels(ids, labels, numbers), account, tokens, unknown, longest, dict(cut))


class RunningText:
    """Rows with a text, learned from as it runs."""

    def __init__(self, data: DataOptions) -> None:
        self.data, self.said = data, ""

    def items(self, source: Source) -> tuple[list[Item], Account]:
        name = column(source, self.data.text, TEXTS, "text")
        self.said = f"documents in column {name!r}" + unread(self.data, source, name)

        def item(row: Row) -> Item:
            text = text_of(row, name)
            return Item(row.number, row.place, normal_form(text), text, {"text": text})

        return usable(source, item, self.data.group, self.data.bad_rows)


def usable(source: Source, item: Callable[[Row], Item], group: str | None, bad_rows: str) -> tuple[list[Item], Account]:
    """`item` of each row, with what its column `group` holds; what became of the rows for which it is a UserError."""
    name = None if group is None else column(source, group, (), "group")
    account, found = Account(), list[Item]()
    for row in source.rows:
        try:
            made = item(row)
            found.append(made if name is None else replace(made, group=str(cell(row, name))))
        except UserError as error:
            refuse(error, row, bad_rows, account)
    return found, account


def unread(data: DataOptions, source: Source, *read: str) -> str:
    """The columns of a source that nothing is learned from, to be said aloud."""
    names = [repr(name) for name in source.columns if name not in (*read, data.group, data.time)]
    more = f" and {len(names) - 8} more" * (len(names) > 8)
    return f"\n  columns not read: {', '.join(names[:8])}{more}" if names else ""


def text_of(row: Row, name: str) -> str:
    """The text in a row's column."""
    text = cell(row, name)
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{row.place}: {name}: found {text!r}, expected text", "mend or remove the row")
    return text


def said_in(messages: Sequence[dict[str, Any]]) -> str:
    """A conversation as text, tool calls included, to tell whether two are the same."""
    calls = ("" if not (c := message.get("tool_calls")) else json.dumps(c, default=str) for message in messages)
    return "\n".join(f"{m['role']}: {m['content'] or ''}{call}" for m, call in zip(messages, calls, strict=True))


def unknown_in(ids: list[int], tokenizer: Tokenizer) -> int:
    """How many of these tokens stand for what the tokenizer does not know."""
    return 0 if (unknown := tokenizer.unknown) is None else ids.count(unknown)


def cut_to(ids: list[int], limit: int, tokenizer: Tokenizer) -> list[int]:
    """The first `limit` tokens of a text; the token that ends every text (BERT's [SEP]) stays its end."""
    if len(ids) <= limit:
        return ids
    ending = ids[-1:] if tokenizer.encode("", special=True)[-1:] == ids[-1:] else []
    return ids[: limit - len(ending)] + ending


def refuse(error: UserError, row: Row | Item, bad_rows: str, account: Account) -> None:
    """Stop at a bad row, or count it, as the experiment says."""
    message = error.message if row.place in error.message else f"{row.place}: {error.message}"
    if bad_rows == "error":
        raise UserError(message, error.fix + (" (or bad_rows=skip)" if "bad_rows" not in error.fix else "")) from None
    account.add(message.removeprefix(f"{row.place}: "), row.place)


def keep_long(item: Item, length: int, limit: int, too_long: str, account: Account, cut: Counter[str]) -> bool:
    """Whether a row over the limit stays (cut) or goes; either way it is counted."""
    if too_long == "error":
        raise UserError(
            f"{item.place}: {length} tokens, expected at most {limit} (max_tokens)",
            "raise max_tokens, or set too_long=truncate or drop",
        )
    if too_long == "drop":
        account.add(f"longer than {limit} tokens (too_long=drop)", item.place)
        return False
    cut["rows"] += 1
    cut["tokens"] += length - limit
    return True
