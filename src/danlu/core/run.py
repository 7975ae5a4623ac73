"""A run: a directory, and the only thing that stages hand to each other."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.core.cache import as_json, read_text, remove, whole
from danlu.core.errors import UserError, nearest
from danlu.core.types import IMAGE_TASKS


FORMAT = 1
HOME = Path("runs")
WRITTEN = ("checkpoints", "data", "model", "samples")
"""Folders of a run in which single files and folders come into being."""
RESTORE = "restore it from a copy of the run"

_NUMBER, _TEXT, _SOME = (float, None), (str, None), (range(1, 10**15), None)
_SETTINGS: dict[str, Any] = {
    "task": str, "model": str, "bad_rows": ("error", "skip"), "optimizer": str, "learning_rate": _NUMBER, "steps": _SOME,
    "threads": (range(1, 1025), None), "precision": ("float32", "bfloat16"), "label": _TEXT,
}  # fmt: skip
_OF_TEXTS = {"text": _TEXT, "system": _TEXT, "answers": range(10**15), "answer_tokens": _SOME[0], "max_tokens": _SOME}


def _experiment(found: Any) -> dict[str, Any]:
    """What experiment.json holds: the settings of its task, and all that were asked for."""
    asked, used = (each if isinstance(each := found.get(key), dict) else {} for key in ("asked", "used"))
    task = used.get("task")
    images = isinstance(task, dict) and task.get("value") in IMAGE_TASKS
    kinds = dict.fromkeys(asked, object) | _SETTINGS | ({"image": _TEXT} if images else _OF_TEXTS)
    settings = {key: {"value": kind, "origin": str} for key, kind in kinds.items()}
    return {"recipe": str, "asked": dict, "used": settings | {"*": {"value": object, "origin": str}}}


_FIGURE = dict.fromkeys(("value", "low", "high"), _NUMBER)
_METRICS = {"*": _FIGURE}
_LEFT_OUT = [{"reason": str, "count": int, "examples": [str]}]
_COMPARED = {"metrics": _METRICS, "comparison?": {"verdict?": _TEXT}}
_COUNTS = {"*": int}
_CORPUS = {
    "records": int, "quarantined": int, "bytes": int, "tokens": int, "steps": [{"step": str}], "licence?": _TEXT,
    **dict.fromkeys(("documents", "dropped", "left_out", "languages", "personal"), _COUNTS),
    "near": (dict, None), "sources": [{"name": str, "sha256": str, "format": str, "records": int}],
}  # fmt: skip
HOLDS: dict[str, Any] = {
    "run.json": {
        **dict.fromkeys(("name", "status", "created", "danlu", "recipe", "task"), str), "labels": [str],
        "machine": {"memory_bytes?": int}, "kept_rows_sha256?": str, "seconds?": _NUMBER,
        "folder?": str, "started?": {"*": str}, "out_of_memory?": (True, False),
        "lineage": {
            "model": {"name": str, "sha256": _TEXT, "licence?": _TEXT, "hub?": _TEXT, "kind?": str},
            "data": [{"role": str, "name": str, "sha256": str, "licence?": _TEXT, "rows?": int, "format?": str}],
        },
    },
    "experiment.json": _experiment,
    "data.json": {
        "expected?": {"seconds_per_step": float}, "leaks?": int, "overfitting?": str, "notes?": [str],
        "rows?": {"read": int, "kept": int, "dropped": _LEFT_OUT}, "splits?": {"*": int}, "truncated?": {"*": int},
        "tokens?": {"train": int, "lengths?": {"median": float, "max": float, "histogram": [[float]]}},
        "labels?": {"*": {"*": int}}, "images?": {"sizes": [list], "channels?": int}, "view?": [{"pieces": [list]}], "learning_rate?": dict,
        "corpus?": _CORPUS,
    },
    "evaluation.json": {
        "metrics": _METRICS, "rows?": _SOME[0], "answered?": (range(10**15), None), "level?": float, "cut?": {"*": int},
        "dropped?": _LEFT_OUT, "before?": _COMPARED, "baselines?": [_COMPARED], "examples?": [dict],
        "per_class?": {"*": {"rows": int, "predicted": int, **dict.fromkeys(("precision", "recall", "f1"), _FIGURE)}},
        "confusion?": {"labels": [str], "matrix": [[int]]},
        "transfer?": {"rows": [{"labels": int, **dict.fromkeys(("pretrained", "random", "difference"), _FIGURE)}]},
        "vectors?": {"verdict": str},
    },
    "final.json": {"sha256": str},
}  # fmt: skip
"""What the stages read in a run's files: a type, several of which one must fit (None is null, a text or a range what it may be),
[of each element], {of each key}, or a function of the value; `key?` may be missing, `*` stands for all keys that are not named."""


@dataclass(frozen=True)
class Run:
    """A run directory.

    run.json        what it is, its status, lineage and machine        experiment.json  every setting, its value and origin
    data.json       what preflight found                                metrics.jsonl    one line a step: equal after a resume
    timings.jsonl   seconds a step (never equal)                        checkpoints/     verified, newest two and the best
    model/          the final model, Hugging Face layout                evaluation.json  figures on the test set
    data/           the held-out rows                                   report.html      the page
    """

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the run.

        Raises:
            UserError: it is missing or broken, or holds something else than `HOLDS` says; names the key.
        """
        loaded = self._object(name)
        if wrong := misplaced(loaded, HOLDS.get(name, dict)):
            raise UserError(f"{self.path / name}: {wrong}", RESTORE)
        return loaded

    def _object(self, name: str) -> dict[str, Any]:
        """A JSON file of the run, whatever it holds."""
        path = self.path / name
        try:
            loaded = json.loads(read_text(path), object_hook=_figure if name == "evaluation.json" else None)
        except FileNotFoundError:
            raise UserError(f"{path} is not there", "the run was cut off before it; `danlu resume` the run") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be read: {error}", RESTORE) from None
        if not isinstance(loaded, dict):
            raise UserError(f"{path} holds a {type(loaded).__name__}, expected an object", RESTORE)
        return loaded

    def settings(self) -> dict[str, Any]:
        """Every setting it was made with, by key."""
        return {key: entry["value"] for key, entry in self.read("experiment.json")["used"].items()}

    def write(self, name: str, content: dict[str, Any]) -> None:
        write_text(self.path / name, as_json(content, indent=1) + "\n")

    def update(self, **changes: Any) -> None:
        """Change entries of run.json."""
        self.write("run.json", {**self._object("run.json"), **changes})

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    @property
    def status(self) -> str:
        """finished, failed, interrupted, or running; a run whose process is gone is interrupted, whatever it last wrote."""
        status = str(self._object("run.json").get("status"))
        return "interrupted" if status == "running" and not self.locked() else status

    def locked(self) -> bool:
        with contextlib.suppress(OSError), (self.path / ".lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Only one process writes a run; what a killed one was writing is cleared.

        Raises:
            UserError: another process holds it; names its number.
        """
        try:
            opened = (self.path / ".lock").open("a+")
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {error.strerror}",
                "make it writable, or copy it to where you may write",
            ) from None
        with opened as file:
            for attempt in range(10):  # somebody who only looks (`locked`) holds it for a moment
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if attempt < 9:
                        time.sleep(0.05)
                        continue
                    file.seek(0)
                    raise UserError(
                        f"{self.path} is being written by process {file.read().strip() or '?'}",
                        "wait for it, stop it, or give this run another place with out=DIR",
                    ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            for place in (self.path, *(self.path / name for name in WRITTEN if not (self.path / name).is_symlink())):
                for left in place.glob(".building-*"):  # of a killed process
                    remove(left)
            yield


def _figure(found: dict[str, Any]) -> dict[str, Any]:
    """A figure that was not finite when it was written, and null stands for, is NaN."""
    return {key: math.nan if each is None and key in _FIGURE else each for key, each in found.items()}


def misplaced(found: Any, expected: Any, key: str = "", partly: bool = False) -> str | None:
    """The first value that is not as `HOLDS` describes: `labels.0 is 7, expected text`. partly: any key may be missing."""
    if callable(expected) and not isinstance(expected, type):
        expected = expected(found)
    if isinstance(expected, dict) and isinstance(found, dict):
        named = {name.removesuffix("?") for name in expected}
        for name, kind in expected.items():
            stem = name.removesuffix("?")
            for each in found.keys() - named if name == "*" else [stem]:
                if each not in found and name == stem and not partly:
                    return f"the key {key}{each} is missing"
                if each in found and (wrong := misplaced(found[each], kind, f"{key}{each}.", partly)):
                    return wrong
        return None
    if isinstance(expected, list) and isinstance(found, list):
        each_wrong = (misplaced(each, expected[0], f"{key}{place}.", partly) for place, each in enumerate(found))
        return next(filter(None, each_wrong), None)
    kinds = expected if isinstance(expected, tuple) else (expected,)
    if any(_is(found, kind) for kind in kinds):
        return None
    return f"{key[:-1]} is {json.dumps(found)[:80]}, expected {' or '.join(map(_described, kinds))}"


def _is(found: Any, kind: Any) -> bool:
    if isinstance(kind, range):
        return type(found) is int and found in kind
    if isinstance(kind, type):
        return kind in (type(found), object) or (kind is float and type(found) is int)
    return bool(found == kind)


def _described(kind: Any) -> str:
    """What is expected, in words."""
    if isinstance(kind, range):
        return f"a whole number from {kind.start} to {kind.stop - 1:,}"
    words: dict[Any, str] = {str: "text", float: "a number", int: "a whole number", None: "null"}
    place = type(kind) if isinstance(kind, (dict, list)) else kind
    return words.get(place, {dict: "an object", list: "a list"}.get(place, repr(place)))


def create(path: Path, fill: Callable[[Run], None] = lambda _: None, **facts: Any) -> Run:
    """A new run directory, whole or not at all: written beside its place by `fill`, then renamed.

    Raises:
        UserError: the place is taken, or cannot be written.
    """
    if is_run(path):
        raise UserError(
            f"out={path} has become a run meanwhile", "repeat the command to go on with it, or give another out="
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"out={path} exists and is not a danlu run", "name an empty or new directory")
    try:
        with whole(path) as building:
            building.mkdir(parents=True)
            run = Run(building)
            created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            begun = {"format": FORMAT, "name": path.name, "status": "running", "created": created}
            run.write("run.json", {**begun, **facts})
            fill(run)
    except OSError as error:
        raise UserError(
            f"out={path} cannot be written: {error.strerror or error}", "make room, or name a directory you may write"
        ) from None
    return Run(path)


def is_run(path: Path) -> bool:
    """Whether a directory is a run: other programs write a run.json too, and theirs is never written to or deleted."""
    try:
        facts = json.loads(read_text(path / "run.json"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and {"format", "name", "created"} <= facts.keys()


def find_run(name: str | Path) -> Path | None:
    """The run directory at a path, or under `runs/` by its name."""
    return next((path for path in (Path(name), HOME / name) if is_run(path)), None)


def nearby(name: str | Path) -> list[str]:
    """What could have been meant by a name that is no run: the runs under `runs/` by name, and those beside the path."""
    beside = Path(name).parent
    with contextlib.suppress(OSError):
        return [run.name for run in list_runs()] + [str(path) for path in sorted(beside.iterdir()) if is_run(path)]
    return []


def open_run(name: str | Path) -> Run:
    """The run at a path, or under `runs/` by its name.

    Raises:
        UserError: there is none, with the near names; or its format is of a newer danlu.
    """
    path = find_run(name)
    if path is not None:
        run = Run(path)
        if (found := run._object("run.json").get("format")) != FORMAT:
            raise UserError(f"{path} has run format {found}, this danlu reads {FORMAT}", "upgrade danlu")
        return run
    known = nearby(name)
    hint = nearest(str(name), known) if known else "there are no runs under ./runs yet; `danlu finetune` makes one"
    with contextlib.suppress(OSError, ValueError):  # a name no file can have
        if found := [path for path in (Path(name), HOME / name) if (path / "run.json").exists()]:
            raise UserError(
                f"{found[0] / 'run.json'} is damaged, or not of a danlu run: expected an object with format, name and created",
                RESTORE,
            )
    raise UserError(f"{name} is not a run (a directory with run.json)", hint)


def list_runs(home: Path = HOME) -> list[Run]:
    """The runs under `home`, by name; damaged ones too."""
    return [Run(path.parent) for path in sorted(home.glob("*/run.json"))]


def fresh_name(recipe: str, model: str, home: Path = HOME) -> Path:
    """runs/RECIPE-MODEL-N, the first N that is free."""
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", f"{recipe}-{Path(model).name}").strip("-").lower()
    number = 1
    while (home / f"{stem}-{number}").exists():
        number += 1
    return home / f"{stem}-{number}"


def delete(run: Run) -> None:
    """Remove a run from the disk.

    Raises:
        UserError: a process writes it, its place is a symbolic link, or the disk refuses.
    """
    if run.path.is_symlink():
        raise UserError(
            f"{run.path} is a symbolic link to {run.path.resolve()}; nothing was deleted",
            f"delete the run itself: danlu runs delete {run.path.resolve()}",
        )
    with run.lock():
        try:
            shutil.rmtree(run.path)
        except OSError as error:
            raise UserError(
                f"{run.path} could not be deleted whole ({error.filename}: {error.strerror})",
                "make it writable, then delete what is left of it",
            ) from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    try:
        with whole(path) as building:
            building.write_text(text, "utf-8")
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror})", "make room or choose another place with out=DIR"
        ) from error
