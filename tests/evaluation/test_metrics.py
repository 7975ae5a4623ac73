"""Metrics against scikit-learn, against brute force, and by what an interval promises."""

from __future__ import annotations

import importlib.util
import json
import math

import numpy as np
import pytest
from sklearn import metrics as peer

from danlu.core.errors import UserError
from danlu.evaluation import metrics as m
from danlu.evaluation import text


@pytest.fixture(scope="module")
def predictions():
    rng = np.random.default_rng(0)
    true = rng.choice(4, size=600, p=[0.55, 0.3, 0.13, 0.02])
    predicted = np.where(rng.random(600) < 0.8, true, rng.integers(4, size=600))
    return true, predicted


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_precision_recall_f1_are_those_of_scikit_learn(predictions, average):
    expected = peer.precision_recall_fscore_support(*predictions, average=average, zero_division=0)[:3]
    assert m.precision_recall_f1(*predictions, 4, average) == pytest.approx(expected, abs=1e-12)


def test_each_class_and_the_confusion_matrix(predictions):
    expected = peer.precision_recall_fscore_support(*predictions, labels=range(4), zero_division=0)[:3]
    for found, wanted in zip(m.per_class(*predictions, 4), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-12)
    assert (m.confusion(*predictions, 4) == peer.confusion_matrix(*predictions)).all()


def test_a_class_never_predicted_scores_zero_and_an_absent_class_is_left_out():
    true, predicted = np.array([0, 0, 1]), np.array([0, 0, 0])
    precision, recall, f1 = m.per_class(true, predicted, 3)
    assert precision[1] == recall[1] == f1[1] == 0
    assert (
        m.f1(true, predicted, 3)
        == pytest.approx(peer.f1_score(true, predicted, average="macro", zero_division=0))
        == pytest.approx(0.4)
    )


def test_auc_with_ties_and_over_leading_axes():
    rng = np.random.default_rng(1)
    true = rng.integers(2, size=(5, 200))
    score = np.round(rng.random((5, 200)) + 0.3 * true, 1)
    assert m.auc(true, score) == pytest.approx(
        [peer.roc_auc_score(t, s) for t, s in zip(true, score, strict=True)], abs=1e-12
    )
    assert math.isnan(m.auc(np.ones(3, dtype=int), np.arange(3)))


def test_every_statistic_takes_leading_axes(predictions):
    true, predicted = predictions
    chosen = np.random.default_rng(2).integers(600, size=(7, 600))
    for statistic in (
        m.accuracy,
        lambda t, p: m.f1(t, p, 4),
        lambda t, p: m.f1(t, p, 4, "weighted"),
        m.mean_squared_error,
        m.ratio,
    ):
        together = statistic(true[chosen], predicted[chosen])
        assert together == pytest.approx([statistic(true[rows], predicted[rows]) for rows in chosen], abs=1e-12)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(4)
    held = 0
    for draw in range(300):
        found = m.interval(m.mean, rng.random(120) < 0.7, resamples=400, seed=draw)
        held += found.low <= 0.7 <= found.high
    assert 0.90 <= held / 300 <= 0.98


def held(truth, draw, times=200):
    """How often an interval of a new draw holds the truth."""
    found = [draw(seed) for seed in range(times)]
    return sum(one.low <= truth <= one.high for one in found) / times


@pytest.mark.parametrize("rows", [12, 24, 200])
def test_the_interval_of_a_share_holds_it_about_as_often_as_it_says(rows):
    """Computed over all counts, not drawn: 95 % on average over shares from 0.01 to 0.99, and nowhere far below."""
    from scipy.stats import binom

    found = [m.proportion(hits, rows) for hits in range(rows + 1)]
    covered = []
    for share in np.linspace(0.01, 0.99, 99):
        hold = [one.low <= share <= one.high for one in found]
        covered.append(binom.pmf(np.arange(rows + 1)[hold], rows, share).sum())
    assert 0.94 <= np.mean(covered) <= 0.965 and min(covered) > 0.83


def test_the_interval_of_a_share_is_that_of_the_tables():
    for hits, rows, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)):  # fmt: skip
        found = m.proportion(hits, rows)  # Newcombe 1998, table I, method 3
        assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert m.proportion(24, 24).high == 1 and m.proportion(24, 24).low == pytest.approx(0.8620, abs=5e-5)
    assert m.proportion(0, 0) == m.Interval(0.0, 0.0, 1.0)


