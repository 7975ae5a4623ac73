"""Where downloaded and converted things are kept, and how a directory comes into being whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
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
    """`target`, built by `build(empty folder)` if it is not there: by one process, while others wait for it.

    The folder is filled beside its place, flushed to the disk, and renamed: it is whole or absent whatever happens in between.
    """
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
        for left in target.parent.glob(f".{target.name}.*.partial"):  # of a process that was killed: we hold the lock
            shutil.rmtree(left, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        try:
            build(partial)
            partial.chmod(0o755)
            flush(partial)
            partial.rename(target)
            sync(target.parent)
        except OSError as error:
            raise UserError(f"{target.name} could not be written to the cache {cache_folder()}: {error}", FIX) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def flush(folder: Path) -> None:
    """Every file of `folder`, then the folder itself, to the disk (fsync)."""
    for path in [*sorted(folder.rglob("*")), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Push a file's bytes, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """A small JSON file, atomically."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
    ) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    written = Path(file.name)
    written.chmod(0o644)
    written.replace(path)


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
