"""Where downloaded and converted things are kept, and how a file or a folder comes into being whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from danlu.core.errors import UserError


FIX = "set DANLU_CACHE to a folder you may write to, with room for the weights"


def cache_folder() -> Path:
    """$DANLU_CACHE, or danlu below $XDG_CACHE_HOME, or ~/.cache/danlu. Not created here."""
    if named := os.environ.get("DANLU_CACHE"):
        return Path(named).expanduser().absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():  # the XDG specification says to ignore a relative one
        return base / "danlu"
    try:
        return Path.home() / ".cache" / "danlu"
    except RuntimeError:
        raise UserError("there is no home folder to keep the cache in", FIX) from None


def build_once(target: Path, build: Callable[[Path], None], log: Callable[[str], None] = print) -> Path:
    """`target`, built by `build(empty folder)` if it is not there: by one process, while others wait for it."""
    from filelock import FileLock, Timeout

    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.parent / f".{target.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log(f"another process is preparing {target.name}; waiting for it")
            lock.acquire()
    except OSError as error:
        raise UserError(f"the cache {cache_folder()} cannot be written: {error.strerror or error}", FIX) from None
    with lock:
        if target.is_dir():
            return target
        try:
            with whole(target, alone=True) as building:
                building.mkdir()
                build(building)
        except OSError as error:
            raise UserError(f"{target.name} could not be written to the cache {cache_folder()}: {error}", FIX) from None
    return target


@contextlib.contextmanager
def whole(target: Path, alone: bool = False) -> Iterator[Path]:
    """A path where nothing is, to write a file or a folder to, which then becomes `target`: whole or not at all.

    It lies beside `target`, is flushed to the disk and renamed; after an error nothing of it stays.

    alone: this process holds the lock of the place: what a killed one left is cleared, a folder that is there is replaced.
        Otherwise only a file is replaced, or an empty folder; another folder is an OSError.
    """
    building = target.with_name(f".building-{target.name}" + (f"-{threading.get_native_id()}" * (not alone)))
    replaced = building.with_name(f"{building.name}-replaced")
    remove(building)
    remove(replaced)
    try:
        yield building
        for path in [*sorted(building.rglob("*")), building]:
            sync(path)
        if alone and target.is_dir():  # never half deleted
            target.rename(replaced)
        building.replace(target)
        sync(target.parent)
    finally:
        remove(building)
        remove(replaced)


def remove(path: Path) -> None:
    """A file, or a folder with all it holds, as far as it is there and the disk allows."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


def sync(path: Path) -> None:
    """Push a file's bytes, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def as_json(value: Any, **layout: Any) -> str:
    """JSON, which has no number for NaN and infinity: null stands for them. layout: of `json.dumps`."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, **layout)
    except ValueError:
        known = json.loads(json.dumps(value, **layout), parse_constant=lambda _: None)
        return json.dumps(known, ensure_ascii=False, **layout)


def write_json(path: Path, value: Any) -> None:
    """A small JSON file, whole or not at all."""
    with whole(path) as building:
        building.write_text(as_json(value, indent=2) + "\n", "utf-8")


def read_text(path: Path, most: int = 20_000_000) -> str:
    """A text that somebody else wrote. OSError: more bytes than `most`, or no regular file: a pipe or a device may never end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path.name} is a pipe, a device or a folder, expected a file")
    if found.st_size > most:
        raise OSError(f"{path.name} has {found.st_size:,} bytes, expected at most {most:,}")
    return path.read_text("utf-8")


def sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """`sha256(path)`, remembered in the cache for as long as path, file, size and time of change stay the same."""
    store, state = cache_folder() / "hashes.json", path.stat()
    key = f"{path.resolve()}:{state.st_ino}:{state.st_size}:{state.st_mtime_ns}"
    known = _read(store)
    if key not in known:
        digest = sha256(path)
        still_there = {old: its for old, its in _read(store).items() if Path(old.rsplit(":", 3)[0]).exists()}
        known = {**still_there, key: digest}
        with contextlib.suppress(OSError):  # the memory is only a saving of time: without it the file is hashed again
            store.parent.mkdir(parents=True, exist_ok=True)
            write_json(store, known)
    return known[key]


def _read(store: Path) -> dict[str, str]:
    try:
        known = json.loads(store.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def entries(folder: Path) -> Iterator[tuple[Path, int]]:
    """(file, bytes) of everything below `folder`."""
    for path in folder.rglob("*") if folder.is_dir() else ():
        with contextlib.suppress(OSError):  # a file that another process has just removed
            if path.is_file():
                yield path, path.stat().st_size
