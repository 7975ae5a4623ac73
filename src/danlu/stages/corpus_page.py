"""The data card of a corpus as one HTML page that needs no network: every figure, and what was dropped to look through.

Here is what has to be found out, in corpus.html how it is shown. Texts of the data are dangerous until the template has escaped them.
"""

from __future__ import annotations

from typing import Any

from danlu.stages.card import Json, count
from danlu.stages.page import render
from danlu.stages.plots import Series, line_plot


SOURCES = 1000
"""Files that are listed; the page says how many more corpus.json names."""


def page(name: str, found: Json, samples: dict[str, list[list[str]]]) -> str:
    """found: what corpus.json holds. samples: by step and rule [order, place, what was found, excerpt]."""
    asked = found["asked"]["settings"]
    view = {
        **figures(found),
        "name": name,
        "found": found,
        "asked": asked,
        "sources": found["sources"][:SOURCES],
        "steps": _steps(found, asked),
        "samples": [(rule, number, samples[rule]) for rule, number in found["dropped"].items() if samples.get(rule)],
    }
    return render("corpus.html", view, size=size)


def figures(found: Json) -> dict[str, Any]:
    """What the page of a corpus and that of a run that learned from it both show: a verdict, where every record went, a plot."""
    near = found.get("near") or {}
    curve = {100 * float(at): 100 * chance for at, chance in (near.get("curve") or {}).items()}
    series = [Series("near copies that are found", list(curve), list(curve.values()), "dots")]
    about = (
        f"A signature of {near.get('bands')} bands of {near.get('rows')} numbers (MinHash, Broder 1997): documents that share a band are "
        f"compared, and the later one is dropped if they agree in {100 * (near.get('similarity') or 0):g} % of their runs of five words or more."
    )
    return {
        "verdict": _verdict(found),
        "flow": _flow(found),
        "curve": line_plot("Near copies that are found, per cent", series, about=about, zero=True, across="% of runs of five words in common"),
    }  # fmt: skip


def size(number: float) -> str:
    """Of a text, for people: `0.9 MB`, `10.2 kB`."""
    unit, name = (1e9, "GB") if number >= 1e9 else (1e6, "MB") if number >= 1e5 else (1e3, "kB")
    return f"{number / unit:,.1f} {name}"


def _verdict(found: Json) -> str:
    documents = found.get("documents") or {}
    kept, records = sum(documents.values()), found.get("records") or 0
    share = f" ({100 * kept / records:.1f} %)" if records else ""
    tokens, text = found.get("tokens"), f"{size(found.get('bytes') or 0)} of text"
    learned = f"{documents.get('train', 0):,} to learn from with " + (
        f"{tokens:,} tokens in {text}" if tokens is not None else text
    )
    held = [f"{documents[part]:,} for {name}" for part, name in (("validation", "validation"), ("test", "the test")) if documents.get(part)]  # fmt: skip
    return f"Of {count(records, 'record')} {count(kept, 'document')} {'stays' if kept == 1 else 'stay'}{share}: {', '.join([learned, *held])}."


def _flow(found: Json) -> list[dict[str, Any]]:
    """Every record: what there was, what went at each step, what stays. A bar spans `low` to `high`, of 1.

    look: whole (all that is left), lost, kept; a rule of a step that has several is `part`.
    """
    documents, left_out = found.get("documents") or {}, found.get("left_out") or {}
    records = found.get("records") or 0
    total = left = records + sum(left_out.values())
    rows: list[dict[str, Any]] = []

    def row(what: str, number: int, end: int, look: str) -> None:
        ends = (end - number) / max(1, total), end / max(1, total)
        rows.append({"what": what, "count": number, "low": ends[0], "high": ends[1], "look": look})

    if left_out:
        row("in the files", total, total, "whole")
        for kind, number in left_out.items():
            row(f"no record: {kind}", number, left, "lost")
            left -= number
    row("records", records, left, "whole")
    if quarantined := found.get("quarantined"):
        row("cannot be read", quarantined, left, "lost")
        left -= quarantined
    by_step: dict[str, dict[str, int]] = {each["step"]: {} for each in found.get("steps") or []}
    for name, number in (found.get("dropped") or {}).items():
        step, _, rule = name.partition(": ")
        by_step.setdefault(step, {})[rule] = number
    for step, rules in by_step.items():
        if len(rules) > 1:
            row(step, sum(rules.values()), left, "lost")
        for rule, number in rules.items():
            row(rule if len(rules) > 1 else f"{step}: {rule}", number, left, "lost part" if len(rules) > 1 else "lost")
            left -= number
    row("documents that stay", sum(documents.values()), left, "whole")
    for part, number in reversed(documents.items()):
        row(part, number, left, "kept")
        left -= number
    return rows


def _steps(found: Json, asked: Json) -> list[dict[str, Any]]:
    """The declared steps, each with what it did and its rules."""
    steps = [{**each, "rules": []} for each in found["steps"] if not each["rule"]]
    idle = {
        "chinese": "" if asked["chinese"] else "not asked for: without chinese= nothing is changed",
        "language": "" if asked["language"] else "nothing is dropped for it: without language= all are kept",
        "against": "" if asked["against"] else "not asked for: there is no against=",
        "quality": f"sets of rules: {found['quality_why']}",
    }
    for step in steps:
        name = step["step"]
        step["rules"] = [each for each in found["steps"] if each["step"] == name and each["rule"]]
        step["note"] = idle.get(name, "")
        step["changed"] = found["changed"].get(name, 0)
        step["dropped"] = sum(number for rule, number in found["dropped"].items() if rule.startswith(f"{name}: "))
    return steps
