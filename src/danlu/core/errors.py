"""The one error a person sees: what was found, where, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def printable(text: str) -> str:
    """Text from data as a terminal may be given it: control characters, which could rewrite the screen, are made visible."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


class UserError(Exception):
    """Bad input. The command line prints `message`, then `fix`, and exits with code 2 without a traceback.

    `message` names the file, line or key and says what was found and what was expected; `fix` is what to do about it.
    """

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(printable(message if not fix else f"{message}\n  fix: {fix}"))
        self.message = message
        self.fix = fix


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """Training was asked to stop between two updates; its checkpoint is on the disk. Exit code 130."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean 'learning_rate'?`, or the known names when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    return "known: " + ", ".join(names)
