"""Writes the tables of settings in docs/usage.md from the code that reads them: `make docs`."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from itertools import groupby
from pathlib import Path
from typing import Any, get_args, get_origin

from danlu.core.config import leaves
from danlu.experiment import Experiment
from danlu.stages.curate import Curation


PAGE = Path(__file__).parents[1] / "docs" / "usage.md"
BEGIN, END = "<!-- settings: written by `make docs` -->", "<!-- end of settings -->"
WORDS = {int: "whole number", float: "number", bool: "`true` / `false`", str: "text"}


def tables() -> str:
    """One table for each section of an experiment and of a corpus, in the order of the code."""
    parts = []
    for settings, reader in ((Experiment, "all"), (Curation, "`danlu prepare corpus`")):
        for section, rows in groupby(leaves(settings), key=lambda leaf: leaf[0]):
            lines = [
                f"### {section}",
                "",
                "| key | value | default | what it does | read by |",
                "|---|---|---|---|---|",
            ]
            lines += [row(field, kind, reader) for _, _, field, kind in rows]
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def row(field: dataclasses.Field[Any], kind: Any, reader: str) -> str:
    readers = ", ".join(field.metadata["tasks"]) or reader
    cells = (f"`{field.name}`", expected(field, kind), default(field.default), field.metadata["about"], readers)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def expected(field: dataclasses.Field[Any], kind: Any) -> str:
    """What may stand behind `key=`."""
    if get_origin(kind) in (types.UnionType, typing.Union):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if choices := field.metadata["choices"]:
        return ", ".join(f"`{choice}`" for choice in choices)
    if get_origin(kind) is tuple:
        return f"{'whole numbers' if get_args(kind)[0] is int else 'names'}, separated by commas"
    if get_origin(kind) is dict:
        return f"`name={'number' if get_args(kind)[1] is float else 'value'}`, separated by commas"
    low, high, below = (field.metadata[name] for name in ("low", "high", "below"))
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return WORDS[kind] + (f" from {low:g}" if low is not None else "") + (f", below {below:g}" if below else "")


def default(value: Any) -> str:
    """The default as it is written on the command line; an open setting has a dash."""
    if value is None or value == ():
        return "–"
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def renewed(page: str) -> str:
    """The page with its tables as the code is now."""
    before, rest = page.split(BEGIN, 1)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    old = PAGE.read_text("utf-8")
    PAGE.write_text(renewed(old), "utf-8")
    print(f"{PAGE.name}: {len(re.findall('^[|] `', tables(), re.MULTILINE))} settings")
