"""Records from a file or from Python, each with the place it came from, and every trouble named by that place."""

from __future__ import annotations

import bz2
import codecs
import gzip
import hashlib
import io
import json
import lzma
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from danlu.core.errors import UserError, nearest
from danlu.data import archives, formats
from danlu.data.files import FORMATS, Address, Hashed, name_in, shown, sources_at, state, suffix
from danlu.data.rows import SKIP, Collected, Rejected, Row, RowError, Source, Unreachable, cell, column, kind_of


__all__ = ["SKIP", "Rejected", "Row", "Source", "cell", "column", "read"]

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
            with Hashed(file) as raw:
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


class _Unpacked(io.RawIOBase):
    """What is in a packed file. Damage is told by the number of rows before it; a file that grows without measure is refused."""

    def __init__(self, kind: str, packed: Hashed, stream: IO[bytes], found: Collected) -> None:
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


def _opened(raw: Hashed, found: Collected) -> tuple[io.BufferedReader[Any], bool]:
    """A file as a stream of what is in it, and whether it is packed."""
    stream: io.BufferedReader[Any] = io.BufferedReader(raw, 1 << 20)
    start = stream.peek(6)
    packing = next((kind for mark, kind in PACKED.items() if start.startswith(mark)), None)
    if packing is None:
        return stream, False
    return io.BufferedReader(_Unpacked(packing, raw, stream, found), 1 << 20), True


def _has_gap(path: Path | Address, found: Collected) -> bool:
    with Hashed(path) as raw:
        return formats.has_gap(_opened(raw, found)[0])


def _read_file(path: Path | Address, found: Collected, whole: bool = False) -> tuple[str, str]:
    """Adds the file's records to `found`; its SHA-256, and what it was taken for. whole: a text is one document, with the column `file`."""
    if isinstance(path, Path) and state(path)[0] == 0 and path.is_file():
        raise UserError(f"{path}: the file is empty (0 bytes)", "put data into it, or name another file")
    with Hashed(path) as raw:
        found.reading = raw
        stream, packing = _opened(raw, found)
        head = stream.peek(1 << 16)[: 1 << 16]
        kind, lines = _format(path, head), formats.lines(stream, path)
        if kind in ("Parquet", "Arrow"):
            # pyarrow takes paths in UTF-8 only.
            mapped = isinstance(path, Path) and not packing and shown(path) == str(path)
            formats.arrow(path, None if mapped else stream.read(), found, kind)
        elif kind == "WARC":
            archives.warc(stream, found)
        elif kind == "Wikipedia XML":  # expat reads the encoding from the file
            archives.wikipedia(stream, found)
        elif encoding := formats.utf16(head):
            raise UserError(f"{found.file}: found {encoding} text, expected UTF-8", formats.iconv(path, encoding))
        elif kind == "JSON":
            formats.json_array(stream, path, found)
        elif kind == "JSONL":
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
    values: dict[str, Any] = plain(dict(record))
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


def plain(value: Any) -> Any:
    """Numbers and arrays of numpy or torch as Python's own; a missing value (NaN, NA, NaT) as None."""
    if value is None or isinstance(value, (str, bool, int, bytes)):
        return value
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
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
