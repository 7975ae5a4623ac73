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
_OF_ANSWERS = {"exact_match", "token_f1", "rouge_l", "character_error_rate", "word_error_rate", "bleu", "chrf"}
_FEW = 100  # rows: under this a bootstrap interval is too narrow, and of no width where every row scores alike
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


def with_interval(metric: str, found: Mapping[str, Any], tested: int | None = None) -> str:
    """`91.2 % [88.5, 93.6]`, or `100.0 % (n too small for an interval)`. tested: what it rests on, see `rests_on`."""
    value, said = figure(metric, found.get("value")), edges(metric, found, tested)
    return f"{value} {said}" if said else value


def edges(metric: str, found: Mapping[str, Any], tested: int | None = None) -> str:
    """`[88.5, 93.6]`; empty where there is no interval."""
    if found.get("low") is None or found.get("high") is None:
        return ""
    if no_width(found, tested):
        return "(n too small for an interval)"
    low, high = (figure(metric, found[key]).removesuffix(" %") for key in ("low", "high"))
    return f"[{low}, {high}]"


def no_width(found: Mapping[str, Any], tested: int | None) -> bool:
    """An interval without width over few rows: every resample of rows that all score alike is alike, whatever the truth."""
    return tested is not None and tested < _FEW and found.get("low") is not None and found["low"] == found.get("high")


def rests_on(evaluation: Mapping[str, Any], metric: str) -> int | None:
    """The rows of the evaluation, or for a metric of written answers those turns that were answered."""
    found = evaluation.get("answered") if metric in _OF_ANSWERS else None
    return evaluation.get("rows") if found is None else found


def over(evaluation: Mapping[str, Any], metric: str) -> str:
    """`over 12 answers`, `over 30 rows`; empty where every metric rests on the same rows, which is said once."""
    if evaluation.get("answered") is None or (tested := rests_on(evaluation, metric)) is None:
        return ""
    return f"over {tested:,} {'answer' if metric in _OF_ANSWERS else 'row'}{'s' * (tested != 1)}"


def few_rows(evaluation: Mapping[str, Any]) -> str:
    """What is said wherever so little was tested that the intervals mislead; empty where it was enough."""
    rows, answered = evaluation.get("rows"), evaluation.get("answered")
    small = [f"{rows:,} row{'s' * (rows != 1)} {'were' if rows != 1 else 'was'} tested"] if rows and rows < _FEW else []
    if answered and answered < _FEW:
        small.append(f"{answered:,} answer{'s' * (answered != 1)} {'were' if answered != 1 else 'was'} compared")
    if not small:
        return ""
    return f"Only {' and '.join(small)}: intervals from so few are wide, and still narrower than they should be."


def left_out(evaluation: Mapping[str, Any]) -> list[str]:
    """What of the test rows was not measured: those dropped and why, and what was cut off."""
    said = []
    for one in evaluation.get("dropped") or []:
        places = ", ".join(map(str, one.get("examples") or []))
        said.append(
            f"Left out of the test: {number(one.get('count'))}, {one.get('reason')}{f' ({places})' * bool(places)}."
        )
    cut = {reason: count for reason, count in (evaluation.get("cut") or {}).items() if count}
    if rows := cut.pop("rows", 0):
        said.append(
            f"Cut to fit: {rows:,} test row{'s' * (rows != 1)}, of which {number(cut.pop('tokens', 0))} tokens were not read."
        )
    said += [f"Of the test: {number(count)} {reason}." for reason, count in cut.items()]
    return said


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
    bound = "A fine-tuned model is bound by the terms of both."
    if unstated := _unstated(base, sources):
        bound += f" The licence of {_and(unstated)} is not stated, so the one of this model is given as `other` above."
    parts.append("## Licences\n\n" + "\n".join(licences) + "\n\n" + bound)
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
    licence = re.sub(r"[^a-z0-9.+-]+", "-", _licence(base).lower()).strip("-")
    public = _public(base)
    adapter = (folder / "adapter_config.json").exists()
    front: dict[str, Any] = {
        "license": "other" if _unstated(base, sources) or not licence else licence,
        **({"base_model": public, "base_model_relation": "adapter" if adapter else "finetune"} if public else {}),
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


def _public(base: Mapping[str, Any]) -> str | None:
    """The name under which others find the base model, `owner/name`: the front matter links it. None for a name of danlu's own."""
    if "hub" in base:
        return str(base["hub"]) if base["hub"] else None
    name = str(base.get("name") or "")
    found = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII)
    return name if found and base.get("kind") not in ("folder", "run", "gguf") else None


def _licence(one: Mapping[str, Any]) -> str:
    """As stated; empty when it is not."""
    found = str(one.get("licence") or one.get("license") or "").strip()
    return "" if found.lower() in ("not stated", "unknown") else found


def _unstated(base: Mapping[str, Any], sources: list[Any]) -> list[str]:
    """What the model came from without a stated licence, as code spans: then its own licence cannot be given."""
    found = [("the base model", base), *((_code(str(one.get("name") or "data")), one) for one in sources)]
    return [name for name, one in found if not _licence(one)] + ([] if sources else ["the data"])


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _use(task: str, evaluation: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    labels = list(data.get("labels") or {})
    lines = [
        "Made for input like its training data; the results below were measured on held-out rows of that data and say nothing of other input."
    ]
    if labels:
        lines.append("Labels: " + ", ".join(f"{_code(label)}" for label in labels) + ".")
    lines.append(_MISUSE.get(task, ""))
    lines.append(few_rows(evaluation))
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
        tested, rows = rests_on(evaluation, metric), over(evaluation, metric)
        cells = [with_interval(metric, found[metric], tested) if metric in found else "–" for _, found in columns]
        lines.append(f"| {_plain(title(metric))}{f', {rows}' * bool(rows)} | " + " | ".join(cells) + " |")
    level = f"{100 * evaluation.get('level', 0.95):.0f} %"
    lines.append(
        f"\n{number(evaluation.get('rows'))} rows of the {_plain(str(evaluation.get('split', 'test')))} split; brackets: {level} bootstrap interval."
    )
    compared = [evaluation.get("before") or {}, *(evaluation.get("baselines") or [])]
    said = [str(one["comparison"]["verdict"]) for one in compared if (one.get("comparison") or {}).get("verdict")]
    said = [f"{verdict[0].upper()}{verdict[1:]}." for verdict in said] + left_out(evaluation)
    return "\n".join([*lines, *([""] if said else []), *(f"- {_plain(line)}" for line in said)])


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
