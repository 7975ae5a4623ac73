"""A run as one HTML page that needs no network, and its model card.

The page is made from the files in the run and nothing else; what is missing is said on it. Here is what has to be found out, in
report.html how it is shown. Every text from data goes through the template's escaping, and a content security policy lets no script
run but the page's own, named by its hash.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

from danlu.core import config
from danlu.core.errors import UserError
from danlu.core.run import HOLDS, Run, misplaced, write_text
from danlu.core.types import IMAGE_TASKS
from danlu.experiment import Experiment
from danlu.stages import card, inspect
from danlu.stages.card import LOWER_IS_BETTER, NOT_SHARES, Json, count, figure, over, rests_on, title, with_interval
from danlu.stages.corpus_page import figures
from danlu.stages.page import render
from danlu.stages.plots import Series, finite, line_plot, smooth, ticks


Lines = list[dict[str, Any]]

FILES = ("run.json", "experiment.json", "data.json", "evaluation.json", "metrics.jsonl", "timings.jsonl")
_SHOWN = (
    "accuracy", "exact_match", "token_f1", "rouge_l", "perplexity", "psnr", "mse", "frechet_pixels", "loss", "f1_macro", "auc",
    "bits_per_byte", "token_accuracy",
)  # fmt: skip  # drawn, the first of them in the headline; the others are in the table below
_SAMPLES = 12  # of all that were written while it learned
_MUCH_CUT = 0.2  # of the tokens
_SMOOTHED = 20  # steps, from which on a line is drawn smoothed as well
_LOSSES = {
    "autoencoder": "mean squared error of the normalised pixels; lower is better",
    "gan": "one against the other: they balance, and need not fall",
}


def write(run: Path) -> Path:
    """Write RUN/report.html, and RUN/model/README.md where there is a model; returns the page's path.

    Any file of the run may be missing or cut off, as in an interrupted run: the page says so.

    Raises:
        UserError: the folder holds none of a run's files, one of them holds something else than danlu wrote, or it cannot be written.
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
    unit = "image" if facts.get("task") in IMAGE_TASKS else "row"
    evaluation = {"unit": unit, **evaluation} if evaluation else {}
    if "task" in facts and "used" in settings:
        settings["used"] = _read_by(str(facts["task"]), settings["used"])
    learners = _learners(steps)
    compared = [evaluation.get("before") or {}, *(evaluation.get("baselines") or [])]
    view = {
        "facts": facts,
        "unit": unit,
        "settings": settings,
        "data": data,
        "evaluation": evaluation,
        "steps": steps[-1]["step"] if steps else 0,
        "headline": _headline(evaluation),
        "alerts": broken + _alerts(evaluation, data, learners),
        "forest": _forest(evaluation),
        "verdicts": card.verdicts(compared),
        "confused": _confused(evaluation.get("confusion") or {}),
        "transfer": _transfer(evaluation.get("transfer") or {}),
        "samples": _samples(run / "samples"),
        "written": _written(run / "samples"),
        "corpus": figures(data["corpus"]) if data.get("corpus") else {},
        "plots": _curves(steps, learners, timings, str(facts.get("task"))),
    }
    page = run / "report.html"
    write_text(page, _render(view))
    if (run / "model").is_dir():
        write_text(run / "model" / "README.md", card.model_card(facts, settings, data, evaluation, run / "model"))
    return page


def _read_by(task: str, used: dict[str, Any]) -> dict[str, Any]:
    """The settings that the task reads, and any this danlu does not know."""
    unread = {key for _, key, _, _ in config.leaves(Experiment)} - inspect.meanings(task).keys()
    return {key: entry for key, entry in used.items() if key not in unread}


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
    if wrong := misplaced(found, HOLDS[path.name], partly=True):
        raise UserError(f"{path}: {wrong}", "restore it from a copy of the run")
    return found


def _lines(path: Path, broken: list[str]) -> Lines:
    """The readable lines; a last line without its end was cut off by a kill and is no damage."""
    found, bad = [], []
    for place, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.is_file() else [], start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            found.append(entry)
        else:
            bad.append(place)
    if bad:
        broken.append(f"{path.name}: {count(len(bad), 'line')} cannot be read (first: {bad[0]})")
    return found


