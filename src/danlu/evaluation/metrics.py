"""Metrics as pure functions of numpy arrays, and how sure one may be of them.

Rows are always the *last* axis, and every statistic takes any leading axes: `accuracy` of `[rows]` is one number, of
`[resamples, rows]` it is one number a resample. So the bootstrap is one vectorised call, not a thousand.

A ratio is a ratio of sums, never a mean of means: the perplexity of a set is that of all its tokens together.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from danlu.core.errors import UserError
from danlu.evaluation.text import character_errors, rouge_l, token_f1


Array = NDArray[Any]
Average = Literal["macro", "micro", "weighted"]

LEVEL = 0.95
"""Of all intervals."""
_CELLS = 4_000_000  # numbers held at once while resampling: 32 MB


# --- how sure ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A value and the interval that holds it at LEVEL, 95 %."""

    value: float
    low: float
    high: float

    def json(self) -> dict[str, float]:
        return asdict(self)


def interval(
    statistic: Callable[..., Any],
    *arrays: ArrayLike,
    resamples: int = 1000,
    seed: int = 0,
    batched: bool = True,
    pseudo: Sequence[Sequence[float]] = (),
) -> Interval:
    """The statistic of the rows with its percentile bootstrap interval (Efron 1979), rows drawn with replacement.

    arrays: each `[rows]` (or `[rows, …]`); the same rows are drawn from all of them.
    statistic: arrays `[..., rows]` -> `[...]`. With `batched=False` it is called once a resample with `[rows]` arrays,
        for a statistic that cannot take leading axes.
    pseudo: rows, as columns for each of the arrays, that are drawn like the others but do not count in the value: the least and the
        largest score give the mean of scores with bounds an interval of some width where all rows score alike, as in `intervals`.

    Resamples in which the statistic is undefined (NaN: an AUC without a positive row) are left out. The percentile interval is
    too narrow on few rows and without `pseudo` has no width where every row scores alike: read it with the number of rows beside
    it. A share of independent rows has `proportion`, an AUC `auc_interval`.
    """
    columns = [np.asarray(array) for array in arrays]
    rows = _common_rows(columns)
    value = np.asarray(statistic(*columns), dtype=np.float64)
    if value.ndim:
        raise TypeError(f"a statistic of [rows] must be one number, found shape {value.shape}; see `intervals`")
    draws = np.empty(resamples)
    if pseudo:
        columns = [np.concatenate([column, more]) for column, more in zip(columns, pseudo, strict=True)]
    for start, chosen in resampled_rows(rows, resamples, seed, len(columns[0]) - rows):
        if batched:
            draws[start : start + len(chosen)] = statistic(*(column[chosen] for column in columns))
        else:
            draws[start : start + len(chosen)] = [statistic(*(column[some] for column in columns)) for some in chosen]
    low, high = quantiles(draws)
    return Interval(float(value), float(low), float(high))


def intervals(
    statistic: Callable[..., Array],
    true: ArrayLike,
    predicted: ArrayLike,
    classes: int,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Interval]:
    """Several figures of a classifier, `statistic(true, predicted)` of `[..., rows] -> [..., numbers]`: one interval each, from the same draws.

    A bootstrap with two rows more than there are: of rows + 2 drawn ones, one was right and one was wrong, the label at random (the
    pseudo-rows of Agresti and Coull 1998, here in the draws). So the interval of a model without a mistake has a width, about 3 / rows;
    over many rows the two do not count. tests/evaluation/test_metrics.py measures how often it holds the truth.
    """
    truth, guess = np.asarray(true), np.asarray(predicted)
    rows, values = _common_rows([truth, guess]), np.asarray(statistic(truth, guess), dtype=np.float64)
    draws, rng = np.empty((resamples, len(values))), np.random.default_rng([seed, classes])
    for start, chosen in resampled_rows(rows, resamples, seed):
        drawn, kind = truth[chosen], (rows + 2) * rng.random(chosen.shape)
        wrong = (drawn + rng.integers(1, max(classes, 2), chosen.shape)) % classes
        draws[start : start + len(chosen)] = statistic(
            drawn, np.where(kind < 1, drawn, np.where(kind < 2, wrong, guess[chosen]))
        )
    low, high = quantiles(draws)
    return [Interval(float(v), float(a), float(b)) for v, a, b in zip(values, low, high, strict=True)]


