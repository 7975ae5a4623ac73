"""Writes docs/hostile-artefacts.md from the tests in tests/hostile: `make docs`."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "hostile-artefacts.md"
HEAD = """# Hostile artefacts

Files made to harm whoever opens them, each by a mechanism of its own, and what danlu does with each: `refused` is one clear error and exit code 2, `read` means that what it is for is done and nothing
else. For every one of them `make test ARGS=tests/hostile` holds that nothing of it is run, nothing is written outside of its folder, nobody is talked to, nothing private is read, and the command takes less
than 5 seconds of work and a gigabyte of memory. This page is written by `make docs` from the tests; the sources are where a mechanism was seen, in whatever program.

| artefact | danlu | seen |
|---|---|---|
"""


def page() -> str:
    """The page, one row for each artefact in the order of the tests."""
    sys.path.insert(0, str(ROOT))
    artefacts = importlib.import_module("tests.hostile.test_artefacts").ARTEFACTS
    rows = []
    for artefact in artefacts.values():
        what, _, seen = " ".join((artefact.build.__doc__ or "").split()).partition(" Seen: ")
        seen = re.sub(r"(?<![(<\w])https?://\S+[^\s;,.)]", r"<\g<0>>", seen)
        verdict = "refused" if artefact.code == 2 else "read"
        rows.append(f"| {what} | {verdict} | {seen} |".replace("<script", "&lt;script"))
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(f"{PAGE.name}: {page().count(chr(10)) - HEAD.count(chr(10))} artefacts")
