"""Runs of words as hashes: which texts count as alike, and by how much."""

import tracemalloc

import numpy as np
import pytest

from danlu.data.clean import normal_form
from danlu.data.shingles import BATCH, jaccard, places_of_words, runs, shingles


def of(text: str, count: int = 3) -> np.ndarray:
    return next(shingles([text], count))


def test_case_width_and_punctuation_make_no_difference():
    assert np.array_equal(of("Hello, WORLD! It is late."), of("ｈｅｌｌｏ world it   is\nlate"))


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("", 3, 0),
        ("… !?", 3, 0),
        ("one", 3, 1),
        ("one two three", 3, 1),
        ("one two three four", 3, 2),
        ("a b a b a b", 2, 2),  # "a b" and "b a"
        ("炉中火正红", 3, 3),  # a character is a word
        ("用GPU训练", 2, 3),  # 用 gpu, gpu 训, 训 练
    ],
)
def test_a_run_is_so_many_words_and_counts_once(text, count, expected):
    assert len(of(text, count)) == expected


def test_many_texts_at_once_are_each_text_alone():
    texts = ["the quick brown fox jumps", "", "炉中火正红，丹将成", "one", "the quick brown fox sleeps " * 50]
    together = list(shingles(texts, 3))
    assert all(np.array_equal(each, of(text)) for each, text in zip(together, texts, strict=True))


@pytest.mark.parametrize("text", ["The quick brown fox jumps. ", "炉中火正红，丹将成。", "x" * 1000 + " y "])
def test_a_long_text_is_hashed_a_piece_at_a_time_as_if_it_were_whole(text):
    text = normal_form((text * (3 * BATCH // len(text) + 1))[: 2 * BATCH + 77])
    places = places_of_words(text)
    tracemalloc.start()
    ((found, starts),) = runs([text], 3)
    assert tracemalloc.get_traced_memory()[1] < 130 * BATCH
    tracemalloc.stop()
    assert starts.tolist() == [0, len(found)] and len(found) == len(places) - 2
    cuts = [np.searchsorted([begin for begin, _ in places], BATCH), min(BATCH, len(found) - 3), len(found) - 3]
    for at in [*range(0, len(found), len(found) // 50), *(cut + near for cut in cuts for near in range(-3, 3))]:
        assert found[at] == of(text[places[at][0] : places[at + 2][1]])[0]


def test_a_run_never_crosses_from_one_text_into_the_next():
    ((hashes, starts),) = runs(["a b", "c d"], 2)
    assert len(hashes) == 2 and starts.tolist() == [0, 1, 2]
    assert of("b c", 2)[0] not in hashes


def test_jaccard_is_that_of_the_sets_of_runs():
    one, two = "a b c d e f", "a b c d e g"
    sets = [{tuple(text.split()[at : at + 3]) for at in range(4)} for text in (one, two)]
    assert jaccard(of(one), of(two)) == len(sets[0] & sets[1]) / len(sets[0] | sets[1]) == 0.6
    assert jaccard(of(""), of("!")) == 1


def test_the_order_of_words_counts():
    assert jaccard(of("a b c d"), of("d c b a")) == 0


def test_hashes_stay_what_they_are():
    assert of("the furnace burns")[0] == 0x6BAEF7D1AF1620E6
