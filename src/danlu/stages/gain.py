"""What the weights a run started from were worth: the same training from them and from random weights, at several numbers of labels."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from danlu.core.config import Setting
from danlu.core.errors import UserError
from danlu.core.run import Run
from danlu.data.loader import windows
from danlu.evaluation import metrics
from danlu.evaluation.compare import verdict
from danlu.models.base import Base
from danlu.models.folder import weights_sha256
from danlu.stages.build import build
from danlu.stages.corpus_answers import measured
from danlu.stages.load import Opened, weights_of
from danlu.stages.modality import modality
from danlu.stages.prepare import Prepared, Say, number, rate_before, run_behind
from danlu.training.fit import fit, swap_averages
from danlu.training.hooks import clock


LABELS, MANY = (100, 500, 5000), 5000
"""Numbers of labels looked at, and all there are; so many take long, and are only looked at where they are at most half of all."""
SECONDS, SEEDS, FEWEST = 300.0, 5, 100
"""Longest comparison that is made without being asked for, its seeds, and the fewest updates of one training."""
SIDES = {"before": "the weights before", "random": "random weights"}
"""What pretrained weights are compared with, in words."""


def measure(run: Run, prepared: Prepared, say: Say) -> None:
    """Add the comparison to a run's evaluation, if it started from learned weights and the comparison is asked for or short.

    Each training makes as many passes as the run, at least 100 updates and at most the run's. Each side learns at the better of two
    rates, the run's (with that of a new head) and that of pretraining, chosen by the likelihood of the validation rows with one seed; the test rows are only
    looked at afterwards. A seed decides which rows have labels, the new head or all of the random weights, and the order.
    """
    wanted = prepared.experiment.task.gain_seeds
    if prepared.vectors is not None and wanted != 0:
        of_vectors(run, prepared, SEEDS if wanted is None else wanted, wanted is not None, say)
    if not prepared.labels or wanted == 0 or (wanted is None and run_behind(prepared.base) is None):
        return
    sides = sides_of(prepared)
    if not len(prepared.rows["validation"]):
        say("not compared with other weights: there are no validation rows to choose a learning rate by")
        return
    seeds = SEEDS if wanted is None else wanted
    whole = len(prepared.rows["train"])
    sizes = [*(count for count in LABELS if count < whole and (count < MANY or 2 * count <= whole)), whole]
    per_step = float(run.read("data.json")["expected"]["seconds_per_step"])
    clock_of = Progress(sides, sizes, seeds, say)
    if wanted is None and clock_of.work * per_step <= SECONDS:
        # How long one takes is only known from one: opening and measuring a network may take longer than teaching it.
        clock_of.per_update = timed(prepared, sizes[0])
    else:
        clock_of.per_update = per_step
    expected = clock_of.work * clock_of.per_update
    asked_for = f"{seeds} seeds at {', '.join(map(str, sizes))} labels"
    if wanted is None and expected > SECONDS:
        say(
            f"not compared with other weights: about {clock(expected)} for {asked_for}; gain_seeds={SEEDS} and another out= make it"
        )
        return
    others = " and ".join(told for side, told in SIDES.items() if side in sides)
    say(f"comparing with {others}, {asked_for}: about {clock(expected)}")
    rows = [at(sides, count, seeds, clock_of) for count in sizes]
    used = float(prepared.experiment.training.learning_rate or 0)
    if all(row["learning_rates"]["pretrained"] != used for row in rows):
        better = rows[-1]["learning_rates"]["pretrained"]
        say(f"note: on the validation rows learning_rate={better:g} did better from these weights than {used:g}")
    transfer = {
        "seeds": seeds,
        "metric": "accuracy",
        "from": prepared.base.name,
        "settings": "each side at the better of two learning rates by validation, as many updates for both",
        "rows": rows,
    }
    run.write("evaluation.json", {**run.read("evaluation.json"), "transfer": transfer})


def of_vectors(run: Run, prepared: Prepared, seeds: int, asked: bool, say: Say) -> None:
    """Add to a run's evaluation what starting from word vectors was worth: the same training without them, on the test documents.

    A seed decides the random weights, how the vectors are turned, and the order of the rows; all else is the run's.
    """
    steps, items = number(prepared.experiment.training.steps), prepared.items["test"]
    expected = 2 * seeds * steps * float(run.read("data.json")["expected"]["seconds_per_step"])
    if expected > SECONDS and not asked:
        say(
            f"not compared with a random embedding: about {clock(expected)}; gain_seeds={seeds} and another out= make it"
        )
        return
    say(f"comparing with a random embedding, {seeds} seeds: about {clock(expected)}")
    found, said = np.empty((2, seeds, len(items))), time.perf_counter()
    for place in range(2 * seeds):
        seed, side = divmod(place, 2)
        mine = replace(prepared.with_training(seed=seed), vectors=prepared.vectors if side else None)
        built = build(mine, lambda _: None)
        built.state.skips = mine.experiment.training.skips
        try:
            fit(built.state, steps)
        except UserError as error:
            say(f"not compared with a random embedding: with seed={seed}, {error.message}")
            return
        swap_averages(built.task.learners())
        opened = Opened(
            run,
            built.model.eval(),
            mine.processor,
            mine.task,
            (),
            built.state.precision,
            number(mine.experiment.data.max_tokens),
        )
        each = measured(opened, items, mine.experiment.task.mask_share)
        whole = each.right is None
        counts = each.sizes * math.log(2) if whole else each.counts
        found[side, seed] = each.sums / counts.mean()  # their mean over documents is the sum over the count of all
        if (now := time.perf_counter()) - said > 10:
            say(f"  training {place + 1} of {2 * seeds}")
            said = now
    gap = metrics.over_seeds_and_rows(found[1] - found[0])
    told: dict[str, Any] = {"metric": "bits per byte" if whole else "loss a hidden token", "rows": len(items)}
    told |= {"names": ["a random embedding", "word vectors"], "unit": "test document"}
    told |= {"difference": gap.value, "low": gap.low, "high": gap.high}
    words = f"{verdict(told, points=False, higher_is_better=False)}, {seeds} seeds"
    say(words)
    sides = {
        name: metrics.over_seeds_and_rows(one).json() for name, one in zip(("random", "vectors"), found, strict=True)
    }
    result = {"seeds": seeds, "metric": told["metric"], **sides, "difference": gap.json(), "verdict": words}
    run.write("evaluation.json", {**run.read("evaluation.json"), "vectors": result})


def sides_of(prepared: Prepared) -> dict[str, Prepared]:
    """What is compared: the weights there are, those they were made from where these were learned too, and random ones."""
    found = {"pretrained": prepared}
    run = run_behind(prepared.base)
    earlier = run.read("run.json")["lineage"]["model"] if run else {}
    folder = Path(str(earlier.get("folder", "")))
    if earlier.get("sha256") and folder.is_dir() and weights_sha256(folder) == earlier["sha256"]:
        base = Base(str(earlier["name"]), folder, earlier["sha256"], str(earlier["licence"]), str(earlier["kind"]))
        weights = None if prepared.weights is None else weights_of(base)
        found["before"] = replace(prepared, base=base, weights=weights)
    if (blank := modality(prepared.task).blank(prepared)) is not None:
        found["random"] = blank
    return found


class Progress:
    """How far the comparison is; a line every ten seconds.

    work: updates of all trainings together. per_update: seconds, with all that stands around an update.
    """

    def __init__(self, sides: Mapping[str, Prepared], sizes: Sequence[int], seeds: int, say: Say) -> None:
        each = len(sides) * (2 + seeds)  # two rates are tried first
        self.trainings = len(sizes) * each
        self.work = sum(updates(sides["pretrained"], count) for count in sizes) * each
        self.say, self.per_update = say, 0.0
        self.done, self.behind, self.began = 0, 0, time.perf_counter()
        self.said = self.began

    def __call__(self, steps: int) -> None:
        """One training of so many updates is behind."""
        self.done, self.behind, now = self.done + 1, self.behind + steps, time.perf_counter()
        if now - self.said > 10:
            left = (now - self.began) / self.behind * (self.work - self.behind)
            self.say(f"  training {self.done} of {self.trainings}, about {clock(left)} left")
            self.said = now


def timed(prepared: Prepared, count: int) -> float:
    """Seconds an update, from one training with so many labels."""
    start = time.perf_counter()
    chances(prepared, count, float(prepared.experiment.training.learning_rate or 0), 0, "validation")
    return (time.perf_counter() - start) / updates(prepared, count)


def at(sides: Mapping[str, Prepared], count: int, seeds: int, progress: Progress) -> dict[str, Any]:
    """All sides with so many labels."""
    mine = sides["pretrained"]
    used = float(mine.experiment.training.learning_rate or 0)
    rates = sorted({used, rate_before(mine.base)[0] or 10 * used}) if mine.weights is None else [used, 10 * used]
    chosen, found = {}, {}

    def once(side: str, rate: float, seed: int, part: str) -> np.ndarray:
        """float [rows, labels]."""
        made = chances(sides[side], count, rate, seed, part)
        progress(updates(mine, count))
        return made

    held, asked = mine.rows["validation"].targets, mine.rows["test"].targets
    for side in sides:
        tried = {
            rate: np.log(once(side, rate, 0, "validation")[np.arange(len(held)), held] + 1e-12).mean() for rate in rates
        }
        chosen[side] = max(tried, key=lambda rate: (tried[rate], -rate))
        right = [once(side, chosen[side], seed, "test").argmax(1) == asked for seed in range(seeds)]
        found[side] = np.array(right, np.float64)
    row: dict[str, Any] = {side: metrics.over_seeds_and_rows(each).json() for side, each in found.items()}
    said = {}
    for side, name in SIDES.items():
        if side in found:
            gap = metrics.over_seeds_and_rows(found["pretrained"] - found[side])
            told = {"metric": "accuracy", "names": [name, "pretrained weights"], "difference": gap.value}
            told |= {"low": gap.low, "high": gap.high, "rows": len(asked), "unit": "test row"}
            said[side] = f"with {count:,} labels {verdict(told)}, {seeds} seeds"
            row["difference" if side == "random" else "difference_before"] = gap.json()
            progress.say(said[side])
    return {"labels": count, **row, "learning_rates": chosen, "verdict": "; ".join(said.values())}


def updates(prepared: Prepared, count: int) -> int:
    """Of one training with so many labels."""
    options = prepared.experiment.training
    passes = number(options.steps) / prepared.steps_per_epoch
    return min(number(options.steps), max(FEWEST, math.ceil(passes * windows(count, batch_of(prepared, count), 2))))


def batch_of(prepared: Prepared, count: int) -> int:
    """The run's, where there are rows enough for some updates in a pass."""
    return max(2, min(number(prepared.experiment.training.batch_size), count // 4))


def chances(prepared: Prepared, count: int, rate: float, seed: int, part: str) -> np.ndarray:
    """What one training gives each row of `part`, float32 [rows, labels]; nothing is written."""
    train, steps = prepared.rows["train"], updates(prepared, count)
    own, size = prepared.experiment.training, batch_of(prepared, count)
    rates = own.learning_rates if prepared.base.kind != "random" and rate == own.learning_rate else None
    small = prepared.with_setting("steps", Setting(steps, "the comparison"))
    small = replace(
        small.with_training(seed=seed, learning_rate=rate, learning_rates=rates, batch_size=size),
        rows={**prepared.rows, "train": train.take(balanced(train.targets, count, seed))},
    )
    built = build(small, lambda _: None)
    try:
        fit(built.state, steps)
        swap_averages(built.task.learners())
    except UserError:  # it diverged: a rate that is too high for this side, and nothing it says is right
        targets = prepared.rows[part].targets
        wrong: np.ndarray = np.eye(len(prepared.labels), dtype=np.float32)[(targets + 1) % len(prepared.labels)]
        return wrong
    return modality(prepared.task).chances(prepared, built.model.eval(), part)


def balanced(targets: Sequence[int], count: int, seed: int) -> list[int]:
    """`count` rows drawn at random, each class in turn, as long as it has some; ascending."""
    order = np.random.default_rng([seed, count]).permutation(len(targets))
    turns: dict[int, int] = {}
    placed = []
    for row in order.tolist():
        turn = turns[targets[row]] = turns.get(targets[row], -1) + 1
        placed.append((turn, row))
    return sorted(row for _, row in sorted(placed)[:count])
