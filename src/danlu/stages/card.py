"""A run's figures in words, and its model card: README.md beside the weights, in the form Hugging Face reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from danlu.evaluation.metrics import proportion
from danlu.stages.plots import finite, number


Json = Mapping[str, Any]

LOWER_IS_BETTER = {
    "loss", "perplexity", "bits_per_byte", "log_loss", "brier", "mean_squared_error", "mse", "frechet_pixels",
    "character_error_rate", "word_error_rate",
}  # fmt: skip
NOT_SHARES = LOWER_IS_BETTER - {"character_error_rate", "word_error_rate"} | {"bleu", "chrf", "psnr"}
_TITLES = {
    "auc": "AUC", "exact_match": "exact match", "rouge_l": "ROUGE-L", "token_f1": "F1 of words", "log_loss": "log loss",
    "brier": "Brier score", "bits_per_byte": "bits per byte", "bleu": "BLEU", "chrf": "chrF",
    "mse": "mean squared error of pixels", "psnr": "PSNR in dB", "frechet_pixels": "Fréchet distance of pixels",
}  # fmt: skip
_OF_ANSWERS = {"exact_match", "token_f1", "rouge_l", "character_error_rate", "word_error_rate", "bleu", "chrf"}
FEW = 100
"""Rows: on fewer than about these a share is uncertain by more than ten points."""
RESIZED = {
    "squash": "the whole image stretched to a square",
    "crop": "the middle cut out",
    "pad": "the whole image, with a border",
}
_KNOWN = (
    "It knows the labels above and no others: what fits none of them still gets one. Input unlike the training data"
)
_LIMITS = {
    "chat": "It can state falsehoods fluently, and may repeat biases of its base model and of the data. Do not let it decide about people.",
    "text-classification": f"{_KNOWN} (another language, another time, another source) is outside what was measured.",
    "image-classification": f"{_KNOWN} (another camera, another scale, another background) is outside what was measured.",
    "language-model": "It goes on as its training text does, invents facts fluently, and may repeat biases or passages of that text.",
    "masked-language-model": "It guesses words as its training text would have them, biases included; it is meant to be fine-tuned.",
    "autoencoder": "It gives back well only what resembles its training data; all else comes back as the nearest thing it knows.",
    "gan": "What it draws resembles its training data, biases included, and may come close to single images of it.",
}
_PIPELINES = {
    "chat": "text-generation", "language-model": "text-generation", "masked-language-model": "fill-mask",
    "autoencoder": "image-to-image", "gan": "unconditional-image-generation",
}  # fmt: skip


def title(metric: str) -> str:
    """The name of a metric for people: `f1_macro` -> `macro F1`."""
    stem, _, average = metric.rpartition("_")
    if average in ("macro", "micro", "weighted"):
        return f"{average} {'F1' if stem == 'f1' else stem}"
    return _TITLES.get(metric, metric.replace("_", " "))


def figure(metric: str, found: Any) -> str:
    """A metric's value for people: shares in per cent."""
    return f"{100 * found:.1f} %" if finite(found) and metric not in NOT_SHARES else number(found)


def with_interval(metric: str, found: Json, tested: int | None = None) -> str:
    """`91.2 % [88.5, 93.6]`, or `100.0 % (too few for an interval)`. tested: what it rests on, see `rests_on`."""
    return f"{figure(metric, found.get('value'))} {edges(metric, found, tested)}".strip()


def edges(metric: str, found: Json, tested: int | None = None) -> str:
    """`[88.5, 93.6]`; empty where there is no interval.

    Without width over few rows there is none: every resample of rows that all score alike is alike, whatever the truth.
    """
    low, high = found.get("low"), found.get("high")
    if not finite(low) or not finite(high):
        return ""
    if low == high and tested is not None and tested < FEW:
        return "(too few for an interval)"
    return f"[{figure(metric, low)}, {figure(metric, high)}]".replace(" %", "")


def rests_on(evaluation: Json, metric: str) -> int | None:
    """The rows of the evaluation, or for a metric of written answers those turns that were answered."""
    found = evaluation.get("answered") if metric in _OF_ANSWERS else None
    return evaluation.get("rows") if found is None else found


