"""What `danlu prepare` learns from a person's text, whatever it is: where it came from, and the folder with it and its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from danlu.core.cache import sha256, whole, write_json
from danlu.core.errors import UserError
from danlu.core.run import write_text
from danlu.data.options import DataOptions
from danlu.data.source import Source, read
from danlu.tasks.material import Item, RunningText


FIGURES = "figures.json"


def documents(data: Any, out: Path, text: str | None, bad_rows: str) -> tuple[Source, list[Item], dict[str, Any]]:
    """Rows with a text, and what figures.json says of where they came from. data: what `data.source.read` takes.

    Raises:
        UserError: bad data, or `out` is there already.
    """
    if out.exists():
        raise UserError(f"out={out} exists", "name a new folder, or remove this one")
    source = read(data, bad_rows=bad_rows)
    items, account = RunningText(DataOptions(text=text, bad_rows=bad_rows)).items(source)
    for rejected in source.rejected:
        account.add(rejected.reason, rejected.place)
    origin = {"name": source.name, "sha256": source.sha256, "format": source.format, "rows": source.total}
    return source, items, {"danlu": version("danlu"), "data": origin, "left_out": account.json()}


def write(
    out: Path, file: str, save: Callable[[Path], None], page: str, found: dict[str, Any], lines: Sequence[str]
) -> None:
    """The folder, whole or not at all: what `save` makes, of which `file` is the first thing, figures.json, and `lines` in `page`."""
    try:
        with whole(out) as building:
            building.mkdir(parents=True)
            save(building)
            found["sha256"] = sha256(building / file)
            write_json(building / FIGURES, found)
            write_text(building / page, "\n".join([f"# {out.name}", "", *lines, ""]))
    except OSError as error:
        raise UserError(
            f"out={out} cannot be written: {error.strerror or error}", "make room, or name a folder you may write"
        ) from None


def page(found: dict[str, Any], what: str, shown: str, table: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a page. what: was learned, and from how much of {name}. shown: what the table shows; its first line is its head."""
    data = found["data"]
    given = ", ".join(f"{key}={value}" for key, value in found["settings"].items() if value not in (None, False))
    left_out = "; ".join(f"{each['reason']} ({each['count']})" for each in found["left_out"]) or "nothing"
    head, *rows = [f"| {' | '.join(row)} |" for row in table]
    said = [what.format(name=data["name"]), f"SHA-256 of {data['name']}: {data['sha256']}.", f"Settings: {given}."]
    said += [*found.get("notes", ()), f"Left out: {left_out}.", "", shown, ""]
    return [*said, head, "|---" * len(table[0]) + "|", *rows]
