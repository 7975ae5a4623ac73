"""What a person should know before the first step, in words: what is learned, what was dropped and why, what it will cost."""

from __future__ import annotations

import math
import sys
from typing import Any

from danlu.core import device
from danlu.core.config import Setting
from danlu.core.errors import printable
from danlu.experiment import Asked
from danlu.stages import card, pace
from danlu.stages.build import build, trial
from danlu.stages.prepare import PARTS, Prepared, Say, number, prepare
from danlu.training.hooks import clock


GREEN, GREY, OFF = "\x1b[32m", "\x1b[90m", "\x1b[0m"


def preflight(asked: Asked, data: Any = None, say: Say = print) -> dict[str, Any]:
    """Everything training would check and print, without training: findings, settings with origins, expected time and memory.

    Raises:
        UserError: what training would stop at.
    """
    prepared = prepare(asked, data, say)
    show(prepared, say)
    options = prepared.experiment.training
    built = build(prepared if options.steps else prepared.with_setting("steps", Setting(1, "not known yet")), say)
    expected = trial(built, prepared)
    options = pace.in_hours(prepared, expected).experiment.training
    steps = number(options.steps)
    for line in expectation(expected, steps, number(options.validate_every)):
        say(line)
    expected |= {"seconds": expected["seconds_per_step"] * steps}
    return {**prepared.findings, "expected": expected, "used": prepared.used}


def show(prepared: Prepared, say: Say) -> None:
    """The findings as lines; the mask of a few rows in colour on a terminal."""
    found = prepared.findings
    parts = ", ".join(f"{name} {found['splits'][name]}" for name in PARTS)
    unit = "image" if "images" in found else "row"
    say(f"{unit}s: {found['rows']['read']} read, {found['rows']['kept']} kept ({parts})")
    for entry in found["rows"]["dropped"]:
        places = f" ({', '.join(entry['examples'])})" * bool(entry["examples"])
        say(f"  dropped {entry['count']}: {entry['reason']}{places}")
    if few := few_to_test(found["splits"], unit, prepared):
        say(few)
    for line in in_words(found, prepared):
        say(line)
    say(f"duplicates in training: {found['duplicates']}; {unit}s in two splits: {found['leaks']}")
    if near := found["near"]:
        say(
            f"near duplicates in training: {near} (near={prepared.experiment.data.near:g}), none of them in another split"
        )
    for label, counts in found["labels"].items():
        say(printable(f"  {label}: ") + ", ".join(f"{name} {counts[name]}" for name in PARTS))
    if few := imbalance(found["labels"], prepared):
        say(few)
    if rates := found.get("learning_rate"):
        say(f"learning rate: {rates['pretraining']:g} in pretraining, {rates['now']:g} now")
    for note in found["notes"]:
        say(f"note: {note}")
    if "view" in found and not prepared.labels:
        colour = sys.stdout.isatty() and say is print
        say(
            "learned "
            + (f"{GREEN}green{OFF}, masked {GREY}grey{OFF}:" if colour else "between [[ and ]], the rest is masked:")
        )
        for row in found["view"]:
            text = "".join(mark(piece, learned, colour) for piece, learned in row["pieces"])
            say(f"  row {row['row']}: " + text.replace("\n", "\n    "))
    for key, setting in prepared.settings.items():
        if setting.origin.startswith("derived"):
            say(f"{key} = {written(setting.value)}  ({setting.origin})")


