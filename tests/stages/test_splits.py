"""Splits from the command line: nothing that is nearly the same stands in two of them; by time; in folds."""

from __future__ import annotations

import json

import pytest
from tests.stages.conftest import lines, rows_of


TEXTS = rows_of("sections.jsonl")


def varied(row, number):
    """The row with one word more: other text, nearly the same."""
    return row | {"text": f"{row['text']} Really{number}."}


@pytest.fixture
def found(danlu, sorter, tmp_path):
    """`preflight --json` of these rows: the exit code and what was found, or the error."""

    def check(rows, *more, task="text-classification", model=None):
        data = lines(tmp_path / "my.jsonl", rows)
        words = ("preflight", task, f"model={model or sorter}", f"data={data}", "threads=1", *more)
        result = danlu(*words, "--json")
        return result.json if result.code == 0 else result.err

    return check


def test_near_duplicates_stay_in_one_part(found, danlu, sorter, tmp_path):
    rows = [varied(row, number) for number in range(4) for row in TEXTS[:95]]
    told = found(rows)
    assert told["leaks"] == 0 and told["duplicates"] == 0
    assert told["near"] == 3 * told["splits"]["train"] / 4 > 100
    assert all(count % 4 == 0 for count in told["splits"].values()) and told["splits"]["test"] > 0
    apart = found(rows, "near=0")
    assert apart["near"] == 0 and any(count % 4 for count in apart["splits"].values())
    said = danlu(
        "preflight", "text-classification", f"model={sorter}", f"data={tmp_path / 'my.jsonl'}", "threads=1"
    ).out
    assert f"near duplicates in training: {told['near']} (near=0.8), none of them in another split" in said


@pytest.mark.parametrize("role", ["validation", "test"])
def test_near_duplicates_of_given_rows_are_not_learned(found, tmp_path, role):
    held = lines(tmp_path / "held.jsonl", [varied(row, 1) for row in TEXTS[:30]] + TEXTS[30:40])
    told = found(TEXTS[:300], f"{role}={held}")
    dropped = {entry["reason"]: entry["count"] for entry in told["rows"]["dropped"]}
    assert dropped[f"also in the {role} file, so not learned"] == 10
    assert 30 <= dropped[f"nearly the same as a row of the {role} file, so not learned"] <= 32
    assert told["leaks"] == 0 and told["splits"][role] == 40


def test_near_duplicates_of_given_rows_in_two_files_leave_validation(found, tmp_path):
    one = lines(tmp_path / "one.jsonl", TEXTS[:40])
    two = lines(tmp_path / "two.jsonl", [varied(row, 1) for row in TEXTS[:10]] + TEXTS[50:80])
    told = found(TEXTS[100:400], f"validation={one}", f"test={two}")
    dropped = {entry["reason"]: entry["count"] for entry in told["rows"]["dropped"]}
    assert dropped["in validation and in test, or nearly: left out of validation"] == 10
    assert told["splits"] == {"train": told["splits"]["train"], "validation": 30, "test": 40}


def test_running_text_and_conversations_too(found, chatter):
    texts = [{"text": varied(row, number)["text"]} for number in range(3) for row in TEXTS[:40]]
    told = found(texts, "max_tokens=128", task="gpt", model="gpt")
    assert told["near"] > 0 == told["leaks"] and all(count % 3 == 0 for count in told["splits"].values())
    chats = [
        {"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": row["text"]}]}
        for row in texts
    ]
    told = found(chats, "too_long=truncate", "max_tokens=128", task="chat", model=chatter)
    assert told["near"] > 0 == told["leaks"] and all(count % 3 == 0 for count in told["splits"].values())


@pytest.mark.parametrize("role", ["system", "user"])
def test_what_every_conversation_is_told_makes_none_alike_but_what_every_person_says_does(found, chatter, role):
    first = {"role": role, "content": TEXTS[5]["text"][:400]}
    between = [] if role == "user" else [{"role": "user", "content": "And?"}]
    rows = [[first, *between, {"role": "assistant", "content": row["text"][:20]}] for row in TEXTS[:40]]
    told = found([{"messages": row} for row in rows], task="chat", model=chatter)
    if role == "system":
        assert told["near"] == 0 and told["splits"]["test"] == 4
    else:
        assert "distinct rows are nearly the same text" in told


def test_rows_that_are_all_alike_are_one_error_with_the_way_out(found):
    same = " ".join(row["text"] for row in TEXTS[:3])
    rows = [{"text": f"{same} {number}", "label": str(number % 2)} for number in range(40)] + TEXTS[:20]
    error = found([*rows], "rare_labels=drop")
    assert (
        "40 of 60 distinct rows are nearly the same text" in error and "my.jsonl:1 and" in error and "near=0" in error
    )
    assert found(rows, "near=0", "rare_labels=drop")["splits"]["test"] > 0


def test_the_newest_rows_are_the_test(danlu, sorter, tmp_path):
    rows = [row | {"when": f"20{number % 20:02}-06-{number % 28 + 1:02}"} for number, row in enumerate(TEXTS[:400])]
    data = lines(tmp_path / "my.jsonl", rows)
    words = ("finetune", "text-classification", f"model={sorter}", f"data={data}", "time=when", "threads=1")
    result = danlu(*words, "steps=1", "batch_size=8", "baselines=false", "out=out")
    assert result.code == 0, result.err
    assert "\ntest: when from 2018-06-" in result.out and "\ntrain: when from 2000-06-" in result.out
    held = [json.loads(line)["row"] for line in (tmp_path / "out/data/test.jsonl").read_text("utf-8").splitlines()]
    assert {rows[number - 1]["when"][:4] for number in held} == {"2018", "2019"} and len(held) == 40


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["time=whenn"], "did you mean 'when'"),
        (["time=when"], "my.jsonl:7: 'soon'"),
        (["time=when", "folds=3"], "folds= and time= both say which rows are the test"),
        (["folds=3", "test=TEST"], "folds= and test= both say which rows are the test"),
        (["time=when", "validation=TEST", "test=TEST"], "time= says which rows to hold out"),
        (["folds=3", "fold=3"], "fold=0 to 2"),
        (["fold=1"], "folds=5"),
        (["folds=1"], "folds: found '1'"),
        (["near=1.2"], "near: found '1.2'"),
    ],
)
def test_what_cannot_be_is_one_error(found, tmp_path, more, said):
    test = lines(tmp_path / "test.jsonl", TEXTS[100:120])
    rows = [row | {"when": "2024-05-06" if number != 6 else "soon"} for number, row in enumerate(TEXTS[:60])]
    assert said in found(rows, *(word.replace("TEST", str(test)) for word in more))


def test_folds_together_test_every_row_once(found):
    told = [found(TEXTS[:200], "folds=4", f"fold={fold}")["splits"] for fold in range(4)]
    assert sum(each["test"] for each in told) == 200 and all(each["test"] in range(47, 54) for each in told)
    assert all(sum(each.values()) == 200 for each in told)


def test_a_rare_class_is_named_with_its_way_out(danlu, sorter, tmp_path):
    rows = [row for row in TEXTS if row["label"] in ("net", "games")]
    rows = [row for number, row in enumerate(rows) if row["label"] == "net" or number % 20 == 0]
    data = lines(tmp_path / "my.jsonl", rows)
    words = ("preflight", "text-classification", f"model={sorter}", f"data={data}", "threads=1")
    assert "note: 'games' has 12 training rows, 'net' 240: class_weights=balanced" in danlu(*words).out
    assert "class_weights=balanced" not in danlu(*words, "class_weights=balanced").out.replace(
        "class_weights=balanced  (", ""
    )