def proportion(hits: float, rows: float) -> Interval:
    """A share of independent rows, `hits / rows`, with the score interval of Wilson (1927): of some width also at 0 and at 1.

    Of no rows the share counts as 0, and the interval is from 0 to 1: nothing is known.
    """
    from scipy.special import ndtri

    z2 = float(ndtri((1 + LEVEL) / 2)) ** 2
    share = hits / rows if rows else 0.0
    middle, half = hits + z2 / 2, math.sqrt(z2 * (hits * (1 - share) + z2 / 4))
    low, high = ((middle + edge) / (rows + z2) for edge in (-half, half))
    return Interval(share, min(max(low, 0.0), share), max(min(high, 1.0), share))


def resampled_rows(rows: int, resamples: int, seed: int, pseudo: int = 0) -> Iterator[tuple[int, Array]]:
    """(first resample, row numbers [some resamples, rows]) out of rows + pseudo, in pieces that bound the memory."""
    rng = np.random.default_rng(seed)
    piece = max(1, _CELLS // rows)
    for start in range(0, resamples, piece):
        yield start, rng.integers(rows + pseudo, size=(min(piece, resamples - start), rows))


def over_seeds(values: ArrayLike) -> Interval:
    """The mean of one figure over independent repetitions, with Student's interval (1908): what another seed would give."""
    from scipy.stats import t

    each = np.asarray(values, dtype=np.float64)
    middle, half = float(each.mean()), math.nan
    if len(each) > 1:
        half = float(t.ppf((1 + LEVEL) / 2, len(each) - 1) * each.std(ddof=1) / math.sqrt(len(each)))
    return Interval(middle, middle - half, middle + half)


def over_seeds_and_rows(values: ArrayLike, resamples: int = 2000, seed: int = 0) -> Interval:
    """The mean of `values` [seeds, rows], with an interval for another seed and for other rows: both are drawn with
    replacement, independently (the pigeonhole bootstrap, Owen 2007). Seeds alone would take few test rows for the truth."""
    each, rng = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    draws = np.empty(resamples)
    for place in range(resamples):
        seeds, rows = (np.bincount(rng.integers(size, size=size), minlength=size) / size for size in each.shape)
        draws[place] = seeds @ each @ rows
    low, high = quantiles(draws)
    return Interval(float(each.mean()), float(low), float(high))


def quantiles(draws: Array) -> tuple[Array, Array]:
    """The middle LEVEL of the draws along the first axis, NaN left out; NaN where there is nothing else."""
    defined = ~np.isnan(draws).all(axis=0)
    edges = np.nanquantile(np.where(defined, draws, 0.0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    low, high = np.where(defined, edges, np.nan)
    return low, high


def _common_rows(columns: Sequence[Array]) -> int:
    lengths = {len(column) for column in columns}
    if len(lengths) != 1 or not (rows := lengths.pop()):
        raise UserError(
            f"a metric needs arrays of one length with at least one row, found lengths {[len(column) for column in columns]}",
            "give as many predictions as there are rows",
        )
    return rows


# --- right or wrong ---------------------------------------------------------------------------------------------------


def accuracy(true: ArrayLike, predicted: ArrayLike) -> Any:
    """Share of rows predicted right: `sum(true == predicted) / rows`, 0 to 1. [..., rows] -> [...]."""
    return np.mean(np.asarray(true) == np.asarray(predicted), axis=-1)


def confusion(true: ArrayLike, predicted: ArrayLike, classes: int) -> Array:
    """int64 [classes, classes]: rows of each true class (down) by the predicted one (across). Inputs: int [rows]."""
    cells = np.asarray(true, dtype=np.int64) * classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def tallies(true: ArrayLike, predicted: ArrayLike, classes: int) -> tuple[Array, Array, Array]:
    """(hits, predicted, true) rows of each class: int [..., rows] -> three of [..., classes]. All that F1 needs to know."""
    true, predicted = np.asarray(true), np.asarray(predicted)
    right = np.where(true == predicted, true, classes)  # wrong rows are counted in one class more, then cut off
    return _histogram(right, classes + 1)[..., :-1], _histogram(predicted, classes), _histogram(true, classes)


def _histogram(values: Array, bins: int) -> Array:
    flat = values.reshape(-1, values.shape[-1])
    offset = np.arange(len(flat))[:, None] * bins
    return np.bincount((flat + offset).ravel(), minlength=len(flat) * bins).reshape(*values.shape[:-1], bins)


def per_class(true: ArrayLike, predicted: ArrayLike, classes: int) -> tuple[Array, Array, Array]:
    """(precision, recall, F1) of each class, each [..., classes], 0 to 1.

    precision = hits / predicted, recall = hits / true, F1 = 2 hits / (predicted + true). Zero divided by zero is 0: a class
    never predicted has precision 0, a class that does not occur has recall 0.
    """
    return _scores(*tallies(true, predicted, classes))


def _scores(hits: Array, claimed: Array, real: Array) -> tuple[Array, Array, Array]:
    return _divide(hits, claimed), _divide(hits, real), _divide(2 * hits, claimed + real)


def _divide(above: Array, below: Array) -> Array:
    return above / np.where(below == 0, 1, below)


def precision_recall_f1(true: ArrayLike, predicted: ArrayLike, classes: int, average: Average = "macro") -> Array:
    """[..., 3]: precision, recall and F1 over all classes, 0 to 1; zero divided by zero is 0 (`per_class`).

    macro: every class counts alike; a class that neither occurs nor is predicted is left out (as in scikit-learn).
    weighted: every class counts by its true rows. micro: hits of all classes over rows of all classes; with one label a row
    all three are the accuracy.
    """
    hits, claimed, real = tallies(true, predicted, classes)
    if average == "micro":
        hits, claimed, real = (tally.sum(-1, keepdims=True) for tally in (hits, claimed, real))
    weight = (claimed + real > 0) if average == "macro" else real
    return np.stack([(score * weight).sum(-1) / weight.sum(-1) for score in _scores(hits, claimed, real)], axis=-1)


def f1(true: ArrayLike, predicted: ArrayLike, classes: int, average: Average = "macro") -> Any:
    """The F1 of `precision_recall_f1`: [..., rows] -> [...]."""
    return precision_recall_f1(true, predicted, classes, average)[..., 2][()]


def auc(true: ArrayLike, score: ArrayLike) -> Any:
    """Area under the ROC curve, 0 to 1: the chance that a positive row scores above a negative one, ties counting half.

    true: 0 or 1, [..., rows]; score: [..., rows]. Through the ranks (Mann and Whitney 1947; Hanley and McNeil 1982), so that a
    thousand resamples are one call. NaN where a class is missing.
    """
    from scipy.stats import rankdata

    positive = np.asarray(true).astype(bool)
    ranks = rankdata(np.asarray(score, dtype=np.float64), axis=-1)
    positives = positive.sum(-1)
    pairs = positives * (positive.shape[-1] - positives)
    above = (ranks * positive).sum(-1) - positives * (positives + 1) / 2
    return np.where(pairs == 0, np.nan, above / np.maximum(pairs, 1))[()]


def auc_interval(true: ArrayLike, score: ArrayLike) -> Interval:
    """`auc` of [rows] with the score interval of Newcombe (2006, method 5), of some width also at 0 and at 1.

    All t with (auc - t)^2 <= z^2 v(t), where Hanley and McNeil's variance of m positive and n negative rows is made symmetric:
    v(t) = t (1 - t) (1 + N (1 - t) / (2 - t) + N t / (1 + t)) / (m n), N = (m + n) / 2 - 1.
    """
    from scipy.special import ndtri

    value, positives = float(auc(true, score)), int(np.asarray(true).astype(bool).sum())
    negatives, t = len(np.asarray(true)) - positives, np.linspace(0, 1, 20_001)
    more = (positives + negatives) / 2 - 1
    spread = t * (1 - t) * (1 + more * ((1 - t) / (2 - t) + t / (1 + t))) / (positives * negatives)
    within = t[(value - t) ** 2 <= float(ndtri((1 + LEVEL) / 2)) ** 2 * spread]
    return Interval(value, min(value, *within[:1]), max(value, *within[-1:]))


def exact_match(answers: Sequence[str], expected: Sequence[str]) -> Array:
    """[rows] of bool: equal after Unicode NFKC and with white space collapsed. Case and punctuation count."""
    pairs = zip(answers, expected, strict=True)
    return np.array([_collapsed(answer) == _collapsed(wanted) for answer, wanted in pairs], dtype=bool)


def _collapsed(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


# --- how far off ------------------------------------------------------------------------------------------------------


def mean(values: ArrayLike) -> Any:
    """The mean over rows: [..., rows] -> [...]."""
    return np.mean(np.asarray(values, dtype=np.float64), axis=-1)


def ratio(sums: ArrayLike, counts: ArrayLike) -> Any:
    """Sum of the sums over sum of the counts (a loss per token, an error rate): [..., rows] -> [...]; NaN without a count."""
    below = np.asarray(counts, dtype=np.float64).sum(-1)
    above = np.asarray(sums, dtype=np.float64).sum(-1)
    return np.where(below == 0, np.nan, above / np.where(below == 0, 1.0, below))[()]


def mean_squared_error(true: ArrayLike, predicted: ArrayLike) -> Any:
    """`mean((true - predicted)²)`, 0 or more: [..., rows] -> [...]."""
    return mean((np.asarray(true, dtype=np.float64) - np.asarray(predicted, dtype=np.float64)) ** 2)


def perplexity(loss_sums: ArrayLike, tokens: ArrayLike) -> Any:
    """`exp(sum of losses / sum of tokens)`, 1 or more; losses in nats: [..., rows] -> [...]."""
    return np.exp(ratio(loss_sums, tokens))


def bits_per_byte(loss_sums: ArrayLike, sizes: ArrayLike) -> Any:
    """`sum of losses / ln 2 / sum of sizes in UTF-8 bytes`, 0 or more: comparable between tokenizers. [..., rows] -> [...]."""
    return ratio(loss_sums, sizes) / math.log(2)


def log_losses(true: ArrayLike, probabilities: ArrayLike) -> Array:
    """[rows] -ln of the probability given to the true class, 0 or more; a probability below 1e-15 counts as 1e-15.

    true: int [rows]; probabilities: [rows, classes].
    """
    given = np.take_along_axis(np.asarray(probabilities, dtype=np.float64), np.asarray(true)[:, None], axis=1)[:, 0]
    return -np.log(np.clip(given, 1e-15, 1.0))


# --- whole reports, ready for JSON ------------------------------------------------------------------------------------


def classification_report(
    true: ArrayLike,
    predicted: ArrayLike,
    probabilities: ArrayLike | None,
    labels: Sequence[str],
    *,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Everything about a classifier on one split: `rows`, `level`, `metrics`, `per_class`, `confusion`, ready for JSON.

    true, predicted: int [rows], numbers of `labels`; probabilities: [rows, classes] or None.
    Every metric is {"value", "low", "high"}: shares of rows by `proportion`, averages over classes by `intervals`, `auc` by
    `auc_interval`, the others by `interval`. `auc` is there for two labels of which both occur (the second is the positive one);
    `log_loss` (nats) and `brier` (mean squared error of the probabilities, summed over classes, 0 to 2) with probabilities.
    """
    truth, guess = np.asarray(true, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    classes = len(labels)
    for name, numbers in (("true", truth), ("predicted", guess)):
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= classes):
            raise UserError(
                f"{name} labels: found numbers from {numbers.min()} to {numbers.max()}, expected 0 to {classes - 1}",
                "the data and the model must have the same labels",
            )
    # one label a row: micro F1 and weighted recall too
    right = proportion(float((truth == guess).sum()), len(truth)).json()
    names = [f"{score}_{average}" for average in ("macro", "weighted") for score in ("precision", "recall", "f1")]

    def averages(true: Array, predicted: Array) -> Array:
        both = [precision_recall_f1(true, predicted, classes, average) for average in ("macro", "weighted")]
        return np.concatenate(both, axis=-1)

    found = zip(names, intervals(averages, truth, guess, classes, resamples=resamples), strict=True)
    metrics = {
        "accuracy": right,
        "f1_micro": right,
        **{name: one.json() for name, one in found},
        "recall_weighted": right,
    }
    if probabilities is not None:
        chances = np.asarray(probabilities, dtype=np.float64)
        if classes == 2 and 0 < truth.sum() < len(truth):
            metrics["auc"] = auc_interval(truth, chances[:, 1]).json()
        squares = ((chances - np.eye(classes)[truth]) ** 2).sum(1)
        metrics["log_loss"] = interval(mean, log_losses(truth, chances), resamples=resamples).json()
        metrics["brier"] = interval(mean, squares, resamples=resamples).json()
    table = {
        label: {
            "precision": proportion(hits, claimed).json(),
            "recall": proportion(hits, real).json(),
            "f1": _f1_of_class(hits, claimed + real - hits).json(),
            "rows": real,
            "predicted": claimed,
        }
        for label, hits, claimed, real in zip(
            labels, *(tally.tolist() for tally in tallies(truth, guess, classes)), strict=True
        )
    }
    return {
        "rows": len(truth),
        "level": LEVEL,
        "metrics": metrics,
        "per_class": table,
        "confusion": {"labels": list(labels), "matrix": confusion(truth, guess, classes).tolist()},
    }


def _f1_of_class(hits: int, either: int) -> Interval:
    """F1 is 2 J / (1 + J) of the share J of hits among the rows that are of the class or were taken for it, and so are its edges."""
    share = proportion(hits, either)
    return Interval(*(2 * edge / (1 + edge) for edge in (share.value, share.low, share.high)))


def language_report(
    loss_sums: ArrayLike,
    tokens: ArrayLike,
    *,
    sizes: ArrayLike | None = None,
    right: ArrayLike | None = None,
    vocabulary: int = 1,
) -> dict[str, Any]:
    """A language model on one split: `loss` (nats a token), `perplexity`, and where given `bits_per_byte`, `token_accuracy`.

    All [rows]: loss_sums summed over the learned tokens of the row, tokens how many there are, sizes the bytes of UTF-8 they stand for,
    right how many of them were the most likely one. Rows are drawn whole: the tokens of a row are not independent.
    Where few tokens of a text are asked for, as in a masked model (`right`), two pseudo-tokens are drawn beside the rows: one that is known
    for sure, and one of which no more is known than that it is one of `vocabulary`. So few rows have an interval of some width.
    """
    pseudo: Sequence[Sequence[float]] = [(0.0, math.log(vocabulary)), (1.0, 1.0)] if right is not None else ()
    metrics = {
        "loss": interval(ratio, loss_sums, tokens, pseudo=pseudo),
        "perplexity": interval(perplexity, loss_sums, tokens, pseudo=pseudo),
    }
    if sizes is not None:
        metrics["bits_per_byte"] = interval(bits_per_byte, loss_sums, sizes)
    if right is not None:
        metrics["token_accuracy"] = interval(ratio, right, tokens, pseudo=[(1.0, 0.0), (1.0, 1.0)])
    rows = len(np.asarray(tokens))
    return {"rows": rows, "level": LEVEL, "metrics": {name: found.json() for name, found in metrics.items()}}


def answer_report(answers: Sequence[str], expected: Sequence[str]) -> dict[str, Any]:
    """Written answers beside the expected ones: `exact_match`, `token_f1`, `rouge_l` and `character_error_rate`."""
    metrics = {
        "exact_match": proportion(float(exact_match(answers, expected).sum()), len(answers)),
        "token_f1": interval(mean, token_f1(answers, expected), pseudo=[(0.0, 1.0)]),
        "rouge_l": interval(mean, rouge_l(answers, expected), pseudo=[(0.0, 1.0)]),
        "character_error_rate": interval(ratio, *character_errors(answers, expected)),
    }
    return {"rows": len(answers), "level": LEVEL, "metrics": {name: found.json() for name, found in metrics.items()}}


def reconstruction_report(squares: ArrayLike, pixels: int) -> dict[str, Any]:
    """Figures of images beside what came back.

    squares: summed squared error of each image, pixels in 0..1, [rows]. pixels: of an image, channels counted apart.
    """
    each = np.asarray(squares, dtype=np.float64) / pixels
    return {
        "metrics": {
            "mse": interval(mean, each).json(),
            "psnr": interval(lambda found: -10 * np.log10(np.maximum(mean(found), 1e-12)), each).json(),
        },
        "primary": "mse",
        "rows": len(each),
        "level": LEVEL,
    }


def frechet(first: ArrayLike, second: ArrayLike) -> float:
    """Distance of two clouds of points [rows, width], each taken for a normal distribution (Fréchet 1957).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). On features of a network trained on ImageNet it is known as FID (Heusel et al. 2017);
    on other features the numbers are others, comparable only among themselves.
    """
    one, two = (np.asarray(points, dtype=np.float64) for points in (first, second))
    gap = one.mean(0) - two.mean(0)
    spread = [np.atleast_2d(np.cov(points, rowvar=False)) for points in (one, two)]
    values, vectors = np.linalg.eigh(spread[0])
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ spread[1] @ root), 0)).sum()
    return float(gap @ gap + np.trace(spread[0]) + np.trace(spread[1]) - 2 * shared)