def written(value: Any) -> str:
    """A setting as a person would write it on the command line."""
    if isinstance(value, dict):
        return ",".join(f"{name}={written(each)}" for name, each in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def few_to_test(splits: dict[str, int], unit: str, prepared: Prepared) -> str:
    """A warning that the test will tell little or nothing, with the setting that changes it; empty where it will do."""
    said = (
        card.few_rows({"rows": splits["test"], "unit": unit})
        if splits["test"]
        else f"No test {unit}s: nothing is measured."
    )
    share = math.ceil(100 * card.FEW / sum(splits[name] for name in PARTS if name not in prepared.sources)) / 100
    fix = f"test_share={share:g} sets {card.FEW} aside" if share <= 0.5 else f"more {unit}s change that"
    return said and f"warning: {said} ({f'more {unit}s in test= change that' if 'test' in prepared.sources else fix})"


def imbalance(labels: dict[str, dict[str, int]], prepared: Prepared) -> str:
    """A note that a class is rare, with the setting that lets it count as much; empty where none is or it counts already."""
    counts = sorted((count["train"], label) for label, count in labels.items())
    if not counts or 10 * counts[0][0] >= counts[-1][0] or prepared.experiment.task.class_weights != "none":
        return ""
    (few, rare), (many, usual) = counts[0], counts[-1]
    return f"note: {rare!r} has {few} training rows, {usual!r} {many}: class_weights=balanced lets each class count the same"


def in_words(found: dict[str, Any], prepared: Prepared) -> list[str]:
    """How much there is to learn from: tokens, or pixels."""
    if "images" in found:
        seen = found["images"]
        sizes = ", ".join(f"{count} of {size}" for size, count in seen["sizes"][:4])
        colour = "gray" if seen["channels"] == 1 else "colour"
        scale = ", ".join(f"({mean:.3g}, {std:.3g})" for mean, std in zip(seen["mean"], seen["std"], strict=True))
        others = " and others" * (len(seen["sizes"]) > 4)
        side = f"{seen['size']}x{seen['size']}"
        how = "" if [size for size, _ in seen["sizes"]] == [side] else f" ({card.RESIZED[seen['resize']]})"
        return [
            f"sizes: {sizes}{others}; seen as {side} {colour}{how}, pixels in 0..1 as (pixel - mean) / deviation: {scale}"
        ]
    tokens, cut = found["tokens"], found["truncated"]
    lengths = tokens["lengths"]
    what = "rows labelled" if prepared.labels else "learned"
    spread = f"a row has {lengths['min']} to {lengths['max']}, median {lengths['median']}"
    lines = [
        f"tokens: {tokens['train']:,} to train on, {tokens['learned']:,} {what}; {spread}; unknown {found['unknown_share']:.2%}"
    ]
    if cut["rows"]:
        learned = f", {cut['learned']:,} of them learned ones" if not prepared.labels else ""
        lines.append(
            f"  cut: {cut['rows']} rows are longer than {prepared.experiment.data.max_tokens} tokens and lose {cut['tokens']:,}{learned}; raise max_tokens where the model allows it, or leave them out: too_long=drop"
        )
    return lines


def mark(piece: str, learned: bool, colour: bool) -> str:
    """One piece of a row, learned or masked."""
    piece = printable(piece)
    if colour:
        return f"{GREEN if learned else GREY}{piece}{OFF}"
    return f"[[{piece}]]" if learned else piece


def expectation(expected: dict[str, float], steps: int, validate_every: int) -> list[str]:
    """Time and memory, from a measured micro-batch; and a warning when there is not so much memory."""
    machine = device.machine()
    training = expected["seconds_per_step"] * steps
    unit = "images" if "images_per_second" in expected else "tokens"
    checks = expected["seconds_per_validation"] * math.ceil(steps / validate_every) + expected["seconds_for_test"]
    line = (
        f"expected: {expected['seconds_per_step']:.2f} s a step at {expected[f'{unit}_per_second']:,.0f} {unit}/s, "
        f"{clock(training)} for {steps} steps, {clock(training + checks)} with validation and test "
        f"(without answers in words, baselines and comparisons); memory about {expected['memory_bytes'] / 1e9:.1f} GB of "
        f"{machine.memory_total / 1e9:.0f}, disk {expected['disk_bytes'] / 1e9:.2f} GB of {machine.here_free / 1e9:.0f} free "
        f"({expected['trained_parameters'] / 1e6:.2f} M weights trained)"
    )
    if expected["disk_bytes"] > machine.here_free:
        return [line, "warning: that is more disk than there is; give out= on another disk"]
    if expected["memory_bytes"] > machine.memory_total:
        fix = "lower batch_size or image_size" if unit == "images" else "lower micro_batch_tokens, or use method=lora"
        return [line, f"warning: that is more memory than there is; {fix}"]
    return [line]


def machine_facts() -> dict[str, Any]:
    """What a run remembers of the machine: bitwise resume is promised for an equal one."""
    found = device.machine()
    return {
        "system": found.system,
        "cpu": found.cpu,
        "cores": found.cores,
        "amx": found.amx,
        "memory_bytes": found.memory_total,
        "python": found.python,
        "versions": found.versions,
    }
