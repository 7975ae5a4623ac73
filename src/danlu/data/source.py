"""Records from a file or from Python, each with the place it came from, and every trouble named by that place."""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from danlu.core.errors import UserError, nearest


FORMATS = {
    ".jsonl": "JSONL", ".ndjson": "JSONL", ".json": "JSON", ".csv": "CSV", ".tsv": "TSV", ".tab": "TSV", ".parquet": "Parquet", ".pq": "Parquet",
    ".txt": "text", ".md": "Markdown",
}  # fmt: skip
SKIP = "mend the row, or set bad_rows=skip to leave such rows out and count them"
PACKED = {
    b"PK\x03\x04": ("a zip archive or an Excel workbook", "unpack it, or save the sheet as CSV in UTF-8"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "save the sheet as CSV in UTF-8"),
    b"\x28\xb5\x2f\xfd": ("Zstandard data", "unpack it first: zstd -d FILE"),
    b"BZh": ("bzip2 data", "unpack it first: bunzip2 FILE"),
    b"\xfd7zXZ": ("xz data", "unpack it first: unxz FILE"),
    b"SQLite format 3": ("an SQLite database", "export the table as CSV"),
    b"%PDF-": ("a PDF document", "extract its text to JSONL first"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One record.

    number: the line in the file for JSONL and text (a document's first line); for everything else the record's number, from 1.
    where: what stands before the number in an error: `my.jsonl:` or `my.csv record `.
    """

    number: int
    values: dict[str, Any]
    where: str = "row "

    @property
    def place(self) -> str:
        return f"{self.where}{self.number}"


@dataclass(frozen=True)
class Rejected:
    """A row left out (`bad_rows=skip`): its place (`my.jsonl:17`) and the reason."""

    place: str
    reason: str


@dataclass(frozen=True)
class Source:
    """What was read.

    name: the file's name, or `Python` for data handed over in memory.
    sha256: of the file's bytes as they lie on the disk; for Python data of the rows kept.
    total: records in the file, readable or not, before max_rows.
    format: what the file was taken for, to be said aloud.
    """

    name: str
    sha256: str
    rows: tuple[Row, ...]
    rejected: tuple[Rejected, ...]
    total: int
    format: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column some row has, in the order they appear."""
        return tuple(dict.fromkeys(itertools.chain.from_iterable(row.values for row in self.rows)))


class _RowError(Exception):
    """A record that cannot be read; the rest of the file can."""

    def __init__(self, reason: str, fix: str = SKIP) -> None:
        super().__init__(reason)
        self.reason, self.fix = reason, fix


class _Collected:
    """Rows and rejected rows as they come: the first `max_rows` readable ones are kept, all are counted."""

    def __init__(self, name: str, bad_rows: str, max_rows: int | None) -> None:
        self.name, self.skip, self.limit = name, bad_rows == "skip", max_rows
        self.rows: list[Row] = []
        self.rejected: list[Rejected] = []
        self.total = 0

    @property
    def full(self) -> bool:
        return self.limit is not None and len(self.rows) >= self.limit

    def add(self, number: int, where: str, place: str, record: Callable[[], dict[str, Any]]) -> None:
        self.total += 1
        if self.full:
            return
        try:
            self.rows.append(Row(number, record(), where))
        except _RowError as bad:
            if not self.skip:
                raise UserError(f"{place}: {bad.reason}", bad.fix) from None
            self.rejected.append(Rejected(place, bad.reason))

    def source(self, sha256: str, format: str) -> Source:  # noqa: A002 (the field's own name)
        if not self.rows:
            if self.rejected:
                first = self.rejected[0]
                raise UserError(
                    f"{self.name}: none of its {self.total} rows can be read; the first, {first.place}: {first.reason}",
                    f"expected {format}; mend the file",
                )
            raise UserError(
                f"{self.name}: read as {format}, there is no row in it",
                "put at least one row into it, or name another file",
            )
        return Source(self.name, sha256, tuple(self.rows), tuple(self.rejected), self.total, format)


def read(data: Any, *, bad_rows: str = "error", max_rows: int | None = None) -> Source:
    """Records from a path (text, JSONL, JSON array, CSV, TSV, Parquet; each also `.gz`) or from Python.

    Text (`.txt`) has one column, `text`: a document is a block between blank lines, or a line if no two lines have a blank
    one between them. `.md` is one document. Which it was, `format` says.

    Python data: a pandas or polars DataFrame, an Arrow table, an iterable of dicts, or a dict of equally long columns.
    bad_rows: `error` raises at the first row that cannot be read, `skip` leaves it out and lists it in `rejected`.
    max_rows: keep only the first so many readable rows; `total` still counts all of them.

    Raises UserError naming file and line, what was found, what was expected, and the fix.
    """
    if bad_rows not in ("error", "skip"):
        raise UserError(f"bad_rows: found {bad_rows!r}, expected error or skip", nearest(bad_rows, ("error", "skip")))
    if isinstance(data, (str, os.PathLike)):
        return _read_file(Path(data).expanduser(), bad_rows, max_rows)
    return _read_python(data, _Collected("Python", bad_rows, max_rows))


def column(source: Source, wanted: str | None, usual: Sequence[str], key: str) -> str:
    """The column to use: `wanted` if given, else the first of the `usual` names the source has (any case).

    key: the setting that names this column, for the error.
    """
    columns = source.columns
    listed = ", ".join(repr(name) for name in columns)
    if wanted is not None:
        if wanted not in columns:
            raise UserError(
                f"{source.name}: no column {wanted!r} ({key}={wanted}); it has {listed}", nearest(wanted, columns)
            )
        return wanted
    by_name = {name.strip().lower(): name for name in reversed(columns)}
    for name in usual:
        if name.lower() in by_name:
            return by_name[name.lower()]
    raise UserError(
        f"{source.name}: no column for {key}: looked for {', '.join(usual)}; it has {listed}",
        f"name the column: {key}=COLUMN",
    )


def cell(row: Row, name: str) -> Any:
    """The row's value in a column; an error naming the row when it has none (absent, null, or empty text)."""
    value = row.values.get(name)
    if value is None or value == "":
        found = (
            "is null" if name in row.values and value is None else "is empty" if name in row.values else "is missing"
        )
        raise UserError(f"{row.place}: column {name!r} {found}; the row has {', '.join(map(repr, row.values))}", SKIP)
    return value


# ---------------------------------------------------------------------------------------------------------------- files


class _Hashed(io.RawIOBase):
    """A file that is hashed while it is read, so that it is read once."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb", buffering=0)
        self.hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.file.readinto(buffer) or 0
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


def _read_file(path: Path, bad_rows: str, max_rows: int | None) -> Source:
    name = path.name
    found = _Collected(name, bad_rows, max_rows)
    try:
        _expect_file(path)
        with _Hashed(path) as raw:
            buffered: IO[bytes] = io.BufferedReader(raw, 1 << 20)
            packed = buffered.peek(2)[:2] == b"\x1f\x8b"  # type: ignore[attr-defined]
            stream = io.BufferedReader(gzip.GzipFile(fileobj=buffered), 1 << 20) if packed else buffered
            head = stream.peek(1 << 16)[: 1 << 16]  # type: ignore[attr-defined]
            kind = _format(path, head)
            encoding = "" if kind == "Parquet" else _utf16(head)
            if encoding:
                raise UserError(f"{name}: found {encoding} text, expected UTF-8", _iconv(path, encoding))
            if kind == "Parquet":
                _parquet(path, stream.read() if packed else None, found)
            elif kind == "JSON":
                _json_array(stream, path, found)
            elif kind == "JSONL":
                _jsonl(_lines(stream, path), found)
            elif kind == "text":
                kind = _text(_lines(stream, path), found)
            elif kind == "Markdown":
                kind = _document(_lines(stream, path), found, kind)
            else:
                kind = _csv(_lines(stream, path), kind, found)
            return found.source(raw.finish(), kind)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{name}: broken gzip data after {found.total} rows: {error}",
            "copy or download the file again; it is cut off or damaged",
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror or error}", "check the path and its permissions"
        ) from None


def _expect_file(path: Path) -> None:
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if _suffix(entry) in FORMATS)
        listed = f"; in it: {', '.join(inside[:8])}" if inside else ""
        raise UserError(
            f"{path} is a folder, expected a file{listed}",
            f"name one file, such as {path / (inside[0] if inside else 'my.jsonl')}",
        )
    if not path.exists():
        folder = path.parent
        if not folder.is_dir():
            raise UserError(
                f"{path}: no such file; there is no folder {folder} either", f"the path is read from {Path.cwd()}"
            )
        names = [entry.name for entry in folder.iterdir() if entry.is_file() and _suffix(entry) in FORMATS]
        raise UserError(
            f"{path}: no such file",
            nearest(path.name, names) if names else f"there is no data file in {folder.resolve()}",
        )
    if path.is_file() and path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes)", "put data into it, or name another file")


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def _format(path: Path, head: bytes) -> str:
    """By content where a mark says it for sure, else by extension, else by the first character."""
    if head.startswith(b"PAR1"):
        return "Parquet"
    for mark, (what, fix) in PACKED.items():
        if head.startswith(mark):
            raise UserError(f"{path.name}: found {what}, expected text, JSONL, CSV or Parquet", fix)
    known = FORMATS.get(_suffix(path))
    if known == "Parquet":
        raise UserError(
            f"{path.name}: found {head[:16]!r} at its start, expected a Parquet file (PAR1)",
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
        if _utf16(head) or b"\t" in first:
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


def _utf16(head: bytes) -> str:
    for mark, encoding in (
        (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"), (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"),
    ):  # fmt: skip
        if head.startswith(mark):
            return encoding
    # Without a mark: ASCII in UTF-16 has a NUL in every other byte.
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) * 5 > len(head) and min(even, odd) * 10 < max(even, odd):
        return "UTF-16BE" if even > odd else "UTF-16LE"
    return ""


def _iconv(path: Path, encoding: str) -> str:
    plain, suffix = path.name, ""
    if path.name.lower().endswith(".gz"):
        plain, suffix = path.name[:-3], ".gz"
    new = f"{Path(plain).stem}.utf8{Path(plain).suffix}{suffix}"
    if suffix:
        return f"zcat '{path.name}' | iconv -f {encoding} -t UTF-8 | gzip > '{new}'"
    return f"iconv -f {encoding} -t UTF-8 '{path.name}' > '{new}'"


def guess_encoding(raw: bytes) -> str:
    """The likely encoding of text that is not UTF-8, by its name for iconv: GB18030, SHIFT_JIS or WINDOWS-1252.

    East Asian encodings write a character as two bytes, mostly both above 127; in Western text such bytes stand alone.
    """
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", raw)]
    if not runs or sum(run == 1 for run in runs) * 2 > len(runs):
        return "WINDOWS-1252"
    # Read as what it is, the text is mostly everyday characters; read as another, it is mostly rare ones.
    best, name = 0.5, "WINDOWS-1252"
    for encoding, everyday in (("gb18030", "gb2312"), ("shift_jis", "iso2022_jp")):
        text = raw.decode(encoding, errors="replace")
        foreign = [character for character in text if character > "\x7f"]
        share = sum(bool(character.encode(everyday, errors="ignore")) for character in foreign) / len(foreign)
        if encoding == "shift_jis" and not re.search("[\u3041-\u30ff]", text):
            continue  # no Japanese without kana
        if share > best:
            best, name = share, encoding.upper()
    return name


def _lines(stream: IO[bytes], path: Path) -> Iterator[tuple[int, str | _RowError]]:
    """(number from 1, text with its line end), or what is wrong with the line."""
    utf8_seen = False
    for number, raw in enumerate(stream, 1):
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        if b"\0" in raw:
            yield (
                number,
                _RowError(
                    f"NUL byte at byte {raw.index(0) + 1} of the line, expected text",
                    f"the file is damaged or not text; {SKIP}",
                ),
            )
            continue
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            yield number, _not_utf8(raw, error, path, utf8_seen)
            continue
        utf8_seen = utf8_seen or not text.isascii()
        yield number, text


def _not_utf8(raw: bytes, error: UnicodeDecodeError, path: Path, utf8_seen: bool) -> _RowError:
    where = f"byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line is not UTF-8"
    if utf8_seen:
        return _RowError(f"{where}, though earlier lines are", SKIP)
    encoding = guess_encoding(raw)
    near = raw[max(0, error.start - 20) : error.start + 20].decode(encoding, errors="replace").strip()
    return _RowError(
        f"{where}; it looks like {encoding} ({near!r})",
        f"{_iconv(path, encoding)} (or set bad_rows=skip to leave such rows out)",
    )


def _text(lines: Iterable[tuple[int, str | _RowError]], found: _Collected) -> str:
    """Documents between blank lines. Until the first of those, every line may be a document of its own."""
    block: list[tuple[int, str | _RowError]] = []
    blocks = gap = False
    for number, line in lines:
        if isinstance(line, str) and not line.strip():
            gap = bool(block)
            continue
        if gap:  # a blank line between two others
            blocks, gap = True, False
            _add_text(block, found)
            block = []
        block.append((number, line))
    if blocks:
        _add_text(block, found)
        return "text, a document between blank lines"
    for pair in block:
        _add_text([pair], found)
    return "text, a document a line"


def _document(lines: Iterable[tuple[int, str | _RowError]], found: _Collected, kind: str) -> str:
    block = list(lines)
    while block and isinstance(block[-1][1], str) and not block[-1][1].strip():
        block.pop()
    if block:
        _add_text(block, found)
    return f"{kind}, one document"


def _add_text(block: list[tuple[int, str | _RowError]], found: _Collected) -> None:
    where = f"{found.name}:"
    number = next((number for number, line in block if isinstance(line, _RowError)), block[0][0])
    found.add(block[0][0], where, f"{where}{number}", partial(_text_row, block))


def _text_row(block: list[tuple[int, str | _RowError]]) -> dict[str, Any]:
    lines = []
    for _, line in block:
        if isinstance(line, _RowError):
            raise line
        lines.append(line.rstrip("\r\n"))
    return {"text": "\n".join(lines)}


def _jsonl(lines: Iterable[tuple[int, str | _RowError]], found: _Collected) -> None:
    where = f"{found.name}:"
    for number, line in lines:
        if isinstance(line, str) and line.isspace():
            continue
        found.add(number, where, f"{where}{number}", partial(_json_object, line))


def _json_object(line: str | _RowError) -> dict[str, Any]:
    if isinstance(line, _RowError):
        raise line
    try:
        value = json.loads(line, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        text = line.rstrip("\r\n")
        at = min(error.pos, len(text))
        hint = "expected one JSON object on each line"
        if text.strip() in ("{", "["):
            raise _RowError(
                f"found only {text.strip()!r}, {hint}",
                "write each record on one line (jq -c '.[]' FILE), or name an array's file .json",
            ) from None
        raise _RowError(
            f"broken JSON at column {at + 1}: {error.msg}, near {text[max(0, at - 25) : at + 25]!r}; {hint}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise _RowError(f"JSON that cannot be read: {error}") from None
    return _object(value, surrogates="\\ud" in line or "\\uD" in line)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in made if names.count(name) > 1)
        raise _RowError(f"the key {twice!r} stands twice in one object, and only one value could count")
    return made


def _object(value: Any, surrogates: bool) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _RowError(f'found {_kind(value)}, expected an object with named columns, such as {{"text": …}}')
    if surrogates:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise _RowError(
                f"half of a surrogate pair ({error.object[error.start]!a}), which is no character"
            ) from None
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return f"{names.get(type(value), type(value).__name__)} ({json.dumps(value, ensure_ascii=False, default=str)[:40]})"


def _json_array(stream: IO[bytes], path: Path, found: _Collected) -> None:
    """A file that is one array of objects. An array has no line to go on from: if it is broken, nothing of it is read."""
    raw = stream.read().removeprefix(codecs.BOM_UTF8)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        encoding = guess_encoding(raw[max(0, error.start - 2000) : error.start + 2000])
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path.name}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8; it looks like {encoding}",
            _iconv(path, encoding),
        ) from None
    try:
        records = json.loads(text)
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 25) : error.pos + 25]
        raise UserError(
            f"{path.name}:{error.lineno}: broken JSON at column {error.colno}: {error.msg}, near {near!r}",
            "expected one array of objects; for one object on each line use the extension .jsonl",
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name}: JSON that cannot be read: {error}", "expected one array of objects") from None
    where = f"{found.name} record "
    surrogates = "\\ud" in text or "\\uD" in text
    for number, record in enumerate(records, 1):
        found.add(number, where, f"{where}{number}", partial(_object, record, surrogates))


@contextmanager
def _huge_fields() -> Iterator[None]:
    """The csv module refuses fields over 128 kB unless told; the limit is global, so it is put back."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _csv(lines: Iterator[tuple[int, str | _RowError]], kind: str, found: _Collected) -> str:
    troubles: dict[int, _RowError] = {}
    head: list[str] = []

    def texts() -> Iterator[str]:
        for number, line in lines:
            if isinstance(line, _RowError):
                troubles[number] = line
                line = "\ufffd\n"  # keeps the count of lines; the record it falls in is refused below
            if not head:
                head.append(line)
            yield line

    feed = texts()
    first = next(feed, "")
    if 1 in troubles:
        raise UserError(f"{found.name}:1: {troubles[1].reason}", troubles[1].fix)
    delimiter = "\t" if kind == "TSV" else ","
    if delimiter not in first:  # a spreadsheet in a country with a decimal comma writes `;`
        delimiter = max(",;\t|", key=first.count) if any(mark in first for mark in ",;\t|") else delimiter
        if delimiter != ("\t" if kind == "TSV" else ","):
            kind = f"{kind} separated by {'a tab' if delimiter == chr(9) else repr(delimiter)}"
    with _huge_fields():
        records = csv.reader(itertools.chain([first], feed), delimiter=delimiter, strict=True)
        names = _header(records, found.name)
        where, number = f"{found.name} record ", 0
        while True:
            start = records.line_num + 1
            fields: list[str] | None = None
            broken: _RowError | None = None
            try:
                fields = next(records)
            except StopIteration:
                return kind
            except csv.Error as error:
                broken = _RowError(
                    _quotes(str(error)), 'put the field into "…" and double the quotes inside it; ' + SKIP
                )
            if fields == []:
                continue
            number += 1
            bad = next((troubles[line] for line in range(start, records.line_num + 1) if line in troubles), broken)
            found.add(number, where, f"{found.name}:{start}", partial(_record, names, fields, bad, delimiter))


def _quotes(message: str) -> str:
    if "unexpected end of data" in message:
        return "a quote is opened here and not closed until the end of the file"
    return f"broken CSV: {message}"


def _header(records: Iterator[list[str]], name: str) -> list[str]:
    try:
        names = [field.strip() for field in next(records, [])]
    except csv.Error as error:
        raise UserError(f"{name}:1: {_quotes(str(error))}", "the first line must be the names of the columns") from None
    if not any(names):
        raise UserError(
            f"{name}:1: the first line is blank, expected the names of the columns", "write them, such as: text,label"
        )
    twice = sorted({field for field in names if names.count(field) > 1})
    if twice:
        raise UserError(
            f"{name}:1: column {twice[0]!r} stands {names.count(twice[0])} times, expected each name once",
            "rename or remove one of them",
        )
    return names


def _record(names: list[str], fields: list[str] | None, bad: _RowError | None, delimiter: str) -> dict[str, Any]:
    if bad is not None or fields is None:
        raise bad or _RowError("broken CSV")
    if len(fields) != len(names):
        mark = "a tab" if delimiter == "\t" else repr(delimiter)
        raise _RowError(
            f"found {len(fields)} columns, expected {len(names)} ({', '.join(names)})",
            f'put a field that holds {mark} or a line break into "…"; {SKIP}',
        )
    return dict(zip(names, fields, strict=True))


def _parquet(path: Path, content: bytes | None, found: _Collected) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path if content is None else pa.BufferReader(content))
        names = file.schema_arrow.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(
                f"{path.name}: column {twice[0]!r} stands {names.count(twice[0])} times", "rename or remove one of them"
            )
        where, number = f"{found.name} record ", 0
        for batch in file.iter_batches(batch_size=4096):
            for record in batch.to_pylist():
                number += 1
                found.add(number, where, f"{where}{number}", partial(dict, record))
            if found.full:
                break
        found.total = file.metadata.num_rows
    except (pa.ArrowException, ValueError, OSError, OverflowError, MemoryError) as error:
        raise UserError(
            f"{path.name}: broken Parquet: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            "export or download it again",
        ) from None


# --------------------------------------------------------------------------------------------------------------- Python


def _read_python(data: Any, found: _Collected) -> Source:
    records, format_name = _records(data)
    digest = hashlib.sha256()
    for number, record in enumerate(records, 1):
        found.add(number, "row ", f"row {number}", partial(_plain_row, record, digest))
    digest.update(str(found.total).encode())
    return found.source(digest.hexdigest(), format_name)


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
                f"data[{name!r}]: found {_kind(values)}, expected a list or an array, one value a row",
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
        raise _RowError(f"found {_kind(record)}, expected a dict of columns", 'write each row as {"text": "…", …}')
    for name in record:
        if not isinstance(name, str):
            raise _RowError(f"found {name!r} as a column's name, expected text", "rename the column")
    values: dict[str, Any] = _plain(dict(record))
    try:
        digest.update(json.dumps(values, sort_keys=True, ensure_ascii=False, default=_stable).encode() + b"\n")
    except UnicodeEncodeError as error:
        raise _RowError(f"half of a surrogate pair ({error.object[error.start]!a}), which is no character") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise _RowError(
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
