"""Two models on the same rows: how much better, how sure, in one sentence.

Both sides are paired row by row, which takes the difficulty of the rows out of the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from danlu.core.errors import UserError
from danlu.evaluation import metrics


Array = NDArray[Any]
_ROUNDING = 1e-12  # a difference this small is one of rounding


def compare(
    statistic: Callable[..., Any],
    first: ArrayLike,
    second: ArrayLike,
    *shared: ArrayLike,
    names: tuple[str, str],
    metric: str,
    higher_is_better: bool = True,
    points: bool = True,
    unit: str = "row",
    resamples: int = 1000,
) -> dict[str, Any]:
    """The second model against the first on the same rows, ready for JSON.

    statistic: called as `statistic(*shared, side)` for either side; takes leading axes, see `danlu.evaluation.metrics`.
    first, second: what the two models gave for each row (predictions, scores, loss sums), [rows].
    shared: what they have in common, [rows]: the truth, the token counts.
    points: the statistic is a share, told as points of a hundred; otherwise the number itself. unit: what a row is called.

        compare(accuracy, before, after, true, names=("the base model", "the fine-tuned one"), metric="accuracy")
        compare(lambda tokens, sums: ratio(sums, tokens), before, after, tokens, …, higher_is_better=False, points=False)

    Keys: metric, names, first, second, difference (second - first), low, high (paired bootstrap), level, p, test, better (a name
    or None), rows, verdict; for accuracy also discordant: the rows that only one of them got right.
    p is McNemar's exact test where the statistic is `accuracy`, otherwise a paired permutation test. The interval decides the words:
    one is called better only if it leaves out 0. Where p >= 1 - metrics.LEVEL all the same, as happens on few rows, `better` is None and the
    verdict says that chance is not ruled out.
    """
    ours = (np.asarray(first), np.asarray(second))
    common = [np.asarray(array) for array in shared]
    lengths = {len(array) for array in (*ours, *common)}
    if len(lengths) != 1:
        raise UserError(
            f"comparing {names[0]} with {names[1]}: found {len(ours[0])} and {len(ours[1])} rows",
            "evaluate both on the same rows, in the same order",
        )

    def difference(one: Array, two: Array, *rest: Array) -> Any:
        return statistic(*rest, two) - statistic(*rest, one)

    gap = metrics.interval(difference, *ours, *common, resamples=resamples)
    result: dict[str, Any] = {
        "metric": metric,
        "names": list(names),
        "first": float(statistic(*common, ours[0])),
        "second": float(statistic(*common, ours[1])),
        "difference": gap.value,
        "low": gap.low,
        "high": gap.high,
        "level": metrics.LEVEL,
        "rows": len(ours[0]),
        "unit": unit,
    }
    if statistic is metrics.accuracy:
        right = [np.asarray(common[0] == side) for side in ours]
        result["p"], result["test"] = mcnemar(*right), "McNemar, exact"
        result["discordant"] = [int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())]
    else:
        result["p"], result["test"] = permutation(difference, *ours, *common), "paired permutation"
    sure = _leaves_out_0(gap.low, gap.high) and result["p"] < 1 - metrics.LEVEL
    result["better"] = names[(gap.value > 0) == higher_is_better] if sure else None
    result["verdict"] = verdict(result, points, higher_is_better)
    return result


def mcnemar(first_right: ArrayLike, second_right: ArrayLike) -> float:
    """Two-sided p that two classifiers are right equally often (McNemar 1947): exact binomial on the rows where they differ. [rows] bool."""
    from scipy.stats import binomtest

    one, two = np.asarray(first_right, dtype=bool), np.asarray(second_right, dtype=bool)
    only_first, only_second = int((one & ~two).sum()), int((two & ~one).sum())
    return float(binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0


def permutation(
    difference: Callable[..., Any],
    first: ArrayLike,
    second: ArrayLike,
    *shared: ArrayLike,
    permutations: int = 4999,
    seed: int = 0,
) -> float:
    """Two-sided p that it does not matter which model gave which row: the sides are swapped at random, row by row.

    `(1 + differences at least as large) / (1 + permutations)`, so never 0 (Noreen 1989; Phipson and Smyth 2010).
    difference(first, second, *shared) takes leading axes.
    """
    one, two = np.asarray(first), np.asarray(second)
    common = [np.asarray(array) for array in shared]
    found = abs(float(difference(one, two, *common)))
    found -= 1e-12 * max(1.0, found)  # equal up to rounding is equal
    rng = np.random.default_rng(seed)
    piece, extreme = max(1, 2_000_000 // len(one)), 0
    for start in range(0, permutations, piece):
        swap = rng.integers(2, size=(min(piece, permutations - start), len(one)), dtype=np.int8).astype(bool)
        spread = [np.broadcast_to(array, swap.shape) for array in common]
        extreme += int((np.abs(difference(np.where(swap, two, one), np.where(swap, one, two), *spread)) >= found).sum())
    return (1 + extreme) / (1 + permutations)


def verdict(comparison: dict[str, Any], points: bool = True, higher_is_better: bool = True) -> str:
    """One sentence that names the one ahead, with the difference as it is ahead by and the interval to match.

    The interval leaves out 0: `B did better than A by 3.1 points of accuracy [1.0, 5.2] on 550 rows, p = 0.004`, or with p >= 0.05
    `B scored 10.0 points higher in accuracy than A [1.7, 18.3], but with 60 rows chance is not ruled out (p = 0.070)`. Otherwise
    `no clear difference: B scored 2.1 points higher in accuracy than A [-1.0, 5.2] on 60 rows, p = 0.21`.
    "did" suits one and several. Of `comparison` are read: metric, names, difference, low, high, rows, and where given unit, p and better;
    without p the interval alone decides.
    """
    metric, gap, low, high = (comparison[key] for key in ("metric", "difference", "low", "high"))
    second_ahead = (gap >= 0) == higher_is_better
    ahead, behind = comparison["names"][::-1] if second_ahead else comparison["names"]
    if gap < 0:
        gap, low, high = -gap, -high, -low
    scale, digits = (100.0, 1) if points else (1.0, 3)
    shown = [0.0 if abs(value) < _ROUNDING else scale * value for value in (gap, low, high)]
    while digits < 6 and any(value and not round(value, digits) for value in shown):
        digits += 1  # what is not 0 is not shown as 0: the words and the figures would disagree
    size, *edges = (f"{value:.{digits}f}" for value in shown)
    within = f"[{edges[0]}, {edges[1]}]"
    rows = f"{comparison['rows']} {comparison.get('unit', 'row')}{'s' if comparison['rows'] != 1 else ''}"
    p = comparison.get("p")
    chance = "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.{3 if p < 0.1 else 2}f}"
    on = ", ".join(filter(None, (f"on {rows}", chance)))
    certain = _leaves_out_0(low, high)
    if certain and (p is None or comparison["better"] is not None):
        return f"{ahead} did better than {behind} by {size}{' points of' if points else ' in'} {metric} {within} {on}"
    direction = "higher" if higher_is_better else "lower"
    scored = f"{ahead} scored {size}{' points' if points else ''} {direction} in {metric} than {behind} {within}"
    if certain:
        return f"{scored}, but with {rows} chance is not ruled out ({chance})"
    if not shown[0]:
        scored = f"{behind} and {ahead} scored the same in {metric} {within}"
    return f"no clear difference: {scored} {on}"


def _leaves_out_0(low: float, high: float) -> bool:
    return low > _ROUNDING or high < -_ROUNDING
