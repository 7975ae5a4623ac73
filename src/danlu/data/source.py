"""Records from a file or from Python, each with the place it came from, and every trouble named by that place."""

from __future__ import annotations

import bz2
import codecs
import glob
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from danlu.core.errors import UserError, nearest
from danlu.data import archives, formats
from danlu.data.rows import SKIP, Collected, Rejected, Row, RowError, Source, Unreachable, cell, column, kind_of


__all__ = ["SKIP", "Rejected", "Row", "Source", "cell", "column", "read"]

FORMATS = {
    ".txt": "text", ".md": "Markdown", ".jsonl": "JSONL", ".ndjson": "JSONL", ".json": "JSON", ".csv": "CSV", ".tsv": "TSV", ".tab": "TSV",
    ".parquet": "Parquet", ".pq": "Parquet", ".arrow": "Arrow", ".conllu": "CoNLL-U",
    ".warc": "WARC", ".wet": "WARC", ".xml": "Wikipedia XML",
}  # fmt: skip
MARKS = {
    "Parquet": "a Parquet file (PAR1)",
    "Arrow": "an Arrow stream or file",
    "WARC": "a web archive (WARC/1.0 or 1.1)",
}
FOREIGN = {
    b"PK\x03\x04": ("a zip archive or an Excel workbook", "unpack it, or save the sheet as CSV in UTF-8"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "save the sheet as CSV in UTF-8"),
    b"SQLite format 3": ("an SQLite database", "export the table as CSV"),
    b"%PDF-": ("a PDF document", "extract its text to JSONL first"),
}
ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files of a Hugging Face dataset that say something about the rows and hold none."""
SPLIT = re.compile(r"(train|training|validation|valid|val|dev|test|eval)([-_.]\d.*)?")


def read(data: Any, *, bad_rows: str = "error", max_rows: int | None = None) -> Source:
    """Records from files or from Python.

    A path: text, JSONL, JSON array, CSV, TSV, Parquet, Arrow, CoNLL-U; each also packed as `.gz`, `.bz2`, `.xz` or `.zst`. Text (`.txt`) has one
    column, `text`: a document is a block between blank lines, or a line if there is no blank one between two others. `.md` is one document.

    Web archives (`.warc`, `.wet`) give text, url and date; XML dumps of Wikipedia text and title. What in them is no document is counted,
    and `format` says how much that was.

    Several files of one kind: `a.jsonl,b.jsonl`, a pattern (`shards/*.jsonl`) or a folder with all below it, in the order of their paths.
    A folder of `.txt` and `.md` gives one document a file, with its path in the column `file`. A folder that Hugging Face datasets saved
    (`save_to_disk`) gives its shards in their order. Addresses that fsspec knows (`s3://…`, `https://…`) are read where they lie.

    Python data: a pandas or polars DataFrame, an Arrow table, an iterable of dicts, or a dict of equally long columns.
    bad_rows: `error` raises at the first row that cannot be read, `skip` leaves it out and lists it in `rejected`.
    max_rows: keep only the first so many readable rows; `total` still counts all of them.

    Raises UserError naming file and line, what was found, what was expected, and the fix.
    """
    if bad_rows not in ("error", "skip"):
        raise UserError(f"bad_rows: found {bad_rows!r}, expected error or skip", nearest(bad_rows, ("error", "skip")))
    found = Collected("Python", bad_rows, max_rows)
    return found.source(*read_into(data, found))


def read_into(data: Any, found: Collected) -> tuple[str, str]:
    """What `read` reads, record by record into `found` as it comes, so that nothing but `found` decides what is held in memory.

    Returns the SHA-256 and what the data was taken for.
    """
    return _read_files(data, found) if isinstance(data, (str, os.PathLike)) else _read_python(data, found)


# ---------------------------------------------------------------------------------------------------------------- files


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

    def state(self) -> list[Any]:
        """Bytes, and what changes with the content: what the server says of it, or the content's SHA-256 where it says nothing."""
        import fsspec

        with _reached(self):
            system, path = fsspec.core.url_to_fs(self.url)
            about = {name.lower().replace("-", ""): str(each) for name, each in system.info(path).items()}
            mark = next((about[name] for name in MARKS_OF_CHANGE if name in about), None)
        if mark is None:
            with _Hashed(self) as raw:
                mark = raw.finish()
        return [int(about["size"]) if about.get("size", "").isdecimal() else 0, mark]


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
    """Bytes of a file, and what changes when it does. UserError: there is none."""
    if isinstance(file, Address):
        return file.state()
    with _reached(file):
        _expect_file(file)
        found = file.stat()
    return [found.st_size, found.st_mtime_ns]


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
            said, fix = (
                f"cannot be read: {type(error).__name__}: {error}",
                "check the address and the network; the same command tries again",
            )
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


