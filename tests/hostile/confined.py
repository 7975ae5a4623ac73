"""A process that does danlu's commands one after another and tells what each did beside its answer: a JSON line each way.

Started by `conftest.confined`. Everything is imported before the audit hook looks on, so that what it sees is the artefact's doing.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any


GIGABYTE = 1 << 30
RUNS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "subprocess.Popen",
    "pty.spawn",
    "shutil.unpack_archive",
)
TALKS = (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "urllib.Request",
    "ftplib.connect",
    "smtplib.connect",
)
UNPICKLES = ("pickle.find_class", "marshal.load")
CHANGES = {"os.remove": 1, "os.rename": 2, "os.rmdir": 1, "os.mkdir": 1, "os.symlink": 2, "os.link": 2, "os.truncate": 1, "os.chmod": 1, "shutil.rmtree": 1}  # fmt: skip
"""Event -> how many of its first arguments are paths that change."""


class Watch:
    """The audit hook: what happened that no artefact may bring about, while `inside` is a folder."""

    def __init__(self) -> None:
        self.inside: str | None = None
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.inside is None:
            return
        if event.startswith((*RUNS, *TALKS)) or event in UNPICKLES:
            self.seen.append(f"{event} {arguments!r}"[:200])
        elif event in ("exec", "compile"):
            named = getattr(arguments[0], "co_filename", "") if event == "exec" else arguments[1]
            if isinstance(named, (str, bytes)) and os.fsdecode(named).startswith(self.inside):
                self.seen.append(f"{event} {os.fsdecode(named)}")
        elif event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writes and not isinstance(path, int):
                self._outside(event, path)
            elif isinstance(path, (str, bytes)) and b"secret" in os.fsencode(path):
                self.seen.append(f"open {os.fsdecode(path)} {mode}")
        elif event in CHANGES:
            for path in arguments[: CHANGES[event]]:
                if isinstance(path, (str, bytes, os.PathLike)):
                    self._outside(event, path)

    def _outside(self, event: str, path: Any) -> None:
        place = os.path.realpath(os.fsdecode(path))
        if not place.startswith((self.inside or "", "/dev/", "/proc/")):
            self.seen.append(f"{event} {place}")


def peak() -> int:
    """Bytes of memory that were in use at once since `forget`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    # Everything that a command may need, so that neither its time nor what the hook sees is that of an import.
    import pyarrow.parquet  # noqa: F401
    import torch
    import torch._dynamo  # some networks of transformers do, and it makes a folder for itself
    import torch.utils.tensorboard
    import transformers  # noqa: F401
    from PIL import Image

    import danlu.recipes.text
    import danlu.serving.engine
    import danlu.stages.train
    from danlu.cli import main as danlu

    Image.init()
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    watch = Watch()
    sys.addaudithook(watch)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + 4 * GIGABYTE,) * 2)
    for line in sys.stdin:
        asked = json.loads(line)
        os.chdir(asked["folder"])
        os.environ |= asked["environment"]
        tempfile.tempdir = None
        out, err = io.StringIO(), io.StringIO()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what an earlier command freed is not this one's
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resource.getrusage(resource.RUSAGE_SELF)
        watch.seen, watch.inside = [], asked["watched"]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code: Any = danlu(asked["words"])
            except BaseException as error:  # noqa: BLE001 (to be told, whatever it is)
                code = f"{type(error).__name__}: {error}"
        watch.inside = None
        after = resource.getrusage(resource.RUSAGE_SELF)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found = {"code": code, "out": out.getvalue(), "err": err.getvalue(), "seen": watch.seen, "seconds": spent, "bytes": peak()}  # fmt: skip
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
