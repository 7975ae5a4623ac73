"""Every row of a file is learned from, or is accounted for with its reason and its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import UserError
from danlu.data.loader import IGNORED
from danlu.data.options import DataOptions
from danlu.data.source import read
from danlu.data.tokenizer import Tokenizer
from danlu.tasks.material import Account, Conversations, LabelledTexts
from danlu.tasks.options import TaskOptions


@pytest.fixture(scope="module")
def chat_tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.load(smollm2)


@pytest.fixture(scope="module")
def text_tokenizer(minilm: Path) -> Tokenizer:
    return Tokenizer.load(minilm)


def turns(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant") * len(texts)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}


CHATS = [
    turns("What is a cat?", "A small animal."),
    turns("Hello", "Hi!", "Who are you?", "A model."),
    {"messages": []},
    turns("A question " + "that goes on and on " * 30, "Short."),
    turns("Say much.", "word " * 200),
]


def test_chat_rows_are_usable_or_named() -> None:
    with pytest.raises(UserError, match=r"3\b[\s\S]*bad_rows=skip"):
        Conversations(DataOptions(), TaskOptions()).items(read(CHATS))
    material = Conversations(DataOptions(bad_rows="skip"), TaskOptions(system="Be brief."))
    items, account = material.items(read(CHATS))
    assert material.said == "chat in messages form"
    assert [item.number for item in items] == [1, 2, 4, 5] and sum(account.counts.values()) == 1
    assert items[0].values["messages"][0] == {"role": "system", "content": "Be brief."}
    assert items[0].text.endswith("user: What is a cat?\nassistant: A small animal.")
    assert account.json()[0]["count"] == 1 and "3" in account.json()[0]["examples"][0]


def test_what_is_learned_is_every_answer_with_its_end(chat_tokenizer: Tokenizer) -> None:
    material = Conversations(DataOptions(), TaskOptions())
    items, _ = material.items(read(CHATS[:2]))
    encoded = material.encode(items, chat_tokenizer, 1000, "error")
    batch = encoded.rows.batch([1])
    learned = [int(target) for target in batch.targets if target != IGNORED]
    assert chat_tokenizer.decode(learned) == "Hi!<|im_end|>A model.<|im_end|>"
    kept = batch.targets != IGNORED
    assert (batch.targets[kept] == batch.ids.roll(-1)[kept]).all()  # each position predicts the next token
    assert encoded.tokens == len(encoded.rows.ids) and encoded.longest == max(encoded.rows.lengths)
    assert encoded.unknown == 0 and not encoded.dropped.counts


@pytest.mark.parametrize(("too_long", "kept"), [("truncate", [1, 2, 5]), ("drop", [1, 2])])
def test_long_chat_rows_are_cut_or_dropped_and_counted(
    chat_tokenizer: Tokenizer, too_long: str, kept: list[int]
) -> None:
    material = Conversations(DataOptions(bad_rows="skip"), TaskOptions())
    items, _ = material.items(read(CHATS))
    encoded = material.encode(items, chat_tokenizer, 64, too_long)
    assert list(encoded.rows.numbers) == kept and max(encoded.rows.lengths) <= 64
    assert len(kept) + sum(encoded.dropped.counts.values()) == len(items)  # no row is lost unseen
    if too_long == "truncate":
        assert encoded.dropped.counts == {"nothing to learn is left within 64 tokens": 1}
        assert encoded.cut["rows"] == 2 and encoded.cut["learned tokens cut off"] > 100
    else:
        assert encoded.dropped.counts == {"longer than 64 tokens (too_long=drop)": 2}
    with pytest.raises(UserError, match=r"4: \d+ tokens, expected at most 64") as error:
        material.encode(items, chat_tokenizer, 64, "error")
    assert "too_long=truncate" in error.value.fix


TEXTS = [
    {"text": "good film", "label": "yes"},
    {"text": "  ", "label": "no"},
    {"text": "bad film", "label": None},
    {"text": "a very long film " * 20, "label": "no"},
    {"text": 5, "label": "no"},
    {"text": "fine", "label": 3},
]


def test_labelled_rows_are_usable_or_named() -> None:
    with pytest.raises(UserError, match="text: found '  ', expected text"):
        LabelledTexts(DataOptions()).items(read(TEXTS))
    material = LabelledTexts(DataOptions(bad_rows="skip"))
    items, account = material.items(read(TEXTS))
    assert [(item.number, item.label) for item in items] == [(1, "yes"), (4, "no"), (6, "3")]
    assert len(items) + sum(account.counts.values()) == len(TEXTS)
    assert material.said == "texts in column 'text', labels in column 'label'"


def test_a_cut_text_keeps_its_ending(text_tokenizer: Tokenizer) -> None:
    material = LabelledTexts(DataOptions(bad_rows="skip"), ["3", "no", "yes"])
    items, _ = material.items(read(TEXTS))
    encoded = material.encode(items, text_tokenizer, 16, "truncate")
    assert encoded.rows.targets.tolist() == [2, 1, 0] and encoded.rows.numbers.tolist() == [1, 4, 6]
    long = encoded.rows.batch([1])
    whole = text_tokenizer.encode(TEXTS[3]["text"], special=True)
    assert long.ids.tolist() == [*whole[:15], whole[-1]]
    assert encoded.cut == {"rows": 1, "tokens": len(whole) - 16} and encoded.longest == len(whole)
    dropped = material.encode(items, text_tokenizer, 16, "drop")
    assert dropped.rows.numbers.tolist() == [1, 6] and sum(dropped.dropped.counts.values()) == 1


def test_unknown_tokens_are_counted(text_tokenizer: Tokenizer) -> None:
    material = LabelledTexts(DataOptions(), ["a"])
    items, _ = material.items(read([{"text": "ꙮ ꙮ plain", "label": "a"}]))
    encoded = material.encode(items, text_tokenizer, 99, "error")
    assert (encoded.unknown, encoded.tokens) == (2, 5)


def test_an_account_keeps_a_few_examples() -> None:
    account = Account()
    for number in range(5):
        account.add("too odd", f"row {number}")
    account.add("too long", "row 9")
    assert account.json() == [
        {"reason": "too odd", "count": 5, "examples": ["row 0", "row 1", "row 2"]},
        {"reason": "too long", "count": 1, "examples": ["row 9"]},
    ]


def test_one_column_of_a_pair_is_an_error() -> None:
    with pytest.raises(UserError, match="text= without label="):
        Conversations(DataOptions(text="question"), TaskOptions())
