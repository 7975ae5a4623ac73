"""Small models, data and runs for artefacts to be made from, and the process in which they are given to danlu."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.stages.conftest import chatter, conversations, lines, sorter, texts


__all__ = ["chatter", "conversations", "sorter", "texts"]

QUICK = ("steps=1", "batch_size=4", "precision=float32", "threads=1")
LIMIT = 120.0
"""Seconds after which a command that has not ended is taken for one that never does; what it may take is counted in CPU time."""


@dataclass(frozen=True)
class Done:
    """What a command did: exit code, output, what the audit hook saw, CPU seconds, peak memory in bytes."""

    code: Any
    out: str
    err: str
    seen: list[str]
    seconds: float
    bytes: int


class Confined:
    """The process of `confined.py`, started when it is first needed and again after one that hung or died."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, words: list[str], folder: Path, watched: Path) -> Done:
        if self.process is None:
            script = Path(__file__).with_name("confined.py")
            quiet = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
            self.process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet)  # fmt: skip
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        (watched / "cache").mkdir(exist_ok=True)
        (watched / "tmp").mkdir(exist_ok=True)
        places = {"DANLU_CACHE": str(watched / "cache"), "TMPDIR": str(watched / "tmp")}
        asked = {"words": words, "folder": str(folder), "watched": str(watched), "environment": places}
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], LIMIT)
        answer = process.stdout.readline() if ready else ""
        if not answer:
            self.end()
            raise AssertionError(
                f"danlu {' '.join(words)}: " + ("the process died" if ready else f"no end after {LIMIT:.0f} s")
            )
        return Done(**json.loads(answer))

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@pytest.fixture(scope="session")
def confined() -> Iterator[Confined]:
    """danlu in a process of its own, watched."""
    process = Confined()
    yield process
    process.end()


@dataclass(frozen=True)
class Place:
    """Where an artefact is made. folder: of its own, the current one of the command. outside: beside it, with a secret in it.

    base: a run, made once, by its kind. chatter, sorter: small model folders. chats, labelled: data that goes with them.
    """

    folder: Path
    outside: Path
    base: Callable[[str], Path]
    chatter: Path
    sorter: Path
    chats: Path
    labelled: Path

    def copy(self, source: Path, name: str = "artefact") -> Path:
        """A folder to be made hostile."""
        return Path(shutil.copytree(source, self.folder / name, symlinks=True))

    @property
    def canary(self) -> Path:
        """What a payload makes when it is run."""
        return self.outside / "executed"


@pytest.fixture(scope="session")
def made(tmp_path_factory, confined, chatter, sorter, conversations, texts) -> Any:
    """What all artefacts are made from."""
    home = tmp_path_factory.mktemp("hostile")
    chats, labelled = lines(home / "chat.jsonl", conversations), lines(home / "texts.jsonl", texts)
    commands = {
        "chat": ["finetune", "chat", f"model={chatter}", f"data={chats}", *QUICK, "answers=0"],
        "texts": ["finetune", "text-classification", f"model={sorter}", f"data={labelled}", *QUICK, "baselines=no", "method=full"],
        "adapter": ["finetune", "text-classification", f"model={sorter}", f"data={labelled}", *QUICK, "baselines=no", "method=lora"],
    }  # fmt: skip

    def base(kind: str) -> Path:
        run = home / kind
        if not run.exists():
            done = confined([*commands[kind], f"out={run}"], home, home)
            assert done.code == 0, done.err
        return run

    return {"base": base, "chatter": chatter, "sorter": sorter, "chats": chats, "labelled": labelled}


@pytest.fixture
def place(tmp_path, made) -> Iterator[Place]:
    """An empty folder for one artefact."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.json").write_text('{"token": "s3cr3t-t0k3n"}')
    yield Place(tmp_path / "inside", tmp_path / "outside", **made)
    with contextlib.suppress(OSError):
        shutil.rmtree(tmp_path / "inside")
