"""The one error a person sees: what was found, where, and the fix."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path


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


COMMON = {
    "lr": "learning_rate", "bs": "batch_size", "batch": "batch_size", "wd": "weight_decay", "max_steps": "steps", "max_length": "max_tokens",
    "max_seq_length": "max_tokens", "max_tokens": "max_new_tokens", "output_dir": "out", "output": "out", "dataset": "data", "lora_r": "rank",
}  # fmt: skip
"""What other tools call a setting -> what it is called here."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean 'learning_rate'?`, or the known names when none is near."""
    names = sorted(known)
    if COMMON.get(word) in names:
        return f"did you mean {COMMON[word]!r}?"
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    return "known: " + ", ".join(names)


@contextlib.contextmanager
def panics_told() -> Iterator[None]:
    """A failed assertion of a library in Rust, which goes past every `except Exception`, as a RuntimeError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(str(error)) from None


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """What goes wrong in here, while a model's folder is read, is the folder's fault: a UserError that names it.

    Its files were written by others and hold anything, at any depth; each single value is looked at by whoever uses it.
    """
    from safetensors import SafetensorError

    try:
        with panics_told():
            yield
    except (
        ImportError,
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        AssertionError,
        RuntimeError,  # and with it RecursionError
        MemoryError,
        SafetensorError,
    ) as error:
        raise UserError(
            f"{folder} cannot be read as a model: {type(error).__name__}: {str(error)[:500]}",
            "copy or fetch the model again",
        ) from error
