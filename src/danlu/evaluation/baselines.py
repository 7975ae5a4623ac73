"""Two honest baselines on the same split, so that a person sees what the large model bought them.

The settings of the second are chosen by cross-validation on the training rows only; the test rows are looked at once.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from danlu.core.errors import UserError
from danlu.evaluation.metrics import accuracy, f1
from danlu.evaluation.text import WORD


Array = NDArray[Any]
STRENGTHS = (1.0, 4.0, 16.0)
WEIGHTS = ("none", "balanced")
_WORDS_FROM, _CHARACTERS_FROM = 8_000_000, 5_000_000  # characters of all texts together
_CHOICE_ROWS, _CHOICE_CHARACTERS = 2_000, 1_000_000  # looked at by the cross-validation
_MOST_COLUMNS = 200_000  # of each kind
PIXEL_ROWS = 10_000


@dataclass(frozen=True)
class Baseline:
    """What a baseline says about the test rows.

    settings: what was chosen and how. predicted: int [test rows], numbers of the labels. probabilities: [test rows, classes].
    seconds: choosing, fitting and predicting together.
    """

    name: str
    settings: dict[str, Any]
    predicted: Array
    probabilities: Array
    seconds: float
    notes: list[str] = field(default_factory=list)


def baselines(
    train_texts: Sequence[str],
    train_labels: ArrayLike,
    test_texts: Sequence[str],
    classes: int,
    *,
    groups: Sequence[Any] | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Baseline]:
    """The majority class and TF-IDF with logistic regression, see `majority` and `tfidf`."""
    return [
        majority(train_labels, len(test_texts), classes),
        tfidf(train_texts, train_labels, test_texts, classes, groups=groups, progress=progress),
    ]


def majority(train_labels: ArrayLike, test_rows: int, classes: int) -> Baseline:
    """Always the most frequent label of the training rows (the first of equals), its shares as probabilities."""
    began = time.perf_counter()
    shares = np.bincount(_labels(train_labels, classes), minlength=classes) / len(np.asarray(train_labels))
    most = int(shares.argmax())
    settings = {"label": most, "share": float(shares[most])}
    return Baseline(
        "majority class",
        settings,
        np.full(test_rows, most),
        np.tile(shares, (test_rows, 1)),
        time.perf_counter() - began,
    )


def tfidf(
    train_texts: Sequence[str],
    train_labels: ArrayLike,
    test_texts: Sequence[str],
    classes: int,
    *,
    groups: Sequence[Any] | None = None,
    score: Literal["accuracy", "f1_macro"] = "accuracy",
    folds: int = 3,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Baseline:
    """TF-IDF and L2 logistic regression: a strong linear classifier for text (Wang and Manning 2012 on why).

    Chosen by stratified cross-validation on the training rows: words (1, 2), characters within words (2 to 5) or both; C of 1, 4
    or 16; classes counted as they are or equally. Scripts without spaces count each character as a word, so that both kinds work.
    The best mean `score` wins; of equals the earlier and simpler one. The choice looks at 2,000 rows and a million characters at
    most; the fit is on all rows. Words are counted in 8 million characters of text at most, characters in 5 million, longer texts
    being cut. What was left out is said in `notes`.

    groups: rows of equal group stay in one fold, as they stay in one split. progress: called with the fits of the choice that are done, and
    how many they are.
    """
    began = time.perf_counter()
    labels = _labels(train_labels, classes)
    rows = len(labels)
    if rows != len(train_texts):
        raise UserError(f"found {len(train_texts)} training texts and {rows} labels", "give one label a text")
    name, notes = "TF-IDF + logistic regression", []
    if len(np.unique(labels)) == 1:
        constant = majority(labels, len(test_texts), classes)
        notes.append("the training rows have one label only: there is nothing to fit, it is predicted everywhere")
        settings = {**constant.settings, "chosen_by": "nothing to choose"}
        return Baseline(name, settings, constant.predicted, constant.probabilities, time.perf_counter() - began, notes)

    texts = [*train_texts, *test_texts]
    counts = {}
    for kind, count, limit in (
        ("words", _word_counts, _WORDS_FROM),
        ("characters", _character_counts, _CHARACTERS_FROM),
    ):
        shorter, longest = _cut(texts, limit)
        counts[kind] = count(shorter)
        if longest is not None:
            notes.append(f"{kind} counted in the first {longest:,} characters of a text, to be quick")
    counts = {kind: matrix for kind, matrix in counts.items() if matrix[:rows].nnz}
    if not counts:
        raise UserError(
            "TF-IDF baseline: the training texts hold no word that can be counted",
            "look at the text column of the data",
        )
    looked = _sample(_cut(texts, _CHARACTERS_FROM)[0][:rows], seed)
    parts = _parts(labels[looked], None if groups is None else np.asarray(groups, dtype=object)[looked], folds, seed)
    settings = {"features": " and ".join(counts), "C": 4.0, "class_weight": "none", "chosen_by": "usual settings"}
    if parts:
        if len(looked) < rows:
            notes.append(
                f"settings chosen on {len(looked):,} of {rows:,} training rows, to be quick; fitted on all of them"
            )
        settings = _choose(counts, labels, looked, parts, classes, score, progress)
    else:
        notes.append("too few rows of each label to cross-validate: usual settings, not chosen ones")
    train, test = _features(counts, settings["features"], np.arange(rows), np.arange(rows, len(texts)))
    model = _fit(train, labels, settings["C"], settings["class_weight"])
    probabilities = np.zeros((len(test_texts), classes))
    if len(test_texts):
        probabilities[:, model.classes_] = model.predict_proba(test)
    settings["columns"] = int(train.shape[1])
    return Baseline(name, settings, probabilities.argmax(1), probabilities, time.perf_counter() - began, notes)


def pixels(train: Array, train_labels: ArrayLike, test: Array, classes: int, seed: int = 0) -> list[Baseline]:
    """The majority class, and the most similar training images (nearest neighbours, Cover and Hart 1967): what no learning gives.

    train, test: uint8 [rows, channels, side, side]; sides above 32 are averaged down to 32 at most. The number of neighbours, 1, 3
    or 5, is chosen by the accuracy on a fifth of the training rows; at most 10,000 of them are looked at, which a note says.
    """
    from sklearn.neighbors import KNeighborsClassifier

    began, labels = time.perf_counter(), _labels(train_labels, classes)
    first, notes = majority(labels, len(test), classes), list[str]()
    order = np.random.default_rng(seed).permutation(len(labels))[:PIXEL_ROWS]
    if len(labels) >= PIXEL_ROWS:
        notes.append(f"among {PIXEL_ROWS:,} training rows, to be quick")
    ours, held = _shrunk(train[order]), max(1, len(order) // 5)
    scores = {}
    for count in (1, 3, 5):
        if count <= len(order) - held:
            found = KNeighborsClassifier(count, algorithm="brute").fit(ours[held:], labels[order[held:]])
            scores[count] = float(accuracy(labels[order[:held]], found.predict(ours[:held])))
    best = max(scores, key=lambda count: scores[count], default=1)
    model = KNeighborsClassifier(best, algorithm="brute").fit(ours, labels[order])
    chances = np.zeros((len(test), classes))
    chances[:, model.classes_] = model.predict_proba(_shrunk(test))
    settings = {"neighbours": best, "chosen_by": "accuracy on a fifth of the training rows", "columns": ours.shape[1]}
    name = (
        "the label of the most similar training image"
        if best == 1
        else f"the vote of the {best} most similar training images"
    )
    seconds = time.perf_counter() - began
    return [first, Baseline(name, settings, chances.argmax(1), chances, seconds, notes)]


def _shrunk(images: Array) -> Array:
    """Pixels in 0..1 as one row an image: float32 [rows, channels * side * side], the side at most 32."""
    factor = -(-images.shape[2] // 32)
    side = images.shape[2] // factor * factor
    small = images[:, :, :side, :side].reshape(*images.shape[:2], side // factor, factor, side // factor, factor)
    shrunk: Array = (small.mean((3, 5), dtype=np.float32) / 255).reshape(len(images), -1)
    return shrunk


def reconstructions(train: Array, test: Array, width: int, seed: int = 0) -> dict[str, Array]:
    """Summed squared error of each test image, [rows], by what reconstructs it: the mean training image, and principal components.

    train, test: uint8 [rows, channels, side, side]; pixels count in 0..1. width: components, as many as the code is wide (Pearson
    1901): the best that a linear code can do. At most 10,000 training images are looked at.
    """
    from sklearn.decomposition import PCA

    order = np.random.default_rng(seed).permutation(len(train))[:PIXEL_ROWS]
    ours, theirs = (images.reshape(len(images), -1).astype(np.float32) / 255 for images in (train[order], test))
    found = {"the mean training image": ((theirs - ours.mean(0)) ** 2).sum(1)}
    count = min(width, *ours.shape)
    if count < min(ours.shape):
        model = PCA(count, svd_solver="randomized", random_state=seed).fit(ours)
        back = model.inverse_transform(model.transform(theirs))
        found[f"the best linear code of {count} numbers (PCA)"] = ((theirs - back) ** 2).sum(1)
    return found


def counted_tokens(train: Array, wanted: Array, test: Array, test_wanted: Array, size: int, pairs: bool) -> Array:
    """Nats of each test token by how often it occurs in training, one added to every count: [tokens], 0 where nothing is wanted.

    train, test: int [tokens]. wanted, test_wanted: alike, the token to predict at each place, negative where there is none. size: of the
    vocabulary. pairs: by the token before it, p(b | a) = (n(ab) + t(a) p(b)) / (n(a) + t(a)), t(a) distinct tokens after a (Witten and
    Bell 1991).
    """
    taught, asked = wanted >= 0, np.maximum(test_wanted, 0)
    counts = np.bincount(wanted[taught], minlength=size) + 1.0
    chances = (counts / counts.sum())[asked]
    if pairs:
        found, times = np.unique(train[taught].astype(np.int64) * size + wanted[taught], return_counts=True)
        after, kinds = (
            np.bincount(train[taught], minlength=size)[test],
            np.bincount(found // size, minlength=size)[test],
        )
        both = test.astype(np.int64) * size + asked
        place = np.minimum(np.searchsorted(found, both), len(found) - 1)
        seen = np.where(found[place] == both, times[place], 0)
        kinds = np.maximum(kinds, 1)  # a token that nothing followed says nothing
        chances = (seen + kinds * chances) / (after + kinds)
    losses: Array = np.where(test_wanted >= 0, -np.log(chances), 0.0)
    return losses


def _labels(labels: ArrayLike, classes: int) -> Array:
    found = np.asarray(labels, dtype=np.int64)
    if not len(found):
        raise UserError("a baseline needs training rows, found none", "give a larger training split")
    if found.min() < 0 or found.max() >= classes:
        raise UserError(
            f"label numbers from {found.min()} to {found.max()}, expected 0 to {classes - 1}",
            "number the labels from 0",
        )
    return found


def _cut(texts: list[str], limit: int) -> tuple[list[str], int | None]:
    """The texts, the long ones cut alike so that all together keep to `limit` characters, and where they were cut."""
    sizes = np.sort([len(text) for text in texts])
    if sizes.sum() <= limit:
        return texts, None
    shorter = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    room = (limit - shorter) // np.arange(len(sizes), 0, -1)  # for each text when all shorter ones stay whole
    longest = max(1, int(room[np.argmax(room < sizes)]))
    return [text[:longest] for text in texts], longest


def _sample(texts: Sequence[str], seed: int) -> Array:
    """Numbers of the rows the cross-validation looks at, in order: a random subset within the budget of rows and characters."""
    order = np.random.default_rng(seed).permutation(len(texts))[:_CHOICE_ROWS]
    within = int(np.searchsorted(np.cumsum([len(texts[row]) for row in order]), _CHOICE_CHARACTERS, side="right"))
    return np.sort(order[: max(within, min(len(texts), 200))])


def _parts(labels: Array, groups: Array | None, folds: int, seed: int) -> list[tuple[Array, Array]]:
    """(fitted, held out) row numbers of each fold, every fitted part with two labels or more; none when that cannot be had."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    frequent = [count for _, count in Counter(labels.tolist()).most_common(2)]
    folds = min(folds, frequent[-1] if len(frequent) == 2 else 0, len(set(groups)) if groups is not None else folds)
    if folds < 2:
        return []
    numbers = None if groups is None else np.unique(groups.astype(str), return_inverse=True)[1]
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a label rarer than the folds: some folds go without it
        parts = list(kind(folds, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels, numbers))
    return [(fitted, held) for fitted, held in parts if len(held) and len(np.unique(labels[fitted])) > 1]


