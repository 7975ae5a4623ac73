"""Readers of one file: text, JSONL, JSON, CSV and Parquet. Each adds its records, with their places, to a `Collected`."""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

from danlu.core.errors import UserError
from danlu.data.clean import UNSPACED
from danlu.data.rows import SKIP, Collected, RowError, kind_of


class Named(Protocol):
    """A file here or elsewhere."""

    @property
    def name(self) -> str: ...


LONGEST = 200_000_000
"""Bytes of one line."""

PACKINGS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
"""Suffix of a packed file -> the program that packs and unpacks it."""


def utf16(head: bytes) -> str:
    """The name of UTF-16 or UTF-32 if a file that starts with `head` is written so, else nothing."""
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


def iconv(path: Named, encoding: str) -> str:
    """The command that turns a file, packed or not, into UTF-8."""
    name = path.name
    packing = next((suffix for suffix in PACKINGS if name.lower().endswith(suffix)), "")
    plain = Path(name[: len(name) - len(packing)])
    new = f"{plain.stem}.utf8{plain.suffix}{packing}"
    if packing:
        tool = PACKINGS[packing]
        return f"{tool} -dc '{name}' | iconv -f {encoding} -t UTF-8 | {tool} -c > '{new}'"
    return f"iconv -f {encoding} -t UTF-8 '{name}' > '{new}'"


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


def lines(stream: IO[bytes], path: Named) -> Iterator[tuple[int, str | RowError]]:
    """(number from 1, text with its line end), or what is wrong with the line."""
    utf8_seen = False
    for number, raw in enumerate(iter(lambda: stream.readline(LONGEST), b""), 1):
        if len(raw) == LONGEST:
            raise UserError(
                f"{path.name}:{number}: a line of more than {LONGEST:,} bytes, expected text",
                "write each record on one line",
            )
        if number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        if b"\0" in raw:
            found = f"NUL byte at byte {raw.index(0) + 1} of the line, expected text"
            yield number, RowError(found, f"the file is damaged or not text; {SKIP}")
            continue
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            yield number, _not_utf8(raw, error, path, utf8_seen)
            continue
        utf8_seen = utf8_seen or not text.isascii()
        yield number, text


def _not_utf8(raw: bytes, error: UnicodeDecodeError, path: Named, utf8_seen: bool) -> RowError:
    where = f"byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line is not UTF-8"
    if utf8_seen:
        return RowError(f"{where}, though earlier lines are", SKIP)
    encoding = guess_encoding(raw)
    near = raw[max(0, error.start - 20) : error.start + 20].decode(encoding, errors="replace").strip()
    return RowError(
        f"{where}; it looks like {encoding} ({near!r})",
        f"{iconv(path, encoding)} (or set bad_rows=skip to leave such rows out)",
    )


HEAD = 10_000
"""Lines of a text that are looked at before the file is read a second time to know what its documents are."""


def text(lines: Iterator[tuple[int, str | RowError]], found: Collected, gap: Callable[[], bool]) -> str:
    """Documents between blank lines, or one on each line if no blank one stands between two others. gap: whether one does, in all of the file."""
    head = list(itertools.islice(lines, HEAD))
    blocks = has_gap(line for _, line in head) or (len(head) == HEAD and gap())
    block: list[tuple[int, str | RowError]] = []
    for number, line in itertools.chain(head, lines, [(0, "")]):
        blank = isinstance(line, str) and not line.strip()
        if not blank:
            block.append((number, line))
        if block and (blank or not blocks):
            _add_text(block, found, {})
            block = []
    return "text, a document between blank lines" if blocks else "text, a document a line"


def has_gap(lines: Iterable[str | bytes | RowError]) -> bool:
    """Whether a blank line stands between two others."""
    begun = blank = False
    for line in lines:
        if isinstance(line, RowError) or line.strip():
            if begun and blank:
                return True
            begun, blank = True, False
        else:
            blank = True
    return False