@pytest.mark.parametrize(("classes", "rows", "right"), [(2, 24, 0.97), (2, 24, 0.9), (10, 60, 0.95), (3, 300, 0.8)])
def test_the_interval_of_averages_holds_the_truth_where_hardly_anything_is_wrong(classes, rows, right):
    def draw(seed):
        rng = np.random.default_rng(seed)
        true = rng.integers(classes, size=rows)
        wrong = (true + rng.integers(1, classes, rows)) % classes
        guess = np.where(rng.random(rows) < right, true, wrong)
        statistic = lambda t, p: m.f1(t, p, classes)[..., None]  # noqa: E731
        return m.intervals(statistic, true, guess, classes, resamples=400, seed=seed)[0]

    assert 0.91 <= held(right, draw) <= 1  # classes alike: macro F1 is the accuracy


@pytest.mark.parametrize(("rows", "truth"), [(24, 0.98), (24, 0.8), (120, 0.9)])
def test_the_interval_of_an_auc_holds_the_truth_where_hardly_anything_is_wrong(rows, truth):
    from scipy.special import ndtri

    def draw(seed):
        rng = np.random.default_rng(seed)
        true = np.arange(rows) < rows // 2
        return m.auc_interval(true, rng.normal(size=rows) + math.sqrt(2) * ndtri(truth) * true)

    assert 0.91 <= held(truth, draw) <= 1


def test_nothing_collapses_where_all_is_right_or_all_is_wrong():
    true = np.arange(24) % 2
    found = m.classification_report(true, true, np.eye(2)[true], ["no", "yes"])
    figures = [one for name, one in found["metrics"].items() if name not in ("log_loss", "brier")]
    figures += [row[name] for row in found["per_class"].values() for name in ("precision", "recall", "f1")]
    assert all(one["value"] == one["high"] == 1 and 0.7 < one["low"] < 0.95 for one in figures)
    answers = m.answer_report(["no"] * 12, ["yes"] * 12)["metrics"]
    assert all(answers[name]["value"] == answers[name]["low"] == 0 for name in ("exact_match", "token_f1", "rouge_l"))
    assert all(0.1 < answers[name]["high"] < 0.35 for name in ("exact_match", "token_f1", "rouge_l"))


def test_a_masked_model_of_few_texts_is_never_sure():
    for tokens in ([3], [3, 3], [0, 3, 0]):  # one text, two alike, one of which something is asked
        sums = np.array(tokens, float)
        for right in (0, 1):
            found = m.language_report(sums, tokens, right=np.multiply(tokens, right), vocabulary=1000)["metrics"]
            share, loss, worst = found["token_accuracy"], found["loss"], math.log(1000)
            assert (share["value"], loss["value"]) == (right, 1) and share["high"] - share["low"] > 0.3
            assert 0 <= loss["low"] < 1 < loss["high"] <= worst and found["perplexity"]["high"] <= 1001
    found = m.language_report([3.0] * 40, [3] * 40, right=[0] * 40, vocabulary=1000)["metrics"]
    assert 0.01 < found["token_accuracy"]["high"] < 0.05 and found["loss"]["high"] < 1.2

    def draw(seed):
        rng = np.random.default_rng(seed)
        tokens = rng.integers(1, 6, size=12)
        return m.interval(
            m.ratio, rng.binomial(tokens, 0.95), tokens, pseudo=[(1, 0), (1, 1)], resamples=400, seed=seed
        )

    assert 0.91 <= held(0.95, draw) <= 1


def test_interval_is_reproducible_and_the_same_one_by_one():
    values = np.random.default_rng(0).random(50)
    assert m.interval(m.mean, values, seed=3) == m.interval(m.mean, values, seed=3)
    assert m.interval(m.mean, values) == m.interval(lambda rows: float(np.mean(rows)), values, batched=False)


def test_memory_is_bounded_without_changing_the_result(monkeypatch, predictions):
    whole = m.interval(m.accuracy, *predictions)
    monkeypatch.setattr(m, "_CELLS", 600 * 7)
    in_pieces = m.interval(m.accuracy, *predictions)
    assert in_pieces == whole


def test_token_losses_are_a_ratio_of_sums_not_a_mean_of_means():
    sums, tokens = np.array([10.0, 1.0]), np.array([1, 99])
    assert m.perplexity(sums, tokens) == pytest.approx(math.exp(11 / 100))
    assert m.bits_per_byte([math.log(2) * 8], [4]) == pytest.approx(2.0)
    found = m.language_report(sums, tokens, sizes=[4, 400], right=[0, 90])["metrics"]
    assert found["loss"]["value"] == pytest.approx(0.11) and found["token_accuracy"]["value"] == pytest.approx(0.9)


def test_wrong_lengths_are_refused():
    with pytest.raises(UserError, match=r"lengths \[3, 2\]"):
        m.interval(m.accuracy, [1, 2, 3], [1, 2])
    with pytest.raises(UserError, match="at least one row"):
        m.interval(m.mean, [])


