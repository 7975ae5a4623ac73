"""Where numbers go while a run goes on: a metrics file that is equal after a resume, timings apart from it, TensorBoard beside."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


Offsets = dict[str, int]


class Tracker:
    """Appends to RUN/metrics.jsonl and RUN/timings.jsonl, and mirrors numbers to RUN/events for TensorBoard.

    `offsets` go into each checkpoint; given back after a resume they cut off what was written behind it.
    """

    def __init__(self, folder: Path, offsets: Offsets | None = None, step: int = 0) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.files = {}
        for name in ("metrics.jsonl", "timings.jsonl"):
            path = folder / name
            path.touch()
            os.truncate(path, min((offsets or {}).get(name, 0), path.stat().st_size))
            self.files[name] = path.open("ab")
        self.board = SummaryWriter(str(folder / "events"), purge_step=step + 1 if step else None)

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        self.write("metrics.jsonl", {"step": step, **values})
        for key, value in flatten(values).items():
            self.board.add_scalar(key, value, step)

    def timings(self, step: int, values: dict[str, float]) -> None:
        self.write("timings.jsonl", {"step": step, **values})
        for key, value in values.items():
            self.board.add_scalar(f"timing/{key}", value, step)

    def write(self, name: str, line: dict[str, Any]) -> None:
        self.files[name].write((json.dumps(line, ensure_ascii=False) + "\n").encode())
        self.files[name].flush()

    def offsets(self) -> Offsets:
        """How far each file is on the disk, flushed."""
        for file in self.files.values():
            os.fsync(file.fileno())
        return {name: file.tell() for name, file in self.files.items()}

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        self.board.close()


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
    """The whole lines of a JSONL file; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
