"""Which files are meant by a path, a list, a pattern, a folder or an address; and their bytes, hashed while they are read."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from danlu.core.errors import UserError, nearest
from danlu.data.formats import PACKINGS
from danlu.data.rows import Unreachable


FORMATS = {
    ".txt": "text", ".md": "Markdown", ".jsonl": "JSONL", ".ndjson": "JSONL", ".json": "JSON", ".csv": "CSV", ".tsv": "TSV", ".tab": "TSV",
    ".parquet": "Parquet", ".pq": "Parquet", ".arrow": "Arrow", ".conllu": "CoNLL-U",
    ".warc": "WARC", ".wet": "WARC", ".xml": "Wikipedia XML",
}  # fmt: skip
ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files of a Hugging Face dataset that say something about the rows and hold none."""
SPLIT = re.compile(r"(train|training|validation|valid|val|dev|test|eval)([-_.]\d.*)?")


@dataclass(frozen=True)
class Address:
    """A file that is not on this machine (`s3://…`, `https://…`), read through fsspec as it lies there. As text it shows no secrets."""

    url: str

    def __str__(self) -> str:
        return shown(self.url)

    @property
    def name(self) -> str:
        return str(self).rstrip("/").rsplit("/", 1)[-1]

    def open(self) -> IO[bytes]:
        import fsspec

        stream: IO[bytes] = fsspec.open(self.url, "rb").open()
        return stream


MARKS_OF_CHANGE = (
    "etag",
    "md5hash",
    "contentmd5",
    "digest",
    "mtime",
    "lastmodified",
    "last_modified",
    "updated",
    "created",
)
"""What file systems of fsspec call a mark that changes with the content, the surest first; lower case, without hyphens."""


def shown(name: object) -> str:
    """A path, an address or several as one line of valid Unicode; of an address neither user nor query, which may be secret."""
    text = re.sub(r"(://[^\s,?]*)\?[^\s,]*", r"\1", re.sub(r"://[^/\s,]*@", "://", str(name)))
    return text.replace("\n", "\\n").encode("utf-8", "backslashreplace").decode()


def state(file: Path | Address) -> list[Any]:
    """Bytes of a file, and what changes when it does; elsewhere that is what the server says, or the SHA-256 where it says nothing.

    Raises:
        UserError: there is none.
    """
    if isinstance(file, Path):
        with _reached(file):
            _expect_file(file)
            found = file.stat()
        return [found.st_size, found.st_mtime_ns]
    import fsspec

    with _reached(file):
        system, path = fsspec.core.url_to_fs(file.url)
        about = {name.lower().replace("-", ""): str(each) for name, each in system.info(path).items()}
        mark = next((about[name] for name in MARKS_OF_CHANGE if name in about), None)
    if mark is None:
        with Hashed(file) as raw:
            mark = raw.finish()
    return [int(about["size"]) if about.get("size", "").isdecimal() else 0, mark]


@contextmanager
def _reached(place: object) -> Iterator[None]:
    """What goes wrong in here is not the fault of what lies at this place."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if "://" not in str(place):
            if not isinstance(error, OSError):
                raise
            said, fix = f"cannot be read: {error.strerror or error}", "check the path and its permissions"
            place = error.filename or place
        elif isinstance(error, FileNotFoundError):
            said, fix = "no such file", "check the address"
        elif isinstance(error, ImportError):
            said, fix = f"fsspec cannot read this address: {error}", "install the package it names"
        elif isinstance(error, ValueError):
            said, fix = f"fsspec does not know this address: {error}", "expected such as s3://BUCKET/FILE"
        else:
            said = f"cannot be read: {type(error).__name__}: {error}"
            fix = "check the address and the network; the same command tries again"
        raise Unreachable(shown(f"{place}: {said}"), fix) from None


def sources_at(data: str | os.PathLike[str], mixed: bool = False) -> tuple[Path | None, list[Path | Address], str]:
    """(the folder, if it is one; the files that are read, in order; what is to be said about others).

    mixed: files may be of several kinds.
    """
    with _reached(data):
        if "://" in str(data):
            return None, _named_there(str(data)), ""
        place = Path(data).expanduser()
        if (place / "corpus.json").is_file() and (place / "corpus.html").is_file() and (place / "texts").is_dir():
            place = place / "texts"  # of a folder that `danlu prepare corpus` made
        if place.is_dir():
            files, note = _folder(place, mixed)
            return place, list(files), note
        return None, list(_named(place)), ""


def name_in(place: Path | None, file: Path | Address) -> str:
    """What a file is called among those read with it; place: the folder that was named, if one was."""
    return shown(file.relative_to(place).as_posix() if place and isinstance(file, Path) else file)


def _named_there(data: str) -> list[Path | Address]:
    """The files of one or several addresses, separated by commas, patterns among them; a path may stand between."""
    files: list[Path | Address] = []
    for part in filter(None, data.split(",")):
        if "://" not in part:
            files += _named(Path(part).expanduser())
        elif "*" in part:
            protocol = part.partition("://")[0]
            with _reached(part):
                import fsspec

                found = fsspec.core.url_to_fs(part)[0].glob(part)
            files += [Address(each if "://" in each else f"{protocol}://{each}") for each in sorted(found)]
        else:
            files.append(Address(part))
    if not files:
        raise UserError(f"{data}: no file matches", "check the address")
    return files


def _named(place: Path) -> list[Path]:
    """The files of `a.jsonl,b.jsonl` or `*.jsonl`; a name that is a file's is that file, whatever characters it has."""
    if place.exists():
        return [place]
    if "," in str(place):
        return [file for part in str(place).split(",") if part for file in _named(Path(part).expanduser())]
    if not set("*?[") & set(str(place)):
        return [place]
    matching = sorted(Path(name) for name in glob.glob(str(place), recursive=True) if Path(name).is_file())  # noqa: PTH207 (absolute patterns too)
    if not matching:
        raise UserError(f"{place}: no file matches this pattern", f"the pattern is read from {Path.cwd()}")
    return matching


