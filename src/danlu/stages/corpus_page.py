"""The data card of a corpus as one HTML page that needs no network: every figure, and what was dropped to look through."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def page(name: str, found: dict[str, Any], samples: dict[str, list[list[str]]]) -> str:
    """found: what corpus.json holds. samples: by step and rule [order, place, what was found, excerpt]."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    return environment.get_template("corpus.html").render(name=name, found=found, samples=samples)
