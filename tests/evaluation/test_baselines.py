"""The baselines learn what can be learned from words and characters, choose on training rows only, and survive odd splits."""

from __future__ import annotations

import numpy as np
import pytest

from danlu.core.errors import UserError
from danlu.evaluation import baselines as b
from danlu.evaluation.metrics import accuracy


GOOD = ["质量很好，很满意", "非常喜欢，推荐购买", "物流快，东西不错", "性价比高，好用"]
BAD = ["质量太差，很失望", "非常后悔，不推荐", "物流慢，东西坏了", "又贵又难用"]


def chinese(rows, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=rows)
    texts = [
        "".join(rng.permutation([str(rng.choice((BAD, GOOD)[label])), f"第{rng.integers(999)}次买。"]))
        for label in labels
    ]
    return texts, labels


def test_majority():
    found = b.majority([0, 1, 1, 2], 3, 4)
    assert found.predicted.tolist() == [1, 1, 1]
    assert found.probabilities[0].tolist() == [0.25, 0.5, 0.25, 0.0]


def test_chinese_without_spaces_is_learned():
    texts, labels = chinese(300, 0)
    test_texts, test_labels = chinese(100, 1)
    plain, linear = b.baselines(texts, labels, test_texts, 2)
    assert accuracy(test_labels, plain.predicted) < 0.65
    assert accuracy(test_labels, linear.predicted) >= 0.95
    assert linear.settings["chosen_by"] == "3-fold cross-validation, accuracy"
    assert linear.probabilities.sum(1) == pytest.approx(np.ones(100)) and linear.seconds > 0


def test_each_fit_of_the_choice_is_told():
    texts, labels = chinese(90, 0)
    told: list[tuple[int, int]] = []
    found = b.baselines(texts, labels, texts[:3], 2, progress=lambda done, fits: told.append((done, fits)))
    fits = 3 * 3 * len(b.STRENGTHS) * len(b.WEIGHTS)  # words, characters or both, in three folds
    assert told == [(done, fits) for done in range(1, fits + 1)] and "3-fold" in found[1].settings["chosen_by"]


def test_character_counts_are_those_of_scikit_learn():
    from sklearn.feature_extraction.text import CountVectorizer

    texts = ["Hello, hello  world a", "", "物流快 东西不错", "İstanbul naïve ſ", "a\tb\nc  a"]
    plain = CountVectorizer(analyzer="char_wb", ngram_range=(2, 5)).fit(texts)
    found = b._character_counts(texts)
    assert found.shape == (5, len(plain.vocabulary_))
    assert sorted(found.sum(0).tolist()[0]) == sorted(plain.transform(texts).sum(0).tolist()[0])


def test_the_test_rows_change_nothing_that_is_learned():
    texts, labels = chinese(200, 0)
    probe = chinese(20, 5)[0]
    alone = b.tfidf(texts, labels, probe, 2)
    among = b.tfidf(texts, labels, [*probe, *["完全不同的词语" * 3] * 40], 2)
    assert alone.settings == among.settings
    assert np.allclose(alone.probabilities, among.probabilities[:20], atol=1e-5)


def test_misspelt_words_are_for_characters_to_find():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=240)
    stems = ("wonderful", "horrible")
    texts = []
    for label in labels:
        word = list(stems[label])
        word.insert(int(rng.integers(len(word))), str(rng.choice(list("xqzvw"))))
        texts.append("it was " + "".join(word) + str(rng.integers(10_000)))
    found = b.tfidf(texts[:160], labels[:160], texts[160:], 2)
    assert "characters" in found.settings["features"] and accuracy(labels[160:], found.predicted) > 0.9


def test_a_rare_class_can_be_weighed():
    rng = np.random.default_rng(0)
    labels = (rng.random(400) < 0.08).astype(int)
    texts = [
        f"{'urgent' if label and rng.random() < 0.8 else 'note'} {rng.choice(['a', 'b', 'urgent'], p=[0.5, 0.42, 0.08])} {rng.integers(50)}"
        for label in labels
    ]
    found = b.tfidf(texts, labels, texts[:50], 2, score="f1_macro")
    assert found.settings["class_weight"] in b.WEIGHTS and found.settings["chosen_by"].endswith("f1_macro")


def test_one_label_only():
    found = b.tfidf(["a b", "c d"], [1, 1], ["e"], 3)
    assert found.predicted.tolist() == [1] and found.probabilities.tolist() == [[0, 1, 0]]
    assert "one label only" in found.notes[0]


def test_a_label_with_one_row_and_one_with_none():
    texts = ["good day", "good night", "good morning", "bad day", "bad night", "bad luck", "odd"]
    found = b.tfidf(texts, [0, 0, 0, 1, 1, 1, 2], ["good luck", "bad morning"], 4)
    assert found.predicted.tolist() == [0, 1] and (found.probabilities[:, 3] == 0).all()


def test_too_few_rows_to_choose():
    found = b.tfidf(["good day", "bad day"], [0, 1], ["good", "bad"], 2)
    assert found.predicted.tolist() == [0, 1] and "too few rows" in found.notes[0]


def test_groups_stay_together():
    groups = np.array(list("aabbccddeeff"), dtype=object)
    for fitted, held in b._parts(np.arange(12) % 2, groups, 3, 0):
        assert not set(groups[fitted]) & set(groups[held])


def test_no_test_rows_and_no_words():
    texts, labels = chinese(40, 0)
    assert b.tfidf(texts, labels, [], 2).predicted.shape == (0,)
    with pytest.raises(UserError, match="no word"):
        b.tfidf(["", " ", "  ", ""], [0, 1, 0, 1], ["x"], 2)
    with pytest.raises(UserError, match="found none"):
        b.majority([], 3, 2)


def test_long_texts_are_cut_alike_and_it_is_said(monkeypatch):
    assert b._cut(["aaaa", "bb", "cccccc"], 9) == (["aaa", "bb", "ccc"], 3)
    assert b._cut(["aaaa", "bb"], 6) == (["aaaa", "bb"], None)
    monkeypatch.setattr(b, "_CHARACTERS_FROM", 2000)
    texts, labels = chinese(300, 0)
    notes = b.tfidf(texts, labels, texts[:5], 2).notes
    assert any("characters counted in the first" in note for note in notes)