def _folder(place: Path, mixed: bool) -> tuple[list[Path], str]:
    """The files of a folder that hold its rows, and what is to be said about the others. mixed: they may be of several kinds."""
    state = place / "state.json"
    if (place / "dataset_dict.json").is_file() and not state.is_file():
        inside = sorted(entry.name for entry in place.iterdir() if (entry / "state.json").is_file())
        raise _splits(place, {name: str(place / name) for name in inside})
    if state.is_file():
        try:
            files = [place / Path(each["filename"]).name for each in json.loads(state.read_bytes())["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{state}: not the file that Hugging Face datasets writes: {type(error).__name__}: {error}",
                "save the dataset again with save_to_disk",
            ) from None
        return files, ""
    every = sorted(
        path
        for path in place.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(place).parts)
    )
    kinds: dict[str, list[Path]] = {}
    for path in every:
        kind = FORMATS.get(suffix(path))
        if kind and path.name not in ABOUT:
            kinds.setdefault("text" if kind == "Markdown" and not mixed else kind, []).append(path)
    if len(kinds) > 1:
        kinds.pop("Markdown" if mixed else "text", None)  # a table's README
    if mixed and kinds:
        kinds = {"": sorted(path for files in kinds.values() for path in files)}
    if len(kinds) != 1:
        found = "; ".join(f"{kind}: {files[0].relative_to(place)}" for kind, files in kinds.items())
        raise UserError(
            f"{place}: found {found or 'no file'}, expected files of one kind ({', '.join(FORMATS)})",
            f"name the files, such as data='{place}/*.jsonl'",
        )
    (files,) = kinds.values()
    splits: dict[str, str] = {}
    for path in files:
        for parent in path.relative_to(place).parents:
            if SPLIT.fullmatch(parent.name):
                splits.setdefault(parent.name, str(place / parent))
        if named := SPLIT.fullmatch(path.name.split(".")[0]):
            splits.setdefault(named[1], str(path.parent / f"{named[1]}*"))
    if len(splits) > 1:
        raise _splits(place, splits)
    read = set(files)
    others = [name_in(place, path) for path in every if path not in read]
    listed = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return files, f" (not read: {listed})" if others else ""


def _splits(place: Path, splits: Mapping[str, str]) -> UserError:
    return UserError(
        f"{place}: it holds the splits {', '.join(splits)}, which are not to be mixed",
        "name one at a time: " + " ".join(f"data='{where}'" for where in splits.values()),
    )


class Hashed(io.RawIOBase):
    """A file that is hashed while it is read, so that it is read once."""

    def __init__(self, path: Path | Address) -> None:
        self.path = path
        with _reached(path):
            self.file: Any = path.open("rb", buffering=0) if isinstance(path, Path) else path.open()
        self.hash = hashlib.sha256()
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _reached(self.path):
            count = self.file.readinto(buffer) or 0
        self.count += count
        self.hash.update(memoryview(buffer)[:count])
        return count

    def close(self) -> None:
        self.file.close()
        super().close()

    def finish(self) -> str:
        """The digest of the whole file, what was not yet read included."""
        while self.read(1 << 20):
            pass
        return self.hash.hexdigest()


def _expect_file(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected a file", f"name its files, such as '{path}/*.jsonl'")
    if not path.exists():
        folder = path.parent
        if not folder.is_dir():
            raise UserError(
                f"{path}: no such file; there is no folder {folder} either", f"the path is read from {Path.cwd()}"
            )
        names = [
            each.name for each in folder.iterdir() if each.is_dir() or (each.is_file() and suffix(each) in FORMATS)
        ]
        raise UserError(
            f"{path}: no such file",
            nearest(path.name, names) if names else f"there is no data file in {folder.resolve()}",
        )
    if not path.is_file():
        raise UserError(f"{path} is a pipe or a device, expected a file", "write what it gives into a file first")


def suffix(path: Path | Address) -> str:
    """What says the kind of a file, in lower case: its extension, before that of a packing."""
    name = path.name.lower()
    for packing in PACKINGS:
        name = name.removesuffix(packing)
    return Path(name).suffix