def over(evaluation: Json, metric: str) -> str:
    """`over 12 answers`, `over 30 rows`; empty where every metric rests on the same rows, which is said once."""
    if evaluation.get("answered") is None or (tested := rests_on(evaluation, metric)) is None:
        return ""
    return f"over {count(tested, 'answer' if metric in _OF_ANSWERS else 'row')}"


def count(found: int, name: str) -> str:
    """`1 row`, `1,200 rows`."""
    return f"{found:,} {name}{'s' * (found != 1)}"


def value(found: Any) -> str:
    """A JSON value as a person writes it."""
    if isinstance(found, bool) or found is None:
        return {True: "yes", False: "no", None: "none"}[found]
    if isinstance(found, dict):
        return ", ".join(f"{key.replace('_', ' ')} {value(part)}" for key, part in found.items())
    if isinstance(found, list):
        return ", ".join(map(value, found))
    return number(found, 6) if isinstance(found, float) else str(found)


def machine(facts: Json) -> dict[str, str]:
    """What the run remembers of its machine, bytes as GB."""
    found = {name: value(one) for name, one in (facts.get("machine") or {}).items()}
    found |= {name: f"{int(one) / 1e9:.1f} GB" for name, one in found.items() if name.endswith("_bytes")}
    return {name.removesuffix("_bytes").replace("_", " "): one for name, one in found.items()}


def columns(evaluation: Json) -> dict[str, Json]:
    """The figures of this model, of what it was before, and of each baseline: name -> metrics."""
    before = (evaluation.get("before") or {}).get("metrics")
    others = {str(one.get("name")): one.get("metrics") or {} for one in evaluation.get("baselines") or []}
    return {"this model": evaluation.get("metrics") or {}, **({"before": before} if before else {}), **others}


def table(evaluation: Json) -> list[list[str]]:
    """A row for every metric of the model: its name, and what each of `columns` has of it."""
    rows = []
    for metric in evaluation.get("metrics") or {}:
        having = [found.get(metric) for found in columns(evaluation).values()]
        name = ", ".join(filter(None, (title(metric), over(evaluation, metric))))
        rows.append(
            [name, *(with_interval(metric, one, rests_on(evaluation, metric)) if one else "–" for one in having)]
        )
    return rows


def verdicts(compared: Iterable[Json]) -> list[str]:
    """What comparisons found, each as a sentence: `the same` -> `The same.`"""
    said = [str((one.get("comparison") or one).get("verdict") or "") for one in compared]
    return [f"{verdict[0].upper()}{verdict[1:]}." for verdict in said if verdict]


def intervals(evaluation: Json) -> str:
    """What the intervals are, and over what."""
    level = f"{100 * evaluation.get('level', 0.95):.0f} %"
    rows = f"{number(evaluation.get('rows'))} {evaluation.get('unit', 'row')}s"
    if "frechet_pixels" in (evaluation.get("metrics") or {}):
        return f"{level} intervals over several draws of as many images as the {rows} held out"
    answered = evaluation.get("answered")
    turns = "" if answered is None else f", those of written answers over the {count(answered, 'turn')} answered"
    return f"{level} intervals over {rows}{turns}"


def few_rows(evaluation: Json) -> str:
    """What is said, on the terminal as on the page, where so little is tested that figures say little; empty where it is enough."""
    tested = ((evaluation.get("rows"), f"test {evaluation.get('unit', 'row')}"), (evaluation.get("answered"), "answer"))
    small = {count(n, name): n for n, name in tested if n and n < FEW}
    measured = set(evaluation.get("metrics") or {"accuracy"})  # before anything is measured, what a share would be
    if not small:
        return ""
    if not measured - NOT_SHARES - {"token_accuracy"}:  # of tokens there are many
        return f"Only {' and '.join(small)}: figures of so few are rough."
    fewest = min(small.values())
    points = 100 * (proportion(fewest / 2, fewest).high - 0.5)
    return f"Only {' and '.join(small)}: a share of so few is uncertain by up to {points:.0f} points either way, and other figures are as rough."


