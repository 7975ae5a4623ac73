"""One lazy catalogue: a name stands for "module:object", imported only when somebody asks for it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from danlu.core.errors import UserError, nearest


class Catalog:
    """Names of one kind of thing, ours and other people's.

        MODELS = Catalog("model", {"minilm": "danlu.models.catalogue:MINILM"}, group="danlu.models")
        MODELS.get("minilm")

    kind: the word for one of them in a message. ours: name -> "module:object".
    group: entry-point group in which other packages register theirs; a name of ours is never replaced by one of them.
    """

    def __init__(self, kind: str, ours: Mapping[str, str], group: str | None = None) -> None:
        self.kind, self.group = kind, group
        self._ours = dict(ours)

    @cached_property
    def _points(self) -> dict[str, EntryPoint]:
        points = {point.name: point for point in (entry_points(group=self.group) if self.group else ())}
        own = {name: EntryPoint(name, place, self.group or "danlu") for name, place in self._ours.items()}
        return {**points, **own}

    def names(self) -> list[str]:
        """All names, ours first, each part in alphabetical order. Imports nothing."""
        return sorted(self._ours) + sorted(set(self._points) - set(self._ours))

    def __contains__(self, name: object) -> bool:
        return name in self._points

    def get(self, name: str) -> Any:
        """The object. UserError for a name nobody registered, or one whose package does not import."""
        if name not in self._points:
            raise UserError(f"unknown {self.kind} {name!r}", nearest(name, self.names()))
        point = self._points[name]
        try:
            found: Any = importlib.import_module(point.module)
            for part in (point.attr or "").split("."):
                found = getattr(found, part) if part else found
        except (ImportError, AttributeError) as error:
            package = point.dist.name if point.dist else "danlu"
            raise UserError(
                f"the {self.kind} {name!r} is registered as {point.value} by {package}, which cannot be loaded: {error}",
                f"reinstall {package}, or remove it",
            ) from error
        return found