def _read_files(data: str | os.PathLike[str], found: Collected) -> tuple[str, str]:
    place, files, note = sources_at(data, found.mixed)
    found.name = shown(place.name if place else files[0].name if len(files) == 1 else data)
    found.several = bool(place) or len(files) > 1
    digest, said = read_these(place, files, found)
    return digest, f"{said}, {len(files)} file{'s' * (len(files) > 1)}{note}" if found.several else said


def read_these(place: Path | None, files: Sequence[Path | Address], found: Collected) -> tuple[str, str]:
    """Files that `sources_at` named, into `found`: their SHA-256, and what they were taken for."""
    digests, kinds = hashlib.sha256(), list[str]()
    for file in files:
        found.file = name_in(place, file) if found.several else shown(file.name)
        before = found.total
        try:
            digest, kind = _read_file(file, found, whole=bool(place))
        except Unreachable:
            raise
        except UserError as error:
            found.broken(error)
            with _Hashed(file) as raw:
                digest, kind = raw.finish(), "broken"
        if kinds and not found.mixed and kind.split(",")[0] != kinds[0].split(",")[0]:
            raise UserError(
                f"{file}: found {kind}, but {files[0]} is {kinds[0]}; files that are read together are of one kind",
                "name those of one kind, such as data='FOLDER/*.jsonl'",
            )
        kinds.append(kind)
        digests.update(f"{digest}  {found.file}\n".encode())
        found.files.append(
            {"name": found.file, "sha256": digest, "format": kind, "records": found.total - before, "bytes": found.read}
        )
        found.reading = None
    return digests.hexdigest() if found.several else digest, " or ".join(dict.fromkeys(kinds))


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
                found = _matching(part)
            files += [Address(each if "://" in each else f"{protocol}://{each}") for each in sorted(found)]
        else:
            files.append(Address(part))
    if not files:
        raise UserError(f"{data}: no file matches", "check the address")
    return files


def _matching(pattern: str) -> list[str]:
    import fsspec

    files: list[str] = fsspec.core.url_to_fs(pattern)[0].glob(pattern)
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
    ((_, files),) = kinds.items()
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


class _Hashed(io.RawIOBase):
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


class _Unpacked(io.RawIOBase):
    """What is in a packed file. Damage is told by the number of rows before it; a file that grows without measure is refused."""

    def __init__(self, kind: str, packed: _Hashed, stream: IO[bytes], found: Collected) -> None:
        self.kind, self.packed, self.found, self.count = kind, packed, found, 0
        if kind == "zstd":
            import pyarrow as pa

            self.file: Any = pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")
        else:
            opener: Any = {"gzip": gzip.GzipFile, "bzip2": bz2.BZ2File, "xz": lzma.LZMAFile}[kind]
            self.file = opener(**{"fileobj" if kind == "gzip" else "filename": stream})

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            content = self.file.read(len(buffer))
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            raise UserError(
                f"{self.found.file}: broken {self.kind} data after {self.found.total} rows: {error}",
                "copy or download the file again; it is cut off or damaged",
            ) from None
        self.count += len(content)
        if self.count > max(BOMB_BYTES, BOMB_RATIO * self.packed.count):
            raise UserError(
                f"{self.found.file}: its first {self.packed.count:,} bytes unpack to {self.count:,}, over {BOMB_RATIO} times as much",
                "such a file is made to fill the memory; if this one is not, unpack it and name the unpacked file",
            )
        buffer[: len(content)] = content
        return len(content)


PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
BOMB_BYTES, BOMB_RATIO = 1 << 28, 200
"""A packed file may always unpack to 256 MB, and to more as long as that is under 200 times what was read of it."""


def _opened(raw: _Hashed, found: Collected) -> tuple[io.BufferedReader[Any], bool]:
    """A file as a stream of what is in it, and whether it is packed."""
    stream: io.BufferedReader[Any] = io.BufferedReader(raw, 1 << 20)
    start = stream.peek(6)
    packing = next((kind for mark, kind in PACKED.items() if start.startswith(mark)), None)
    if packing is None:
        return stream, False
    return io.BufferedReader(_Unpacked(packing, raw, stream, found), 1 << 20), True


def _has_gap(path: Path | Address, found: Collected) -> bool:
    with _Hashed(path) as raw:
        return formats.has_gap(_opened(raw, found)[0])


def _read_file(path: Path | Address, found: Collected, whole: bool = False) -> tuple[str, str]:
    """Adds the file's records to `found`; its SHA-256, and what it was taken for. whole: a text is one document, with the column `file`."""
    if isinstance(path, Path) and state(path)[0] == 0 and path.is_file():
        raise UserError(f"{path}: the file is empty (0 bytes)", "put data into it, or name another file")
    with _Hashed(path) as raw:
        found.reading = raw
        stream, packing = _opened(raw, found)
        head = stream.peek(1 << 16)[: 1 << 16]
        kind = _format(path, head)
        if kind in ("Parquet", "Arrow"):
            mapped = (
                isinstance(path, Path) and not packing and shown(path) == str(path)
            )  # pyarrow takes paths in UTF-8 only
            formats.arrow(path, None if mapped else stream.read(), found, kind)
            return raw.finish(), kind
        if kind == "WARC":
            archives.warc(stream, found)
            return raw.finish(), kind
        if kind == "Wikipedia XML":  # expat reads the encoding from the file
            archives.wikipedia(stream, found)
            return raw.finish(), kind
        if encoding := formats.utf16(head):
            raise UserError(f"{found.file}: found {encoding} text, expected UTF-8", formats.iconv(path, encoding))
        if kind == "JSON":
            formats.json_array(stream, path, found)
            return raw.finish(), kind
        lines = formats.lines(stream, path)
        if kind == "JSONL":
            formats.jsonl(lines, found)
        elif kind == "CoNLL-U":
            formats.conllu(lines, found)
        elif kind == "Markdown" or (kind == "text" and whole):
            kind = formats.document(lines, found, **({"file": found.file} if whole else {}))
        elif kind == "text":
            kind = formats.text(lines, found, partial(_has_gap, path, found))
        else:
            kind = formats.table(lines, kind, found)
        return raw.finish(), kind


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
    name = path.name.lower()
    for packing in formats.PACKINGS:
        name = name.removesuffix(packing)
    return Path(name).suffix