def left_out(evaluation: Json) -> list[str]:
    """What of the test rows was not measured: those dropped and why, and what was cut off."""
    said = []
    for one in evaluation.get("dropped") or []:
        places = ", ".join(map(str, one.get("examples") or []))
        said.append(
            f"Left out of the test: {number(one.get('count'))}, {one.get('reason')}{places and f' ({places})'}."
        )
    cut = {reason: found for reason, found in (evaluation.get("cut") or {}).items() if found}
    if rows := cut.pop("rows", 0):
        tokens = number(cut.pop("tokens", 0))
        said.append(f"Cut to fit: {count(rows, 'test row')}, of which {tokens} tokens were not read.")
    return said + [f"Of the test: {number(found)} {reason}." for reason, found in cut.items()]


# --- the card ---------------------------------------------------------------------------------------------------------

_CARD = """\
---
{{ front }}---

# {{ name|plain }}

{{ (model|called or "A model")|plain }}, {{ "fine-tuned" if base else "trained from random weights" }} for {{ facts.task|plain }} \
with danlu {{ facts.danlu|plain }}.
{% if facts.status|default("finished") != "finished" %}

**This run is {{ facts.status|plain }}, not finished: the weights are those of its last checkpoint.**
{% endif %}

## Intended use and limits

Made for input like its training data; the results below were measured on held-out rows of that data and say nothing of other input.
{% if data.labels %}
Labels: {{ data.labels|map("code")|join(", ") }}.
{% endif %}
{% for line in [limits, few_rows]|select %}
{{ line }}
{% endfor %}
{% if data.truncated.rows %}
{{ data.truncated.rows|number }} rows did not fit into what the model reads at once and were cut.
{% endif %}

## Results

{% if results %}
| metric | {{ columns|map("plain")|join(" | ") }} |
|---|{{ "---|" * columns|length }}
{% for row in results %}
| {{ row[0]|plain }} | {{ row[1:]|join(" | ") }} |
{% endfor %}

On the {{ (evaluation.split or "test")|plain }} {{ evaluation.unit|default("row") }}s; brackets are {{ intervals }}.

{% for line in said %}
- {{ line|plain }}
{% endfor %}
{% else %}
Not evaluated yet: `danlu evaluate RUN`.
{% endif %}

## Lineage and licences

{% for one in origins %}
- {{ one.role|plain }}{{ " of %s"|format(one.of|code) if one.of }} {{ one|called|code }}{{ ", %s rows"|format(one.rows|number) if one.rows }}, SHA-256 {{ one.sha256|code }}, \
{{ "licence: that of what it was made from" if one.lineage else "licence: %s"|format(one|licence|plain or "not stated") }}.
{% endfor %}

A model is bound by the terms of all it came from.
{% if unstated %}
The licence of {{ unstated|join(", ") }} is not stated, so the one of this model is given as `other` above.
{% endif %}

## Training

Rows: {% for part, rows in (data.splits or {})|items %}{{ rows|number }} {{ part|plain }}, {% endfor %}in all {{ data.rows.kept|number }}.
{% if facts.seconds %}Time: {{ (facts.seconds / 60)|number(2) }} minutes.{% endif %}
{% if facts.machine %} Machine: {{ machine|value|plain }}.{% endif %}


| setting | value |
|---|---|
{% for key, entry in (settings.used or {})|items if entry.value is not none %}
| {{ key|code }} | {{ entry.value|portable|plain }} |
{% endfor %}
"""


def model_card(facts: Json, settings: Json, data: Json, evaluation: Json, folder: Path) -> str:
    """The text of README.md. Arguments: run.json, experiment.json, data.json and evaluation.json as read; folder: of the model."""
    from jinja2 import ChainableUndefined, Environment

    lineage = facts.get("lineage") or {}
    model, sources, origins = lineage.get("model") or {}, lineage.get("data") or [], made_from(lineage)
    ends = [one for one in origins if not one.get("lineage")]
    unstated = [_code(called(one)) for one in ends if not _licence(one)] + ["the data"] * (not sources)
    name = str(facts.get("name") or folder.parent.name)
    compared = [evaluation.get("before") or {}, *(evaluation.get("baselines") or [])]
    compared += (evaluation.get("transfer") or {}).get("rows") or [evaluation.get("vectors") or {}]
    words = Environment(  # noqa: S701 - Markdown: `plain` and `code` see to what comes from outside
        trim_blocks=True, lstrip_blocks=True, undefined=ChainableUndefined, keep_trailing_newline=True
    )
    words.filters |= {"plain": _plain, "code": _code, "number": number, "value": value, "licence": _licence}
    words.filters |= {"called": called, "portable": _portable}
    view = {"facts": facts, "settings": settings, "data": data, "evaluation": evaluation, "name": name, "model": model}
    return words.from_string(_CARD).render(
        **view,
        base=bool(origins) and origins[0].get("role") == "base model",
        origins=origins,
        unstated=unstated,
        front=_front(name, facts.get("task"), ends, not unstated, evaluation, folder),
        limits=_LIMITS.get(str(facts.get("task"))),
        few_rows=few_rows(evaluation),
        results=table(evaluation),
        columns=columns(evaluation),
        intervals=intervals(evaluation),
        said=verdicts(compared) + left_out(evaluation),
        machine=machine(facts),
    )