def _choose(
    counts: dict[str, Any],
    labels: Array,
    looked: Array,
    parts: Sequence[tuple[Array, Array]],
    classes: int,
    score: str,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """The settings with the best mean score over the folds."""
    kinds = [*counts, " and ".join(counts)] if len(counts) > 1 else list(counts)
    grid = list(product(kinds, STRENGTHS, WEIGHTS))
    done, scores = 0, np.zeros((len(parts), len(kinds), len(STRENGTHS), len(WEIGHTS)))
    for part, (fitted, held) in enumerate(parts):
        inside, outside = looked[fitted], looked[held]
        for i, kind in enumerate(kinds):
            train, test = _features(counts, kind, inside, outside)
            for (j, strength), (k, weight) in product(enumerate(STRENGTHS), enumerate(WEIGHTS)):
                predicted = _fit(train, labels[inside], strength, weight).predict(test)
                true = labels[outside]
                scores[part, i, j, k] = (
                    accuracy(true, predicted) if score == "accuracy" else f1(true, predicted, classes)
                )
                done += 1
                progress(done, len(parts) * len(grid))
    means = scores.mean(0).ravel()
    best = int(np.argmax(means > means.max() - 1e-9))
    found = dict(zip(("features", "C", "class_weight"), grid[best], strict=True))
    return {**found, "chosen_by": f"{len(parts)}-fold cross-validation, {score}", "score": float(means[best])}


def _word_counts(texts: Sequence[str]) -> Any:
    """Sparse [texts, words and pairs of words]: how often each occurs."""
    from sklearn.feature_extraction.text import CountVectorizer

    return _counted(CountVectorizer(token_pattern=WORD.pattern, ngram_range=(1, 2), dtype=np.float32), texts)


def _character_counts(texts: Sequence[str]) -> Any:
    """Sparse [texts, runs of 2 to 5 characters within a word]: how often each occurs.

    The runs of a text are those of its words, so each distinct word is taken apart once: (texts x words) @ (words x runs), equal to
    scikit-learn's `char_wb` and several times as fast.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    split = CountVectorizer(analyzer=lambda text: text.lower().split(), dtype=np.float32)
    words = _counted(split, texts)
    if not words.shape[1]:
        return words
    runs = CountVectorizer(analyzer="char_wb", ngram_range=(2, 5), lowercase=False, dtype=np.float32)
    return (words @ _counted(runs, split.get_feature_names_out())).tocsr()


def _counted(vectorizer: Any, texts: Any) -> Any:
    from scipy.sparse import csr_matrix

    try:
        return vectorizer.fit_transform(texts)
    except ValueError:  # scikit-learn's "empty vocabulary": there is nothing to count
        return csr_matrix((len(texts), 0), dtype=np.float32)


def _features(counts: dict[str, Any], kind: str, fitted: Array, held: Array) -> tuple[Any, Any]:
    """TF-IDF matrices of the (fitted, held out) rows; columns and document frequencies come from the fitted rows alone."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfTransformer

    sides: list[tuple[Any, Any]] = []
    for matrix in (counts[part] for part in kind.split(" and ")):
        inside = matrix[fitted]
        frequency = np.bincount(inside.indices, minlength=matrix.shape[1])  # texts each column occurs in
        columns = np.flatnonzero(frequency >= (2 if len(fitted) >= 100 else 1))
        if len(columns) > _MOST_COLUMNS:
            columns = np.sort(columns[np.argsort(-frequency[columns], kind="stable")[:_MOST_COLUMNS]])
        weights = TfidfTransformer(sublinear_tf=True).fit(inside[:, columns])
        outside = matrix[held][:, columns]
        sides.append((weights.transform(inside[:, columns]), weights.transform(outside) if len(held) else outside))
    inside, outside = (hstack(side).tocsr() for side in zip(*sides, strict=True))
    return inside, outside


def _fit(features: Any, labels: Array, strength: float, class_weight: str) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    weight = "balanced" if class_weight == "balanced" else None
    # Many more columns than rows: the dual of liblinear is many times as fast, but knows two labels only.
    binary: dict[str, Any] = (
        {"solver": "liblinear", "dual": True, "random_state": 0} if len(np.unique(labels)) == 2 else {}
    )
    model = LogisticRegression(C=strength, class_weight=weight, max_iter=200, **binary)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the choice is by held-out score, not by the last digit
        return model.fit(features, labels)