def _render(view: Json) -> str:
    from markupsafe import Markup

    script = Path(__file__).with_suffix(".js").read_text("utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    ours = {"card": card, "script": Markup(script), "script_hash": Markup(digest)}  # noqa: S704 - not from any data
    return render("report.html", {**view, **ours}, picture=_picture, called=card.called)


# --- metrics ----------------------------------------------------------------------------------------------------------


def _headline(evaluation: Json) -> Json:
    """The metric that stands for all, its figures, and in words what they say."""
    ours = evaluation.get("metrics") or {}
    metric = next((str(metric) for metric in (evaluation.get("primary"), *_SHOWN, *ours) if metric in ours), None)
    if metric is None:
        return {}
    tested, rows, before = rests_on(evaluation, metric), over(evaluation, metric), evaluation.get("before") or {}

    def of(one: Json) -> Json:
        return (one.get("metrics") or {}).get(metric) or {}

    able = [one for one in evaluation.get("baselines") or [] if finite(of(one).get("value"))]
    best = sorted(able, key=lambda one: float(of(one)["value"]), reverse=metric not in LOWER_IS_BETTER)[:1]
    said = card.verdicts([before, *best])
    if not said:
        then = f"; the base model before: {with_interval(metric, of(before), tested)}" if of(before) else ""
        ours_said = f"{title(metric)} {with_interval(metric, ours[metric], tested)} {rows}".strip()
        said = card.verdicts([{"verdict": ours_said + then}])
    within = card.edges(metric, ours[metric], tested).strip("[]()").replace(", ", " to ")
    unbroken = re.sub(r"\[[^\]]*\]|p [<=] ", lambda part: part[0].replace(" ", "\u00a0"), " ".join(said))
    return {
        "title": title(metric),
        "figure": figure(metric, ours[metric].get("value")),
        "within": ", ".join(filter(None, (within, rows))),
        "before": figure(metric, of(before)["value"]) if of(before) else None,
        "baselines": [(figure(metric, of(one)["value"]), one.get("name")) for one in best],
        "verdict": unbroken,
    }


def _alerts(evaluation: Json, data: Json, learners: dict[str, Lines]) -> list[str]:
    """What flatters or spoils the figures."""
    found = str(data.get("overfitting") or "")
    alerts = [alert for alert in (card.few_rows(evaluation), f"{found[:1].upper()}{found[1:]}") if alert]
    cut, tokens, splits = (data.get(key) or {} for key in ("truncated", "tokens", "splits"))
    rows, lost = cut.get("rows") or 0, cut.get("tokens") or 0
    # cut tokens are of all splits, the tokens kept are known of the training rows: the others are taken to be as long
    kept = (tokens.get("train") or 0) * sum(splits.values()) / (splits.get("train") or math.inf)
    if rows and kept and lost / (kept + lost) > _MUCH_CUT:
        alerts.append(
            f"About {100 * lost / (kept + lost):.0f} % of all tokens were cut away ({rows:,} rows): the model never read them. "
            "A larger max_tokens keeps more."
        )
    if rows and evaluation.get("baselines"):
        alerts.append(
            f"The model read {count(rows, 'row')} only up to where they were cut to fit; the baselines were given the whole texts. "
            "Part of a difference between them may come from that."
        )
    if leaks := data.get("leaks"):
        alerts.append(f"{leaks:,} test or validation rows also occur in the training rows: that flatters the model.")
    if skipped := [
        (line["step"], line["skipped"])
        for lines in learners.values()
        for line in lines
        if isinstance(line.get("skipped"), str)
    ]:
        step, why = skipped[0]
        alerts.append(
            f"{count(len(skipped), 'update')} skipped because of their numbers, no weight was changed by them; the first at step {step:,.0f}: {why}. metrics.jsonl names the rows."
        )
    points = [point for lines in learners.values() for point in zip(*_column(lines, "loss"), strict=True)]
    if bad := sorted({step for step, loss in points if not finite(loss)}):
        alerts.append(f"The loss was not a finite number at {count(len(bad), 'step')}, first at step {bad[0]:,.0f}.")
    return alerts


def _forest(evaluation: Json) -> list[Json]:
    """Metrics to be drawn, each with the figures of every model on an axis that they share."""
    ours, groups = evaluation.get("metrics") or {}, list[Json]()
    shown = [metric for metric in dict.fromkeys((str(evaluation.get("primary")), *_SHOWN)) if metric in ours]
    for metric in shown or list(ours)[:6]:
        rows = {name: found[metric] for name, found in card.columns(evaluation).items() if metric in found}
        ends = [found[key] for found in rows.values() for key in ("low", "value", "high") if finite(found.get(key))]
        low, high, share = min(ends, default=0.0), max(ends, default=1.0), metric not in NOT_SHARES
        margin = (high - low) * 0.06 or abs(high) * 0.05 or 0.05
        left = max(low - margin, 0.0) if share else low - margin
        right = min(high + margin, 1.0) if share and high <= 1 else high + margin
        groups.append({"metric": metric, "rows": rows, "left": left, "right": right, "ticks": ticks(left, right, 4)})
    return groups


def _confused(confusion: Json) -> list[tuple[str, int]]:
    """The most frequent mistakes between more than two labels."""
    labels = confusion.get("labels") or []
    rows = enumerate(confusion.get("matrix") or [])
    cells = [(n, i, j) for i, row in rows for j, n in enumerate(row) if n and i != j]
    most = sorted(cells, key=lambda cell: -cell[0])[:6] if len(labels) > 2 else []
    return [(f"{labels[i]} → {labels[j]}", n) for n, i, j in most]


def _transfer(found: Json) -> Json:
    """What starting from pretrained weights gains over random ones, by the number of labels."""
    rows, metric = found.get("rows") or [], str(found.get("metric") or "accuracy")
    scale, unit = (1, title(metric)) if metric in NOT_SHARES else (100, f"{title(metric)}, per cent")

    def ends(one: Json) -> list[float]:
        return [scale * (one[key] if finite(one.get(key)) else one["value"]) for key in ("value", "low", "high")]

    lines, gains = [], []
    sides = [side for side in ("pretrained", "before", "random") if all(side in row for row in rows)]
    for colour, start in enumerate(sides):
        values, *spans = zip(*(ends(row[start]) for row in rows), strict=True) if rows else ((), (), ())
        at = [row["labels"] for row in rows]
        lines.append(Series(f"{start} weights", at, values, "dots", colour, list(zip(*spans, strict=True))))
    for value, low, high in (ends(row.get("difference") or row["difference_before"]) for row in rows):
        sign = ((low > 0) - (high < 0)) * (-1 if metric in LOWER_IS_BETTER else 1)
        said = [(f"{end:+.1f}" if scale > 1 else f"{end:+.3g}").replace("-", "−") for end in (value, low, high)]
        gains.append({"value": said[0], "edges": f"[{said[1]}, {said[2]}]", "look": ("", "good", "bad")[sign]})
    return {
        "metric": metric,
        "gains": gains,
        "sides": sides,
        "plot": line_plot(unit.capitalize(), lines, across="labels", log=True),
    }


# --- training ---------------------------------------------------------------------------------------------------------


def _learners(steps: Lines) -> dict[str, Lines]:
    """The steps of each learner: of the only one as they stand, of several as nested in them, `{"step": 5, "generator": {…}}`."""
    nested: dict[str, Lines] = {}
    for line in steps:
        for name, part in line.items():
            if isinstance(part, dict) and name != "validation":
                nested.setdefault(name, []).append({"step": line["step"], **part})
    return nested or {"training": steps}


def _curves(steps: Lines, learners: dict[str, Lines], timings: Lines, task: str) -> list[Json]:
    """The plot of the losses, then the small ones: other validation metrics, learning rate, gradient norm, speed."""
    checked = [line for line in steps if isinstance(line.get("validation"), dict)]
    checks = [{"step": line["step"], **line["validation"]} for line in checked]
    losses = [one for i, (name, lines) in enumerate(learners.items()) for one in _each_step(name, i, lines, "loss")]
    losses.append(Series("validation", *_column(checks, "loss"), "dots", len(learners)))
    plots = [line_plot("Loss", losses, about=_LOSSES.get(task, "nats; lower is better"), wide=True)]
    for key in dict.fromkeys(key for check in checks for key in check if key not in ("step", "loss")):
        at, values = _column(checks, key)
        scale, unit = (1, "") if key in NOT_SHARES else (100, ", per cent")
        series = [Series(key, at, [scale * y for y in values], "dots")]
        plots.append(line_plot(f"Validation: {title(key)}{unit}", series))
    speeds = dict.fromkeys(key for line in timings for key in line if key.endswith("_per_second"))
    for key in ("learning_rate", "gradient_norm", *speeds):
        of = {"": timings} if key in speeds else learners if len(learners) > 1 else {"": steps}
        series = [one for i, (name, lines) in enumerate(of.items()) for one in _each_step(name, i, lines, key)]
        plots.append(line_plot(title(key).capitalize(), series, zero=True))
    return [plot for plot in plots if plot]


def _each_step(name: str, colour: int, lines: Lines, key: str) -> list[Series]:
    """A value of each step; of many that jump also an average over about a fortieth of them."""
    at, values = _column(lines, key)
    if len(at) <= _SMOOTHED or key == "learning_rate":
        return [Series(name or title(key), at, values, colour=colour)]
    raw, smoothed = (", ".join(filter(None, (name, look))) for look in ("each step", "smoothed"))
    average = smooth(values, 1 - 1 / max(5, len(at) / 40))
    return [Series(raw, at, values, "raw", colour), Series(smoothed, at, average, colour=colour)]


def _column(lines: Lines, key: str) -> tuple[list[float], list[float]]:
    """(steps, values) of the lines that have the key; null stands for not a number."""
    kept = [line for line in lines if key in line and (line[key] is None or type(line[key]) in (int, float))]
    return [float(line["step"]) for line in kept], [math.nan if line[key] is None else line[key] for line in kept]


# --- pictures ---------------------------------------------------------------------------------------------------------


def _picture(encoded: Any, side: int) -> Json:
    """A whole PNG in base64 as an image of the page, enlarged to about `side` by a whole factor, so that its pixels stay squares."""
    try:
        png = base64.b64decode(str(encoded), validate=True)
        width, height = struct.unpack(">16xII", png[:24])
    except (ValueError, struct.error):
        return {}
    if not png.startswith(b"\x89PNG\r\n\x1a\n") or not png.endswith(b"IEND\xaeB`\x82") or not width * height:
        return {}
    factor = max(1, (2 * side if width > 2 * height else side) // max(width, height))
    return {"src": f"data:image/png;base64,{encoded}", "width": width, "height": height, "factor": factor}


def _samples(folder: Path) -> list[tuple[str, str]]:
    """(step, base64) of what a generative task drew while it learned."""
    found = _spread(sorted(folder.glob("step-*.png")))
    return [(path.stem.removeprefix("step-"), base64.b64encode(path.read_bytes()).decode()) for path in found]


def _written(folder: Path) -> list[Json]:
    """What a language model made of the same beginnings while it learned: beginning, and (step, what it wrote)."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for path in _spread(sorted(folder.glob("step-*.json"))):
        with contextlib.suppress(ValueError, TypeError, KeyError):  # one that was cut off, or is none of ours
            for one in json.loads(path.read_text("utf-8")):
                rows.setdefault(str(one["input"]), []).append((path.stem.removeprefix("step-"), str(one["answer"])))
    return [{"input": asked, "answers": answers} for asked, answers in rows.items()]


def _spread(files: list[Path]) -> list[Path]:
    """The first, the last and some evenly between."""
    shown = min(len(files), _SAMPLES)
    return [files[round(i * (len(files) - 1) / max(shown - 1, 1))] for i in range(shown)]
