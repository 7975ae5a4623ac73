"""The folder of a corpus: what was asked for when it was begun, and what makes it another one or another program's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from danlu.core.cache import remove, write_json
from danlu.core.errors import UserError
from danlu.data.curate import Unit, intact
from danlu.data.files import shown


CARD, PAGE, LOCK = "corpus.json", "corpus.html", ".lock"
ASKED, ROWS = "asked.json", "rows.jsonl"
"""In `work`: what was asked for, and what was handed over in Python."""
FORMAT = 1
"""Of the folder."""
LAYOUT = 2
"""Of what is in `work`: another one cannot be gone on with."""
SETTLED = ("workers", "bad_share", "engine", "engine_options")
"""Settings that may change when a corpus is gone on with: nothing that is there depends on them."""
LATER = ("validation_share", "test_share")
"""Settings that may change until it is done: what was read does not depend on them."""


def card_of(folder: Path) -> dict[str, Any] | None:
    """What corpus.json of a finished corpus holds; None: there is none, or it is another program's.

    Raises:
        UserError: a newer danlu wrote it.
    """
    try:
        found = json.loads((folder / CARD).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    known = {"format", "asked", "files", "danlu", "documents", "records", "tokens", "bytes", "dropped", "quarantined"}
    if not isinstance(found, dict) or not known <= found.keys():
        return None
    if found["format"] != FORMAT:
        raise UserError(
            f"{folder / CARD}: found format {found['format']!r}, expected {FORMAT}", f"danlu {found['danlu']} wrote it"
        )
    return found


def ours(out: Path) -> bool:
    """Whether a folder is a corpus, finished or begun, or nothing is in it but what a command that hardly began left."""
    if (out / "work" / ASKED).is_file() or card_of(out):
        return True
    return {path.name for path in (*out.iterdir(), *out.glob("work/*"))} <= {LOCK, "work", ROWS, f".building-{ROWS}"}


def begun(
    settings: Mapping[str, Any], units: Sequence[Unit], out: Path, contents: Mapping[str, str | None]
) -> dict[str, Any]:
    """What was asked for, written down at the beginning and equal to what is there from before. contents: SHA-256 of what settings name.

    Where only files have changed, or settings of LATER, what was made of all of them goes; `work/read` stays, which is told apart by them.

    Raises:
        UserError: naming the first setting that is different; a file is, of a finished corpus.
    """
    asked = {key: value for key, value in settings.items() if key not in SETTLED}
    asked |= {key: digest for key, digest in contents.items() if digest}
    asked = {key: shown(value) if isinstance(value, str) else value for key, value in asked.items()}
    files = [list(state) for unit in units for state in unit.states]
    found = {"danlu": version("danlu"), "layout": LAYOUT, "settings": json.loads(json.dumps(asked)), "files": files}
    place, card = out / "work" / ASKED, card_of(out)
    before = found
    if card or place.is_file():
        with intact(out / CARD if card else place):
            before = card["asked"] if card else json.loads(place.read_bytes())
            before = {key: before.get(key, 0) if key == "layout" else before[key] for key in found}
    for key in sorted(found["settings"]):
        one, two = (each["settings"].get(key) for each in (before, found))
        if one != two and key != "data" and (card or key not in LATER):
            raise another(
                out, f"no {key}=" if one is None else f"{key}={one}", "not given" if two is None else str(two)
            )
    if (before["danlu"], before["layout"]) != (found["danlu"], LAYOUT):
        raise another(out, f"danlu {before['danlu']}, layout {before['layout']}", f"{found['danlu']}, layout {LAYOUT}")
    if card and before["files"] != files:
        then, now = ({state[0]: state for state in each} for each in (before["files"], files))
        name = next((name for name in [*now, *then] if then.get(name) != now.get(name)), None)
        if name in then and name in now:
            raise another(out, f"{name} as it was then", "changed")
        if name not in now:
            raise another(out, f"{name or 'files in another order'}", "not among the files")
        raise another(out, f"files without {name}", "among them")
    later = [[each["settings"].get(key) for key in LATER] for each in (before, found)]
    if before["files"] != files or later[0] != later[1]:
        for path in (out / "tokenizer", *(out / "work").iterdir()):
            if path.name not in ("read", ROWS, ASKED):
                remove(path)
    if not card:
        write_json(place, found)
    return found


def another(out: Path, before: str, now: str) -> UserError:
    """A corpus is there that was asked for otherwise."""
    return UserError(
        f"out={out} was begun with {before}, now it is {now}",
        "give the command as it was, remove the folder, or name another out=",
    )
