"""Results in words, as a terminal shows them: tables, answers, facts. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from danlu.core.errors import printable


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Columns as wide as their widest cell; the last one runs on."""
    if not rows:
        return "nothing yet"
    cells = [list(columns)] + [[cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def headed(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first line is its head."""
    head, *rest = rows
    return table([dict(zip(head, row, strict=True)) for row in rest], head)


def cell(value: Any) -> str:
    """A value in a table or behind its key."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}={inner}" for key, inner in value.items()) or "-"
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def compared(found: dict[str, Any]) -> str:
    """Two runs beside each other, as `stages.inspect.compare_runs` found them."""
    one, two = found["runs"]
    lines = [f"settings that differ ({one} | {two}):"]
    lines += [f"  {key}: {cell(pair[0])} | {cell(pair[1])}" for key, pair in found["settings"].items()] or ["  none"]
    lines.append("test:" if found["same_test"] else "test (on different rows, so not comparable):")
    for name, pair in found["metrics"].items():
        shown = [f"{each['value']:.4g} [{each['low']:.4g}, {each['high']:.4g}]" if each else "-" for each in pair]
        lines.append(f"  {name}: {shown[0]} | {shown[1]}")
    return "\n".join(lines)


def indented(content: Any, depth: int = 0) -> str:
    """Nested data as indented `key: value` lines; bytes in units a person reads."""
    pad = "  " * depth
    if isinstance(content, dict):
        lines = []
        for key, value in content.items():
            if isinstance(value, (dict, list)) and value:
                lines += [f"{pad}{key}:", indented(value, depth + 1)]
            elif key.endswith("_bytes") and isinstance(value, (int, float)):
                lines.append(f"{pad}{key.removesuffix('_bytes')}: {value / 1e9:.2f} GB")
            else:
                lines.append(f"{pad}{key}: {cell(value) if value != [] else 'nothing'}")
        return "\n".join(lines)
    return "\n".join(indented(each, depth) if isinstance(each, dict) else f"{pad}{each}" for each in content)


def one_answer(found: dict[str, Any]) -> str:
    """What `danlu predict` says of one input, of whatever kind the run is."""
    if "mse" in found:
        return f"mean squared error {found['mse']:.6f}  {found['input']}"
    if "candidates" in found:
        places = ([f"{each['token']} {each['probability']:.2f}" for each in one[:3]] for one in found["candidates"])
        return "; ".join(", ".join(place) for place in places)
    if "label" in found:
        return f"{found['label']}  {found['probabilities'][found['label']]:.3f}  {found['input'][:100]!r}"
    return printable(str(found["answer"]))