def made_from(lineage: Json) -> list[Json]:
    """What a model came from, one mapping each: a base model first, and if that is a run what it came from in turn, then the data."""
    model, sources = lineage.get("model") or {}, lineage.get("data") or []
    base = (
        [{**model, "role": "base model"}] if model.get("sha256", bool(model)) else []
    )  # random weights have no digest
    earlier = made_from(model["lineage"]) if model.get("lineage") else []
    return base + [{"of": called(model), **one} for one in earlier] + list(sources)


def called(one: Json) -> str:
    """The name of a model or of data: of a run or a file without its folders, which say nothing on another machine."""
    name = str(one.get("name") or "")
    return str(
        one.get("run") or (Path(name).name if one.get("kind") in ("run", "checkpoint", "folder", "gguf") else name)
    )


def _portable(found: Any) -> str:
    """A setting's value, of an absolute path the last part."""
    return Path(found).name if isinstance(found, str) and Path(found).is_absolute() else value(found)


def _front(name: str, task: Any, ends: list[Json], stated: bool, evaluation: Json, folder: Path) -> str:
    """The YAML that Hugging Face reads, with what is known. ends: what it came from that is no run, the base model in front.
    stated: all of them state their licences."""
    import yaml

    kind, adapter = _PIPELINES.get(str(task), task), (folder / "adapter_config.json").exists()
    public = next((one["hub"] for one in ends if one.get("hub")), None)
    config = folder / "config.json"
    own = config.is_file() and '"architectures"' not in config.read_text("utf-8")  # transformers has no class for it
    licence = re.sub(r"[^a-z0-9.+-]+", "-", _licence(ends[0]).lower()).strip("-") if stated else ""
    names = [str(one["name"]) for one in ends if one.get("role") != "base model" and one.get("name")]
    ours = {metric: found["value"] for metric, found in (evaluation.get("metrics") or {}).items()}
    measured = [{"type": key, "name": title(key), "value": round(ours[key], 6)} for key in ours if finite(ours[key])]
    dataset = {"name": (names or ["own data"])[0], "type": "custom", "split": str(evaluation.get("split", "test"))}
    results = [{"task": {"type": kind}, "dataset": dataset, "metrics": measured}]
    front = {
        "license": licence or "other",
        "base_model": public,
        "base_model_relation": public and ("adapter" if adapter else "finetune"),
        "library_name": "peft" if adapter else "danlu" if own else "transformers",
        "tags": ["danlu", *([task] if task else []), *(["lora"] if adapter else [])],
        "pipeline_tag": kind,
        "datasets": names,
        "model-index": [{"name": name, "results": results}] if measured and kind else None,
    }
    known = {key: found for key, found in front.items() if found}
    return str(yaml.safe_dump(known, sort_keys=False, allow_unicode=True))


def _licence(one: Json) -> str:
    """As stated; empty when it is not."""
    found = str(one.get("licence") or "").strip()
    return "" if found.lower() in ("not stated", "unknown") else found


def _code(text: Any) -> str:
    """Text from outside as a code span, also within a table."""
    return f"`{' '.join((str(text) or '?').replace('`', chr(39)).replace('|', '¦').split())}`"


def _plain(text: Any) -> str:
    """Text from outside as one line of Markdown that starts no markup."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>|#!])", r"\\\1", line) if re.search(r"[`*\[\]<>|\\]", line) else line