def levenshtein(first, second):
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def longest_common(first, second):
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_bit_parallel_distances_are_the_plain_ones():
    rng = np.random.default_rng(5)
    for _ in range(300):
        first, second = ("".join(rng.choice(list("abcd"), size=rng.integers(0, 90))) for _ in range(2))
        assert text.edit_distance(first, second) == levenshtein(first, second)
        assert text.common_subsequence(first, second) == longest_common(first, second)


def test_text_metrics():
    assert m.exact_match(["Paris ", "paris", "ﬁne"], ["Paris", "Paris", "fine"]).tolist() == [True, False, True]
    assert text.token_f1(["the cat sat", "", "Paris!"], ["a cat", "", "paris"]) == pytest.approx([0.4, 1.0, 1.0])
    assert text.rouge_l(
        ["police killed the gunman", "the gunman kill police"], ["police kill the gunman"] * 2
    ) == pytest.approx([0.75, 0.5])  # Lin 2004
    assert m.ratio(*text.word_errors(["the cat sat"], ["the cat sat down now"])) == pytest.approx(0.4)
    assert m.ratio(*text.character_errors(["kitten"], ["sitting"])) == pytest.approx(3 / 7)


def test_chinese_counts_by_character():
    assert text.words("法国的首都是Paris。") == ["法", "国", "的", "首", "都", "是", "paris"]
    assert text.token_f1(["首都是巴黎"], ["巴黎"]) == pytest.approx([4 / 7])


def test_bleu_asks_for_its_package_or_scores():
    if importlib.util.find_spec("sacrebleu"):
        assert text.bleu(["the cat sat on the mat"], ["the cat sat on the mat"]) == pytest.approx(100)
        assert text.chrf(["the cat"], ["the cat"]) == pytest.approx(100)
    else:
        with pytest.raises(UserError, match="pip install sacrebleu"):
            text.bleu(["a"], ["a"])


def test_classification_report_is_json_and_agrees_with_scikit_learn(predictions):
    true, predicted = predictions
    labels = ["a", "b", "c", "d"]
    chances = 0.6 * np.eye(4)[predicted] + 0.1
    found = json.loads(json.dumps(m.classification_report(true, predicted, chances, labels), allow_nan=False))
    expected = peer.classification_report(true, predicted, target_names=labels, output_dict=True, zero_division=0)
    for label in labels:
        for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert found["per_class"][label][ours]["value"] == pytest.approx(expected[label][theirs])
    assert found["metrics"]["log_loss"]["value"] == pytest.approx(peer.log_loss(true, chances))
    assert "auc" not in found["metrics"]
    for one in found["metrics"].values():
        assert one["low"] <= one["value"] <= one["high"]


def test_binary_report_has_an_auc_only_where_both_labels_occur():
    true, score = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])
    chances = np.stack([1 - score, score], axis=1)
    assert (
        m.classification_report(true, (score > 0.5).astype(int), chances, ["no", "yes"])["metrics"]["auc"]["value"]
        == 0.75
    )
    alone = m.classification_report(np.zeros(4, int), np.zeros(4, int), chances, ["no", "yes"])["metrics"]
    assert "auc" not in alone and alone["accuracy"] == alone["recall_weighted"] == m.proportion(4, 4).json()


def test_a_label_the_model_does_not_know():
    with pytest.raises(UserError, match="true labels: found numbers from 0 to 2, expected 0 to 1"):
        m.classification_report([0, 2], [0, 1], None, ["no", "yes"])


def test_answer_report():
    found = m.answer_report(["Paris", "Rome"], ["Paris", "Madrid"])
    assert found["metrics"]["exact_match"]["value"] == 0.5 and found["rows"] == 2


def test_few_rows_widen_an_interval_that_agreeing_seeds_would_narrow():
    """Five seeds that agree on nine rows say little of other rows; on nine hundred such rows they say much."""
    from danlu.evaluation.metrics import over_seeds, over_seeds_and_rows

    rows = np.array([1.0, 1, 0, 0, 0, -1, 0, 1, 0])
    few, many = (over_seeds_and_rows(np.tile(rows, (5, count))) for count in (1, 100))
    alone = over_seeds(np.tile(rows, (5, 1)).mean(1))
    assert alone.low == pytest.approx(alone.high), "seeds alone see no doubt at all"
    assert few.value == many.value == pytest.approx(rows.mean())
    assert few.low < 0 < few.high and 0 < many.low < many.value < many.high
    apart = over_seeds_and_rows(np.repeat([[0.0], [1.0], [0.0], [1.0]], 1000, axis=1))
    assert apart.low < 0.2 and apart.high > 0.8, "and many rows do not make seeds agree"
