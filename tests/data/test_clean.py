"""What is wrong with a text or with a set of rows."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.data.clean import (
    contradictions,
    duplicates,
    has_html,
    is_damaged,
    language_of,
    leaks,
    normal_form,
    script_of,
    share,
    stream_safe,
)


def test_rows_are_compared_without_case_width_and_white_space():
    same = ["Ｈｅｌｌｏ　World", "hello\n world ", "HELLO WORLD"]
    assert {normal_form(text) for text in same} == {"hello world"}
    assert normal_form("Straße") == normal_form("STRASSE")
    assert normal_form("你好") != normal_form("你们好")


@settings(deadline=None)
@given(st.text())
def test_white_space_around_makes_no_difference(text):
    assert normal_form(f" {text}\n") == normal_form(text)


def test_duplicates_contradictions_and_leaks():
    keys = ["a", "b", "a", "c", "b", "a"]
    assert duplicates(keys) == [(0, 2, 5), (1, 4)]
    assert contradictions(keys, [0, 1, 0, 0, 0, 0]) == [(1, 4)]
    assert leaks({"train": ["a", "b"], "validation": ["c"], "test": ["b", "d"]}) == {
        ("train", "test"): frozenset({"b"})
    }
    assert leaks({"train": ["a"], "test": ["b"]}) == {}


@pytest.mark.parametrize(
    ("text", "script", "language"),
    [
        ("The quick brown fox, naïve", "Latin", "a language in Latin script"),
        ("这本书很好看", "Han", "Chinese"),
        ("iPhone 手机很好用，推荐购买", "Han", "Chinese"),
        ("これは日本語の文章です", "Kana", "Japanese"),
        ("東京都の桜", "Kana", "Japanese"),
        ("한국어 문장입니다", "Hangul", "Korean"),
        ("Привет, мир", "Cyrillic", "Russian or another language in Cyrillic script"),
        ("مرحبا بالعالم", "Arabic", "Arabic"),
        ("Καλημέρα κόσμε", "Greek", "Greek"),
        ("שלום עולם", "Hebrew", "Hebrew"),
        ("สวัสดีชาวโลก", "Thai", "Thai"),
        ("नमस्ते दुनिया", "Devanagari", "Hindi"),
        ("გამარჯობა", "Georgian", "a language in Georgian script"),
        ("123 !? 😀", "", "no letters"),
        ("", "", "no letters"),
    ],
)
def test_scripts_and_languages(text, script, language):
    assert script_of(text) == script
    assert language_of([text]) == language


def test_the_language_of_a_data_set_is_that_of_most_of_it():
    assert language_of(["Buy now"] * 20 + ["这本书很好看，内容丰富，值得推荐给大家"] * 80) == "Chinese"
    assert language_of([]) == "no letters"


@pytest.mark.parametrize("text", ["cafÃ© noir", "donâ€™t", "\ufffd?", "è¿™æœ¬ä¹¦"])
def test_damaged(text):
    assert is_damaged(text)


@pytest.mark.parametrize("text", ["café noir", "don’t “quote”", "这本书", "Größe à la carte", "Ünïcödé", "plain", ""])
def test_sound(text):
    assert not is_damaged(text)


def test_html_and_shares():
    assert all(map(has_html, ["<p>a</p>", "<br/>", 'x <a href="y">z', "a &amp; b", "&#8217;"]))
    assert not any(map(has_html, ["a < b and c > d", "x <- 3", "AT&T", "<3", "if a<b: c"]))
    assert share(["<p>", "a"], has_html) == 0.5
    assert share([], has_html) == 0.0


def test_marks_on_a_character_are_bounded():
    """Putting them in order takes time that grows with the square of their number: hours for a megabyte of them."""
    marks = "\u0301" * 100_000 + "\u0327" * 100_000
    assert len(normal_form(f"a{marks}b")) <= 32
    hindi = "हिन्दी में लिखा हुआ वाक्य " * 3 + "e\u0301" * 40
    assert stream_safe(hindi) == hindi


@pytest.mark.parametrize("point", [p for p in range(0x300, 0x110000) if unicodedata.combining(chr(p))][::7])
def test_every_mark_is_bounded(point):
    assert len(stream_safe("a" + chr(point) * 40)) == 31
