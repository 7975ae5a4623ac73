"""A run as one HTML page that needs no network, and its model card.

The page is made from the files in the run and nothing else; what is missing is said on it. Every text from data goes through the
template's escaping, and a content security policy lets no script run but the page's own, named by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danlu.core.errors import UserError
from danlu.core.run import Run, write_text
from danlu.stages.card import (
    LOWER_IS_BETTER,
    NOT_SHARES,
    edges,
    few_rows,
    figure,
    left_out,
    model_card,
    no_width,
    over,
    rests_on,
    title,
    with_interval,
)
from danlu.stages.plots import Series, line_plot, number, smooth, ticks


FILES = ("run.json", "experiment.json", "data.json", "evaluation.json", "metrics.jsonl", "timings.jsonl")
_FIRST = ("accuracy", "exact_match", "token_f1", "rouge_l", "perplexity", "loss")
_SHOWN = (
    *_FIRST,
    "f1_macro",
    "auc",
    "bits_per_byte",
    "token_accuracy",
)  # in the plot; the others are in the table below it
_EXAMPLES = 12  # of each kind
_LABELS = 40  # of a confusion matrix
_LONG_TEXT, _LONG_LINES = 1500, 24  # characters, lines: what is longer scrolls within its box
_MUCH_CUT = 0.2  # of the tokens
_SMOOTHED = 20  # steps, from which on a line is drawn smoothed as well


def write(run: Path) -> Path:
    """Write RUN/report.html, and RUN/model/README.md where there is a model; returns the page's path.

    Any file of the run may be missing or cut off, as in an interrupted run: the page says so.

    Raises:
        UserError: the folder holds none of a run's files, or cannot be written.
    """
    if not any((run / name).is_file() for name in FILES):
        raise UserError(
            f"{run} is not a run: it holds none of {', '.join(FILES)}", "give the directory that `danlu finetune` made"
        )
    broken: list[str] = []
    facts, settings, data, evaluation = (_json(run / name, broken) for name in FILES[:4])
    steps, timings = (_lines(run / name, broken) for name in FILES[4:])
    if "status" in facts:
        facts["status"] = Run(run).status  # a run whose process is gone is interrupted, whatever it last wrote
    facts.setdefault("name", run.resolve().name)
    page = run / "report.html"
    write_text(page, _render(_view(facts, settings, data, evaluation, steps, timings, broken)))
    if (run / "model").is_dir():
        write_text(run / "model" / "README.md", model_card(facts, settings, data, evaluation, run / "model"))
    return page


def _json(path: Path, broken: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        broken.append(f"{path.name} cannot be read ({error})")
        return {}
    if not isinstance(found, dict):
        broken.append(f"{path.name} holds no JSON object")
        return {}
    return found


def _lines(path: Path, broken: list[str]) -> list[dict[str, Any]]:
    """The readable lines; a last line without its end was cut off by a kill and is no damage."""
    if not path.is_file():
        return []
    found, bad = [], []
    for place, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            found.append(entry)
        else:
            bad.append(place)
    if bad:
        broken.append(f"{path.name}: {len(bad)} line{'s' * (len(bad) > 1)} cannot be read (first: {bad[0]})")
    return found


def _render(view: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = Path(__file__).parent
    script = (folder / "report.js").read_text("utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["length_class"] = _length_class
    ours = {"script": Markup(script), "script_hash": Markup(digest)}  # noqa: S704 - not from any data
    page = environment.get_template("report.html").render(view, **ours)
    return page.encode("utf-8", "replace").decode()  # a lone surrogate of a broken row becomes a question mark


def _view(
    facts: dict[str, Any],
    settings: dict[str, Any],
    data: dict[str, Any],
    evaluation: dict[str, Any],
    steps: list[dict[str, Any]],
    timings: list[dict[str, Any]],
    broken: list[str],
) -> dict[str, Any]:
    """Everything the template shows."""
    status = str(facts.get("status", "unknown"))
    lineage = facts.get("lineage") or {}
    subtitle = [
        str(facts.get("recipe") or ""),
        str(facts.get("task") or ""),
        f"from {lineage['model'].get('name')}" if lineage.get("model") else "",
    ]
    loss_plot, plots = _curves(steps, timings)
    return {
        "name": facts["name"],
        "status": status,
        "subtitle": " · ".join(dict.fromkeys(part for part in [*subtitle, _moment(facts.get("created"))] if part)),
        "verdict": _verdict(evaluation),
        "alerts": _alerts(status, evaluation, data, steps, broken),
        "tiles": _tiles(facts, evaluation, data, steps),
        "evaluation": {key: evaluation.get(key) for key in ("split", "rows", "answered")},
        "left_out": left_out(evaluation),
        "has_evaluation": bool(evaluation),
        "level": f"{100 * evaluation.get('level', 0.95):.0f} %",
        **_metrics(evaluation),
        **_confusion(evaluation.get("confusion") or {}),
        **_examples(evaluation),
        "loss_plot": loss_plot,
        "plots": plots,
        **_data(data),
        "lineage": _lineage(lineage),
        "created": _moment(facts.get("created")),
        "danlu": facts.get("danlu") or "?",
        "settings": [_setting(key, entry) for key, entry in (settings.get("used") or {}).items()],
        "machine": [
            {"name": name.replace("_", " "), "value": _value(value)}
            for name, value in (facts.get("machine") or {}).items()
        ],
    }


# --- headline ---------------------------------------------------------------------------------------------------------


def _main(evaluation: Mapping[str, Any]) -> str | None:
    """The metric of the headline."""
    ours = evaluation.get("metrics") or {}
    return next((metric for metric in (evaluation.get("primary"), *_FIRST, *ours) if metric in ours), None)


def _strongest(evaluation: Mapping[str, Any], metric: str) -> Mapping[str, Any] | None:
    """The baseline with the best value of the metric."""
    able = [
        one
        for one in evaluation.get("baselines") or []
        if (one.get("metrics") or {}).get(metric, {}).get("value") is not None
    ]
    sign = -1 if metric in LOWER_IS_BETTER else 1
    return max(able, key=lambda one: sign * one["metrics"][metric]["value"], default=None)


def _verdict(evaluation: Mapping[str, Any]) -> str | None:
    metric = _main(evaluation)
    if metric is None:
        return None
    before, baseline = evaluation.get("before") or {}, _strongest(evaluation, metric)
    said = [(one.get("comparison") or {}).get("verdict") for one in (before, baseline or {})]
    sentences = [str(sentence)[0].upper() + str(sentence)[1:] for sentence in said if sentence]
    if not sentences:
        tested, rows = rests_on(evaluation, metric), over(evaluation, metric)
        sentence = (
            f"{title(metric)} {with_interval(metric, evaluation['metrics'][metric], tested)}{f' {rows}' * bool(rows)}"
        )
        if metric in (before.get("metrics") or {}):
            sentence += f"; the base model before: {with_interval(metric, before['metrics'][metric], tested)}"
        sentences = [sentence[0].upper() + sentence[1:]]
    return (
        ". ".join(sentences).replace("p < ", "p\u00a0<\u00a0").replace("p = ", "p\u00a0=\u00a0") + "."
    )  # not broken in two


def _alerts(
    status: str, evaluation: Mapping[str, Any], data: Mapping[str, Any], steps: list[dict[str, Any]], broken: list[str]
) -> list[str]:
    alerts = list(broken)
    reached = f" at step {steps[-1]['step']:,}" if steps else ""
    if status == "interrupted":
        alerts.append(f"This run was interrupted{reached}. `danlu resume RUN` goes on from its last checkpoint.")
    elif status == "failed":
        alerts.append(f"This run failed{reached}; what is below is what it had written until then.")
    elif status == "running":
        alerts.append(f"This run was still going{reached} when the page was written.")
    if few := few_rows(evaluation):
        alerts.append(few)
    alerts += _cut_alerts(data, evaluation)
    if data.get("leaks"):
        alerts.append(
            f"{data['leaks']:,} test or validation rows also occur in the training rows: the metrics flatter the model."
        )
    lost = [step["step"] for step in steps if isinstance(step.get("loss"), float) and not math.isfinite(step["loss"])]
    if lost:
        alerts.append(f"The loss was not a finite number at {len(lost):,} steps, first at step {lost[0]:,}.")
    return alerts


def _cut_alerts(data: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[str]:
    """What the model never saw of the rows, and whether the baselines did."""
    cut, tokens, splits = (data.get(key) or {} for key in ("truncated", "tokens", "splits"))
    rows = cut.get("rows") or 0
    if not rows:
        return []
    alerts = []
    # cut tokens are of all splits, the tokens kept are known of the training rows: the others are taken to be as long
    kept = (tokens.get("train") or 0) * sum(splits.values()) / (splits.get("train") or math.inf)
    share = cut.get("tokens", 0) / (kept + cut.get("tokens", 0)) if kept else 0.0
    if share > _MUCH_CUT:
        alerts.append(
            f"About {100 * share:.0f} % of all tokens were cut away ({rows:,} rows): the model never read them. "
            "A larger max_tokens keeps more."
        )
    if evaluation.get("baselines"):
        alerts.append(
            f"The model read {rows:,} row{'s' * (rows != 1)} only up to where they were cut to fit; the baselines were given the "
            "whole texts. Part of a difference between them may come from that."
        )
    return alerts


def _tiles(
    facts: Mapping[str, Any], evaluation: Mapping[str, Any], data: Mapping[str, Any], steps: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    tiles: list[dict[str, Any]] = []
    metric = _main(evaluation)
    if metric is not None:
        ours = evaluation["metrics"][metric]
        said = edges(metric, ours, rests_on(evaluation, metric)).strip(" []()").replace(", ", " to ")
        tiles.append(
            {
                "label": title(metric),
                "value": figure(metric, ours.get("value")),
                "note": ", ".join(part for part in (said, over(evaluation, metric)) if part),
                "main": True,
            }
        )
        before, baseline = (evaluation.get("before") or {}).get("metrics") or {}, _strongest(evaluation, metric)
        if metric in before:
            tiles.append(
                {
                    "label": "before",
                    "value": figure(metric, before[metric].get("value")),
                    "note": "base model, untouched",
                    "main": False,
                }
            )
        if baseline:
            value = figure(metric, baseline["metrics"][metric].get("value"))
            tiles.append({"label": "best baseline", "value": value, "note": str(baseline.get("name")), "main": False})
    splits = data.get("splits") or {}
    if "train" in splits:
        others = " + ".join(f"{number(rows)} {name}" for name, rows in splits.items() if name != "train")
        tiles.append({"label": "training rows", "value": number(splits["train"]), "note": others, "main": False})
    if facts.get("seconds") is not None or steps:
        taken = _duration(facts["seconds"]) if facts.get("seconds") is not None else "–"
        note = f"{number(steps[-1]['step'])} steps" if steps else ""
        tiles.append({"label": "time", "value": taken, "note": note, "main": False})
    return tiles


# --- metrics ----------------------------------------------------------------------------------------------------------


def _metrics(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    ours = evaluation.get("metrics") or {}
    columns: list[tuple[str, Mapping[str, Any]]] = [("this model", ours)]
    before = evaluation.get("before") or {}
    if before.get("metrics"):
        columns.append(("before", before["metrics"]))
    baselines = evaluation.get("baselines") or []
    columns += [(str(one.get("name")), one.get("metrics") or {}) for one in baselines]
    shown = [metric for metric in (evaluation.get("primary"), *_SHOWN) if metric in ours] or list(ours)[:6]
    sayings = [(one.get("comparison") or {}).get("verdict") for one in (before, *baselines)]
    table = [
        {
            "title": ", ".join(part for part in (title(metric), over(evaluation, metric)) if part),
            "cells": [
                with_interval(metric, column[metric], rests_on(evaluation, metric)) if metric in column else "–"
                for _, column in columns
            ],
        }
        for metric in ours
    ]
    labels = (evaluation.get("confusion") or {}).get("labels") or []
    each = [
        {
            "label": label,
            **{
                key: with_interval(key, _found(row.get(key)), _tested(row, key))
                for key in ("precision", "recall", "f1")
            },
            **{key: number(row.get(key)) for key in ("rows", "predicted")},
        }
        for label, row in (evaluation.get("per_class") or {}).items()
    ]
    return {
        "forest": [_forest(evaluation, metric, columns) for metric in dict.fromkeys(shown)],
        "comparisons": [str(one)[0].upper() + str(one)[1:] + "." for one in sayings if one],
        "rest": table if len(ours) > len(set(shown)) else [],
        "rest_columns": [name for name, _ in columns],
        "per_class": each,
        "baselines": [{"name": one.get("name"), "about": _about(one, labels)} for one in baselines],
    }


def _found(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {"value": value}


def _tested(row: Mapping[str, Any], key: str) -> int | None:
    """The rows that a figure of one label rests on: recall on those that have it, precision on those said to."""
    wanted = {"recall": ("rows",), "precision": ("predicted",)}.get(key, ("rows", "predicted"))
    return min((row[name] for name in wanted if row.get(name) is not None), default=None)


def _forest(evaluation: Mapping[str, Any], metric: str, columns: list[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """One metric: a row for each model on an axis they share."""
    tested = rests_on(evaluation, metric)
    having = [(name, column[metric]) for name, column in columns if metric in column]
    ends = [found[key] for _, found in having for key in ("low", "value", "high") if _finite(found.get(key))]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    margin = (high - low) * 0.06 or abs(high) * 0.05 or 0.05
    low, high = low - margin, high + margin
    if metric not in NOT_SHARES:
        low, high = max(low, 0.0), max(min(high, 1.0), low + 1e-6) if high > 1 and max(ends, default=1) <= 1 else high

    def place(value: Any) -> float | None:
        return round(100 * (value - low) / (high - low), 2) if _finite(value) else None

    rows = []
    for name, found in having:
        left, right = place(found.get("low")), place(found.get("high"))
        rows.append({
            "who": name,
            "us": name == "this model",
            "at": place(found.get("value")),
            "left": left,
            "width": None if left is None or right is None or no_width(found, tested) else round(right - left, 2),
            "text": figure(metric, found.get("value")),
            "edges": edges(metric, found, tested),
        })  # fmt: skip
    return {
        "title": title(metric),
        "better": ", ".join(filter(None, [over(evaluation, metric), "lower is better" * (metric in LOWER_IS_BETTER)])),
        "rows": rows,
        "ticks": [
            {"at": place(tick), "text": number(tick) if metric in NOT_SHARES else f"{number(round(100 * tick, 9))} %"}
            for tick in ticks(low, high, 4)
        ],
    }


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _about(baseline: Mapping[str, Any], labels: list[Any]) -> str:
    """Its settings and notes in words; a label that is given by its number by its name."""
    settings = dict(baseline.get("settings") or {})
    chosen = settings.get("label")
    if isinstance(chosen, int) and 0 <= chosen < len(labels):
        settings["label"] = labels[chosen]
    said = ", ".join(f"{key.replace('_', ' ')} {_value(value)}" for key, value in settings.items())
    return ". ".join(part for part in (said, *map(str, baseline.get("notes") or [])) if part)


def _confusion(found: Mapping[str, Any]) -> dict[str, Any]:
    labels, matrix = list(found.get("labels") or []), found.get("matrix") or []
    mistakes = sorted(
        (
            (count, labels[i], labels[j])
            for i, row in enumerate(matrix)
            for j, count in enumerate(row)
            if i != j and count
        ),
        reverse=True,
        key=lambda one: one[0],
    )
    confused = (
        [f"{true} → {predicted}: {count:,}" for count, true, predicted in mistakes[:6]] if len(labels) > 2 else []
    )
    if not labels or len(labels) > _LABELS:  # too large to be read; each label has its row in the table
        return {"confusion": None, "confused": confused, "many_labels": len(labels) if len(labels) > _LABELS else None}
    rows = []
    for label, counts in zip(labels, matrix, strict=True):
        shares = [count / max(sum(counts), 1) for count in counts]
        cells = [
            {
                "label": other,
                "count": count,
                "share": share,
                "alpha": f"{0.04 + 0.92 * share:.3f}",
                "percent": f"{100 * share:.0f} %",
            }
            for other, count, share in zip(labels, counts, shares, strict=True)
        ]
        rows.append({"label": label, "cells": cells})
    return {"confusion": {"labels": labels, "rows": rows}, "confused": confused, "many_labels": None}


def _examples(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    examples = [
        {
            key: one.get(key) if key == "before" and one.get(key) is None else _value(one.get(key))
            for key in ("input", "expected", "answer", "before")
        }
        | {"right": bool(one.get("right"))}
        for one in evaluation.get("examples") or []
    ]
    return {
        kind: [one for one in examples if one["right"] == flag][:_EXAMPLES]
        for kind, flag in (("right", True), ("wrong", False))
    }


# --- training ---------------------------------------------------------------------------------------------------------


def _curves(steps: list[dict[str, Any]], timings: list[dict[str, Any]]) -> tuple[Any, list[Any]]:
    """The plot of the losses, and the small ones: other validation metrics, learning rate, gradient norm, speed."""
    xs, losses = _column(steps, "loss")
    checks = [
        {"step": step["step"], **step["validation"]} for step in steps if isinstance(step.get("validation"), dict)
    ]
    weight = 1 - 1 / max(5, len(xs) / 40)  # over about a fortieth of the run

    def each_step(at: list[float], values: list[float], name: str) -> list[Series]:
        if len(at) <= _SMOOTHED:
            return [Series(name, at, values)]
        return [Series("each step", at, values, "raw"), Series("smoothed", at, smooth(values, weight))]

    loss = line_plot(
        "Loss",
        [*each_step(xs, losses, "training"), Series("validation", *_column(checks, "loss"), look="dots")],
        about="nats; lower is better",
        wide=True,
    )
    names = dict.fromkeys(key for check in checks for key in check if key not in ("step", "loss"))
    plots = [
        line_plot(f"Validation: {title(name)}", [Series(name, *_column(checks, name), look="dots")]) for name in names
    ]
    plots.append(line_plot("Learning rate", [Series("learning rate", *_column(steps, "learning_rate"))], zero=True))
    for name, (at, values) in {
        "Gradient norm": _column(steps, "gradient_norm"),
        "Tokens per second": _column(timings, "tokens_per_second"),
    }.items():
        plots.append(line_plot(name, each_step(at, values, name.lower()), zero=True))
    return loss, [plot for plot in plots if plot]


def _column(lines: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """(steps, values) of the lines that have the key; null stands for not a number."""
    having = [
        line
        for line in lines
        if key in line
        and (line[key] is None or (isinstance(line[key], (int, float)) and not isinstance(line[key], bool)))
    ]
    return [float(line["step"]) for line in having], [
        math.nan if line[key] is None else float(line[key]) for line in having
    ]


# --- data, lineage, settings ------------------------------------------------------------------------------------------


def _data(data: Mapping[str, Any]) -> dict[str, Any]:
    rows, tokens, cut = (data.get(key) or {} for key in ("rows", "tokens", "truncated"))
    lengths = tokens.get("lengths") or {}
    unknown = data.get("unknown_share")
    labels = data.get("labels") or {}
    facts: dict[str, Any] = {
        "rows read": rows.get("read"),
        "rows kept": rows.get("kept"),
        "training tokens": tokens.get("train"),
        "rows labelled" if labels else "of them learned": tokens.get("learned"),
        "median row, tokens": lengths.get("median"),
        "95 % of rows are within, tokens": lengths.get("p95"),
        "unknown tokens": None if unknown is None else f"{100 * unknown:.2f} %",
        "duplicates": data.get("duplicates"),
        "texts in two splits": data.get("leaks"),
        "rows cut to fit": cut.get("rows"),
        "tokens cut away": cut.get("tokens") or None,
        "of them to be learned": cut.get("learned") if cut.get("tokens") and not labels else None,
    }
    splits = data.get("splits") or {}
    label_splits = list(dict.fromkeys(split for counts in labels.values() for split in counts))
    return {
        "data": bool(data),
        "facts": [
            {"name": name, "value": number(value) if _finite(value) else _value(value)}
            for name, value in facts.items()
            if value is not None
        ],
        "splits": [{"name": name, "rows": count} for name, count in splits.items()],
        "histogram": _histogram(lengths),
        "label_splits": label_splits,
        "labels": [
            {"label": label, "counts": [number(counts.get(split, 0)) for split in label_splits]}
            for label, counts in labels.items()
        ],
        "dropped": [
            {
                "reason": one.get("reason"),
                "count": number(one.get("count")),
                "examples": ", ".join(map(_value, one.get("examples") or [])),
            }
            for one in rows.get("dropped") or []
        ],
        "notes": [str(note) for note in data.get("notes") or []],
        "view": [{**row, "label": _label(row.get("label"), list(labels))} for row in data.get("view") or []],
    }


def _label(found: Any, labels: list[str]) -> str | None:
    """The name of a row's label, which is a number in their order."""
    return labels[found] if isinstance(found, int) and 0 <= found < len(labels) else found


