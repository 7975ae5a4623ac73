"""The one error a person sees: what was found, where, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The command line prints `message`, then `fix`, and exits with code 2 without a traceback.

    `message` names the file, line or key and says what was found and what was expected; `fix` is what to do about it.
    """

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message if not fix else f"{message}\n  fix: {fix}")
        self.message = message
        self.fix = fix


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean 'learning_rate'?`, or the known names when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    return "known: " + ", ".join(names)
