"""Where numbers go while a run goes on: a metrics file that is equal after a resume, timings apart from it, TensorBoard beside."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from pathlib import Path
from typing import Any

from danlu.core.cache import as_json
from danlu.core.errors import UserError


Offsets = dict[str, int]


class Tracker:
    """Appends to RUN/metrics.jsonl and RUN/timings.jsonl, and mirrors numbers to RUN/events for TensorBoard.

    `offsets` go into each checkpoint; given back after a resume they cut off what was written behind it.
    """

    def __init__(self, folder: Path, offsets: Offsets | None = None, step: int = 0) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.folder, self.files, self.sizes = folder, {}, {}
        for name in ("metrics.jsonl", "timings.jsonl"):
            path = folder / name
            path.touch()
            os.truncate(path, min((offsets or {}).get(name, 0), path.stat().st_size))
            self.files[name] = path.open("ab")
            self.sizes[name] = path.stat().st_size
        (folder / "events").mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        self.files["events"] = (folder / "events" / name).open("wb")
        self.board = RecordWriter(self.files["events"])
        self.event(file_version="brain.Event:2")
        if step:  # what an earlier process showed behind it does not count
            self.event(step=step + 1, session_log={"status": "START"})

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        self.write("metrics.jsonl", step, values)
        self.plot(step, flatten(values))

    def timings(self, step: int, values: dict[str, float]) -> None:
        self.write("timings.jsonl", step, values)
        self.plot(step, {f"timing/{key}": value for key, value in values.items()})

    def write(self, name: str, step: int, values: dict[str, Any]) -> None:
        self.unchanged(name)
        self.sizes[name] += self.files[name].write((as_json({"step": step, **values}) + "\n").encode())
        self.files[name].flush()

    def plot(self, step: int, values: dict[str, float]) -> None:
        self.event(step=step, summary={"value": [{"tag": key, "simple_value": value} for key, value in values.items()]})

    def event(self, **content: Any) -> None:
        """In TensorBoard's format. Its own writer does it in a thread, which opens the file each time and fails with a traceback."""
        from tensorboard.compat.proto.event_pb2 import Event

        self.board.write(Event(wall_time=time.time(), **content).SerializeToString())
        self.board.flush()

    def gone(self, what: str) -> UserError:
        return UserError(
            f"the run's folder was changed while it trains: {what}",
            f"put it back at {self.folder}, or resume it where it is now: what its checkpoints hold is not lost",
        )

    def offsets(self) -> Offsets:
        """How far each file is on the disk, flushed.

        Raises:
            UserError: another process has moved, deleted, cut or written one; so for each line that is written.
        """
        for name in self.sizes:
            os.fsync(self.files[name].fileno())
            self.unchanged(name)
        return dict(self.sizes)

    def unchanged(self, name: str) -> None:
        path = self.folder / name
        try:
            found = path.stat()
        except OSError:
            raise self.gone(f"{path} is not there any more") from None
        if not os.path.samestat(found, os.fstat(self.files[name].fileno())):
            raise self.gone(f"{path} is not the file that was begun")
        if found.st_size != self.sizes[name]:
            raise self.gone(f"{path} has {found.st_size:,} bytes, {self.sizes[name]:,} were written")

    def close(self) -> None:
        for file in self.files.values():
            file.close()


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested numbers under paths: {"validation": {"loss": 1}} -> {"validation/loss": 1.0}."""
    result: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= flatten(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            result[prefix + key] = float(value)
    return result


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file, NaN for null; a last line cut off by a kill is left out."""

    def numbers(found: dict[str, Any]) -> dict[str, Any]:
        return {key: math.nan if value is None else value for key, value in found.items()}

    if not path.exists():
        return []
    return [json.loads(line, object_hook=numbers) for line in path.read_bytes().split(b"\n")[:-1]]
