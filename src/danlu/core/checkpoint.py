"""Checkpoints: a directory that is either whole and verified, or not there.

Sealed by a manifest of SHA-256 sums. Tensors lie in safetensors, the rest in JSON; nothing is ever unpickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.core.cache import read_text, remove, sha256, whole
from danlu.core.errors import UserError


if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on the disk."""

    path: Path
    step: int

    def state(self) -> dict[str, Any]:
        """The JSON part."""
        loaded: dict[str, Any] = json.loads((self.path / "state.json").read_text("utf-8"))
        return loaded

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """One of the tensor files, for example `weights`."""
        from safetensors.torch import load_file

        return load_file(self.path / f"{name}.safetensors")


def save(folder: Path, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any]) -> Checkpoint:
    """Write `folder/step-XXXXXXXX` atomically.

    Raises:
        UserError: the disk is full or cannot be written; nothing half-written stays, earlier checkpoints are untouched.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    final = folder / f"step-{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole(final, alone=True) as building:  # the same step may be there, after a resume from an earlier one
            building.mkdir()
            for name, part in tensors.items():
                held = {key: value.detach().contiguous() for key, value in part.items()}
                save_file(held, building / f"{name}.safetensors")
            (building / "state.json").write_text(json.dumps(state, ensure_ascii=False), "utf-8")
            files = {
                path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in sorted(building.iterdir())
            }
            (building / MANIFEST).write_text(json.dumps({"format": 1, "step": step, "files": files}, indent=1), "utf-8")
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as an error of its own
        raise _refused(final, "the checkpoint could not be written", error) from error
    return Checkpoint(final, step)


def _refused(path: Path, what: str, error: Exception) -> UserError:
    said, there = getattr(error, "strerror", None) or error, next(each for each in path.parents if each.is_dir())
    return UserError(
        f"{path}: {what} ({said}; {shutil.disk_usage(there).free / 1e6:,.0f} MB free)",
        "make room, then `danlu resume` the run: it goes on from the newest checkpoint that verifies",
    )


def verify(path: Path) -> str | None:
    """None when every file of the manifest is there and has its SHA-256, else what is wrong."""
    try:
        manifest = json.loads(read_text(path / MANIFEST))
        step = f"step-{manifest['step']:08d}"
        if manifest["format"] != 1 or (path.name.startswith("step-") and path.name != step):
            return f"{MANIFEST} is one of format {manifest['format']} and {step}, expected 1 and {path.name}"
        if missing := {"state.json", "weights.safetensors"} - manifest["files"].keys():
            return f"{MANIFEST} does not name {min(missing)}"
        for name, expected in manifest["files"].items():
            if "/" in name or not (path / name).is_file():
                return f"{name} is missing"
            if (path / name).stat().st_size != expected["bytes"] or sha256(path / name) != expected["sha256"]:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    return None


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and what was wrong with each newer one that was passed by."""
    complaints: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        wrong = verify(path)
        if wrong is None:
            return Checkpoint(path, int(path.name.removeprefix("step-"))), complaints
        complaints.append(f"{path}: {wrong}; passed by")
    return None, complaints


def rotate(folder: Path, keep: int = 2, needs: Callable[[Checkpoint], int | None] = lambda _: None) -> None:
    """Delete old checkpoints, but never before `keep` newer ones verify.

    needs: the step that a kept checkpoint cannot do without (its best); that one stays too.

    Raises:
        UserError: the disk refuses to delete one; all that were to stay are untouched.
    """
    for left in folder.glob(".building-*"):
        remove(left)
    kept: list[Checkpoint] = []
    old: list[Path] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        if len(kept) == keep:
            old.append(path)
        elif verify(path) is None:
            kept.append(Checkpoint(path, int(path.name.removeprefix("step-"))))
    needed = {f"step-{step:08d}" for step in map(needs, kept) if step is not None}
    for path in old:
        if path.name not in needed:
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise _refused(path, "an old checkpoint could not be deleted", error) from error
