"""A run's model on rows it never learned from, beside the untouched base model and honest baselines."""

from __future__ import annotations

from typing import Any

from danlu.core.run import Run
from danlu.stages.card import few_rows
from danlu.stages.modality import modality, of
from danlu.stages.prepare import Prepared, Say


WEAKEST = 6
"""Labels shown on a terminal; the page has all."""


def evaluate(run: Run, data: Any = None, say: Say = print, **settings: Any) -> dict[str, Any]:
    """Measure a finished run on `data`, or again on its own test rows. Returns the figures; the run's evaluation.json is left as it is.

    settings: `text`, `label`: the columns of `data`; those of training, or found by their usual names, when not given. `answers`: of a
    chat model, how many are written.

    Raises:
        UserError: no final model, no rows, rows of another form, or a label the model does not know.
    """
    found = of(run, "evaluate", settings).evaluate(run, data, say, **settings)
    return {"split": "test" if data is None else "data", **found}


def at_the_end(run: Run, prepared: Prepared, say: Say) -> None:
    """The test of a training run: after and before, baselines, examples; written to evaluation.json."""
    result = {"split": "test", **modality(prepared.task).at_the_end(run, prepared, say)}
    run.write("evaluation.json", result)
    for line in summary(result):
        say(line)


def summary(result: dict[str, Any]) -> list[str]:
    """The figures as lines."""
    lines = []
    for name, entry in result["metrics"].items():
        if name == "f1_micro" or name.endswith("_weighted"):
            continue  # in the page and in --json; on a terminal they crowd out the others
        before = result.get("before", {}).get("metrics", {}).get(name)
        was = f"   before {before['value']:.4g} [{before['low']:.4g}, {before['high']:.4g}]" if before else ""
        lines.append(f"{name:>22} {entry['value']:.4g} [{entry['low']:.4g}, {entry['high']:.4g}]{was}")
    classes = sorted(result.get("per_class", {}).items(), key=lambda pair: float(pair[1]["f1"]["value"]))
    if len(classes) > WEAKEST:
        lines.append(f"the {WEAKEST} weakest of {len(classes)} labels:")
    for label, each in classes[:WEAKEST]:
        shown = ", ".join(f"{name} {each[name]['value']:.3g}" for name in ("precision", "recall", "f1"))
        lines.append(f"{label:>22} {shown} ({each['rows']} rows)")
    for each in result.get("baselines", []):
        name = result.get("primary", "accuracy")
        figure = each["metrics"][name]
        lines.append(
            f"{each['name']}: {name} {figure['value']:.4g} [{figure['low']:.4g}, {figure['high']:.4g}]; {each['comparison']['verdict']}"
        )
    if "comparison" in result.get("before", {}):
        lines.append(result["before"]["comparison"]["verdict"])
    return lines + [f"warning: {few}" for few in (few_rows(result),) if few]
