"""A save and a rotation on a disk that loses what was not flushed, that is full, or that fails: at every call there is.

Not covered: a disk that says it has flushed what it has not; errors while a mapped file is read or a folder is listed, and of the rename
that safetensors makes past the C library.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from danlu.core.checkpoint import newest, verify


pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk of disk.c, compiled."""
    target = tmp_path_factory.mktemp("disk") / "disk.so"
    source = Path(__file__).with_name("disk.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", target, source, "-ldl", "-lpthread"], check=True)
    return target


PARTS = """
import ctypes, os, shutil, sys
from pathlib import Path
import torch
from danlu.core.checkpoint import newest, rotate, save, verify
from danlu.core.errors import UserError

torch.set_num_threads(1)
folder = Path(os.environ["FAULTS_FOLDER"])

def saved(step):
    part = {"weights": {"model/a": torch.full((50, 3), float(step)), "model/b": torch.arange(7)},
            "optimizer": {"model/a|exp_avg": torch.full((50, 3), step / 3)}, "task": {}, "random": {"torch": torch.get_rng_state()}}
    save(folder, step, part, {"step": step, "best": {"step": 1}, "position": {"row": 10 * step}})
    rotate(folder, 2)
"""


def on_it(disk: Path, folder: Path, script: str, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PARTS + script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LD_PRELOAD": str(disk), "FAULTS_FOLDER": str(folder), **more},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def content(folder: Path) -> dict[str, bytes]:
    """Every file below, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ------------------------------------------------------------------------------------------------------- power that is cut


@dataclass
class File:
    """bytes as a process sees them, and those that were flushed."""

    now: bytearray = field(default_factory=bytearray)
    flushed: bytes = b""


@dataclass
class Folder:
    """names as a process sees them, and those that were flushed."""

    now: dict[str, File | Folder] = field(default_factory=dict)
    flushed: dict[str, File | Folder] = field(default_factory=dict)


LOST: dict[str, Callable[[File], bytes]] = {
    "nothing": lambda file: bytes(file.now),
    "all that was not flushed": lambda file: file.flushed,
    "half of it": lambda file: bytes(file.now[: (len(file.flushed) + len(file.now)) // 2]),
    "its bytes, not its length": lambda file: file.flushed + bytes(max(0, len(file.now) - len(file.flushed))),
}


class Disk:
    """What the recorded calls have made so far, with what a cut of the power may leave of it. flushes: whether it does as told."""

    def __init__(self, flushes: bool = True) -> None:
        self.flushes = flushes
        self.top = Folder()
        self.inodes: dict[int, File] = {}

    def place(self, path: str) -> tuple[Folder, str]:
        *parents, name = path.split("/")
        folder = self.top
        for parent in parents:
            found = folder.now[parent]
            assert isinstance(found, Folder)
            folder = found
        return folder, name

    def do(self, call: str, path: str, other: str, inode: int, offset: int, data: bytes) -> None:
        if path == "":
            assert call == "fsync"
            self.top.flushed = dict(self.top.now)
            return
        folder, name = self.place(path)
        if call == "fsync" and name not in folder.now:  # renamed past the recorder
            old = next(each for each, file in folder.now.items() if file is self.inodes[inode])
            folder.now[name] = folder.now.pop(old)
        if call == "mkdir":
            folder.now[name] = Folder()
        elif call == "create":
            folder.now[name] = self.inodes[inode] = File()
        elif call == "remove":
            del folder.now[name]
        elif call == "rename":
            into, new = self.place(other)
            into.now[new] = folder.now.pop(name)
        elif isinstance(found := folder.now[name], Folder):
            assert call == "fsync"
            found.flushed = dict(found.now)
        elif call == "fsync":
            found.flushed = bytes(found.now) if self.flushes else b""
        elif call in ("truncate", "length"):
            found.now[:] = found.now[:offset].ljust(offset, b"\0")
        else:
            assert call == "write"
            found.now[:] = found.now.ljust(offset, b"\0")
            found.now[offset : offset + len(data)] = data

    def left(self, target: Path, lost: Callable[[File], bytes], names: tuple[bool, bool]) -> None:
        """Write what is left. names: whether those that were not flushed are there, at the top and below."""

        def put(folder: Folder, path: Path, depth: int) -> None:
            path.mkdir()
            for name, each in (folder.now if names[min(depth, 1)] else folder.flushed).items():
                if isinstance(each, Folder):
                    put(each, path / name, depth + 1)
                else:
                    (path / name).write_bytes(lost(each))

        shutil.rmtree(target, ignore_errors=True)
        put(self.top, target, 0)


def test_the_power_cut_at_any_call_leaves_the_newest_whole(disk: Path, tmp_path: Path) -> None:
    """Every prefix of the calls of two saves and their rotation, in sixteen ways of losing what was not flushed."""
    folder, record = tmp_path / "checkpoints", tmp_path / "record"
    script = "for step in 1, 2, 3, 4: saved(step); shutil.copytree(folder / f'step-{step:08d}', Path(os.environ['COPIES'], str(step)))"
    copies = tmp_path / "copies"
    copies.mkdir()
    on_it(disk, folder, script, FAULTS_RECORD=str(record), COPIES=str(copies))
    calls = []
    for line in record.read_text().splitlines():
        call, path, other, inode, offset, data = line.split("\t")
        inside = [os.path.relpath(each, folder) if each else "" for each in (path, other)]
        inside = ["" if each == "." else each for each in inside]
        if path != str(folder) or call == "fsync":
            calls.append((call, *inside, int(inode), int(offset), bytes.fromhex(data)))
    whole = {step: content(copies / str(step)) for step in (1, 2, 3, 4)}
    replayed = Disk()
    for each in calls:
        replayed.do(*each)
    replayed.left(tmp_path / "left", LOST["nothing"], (True, True))
    assert content(tmp_path / "left") == content(folder), "the record is not all that was written"

    def cut(now: Disk) -> tuple[int, list[str]]:
        """Ways tried, and the first that were wrong."""
        done, wrong, tried = 0, [], 0
        for number, each in enumerate([*calls, None]):
            for (how, lost), names in itertools.product(LOST.items(), itertools.product((True, False), repeat=2)):
                place = tmp_path / "left"
                now.left(place, lost, names)
                found, _ = newest(place)
                good = {path.name: content(path) for path in place.glob("step-*") if verify(path) is None}
                right = all(files == whole[int(name[-8:])] for name, files in good.items())
                if not right or len(good) < min(done, 2) or (found.step if found else 0) < done:
                    wrong.append(
                        f"call {number} {each and each[:3]}: lost {how}, names {names}: {sorted(good)}, {done} saved"
                    )
                tried += 1
            if each is None or wrong:
                break
            now.do(*each)
            renamed = f"step-{done + 1:08d}" in now.top.now
            done += renamed and each[:2] == ("fsync", "")
        return tried, wrong

    tried, wrong = cut(Disk())
    assert not wrong, "\n".join(wrong[:10])
    assert tried >= 1_000
    print(json.dumps({"calls": len(calls), "cuts": tried}))
    assert cut(Disk(flushes=False))[1], "a missing flush was not seen"


# --------------------------------------------------------------------------------------------- full, or broken


EVERY = """
import errno, json
control = ctypes.CDLL(None)
control.faults_calls.restype = ctypes.c_long
control.faults_arm.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_int]
saved(1); saved(2)
spare = folder.with_name("spare")
shutil.copytree(folder, spare)
failed, errors = 0, {}
for error, stays in ((errno.ENOSPC, 1), (errno.EIO, 0), (errno.EIO, 2), (errno.ENOSPC, 0)):
    for at in range(1, 1000):
        shutil.rmtree(folder)
        shutil.copytree(spare, folder)
        read, write = os.pipe()
        if not (child := os.fork()):
            control.faults_arm(at, error, stays)
            said = ""
            try:
                saved(3)
            except UserError as refused:
                said = refused.message
            except BaseException as other:
                said = "NOT CLEAR " + repr(other)
            reached = control.faults_calls() >= at
            control.faults_arm(0, 0, 0)
            os.write(write, json.dumps([reached, said]).encode())
            os._exit(0)
        os.close(write)
        assert os.waitpid(child, 0)[1] == 0
        reached, said = json.loads(os.read(read, 100_000))
        os.close(read)
        if not reached:
            assert not said
            break
        failed += 1
        where = (errno.errorcode[error], stays, at, said)
        assert not said.startswith("NOT CLEAR"), where
        assert not said or ("could not be" in said and "MB free" in said and os.strerror(error) in said.replace("\\n", " ")
                            or "step-" in said and "MB free" in said), where
        good = [path.name for path in sorted(folder.glob("step-*")) if verify(path) is None]
        assert len(good) >= 2, (where, good)
        found, _ = newest(folder)
        assert found.step == (3 if "step-00000003" in good else 2) and found.state()["step"] == found.step, where
        assert said or found.step == 3, where
        saved(4)  # with the disk in order again: all is as if nothing had been
        assert len([path for path in folder.iterdir() if verify(path) is None]) == 2 and newest(folder)[0].step == 4, where
        assert not list(folder.glob(".building-*")), where
    else:
        raise SystemExit("no end")
print(json.dumps({"failed": failed}))
"""


def test_full_or_broken_at_any_call_two_verified_ones_remain(disk: Path, tmp_path: Path) -> None:
    """A disk that is full from the n-th call on, that fails once, that is dead from then on: for every n of a save and its rotation."""
    found = json.loads(on_it(disk, tmp_path / "checkpoints", EVERY))
    print(found)
    assert found["failed"] >= 100
