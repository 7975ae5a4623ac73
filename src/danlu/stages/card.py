"""The model card of a run: README.md beside the weights, in the form Hugging Face reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danlu.stages.plots import number


LOWER_IS_BETTER = {
    "loss", "perplexity", "bits_per_byte", "log_loss", "brier", "mean_squared_error", "character_error_rate", "word_error_rate",
}  # fmt: skip
NOT_SHARES = LOWER_IS_BETTER - {"character_error_rate", "word_error_rate"} | {"bleu", "chrf"}
_TITLES = {
    "auc": "AUC", "exact_match": "exact match", "rouge_l": "ROUGE-L", "token_f1": "F1 of words", "log_loss": "log loss",
    "brier": "Brier score", "bits_per_byte": "bits per byte", "bleu": "BLEU", "chrf": "chrF",
}  # fmt: skip
_MISUSE = {
    "chat": "It can state falsehoods fluently, and may repeat biases of its base model and of the data. Do not let it decide about people.",
    "text-classification": "It knows the labels below and no others: a text that fits none of them still gets one. "
    "Texts unlike the training data (another language, another time, another source) are outside what was measured.",
}


def title(metric: str) -> str:
    """The name of a metric for people: `f1_macro` -> `macro F1`."""
    if metric in _TITLES:
        return _TITLES[metric]
    stem, _, average = metric.rpartition("_")
    if average in ("macro", "micro", "weighted"):
        return f"{average} {'F1' if stem == 'f1' else stem}"
    return metric.replace("_", " ")


def figure(metric: str, value: float | None) -> str:
    """A metric's value for people: shares in per cent."""
    if value is None or metric in NOT_SHARES:
        return number(value)
    return f"{100 * value:.1f} %"


def with_interval(metric: str, found: Mapping[str, Any]) -> str:
    """`91.2 % [88.5, 93.6]`."""
    if found.get("low") is None or found.get("high") is None:
        return figure(metric, found.get("value"))
    edges = [figure(metric, found[key]).removesuffix(" %") for key in ("low", "high")]
    return f"{figure(metric, found.get('value'))} [{edges[0]}, {edges[1]}]"


def model_card(
    facts: Mapping[str, Any],
    settings: Mapping[str, Any],
    data: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    folder: Path,
) -> str:
    """The text of README.md. Arguments: run.json, experiment.json, data.json and evaluation.json as read; folder: of the model."""
    lineage = facts.get("lineage") or {}
    base, sources = lineage.get("model") or {}, lineage.get("data") or []
    task = str(facts.get("task") or "")
    name = str(facts.get("name") or folder.parent.name)
    used = {key: entry.get("value") for key, entry in (settings.get("used") or {}).items()}
    parts = [
        "---\n" + _front(facts, base, sources, evaluation, folder) + "---\n",
        f"# {_plain(name)}\n\n{_plain(str(base.get('name') or 'A model'))}, fine-tuned for {_plain(task) or 'a task'} "
        f"with danlu {_plain(str(facts.get('danlu') or ''))}.".replace(" .", "."),
    ]
    if facts.get("status") not in ("finished", None):
        parts.append(f"**This run is {facts['status']}, not finished: the weights are those of its last checkpoint.**")
    parts.append("## Intended use and limits\n\n" + _use(task, evaluation, data))
    parts.append("## Results\n\n" + _results(evaluation))
    licence = base.get("licence") or base.get("license")
    licences = [f"- Base model {_code(str(base.get('name') or '?'))}: {_plain(str(licence or 'not stated'))}."]
    licences += [
        f"- {_plain(str(s.get('role', 'data')))} {_code(str(s.get('name')))}: {_plain(str(s.get('licence') or 'not stated'))}."
        for s in sources
    ]
    parts.append("## Licences\n\n" + "\n".join(licences) + "\n\nA fine-tuned model is bound by the terms of both.")
    rows = [
        f"| {_code(key)} | {_plain(json.dumps(value, ensure_ascii=False))} |"
        for key, value in used.items()
        if value is not None
    ]
    parts.append(
        "## Training\n\n"
        + _training(facts, data)
        + ("\n\n| setting | value |\n|---|---|\n" + "\n".join(rows) if rows else "")
    )
    origin = [f"- Base: {_code(str(base.get('name') or '?'))}, SHA-256 {_code(str(base.get('sha256') or '?'))}."]
    origin += [
        f"- {_plain(str(s.get('role', 'data')))}: {_code(str(s.get('name')))}, {number(s.get('rows'))} rows, SHA-256 {_code(str(s.get('sha256') or '?'))}."
        for s in sources
    ]
    parts.append("## Lineage\n\n" + "\n".join(origin))
    return "\n\n".join(parts) + "\n"