def _length_class(text: str) -> str:
    """`long` for a text that scrolls within its box; others are shown whole."""
    return "long" if len(text) > _LONG_TEXT or text.count("\n") >= _LONG_LINES else ""


def _histogram(lengths: Mapping[str, Any]) -> dict[str, Any] | None:
    bars = lengths.get("histogram") or []
    tallest = max((count for _, count in bars), default=0)
    if not tallest:
        return None
    ends = [edge for edge, _ in bars[1:]] + [lengths.get("max", bars[-1][0])]
    shown = [
        {
            "height": round(100 * count / tallest, 1),
            "title": f"{number(edge)} to {number(end)} tokens: {number(count)} rows",
        }
        for (edge, count), end in zip(bars, ends, strict=True)
    ]
    return {
        "bars": shown,
        "low": number(lengths.get("min", bars[0][0])),
        "middle": f"median {number(lengths['median'])}" if "median" in lengths else "",
        "high": number(ends[-1]),
    }


def _lineage(lineage: Mapping[str, Any]) -> dict[str, Any] | None:
    if not lineage:
        return None
    model = lineage.get("model")

    def licence(one: Mapping[str, Any]) -> str:
        return f"licence {one.get('licence') or 'not stated'}"

    sources = [
        {
            "role": one.get("role", "data"),
            "name": _value(one.get("name")),
            "about": ", ".join(
                [f"{number(one.get('rows'))} rows", *([str(one["format"])] if one.get("format") else []), licence(one)]
            ),
            "sha256": str(one.get("sha256") or "unknown"),
        }
        for one in lineage.get("data") or []
    ]
    base = model and {
        "name": _value(model.get("name")),
        "about": ", ".join([*([str(model["kind"])] if model.get("kind") else []), licence(model)]),
        "sha256": str(model.get("sha256") or "unknown"),
    }
    return {"sources": sources, "model": base}


def _setting(key: str, entry: Any) -> dict[str, Any]:
    found = entry if isinstance(entry, dict) else {"value": entry, "origin": "unknown"}
    origin, _, why = str(found.get("origin", "unknown")).partition(": ")
    told = origin.startswith(("command line", "file", "python", "Python"))
    return {"key": key, "value": _value(found.get("value")), "origin": origin, "why": why, "told": told}


def _value(value: Any) -> str:
    """A JSON value as a person writes it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return number(value, 6)
    if isinstance(value, list) and not any(isinstance(part, (dict, list)) for part in value):
        return ", ".join(map(_value, value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _moment(created: Any) -> str:
    """`2026-01-31T12:30:00+00:00` -> `2026-01-31 12:30`."""
    return str(created)[:16].replace("T", " ") if created else ""