def _format(path: Path | Address, head: bytes) -> str:
    """By content where a mark says it for sure, else by extension, else by the first character."""
    if head.startswith(b"PAR1"):
        return "Parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "Arrow"
    if head.startswith(b"WARC/"):
        return "WARC"
    if head.lstrip().startswith(b"<mediawiki"):
        return "Wikipedia XML"
    for mark, (what, fix) in FOREIGN.items():
        if head.startswith(mark):
            raise UserError(f"{path.name}: found {what}, expected text, JSONL, CSV or Parquet", fix)
    known = FORMATS.get(suffix(path))
    if known in MARKS:
        raise UserError(
            f"{path.name}: found {head[:16]!r} at its start, expected {MARKS[known]}",
            "export it again, or give the file the extension of what it is (.jsonl, .csv)",
        )
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if known == "text" and _json_line(text):
        return "JSONL"
    if known == "JSON" or known is None:
        if text.startswith(b"["):
            return "JSON"
        if known == "JSON" or text.startswith(b"{"):
            return "JSONL"
        first = text.split(b"\n", 1)[0]
        if formats.utf16(head) or b"\t" in first:
            return "TSV"
        if b"," in first or b";" in first:
            return "CSV"
        raise UserError(
            f"{path.name}: not recognised as JSONL, CSV, TSV or Parquet; it starts with {head[:40]!r}",
            "give the file the extension of what it is: .txt, .jsonl, .csv, .tsv or .parquet",
        )
    return known


def _json_line(text: bytes) -> bool:
    try:
        return text.startswith(b"{") and isinstance(json.loads(text.split(b"\n", 1)[0]), dict)
    except (ValueError, RecursionError):
        return False


# --------------------------------------------------------------------------------------------------------------- Python


def _read_python(data: Any, found: Collected) -> tuple[str, str]:
    records, format_name = _records(data)
    digest = hashlib.sha256()
    for number, record in enumerate(records, 1):
        found.add(number, "row ", f"row {number}", partial(_plain_row, record, digest))
    digest.update(str(found.total).encode())
    return digest.hexdigest(), format_name


def _records(data: Any) -> tuple[Iterable[Any], str]:
    if isinstance(data, Mapping):
        return _columns(data), "dict of columns"
    names = [str(name) for name in getattr(data, "column_names", getattr(data, "columns", []))]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"the table has {names.count(twice[0])} columns named {twice[0]!r}", "rename or remove one of them"
        )
    if hasattr(data, "to_pylist"):
        return data.to_pylist(), "Arrow table"
    if hasattr(data, "to_dicts"):  # polars
        return data.to_dicts(), "DataFrame"
    if hasattr(data, "to_dict") and names:  # pandas
        return data.to_dict("records"), "DataFrame"
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise UserError(
            f"data: found {type(data).__name__}, expected a path, a DataFrame, a list of dicts, or a dict of columns",
            'such as data="my.jsonl" or data=[{"text": "…", "label": "…"}]',
        )
    return data, "list of rows"


def _columns(data: Mapping[Any, Any]) -> list[dict[Any, Any]]:
    columns: dict[Any, list[Any]] = {}
    for name, values in data.items():
        if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
            raise UserError(
                f"data[{name!r}]: found {kind_of(values)}, expected a list or an array, one value a row",
                "for one row, wrap it: [{…}]",
            )
        columns[name] = list(values)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise UserError(f"data: columns of different lengths ({listed})", "every column needs one value for each row")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _plain_row(record: Any, digest: Any) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise RowError(f"found {kind_of(record)}, expected a dict of columns", 'write each row as {"text": "…", …}')
    for name in record:
        if not isinstance(name, str):
            raise RowError(f"found {name!r} as a column's name, expected text", "rename the column")
    values: dict[str, Any] = _plain(dict(record))
    try:
        digest.update(json.dumps(values, sort_keys=True, ensure_ascii=False, default=_stable).encode() + b"\n")
    except UnicodeEncodeError as error:
        raise RowError(f"half of a surrogate pair ({error.object[error.start]!a}), which is no character") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(
            f"a value that cannot be kept: {error}",
            "use text, numbers, true/false, lists, dicts, dates, bytes or arrays",
        ) from None
    return values


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy or torch as Python's own; a missing value (NaN, NA, NaT) as None."""
    if value is None or isinstance(value, (str, bool, int, bytes)):
        return value
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        return None
    return value


def _stable(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if type(value).__name__ == "Decimal":
        return str(value)
    raise TypeError(f"found a {type(value).__name__}")
