"""Checkpoints: a directory that is either whole and verified, or not there.

Sealed by a manifest of SHA-256 sums. Tensors lie in safetensors, the rest in JSON; nothing is ever unpickled.

Several processes (torch.distributed, one folder for all) write one checkpoint: what is the same in all is written by the first, what each has
of its own into NAME-RANK-of-WORLD.safetensors by each. Their sums go to the first, which seals. As many processes read it again.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.core.cache import as_json, read_text, remove, sha256, sync, whole
from danlu.core.errors import UserError, reading
from danlu.core.processes import gathered, process


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
        """The JSON part.

        Raises:
            UserError: another number of processes wrote it; so for `tensors`.
        """
        self._readable()
        with reading(self.path):
            loaded: dict[str, Any] = json.loads((self.path / "state.json").read_text("utf-8"))
        return loaded

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """One of the tensor files, for example `weights`; this process's own where each has one."""
        from safetensors.torch import load_file

        self._readable()
        own = self.path / _file(name, True)
        with reading(self.path):
            return load_file(own if own.is_file() else self.path / _file(name, False))

    def _readable(self) -> None:
        wrote = json.loads((self.path / MANIFEST).read_text("utf-8")).get("processes", 1)
        if wrote != (reads := process()[1]):
            raise UserError(
                f"{self.path} was written by {wrote} processes and cannot be read by {reads}", f"start {wrote}, as then"
            )


def _file(name: str, own: bool) -> str:
    rank, processes = process()
    return f"{name}-{rank}-of-{processes}.safetensors" if own and processes > 1 else f"{name}.safetensors"


def _agreed(act: Callable[[], Any]) -> list[Any]:
    """What `act` gave in each process, as JSON could hold it; where it fails in one, it fails in all."""
    value, failed = None, None
    try:
        value = act()
    except Exception as error:  # noqa: BLE001 (raised below, when all know of it)
        failed = error
    everyone = gathered((value, None if failed is None else str(failed)))
    if failed:
        raise failed
    for rank, (_, said) in enumerate(everyone):
        if said is not None:
            raise OSError(f"process {rank}: {said}")
    return [each for each, _ in everyone]


def save(
    folder: Path, step: int, tensors: Mapping[str, Tensors], state: Mapping[str, Any], own: Collection[str] = ()
) -> Checkpoint:
    """Write `folder/step-XXXXXXXX` atomically. Every process takes part, at the same step.

    own: the files of `tensors` that differ between processes; the others and `state` are those of the first.

    Raises:
        UserError: the disk is full or cannot be written, for any of the processes; nothing half-written stays, earlier checkpoints are
            untouched.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    final, (rank, processes) = place(folder, step), process()
    with contextlib.ExitStack() as stack:

        def begin() -> str | None:
            if rank:
                return None
            folder.mkdir(parents=True, exist_ok=True)
            # alone: the step may be there, after a resume from an earlier one
            made = stack.enter_context(whole(final, alone=True))
            made.mkdir()
            return str(made)

        def write() -> dict[str, Any]:
            written = []
            for name, part in tensors.items():
                if rank == 0 or name in own:
                    written.append(building / _file(name, name in own))
                    save_file({key: value.detach().contiguous() for key, value in part.items()}, written[-1])
            if rank == 0:
                written.append(building / "state.json")
                written[-1].write_text(as_json(state), "utf-8")
            for path in written if rank else ():  # the first flushes all it sees
                sync(path)
            return {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in written}

        def seal() -> None:
            if rank == 0:
                manifest = {"format": 1, "step": step, **({"processes": processes} if processes > 1 else {})}
                files = dict(sorted(entry for part in parts for entry in part.items()))
                (building / MANIFEST).write_text(json.dumps({**manifest, "files": files}, indent=1), "utf-8")
                stack.close()

        try:
            building = Path(_agreed(begin)[0])
            parts = _agreed(write)
            _agreed(seal)
        except (OSError, SafetensorError) as error:
            raise _refused(final, "the checkpoint could not be written", error) from error
    return Checkpoint(final, step)


def finite(tensor: torch.Tensor) -> bool:
    """Whether all its numbers are. A finite sum has only finite terms, and one pass over memory finds it."""
    import torch

    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return bool(total.isfinite() or tensor.isfinite().all())


def _refused(path: Path, what: str, error: Exception) -> UserError:
    said, there = getattr(error, "strerror", None) or error, next(each for each in path.parents if each.is_dir())
    way = "make room"
    if isinstance(error, (NotADirectoryError, FileExistsError)):
        way = f"move away the file or link at {path if path.is_symlink() or path.exists() else path.parent}"
    return UserError(
        f"{path}: {what} ({said}; {shutil.disk_usage(there).free / 1e6:,.0f} MB free)",
        f"{way}, then `danlu resume` the run: it goes on from the newest checkpoint that verifies",
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


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and what was wrong with each newer one that was passed by."""
    complaints: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        wrong = verify(path)
        if wrong is None:
            return Checkpoint(path, int(path.name.removeprefix("step-"))), complaints
        complaints.append(f"{path}: {wrong}; passed by")
    return None, complaints


def rotate(folder: Path, keep: int = 2, needs: Callable[[Checkpoint], Collection[int]] = lambda _: ()) -> None:
    """Delete old checkpoints, but never before `keep` newer ones verify. Of several processes, the first does. What somebody else put
    there stays.

    needs: the steps that a kept checkpoint cannot do without (its best, the one to go back to); those stay too.

    Raises:
        UserError: the disk refuses to delete one; all that were to stay are untouched.
    """
    if process()[0]:
        return
    for left in folder.glob(".building-*"):
        remove(left)
    kept: list[Checkpoint] = []
    old: list[Path] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        if path.is_symlink() or not path.is_dir() or not path.name.removeprefix("step-").isdecimal():
            continue
        if len(kept) == keep:
            old.append(path)
        elif verify(path) is None:
            kept.append(Checkpoint(path, int(path.name.removeprefix("step-"))))
    needed = {place(folder, step).name for each in kept for step in needs(each)}
    for path in old:
        if path.name not in needed:
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise _refused(path, "an old checkpoint could not be deleted", error) from error