def document(lines: Iterable[tuple[int, str | RowError]], found: Collected, **others: str) -> str:
    """The whole file as one document; others: further columns."""
    block = list(lines)
    while block and isinstance(block[-1][1], str) and not block[-1][1].strip():
        block.pop()
    if block:
        _add_text(block, found, others)
    return "text, a document a file"


def _add_text(block: list[tuple[int, str | RowError]], found: Collected, others: Mapping[str, str]) -> None:
    where = f"{found.file}:"
    number = next((number for number, line in block if isinstance(line, RowError)), block[0][0])
    found.add(block[0][0], where, f"{where}{number}", partial(_text_row, block, others))


def _text_row(block: list[tuple[int, str | RowError]], others: Mapping[str, str]) -> dict[str, Any]:
    lines = []
    for _, line in block:
        if isinstance(line, RowError):
            raise line
        lines.append(line.rstrip("\r\n"))
    return {"text": "\n".join(lines), **others}


def conllu(lines: Iterable[tuple[int, str | RowError]], found: Collected) -> None:
    """Sentences of CoNLL-U (universaldependencies.org/format.html): the columns `text` and `words`, a list, both from FORM."""
    where = f"{found.file}:"
    block: list[tuple[int, str | RowError]] = []
    for number, line in itertools.chain(lines, [(0, "")]):
        if isinstance(line, RowError) or (line.strip() and not line.startswith("#")):
            block.append((number, line))
        elif block and not line.strip():
            found.add(block[0][0], where, f"{where}{block[0][0]}", partial(_sentence, block))
            block = []


def _sentence(block: list[tuple[int, str | RowError]]) -> dict[str, Any]:
    """A word of several parts (`1-2 don't`) counts as it is written, its parts and empty nodes (`8.1`) do not."""
    words: list[tuple[str, bool]] = []
    last = 0
    for number, line in block:
        if isinstance(line, RowError):
            raise line
        fields = line.rstrip("\r\n").split("\t")
        numbered = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9})|(\.\d+))?", fields[0])
        if len(fields) != 10 or numbered is None:
            raise RowError(
                f"line {number}: found {len(fields)} columns, the first {fields[0][:20]!r}; expected the ten of CoNLL-U, "
                "separated by tabs, the first a word's number",
                "export it as CoNLL-U again, or name a file of plain text .txt",
            )
        if numbered[3] is None and int(numbered[1]) > last:
            last = int(numbered[2] or numbered[1])
            words.append((fields[1], "SpaceAfter=No" in fields[9].split("|")))
    said = any(glued for _, glued in words)
    text = ""
    for (word, glued), (following, _) in itertools.pairwise([*words, ("", True)]):
        # Tools that leave SpaceAfter out write Chinese words as they write English ones.
        unspaced = not said and (UNSPACED.search(word[-1:]) or UNSPACED.search(following[:1]))
        text += word if glued or unspaced or not following else f"{word} "
    return {"text": text, "words": [word for word, _ in words]}


def jsonl(lines: Iterable[tuple[int, str | RowError]], found: Collected) -> None:
    """One object a line; blank lines count as lines only."""
    where = f"{found.file}:"
    for number, line in lines:
        if isinstance(line, str) and line.isspace():
            continue
        found.add(number, where, f"{where}{number}", partial(_json_object, line))