def _front(
    facts: Mapping[str, Any], base: Mapping[str, Any], sources: list[Any], evaluation: Mapping[str, Any], folder: Path
) -> str:
    import yaml

    task = str(facts.get("task") or "")
    kind = {"chat": "text-generation"}.get(task, task)
    licence = str(base.get("licence") or base.get("license") or "")
    adapter = (folder / "adapter_config.json").exists()
    front: dict[str, Any] = {
        "license": re.sub(r"[^a-z0-9.+-]+", "-", licence.lower()).strip("-") or "other",
        "base_model": str(base.get("name") or ""),
        "base_model_relation": "adapter" if adapter else "finetune",
        "library_name": "peft" if adapter else "transformers",
        "tags": ["danlu", *([task] if task else []), *(["lora"] if adapter else [])],
    }
    if kind:
        front["pipeline_tag"] = kind
    names = [str(source.get("name")) for source in sources if source.get("name")]
    if names:
        front["datasets"] = names
    measured = [
        {"type": metric, "name": title(metric), "value": round(found["value"], 6)}
        for metric, found in (evaluation.get("metrics") or {}).items()
        if isinstance(found.get("value"), (int, float))
    ]
    if measured and kind:
        split = str(evaluation.get("split", "test"))
        dataset = {"name": names[0] if names else "own data", "type": "custom", "split": split}
        name = str(facts.get("name") or folder.parent.name)
        front["model-index"] = [
            {"name": name, "results": [{"task": {"type": kind}, "dataset": dataset, "metrics": measured}]}
        ]
    return str(yaml.safe_dump(front, sort_keys=False, allow_unicode=True))


def _use(task: str, evaluation: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    labels = list(data.get("labels") or {})
    lines = [
        "Made for input like its training data; the results below were measured on held-out rows of that data and say nothing of other input."
    ]
    if labels:
        lines.append("Labels: " + ", ".join(f"{_code(label)}" for label in labels) + ".")
    lines.append(_MISUSE.get(task, ""))
    if (evaluation.get("rows") or 0) and evaluation["rows"] < 100:
        lines.append(f"Only {evaluation['rows']} rows were tested: the intervals are wide, and too narrow still.")
    cut = (data.get("truncated") or {}).get("rows")
    if cut:
        lines.append(f"{cut:,} training rows were longer than the model was given and were cut.")
    return " ".join(line for line in lines if line)


def _results(evaluation: Mapping[str, Any]) -> str:
    ours = evaluation.get("metrics") or {}
    if not ours:
        return "Not evaluated yet: `danlu evaluate RUN`."
    columns: list[tuple[str, Mapping[str, Any]]] = [("this model", ours)]
    if (evaluation.get("before") or {}).get("metrics"):
        columns.append(("base model, untouched", evaluation["before"]["metrics"]))
    columns += [(str(one.get("name")), one.get("metrics") or {}) for one in evaluation.get("baselines") or []]
    lines = ["| metric | " + " | ".join(_plain(name) for name, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for metric in ours:
        cells = [with_interval(metric, found[metric]) if metric in found else "–" for _, found in columns]
        lines.append(f"| {_plain(title(metric))} | " + " | ".join(cells) + " |")
    level = f"{100 * evaluation.get('level', 0.95):.0f} %"
    lines.append(
        f"\n{number(evaluation.get('rows'))} rows of the {_plain(str(evaluation.get('split', 'test')))} split; brackets: {level} bootstrap interval."
    )
    verdicts = [
        one["comparison"]["verdict"]
        for one in evaluation.get("baselines") or []
        if (one.get("comparison") or {}).get("verdict")
    ]
    return "\n".join(lines + [f"\n- {_plain(verdict)}" for verdict in verdicts])


def _training(facts: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    splits = ", ".join(f"{rows:,} {_plain(name)}" for name, rows in (data.get("splits") or {}).items())
    seconds = facts.get("seconds")
    machine = ", ".join(
        f"{_plain(key)} {_plain(str(value))}"
        for key, value in (facts.get("machine") or {}).items()
        if not isinstance(value, (dict, list))
    )
    said = [
        f"Rows: {splits}." if splits else "",
        f"Time: {seconds / 60:.1f} minutes." if seconds else "",
        f"Machine: {machine}." if machine else "",
    ]
    return " ".join(part for part in said if part)


def _code(text: str) -> str:
    """Text from outside as a code span, also within a table."""
    return f"`{' '.join(text.replace('`', chr(39)).replace('|', '¦').split())}`"


def _plain(text: str) -> str:
    """Text from outside as one line of Markdown that starts no markup."""
    return (
        re.sub(r"([\\`*_{}\[\]<>|#!])", r"\\\1", " ".join(text.split()))
        if re.search(r"[`*\[\]<>|\\\n]", text)
        else text
    )