def _json_object(line: str | RowError) -> dict[str, Any]:
    if isinstance(line, RowError):
        raise line
    try:
        value = json.loads(line, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        text = line.rstrip("\r\n")
        at = min(error.pos, len(text))
        hint = "expected one JSON object on each line"
        if text.strip() in ("{", "["):
            raise RowError(
                f"found only {text.strip()!r}, {hint}",
                "write each record on one line (jq -c '.[]' FILE), or name an array's file .json",
            ) from None
        if at == 0 and text.lstrip()[:1] not in "{[":
            name = "name it .csv if it is one" if "," in text else "name plain text .txt"
            raise RowError(f"found {text.strip()[:50]!r}, {hint}", name) from None
        raise RowError(
            f"broken JSON at column {at + 1}: {error.msg}, near {text[max(0, at - 25) : at + 25]!r}; {hint}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise RowError(f"JSON that cannot be read: {error}") from None
    return _object(value, surrogates="\\ud" in line or "\\uD" in line)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise RowError(f"the key {twice!r} stands twice in one object, and only one value could count")
    return made


def _object(value: Any, surrogates: bool) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RowError(f'found {kind_of(value)}, expected an object with named columns, such as {{"text": …}}')
    if surrogates:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise RowError(f"half of a surrogate pair ({error.object[error.start]!a}), which is no character") from None
    return value


def json_array(stream: IO[bytes], path: Named, found: Collected) -> None:
    """A file that is one array of objects. An array has no line to go on from: if it is broken, nothing of it is read."""
    raw = stream.read().removeprefix(codecs.BOM_UTF8)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        encoding = guess_encoding(raw[max(0, error.start - 2000) : error.start + 2000])
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path.name}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8; it looks like {encoding}",
            iconv(path, encoding),
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
    where = f"{found.file} record "
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


def table(lines: Iterator[tuple[int, str | RowError]], kind: str, found: Collected) -> str:
    """CSV or TSV, as `kind` says, with the names of the columns in the first line; returns the kind with the mark found."""
    troubles: dict[int, RowError] = {}
    head: list[str] = []

    def texts() -> Iterator[str]:
        for number, line in lines:
            if isinstance(line, RowError):
                troubles[number] = line
                line = "\ufffd\n"  # keeps the count of lines; the record it falls in is refused below
            if not head:
                head.append(line)
            yield line

    feed = texts()
    first = next(feed, "")
    if 1 in troubles:
        raise UserError(f"{found.file}:1: {troubles[1].reason}", troubles[1].fix)
    delimiter = "\t" if kind == "TSV" else ","
    if delimiter not in first:  # a spreadsheet in a country with a decimal comma writes `;`
        delimiter = max(",;\t|", key=first.count) if any(mark in first for mark in ",;\t|") else delimiter
        if delimiter != ("\t" if kind == "TSV" else ","):
            kind = f"{kind} separated by {'a tab' if delimiter == chr(9) else repr(delimiter)}"
    with _huge_fields():
        records = csv.reader(itertools.chain([first], feed), delimiter=delimiter, strict=True)
        names = _header(records, found.file)
        where, number = f"{found.file} record ", 0
        while True:
            start = records.line_num + 1
            fields: list[str] | None = None
            broken: RowError | None = None
            try:
                fields = next(records)
            except StopIteration:
                return kind
            except csv.Error as error:
                broken = RowError(
                    _quotes(str(error)), 'put the field into "…" and double the quotes inside it; ' + SKIP
                )
            if fields == []:
                continue
            number += 1
            if broken and records.line_num > start:
                swallowed = f"; lines {start} to {records.line_num} were taken for one record"
                broken = RowError(broken.reason + swallowed, broken.fix)
            bad = next((troubles[line] for line in range(start, records.line_num + 1) if line in troubles), broken)
            found.add(number, where, f"{found.file}:{start}", partial(_record, names, fields, bad, delimiter))


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
    _expect_once(names, f"{name}:1", ", expected each name once")
    return names


def _expect_once(names: Iterable[str], where: str, expected: str = "") -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{where}: column {name!r} stands {count} times{expected}", "rename or remove one of them")


def _record(names: list[str], fields: list[str] | None, bad: RowError | None, delimiter: str) -> dict[str, Any]:
    if bad is not None or fields is None:
        raise bad or RowError("broken CSV")
    if len(fields) != len(names):
        mark = "a tab" if delimiter == "\t" else repr(delimiter)
        raise RowError(
            f"found {len(fields)} columns, expected {len(names)} ({', '.join(names)})",
            f'put a field that holds {mark} or a line break into "…"; {SKIP}',
        )
    return dict(zip(names, fields, strict=True))


def _class_names(schema: Any) -> dict[str, list[str]]:
    """The columns in which Hugging Face datasets writes classes as numbers, and the names of those."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    except RecursionError:
        raise ValueError("metadata nested too deeply") from None
    features = about.get("info", {}).get("features", {}) if isinstance(about, dict) else {}
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }


def _named(record: dict[str, Any] | str, labels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    if isinstance(record, str):
        raise RowError(f"a value that cannot be read: {record}")
    for name, names in labels.items():
        value = record.get(name)
        if value is not None and (not isinstance(value, int) or not -1 <= value < len(names)):
            raise RowError(
                f"class {value} in column {name!r}, which has the {len(names)} classes {', '.join(names[:8])}"
            )
        if value is not None:
            record[name] = names[value] if value >= 0 else None  # -1: a row without a label
    return record


def _unpacked(rows: Any) -> Iterator[dict[str, Any] | str]:
    """The records of a batch; of one that holds what Python has no value for (the year 10000) the reason instead."""
    try:
        yield from rows.to_pylist()
    except (ValueError, OverflowError) as error:
        if len(rows) == 1:
            yield str(error)
        else:
            for at in range(len(rows)):
                yield from _unpacked(rows.slice(at, 1))


BATCH = 1 << 24
"""Bytes of Parquet or Arrow that are unpacked at a time, unless one record is longer."""

DAMAGED = (ValueError, OSError, OverflowError, MemoryError, AttributeError, TypeError, SystemError)
"""What pyarrow raises for a damaged file, besides its own."""


def _fitting(size: int, rows: int) -> int:
    """Of rows with so many bytes in all: how many are unpacked at a time."""
    return max(1, min(4096, rows * BATCH // max(1, size)))


def arrow(path: Named, content: bytes | None, found: Collected, kind: str) -> None:
    """Parquet, or an Arrow stream or file as Hugging Face datasets writes it, batch by batch; content: of a file that is packed or elsewhere."""
    import pyarrow as pa
    from pyarrow import ipc, parquet

    batches: Iterable[Any]
    try:
        with pa.memory_map(str(path)) if content is None else pa.BufferReader(content) as raw:
            if kind == "Parquet":
                file = parquet.ParquetFile(raw)
                schema, groups = file.schema_arrow, map(file.metadata.row_group, range(file.num_row_groups))
                sizes = (_fitting(group.total_byte_size, group.num_rows) for group in groups)
                batches = itertools.chain.from_iterable(file.iter_batches(each, [at]) for at, each in enumerate(sizes))
            elif raw.read(6) == b"ARROW1":
                file = ipc.open_file(raw)
                schema, batches = file.schema, map(file.get_batch, range(file.num_record_batches))
            else:
                raw.seek(raw.size() - 8)
                # A reader takes a stream without its end for a short one.
                if raw.read(8) != b"\xff\xff\xff\xff\0\0\0\0":
                    raise ValueError("the stream has no end, it is cut off")
                raw.seek(0)
                batches = stream = ipc.open_stream(raw)
                schema = stream.schema
            _expect_once(schema.names, path.name)
            labels = _class_names(schema)
            where, number, before = f"{found.file} record ", 0, found.total
            for batch in batches:
                if found.full and kind == "Parquet":
                    found.total = before + file.metadata.num_rows
                    break
                if found.full:
                    found.total += batch.num_rows
                    continue
                batch.validate(full=True)  # offsets that lie lead outside of the file's memory
                step = _fitting(batch.nbytes, batch.num_rows)
                for record in (each for at in range(0, len(batch), step) for each in _unpacked(batch.slice(at, step))):
                    number += 1
                    found.add(number, where, f"{where}{number}", partial(_named, record, labels))
    except (pa.ArrowException, *DAMAGED) as error:
        raise UserError(
            f"{path.name}: broken {kind}: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            "export or download it again",
        ) from None
