"""Readers of crawls and encyclopedias: Common Crawl's WARC and WET, and XML dumps of MediaWiki (Wikipedia).

What in them is no document is left out and counted in `Collected.left_out`; what is one and cannot be read is a rejected row.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import IO, Any, cast
from xml.parsers import expat

from danlu.core.errors import UserError
from danlu.data.rows import Collected, NoRecord, RowError, Unreachable


DEEPEST = 512
"""Elements within elements. Browsers stop here too (Blink's kMaximumHTMLParserDOMTreeDepth); finding the main content of a page takes
time that grows with the square of its depth."""

UNCLOSED = 200
"""Marks of an article that are opened and not closed: the time to read it grows with their square."""

LARGEST = 1 << 26
"""Bytes of one document, unpacked. Crawlers keep less of a page; a page packed so that it fills the memory is refused."""


class _Tail:
    """A stream that remembers how much and which bytes were read last."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.count, self.last = stream, 0, b""

    def read(self, count: int = -1) -> bytes:
        content = self.stream.read(count)
        self.count += len(content)
        self.last = (self.last + content)[-4:]
        return content

    def tell(self) -> int:
        return self.count


def warc(stream: IO[bytes], found: Collected) -> None:
    """Columns text, url and date (of the crawl): WET's texts as they are; of the pages in a WARC the main text.

    Read are records of type `conversion`, and of type `response` with status 200 and HTML. The main text is found by Resiliparse
    (Bevendorff et al., ECIR 2018), in the encoding that the page is found to have.
    """
    try:
        from fastwarc.warc import ArchiveIterator, WarcRecordType
        from resiliparse.extract import html2text  # noqa: F401 (missing here rather than at the first page)
    except ImportError as error:
        raise _needs(found, error) from None
    number, tail = 0, _Tail(stream)
    where = f"{found.file} record "
    try:
        for record in ArchiveIterator(cast(Any, tail), stream_detect=False, auto_decode="all"):
            number += 1
            page = record.record_type == WarcRecordType.response
            if page and getattr(record.http_headers, "status_code", None) != 200:
                found.left_out["answers other than 200"] += 1
            elif page and record.http_content_type not in ("text/html", "application/xhtml+xml"):
                found.left_out["answers other than HTML"] += 1
            elif page or record.record_type == WarcRecordType.conversion:
                encoded = page and {"content-encoding", "transfer-encoding"} & {
                    name.lower() for name, _ in record.http_headers
                }
                expected = record.content_length
                content = record.reader.read(LARGEST + 1)
                while len(content) > LARGEST and record.reader.read(1 << 20):
                    pass  # the iterator finds the next record behind what is read to its end
                if not encoded and len(content) < min(expected, LARGEST):
                    raise OSError(f"its content ends after {len(content)} of {expected} bytes")
                others = {"url": record.headers.get("WARC-Target-URI"), "date": record.headers.get("WARC-Date")}
                read = partial(_document, _page if page else _utf8, content, others)
                found.add(number, where, f"{where}{number}", read)
        if tail.last != b"\r\n\r\n":
            raise OSError("the file ends within it")
    except OSError as error:
        if error.errno:  # the disk's fault, not the file's
            raise
        raise UserError(
            f"{where}{number}: broken WARC: {error}", "copy or download the file again; it is cut off or damaged"
        ) from None


def _page(content: bytes) -> str:
    from resiliparse.parse.encoding import detect_encoding
    from resiliparse.parse.html import HTMLTree

    if len(content) > LARGEST:
        raise RowError(f"a page of more than {LARGEST:,} bytes")
    tree = HTMLTree.parse_from_bytes(content, detect_encoding(content, html5_compatible=True) or "utf-8")
    return _text(tree, content.count(b"<"), main=True)


def html_text(markup: str, *, main: bool) -> str:
    """The main text of a page, or all text of a piece of HTML, by Resiliparse; RowError: more than DEEPEST elements within each other."""
    from resiliparse.parse.html import HTMLTree

    return _text(HTMLTree.parse(markup), markup.count("<"), main)


def _text(tree: Any, brackets: int, main: bool) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    node, depth = tree.document if brackets > DEEPEST else None, 0
    while node is not None:  # from node to node: a list of an element's children is made anew for each of them
        if node.first_child is not None:
            node, depth = node.first_child, depth + 1
            if depth > DEEPEST:
                raise RowError(f"HTML with more than {DEEPEST} elements within each other")
            continue
        while node is not None and node.next is None:
            node, depth = node.parent, depth - 1
        node = node.next if node is not None else None
    return str(extract_plain_text(tree, main_content=main, alt_texts=False)).strip()


def _utf8(content: bytes) -> str:
    if len(content) > LARGEST:
        raise RowError(f"a text of more than {LARGEST:,} bytes")
    try:
        return content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise RowError(
            f"byte 0x{content[error.start]:02x} at byte {error.start + 1} of the text is not UTF-8"
        ) from None


def _document(read: Callable[[bytes], str], content: bytes, others: dict[str, Any]) -> dict[str, Any]:
    text = read(content)
    if not text:
        raise NoRecord("documents without text")
    return {"text": text, **others}


class _Dump:
    """What expat calls while it reads a dump: keeps the page at hand, and hands it on when it ends."""

    def __init__(self, found: Collected) -> None:
        self.found, self.number, self.depth = found, 0, 0
        self.where = f"{found.file} page "
        self.marks = {"file", "image", "media", "category"}
        self.page: dict[str, str] = {}
        self.content: list[str] = []

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.depth += 1
        if self.depth == 1 and tag != "mediawiki":
            raise UserError(
                f"{self.found.file}: found XML of <{tag}>, expected a dump of MediaWiki (<mediawiki>)",
                "turn it into JSONL with one object a document",
            )
        if tag == "page":
            self.page = {}
        elif tag == "redirect":
            self.page["redirect"] = "yes"
        elif tag == "namespace":
            self.page["key"] = attributes.get("key", "")
        self.content = []

    def data(self, text: str) -> None:
        self.content.append(text)

    def end(self, tag: str) -> None:
        self.depth -= 1
        if tag in ("title", "ns", "text"):  # of several revisions the last one's text stays
            self.page[tag] = "".join(self.content)
        elif tag == "namespace" and self.page["key"] in ("-2", "6", "14"):
            self.marks.add("".join(self.content).lower())  # media, file, category, in the dump's language
        elif tag == "page":
            self.number += 1
            self.add()
        self.content = []

    def add(self) -> None:
        if self.page.get("ns") != "0":
            self.found.left_out["pages of other namespaces"] += 1
        elif "redirect" in self.page:
            self.found.left_out["redirects"] += 1
        else:
            read = partial(_article, self.page.get("text", ""), frozenset(self.marks), self.page.get("title", ""))
            self.found.add(self.number, self.where, f"{self.where}{self.number}", read)


def wikipedia(stream: IO[bytes], found: Collected) -> None:
    """Columns text and title: the articles of a dump, without markup, tables, templates and references. Page by page."""
    try:
        import mwparserfromhell  # noqa: F401 (missing here rather than at the first page)
    except ImportError as error:
        raise _needs(found, error) from None

    def refuse(*declared: Any) -> None:
        raise UserError(
            f"{found.file}: found a declaration of the entity {declared[0]!r}, which no dump of MediaWiki has",
            "such a file is made to fill the memory or to read other files; get the dump elsewhere",
        )

    dump, parser = _Dump(found), expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = dump.start, dump.end, dump.data
    parser.EntityDeclHandler = refuse
    try:
        parser.ParseFile(stream)
    except expat.ExpatError as error:
        raise UserError(
            f"{found.file}:{error.lineno}: broken XML after {dump.number} pages: {expat.ErrorString(error.code)}",
            "copy or download the file again; it is cut off or damaged",
        ) from None
    except (LookupError, ValueError) as error:  # of an encoding that it names
        raise UserError(
            f"{found.file}: broken XML: {error}", "dumps of MediaWiki are UTF-8; get it elsewhere"
        ) from None


def _article(markup: str, marks: frozenset[str], title: str) -> dict[str, Any]:
    """marks: the names in front of links that are no text, such as `file` and `category`, lower case."""
    import mwparserfromhell
    from mwparserfromhell.nodes import Tag, Wikilink

    for begin, end in (("{{", "}}"), ("[[", "]]"), ("<", ">"), ("{|", "|}")):
        if (open_ := markup.count(begin) - markup.count(end)) > UNCLOSED:
            raise RowError(f"markup in which {begin} stands {open_:,} times more often than {end}")
    try:
        code = mwparserfromhell.parse(markup)
    except mwparserfromhell.parser.ParserError as error:
        raise RowError(f"markup that cannot be read: {error}") from None
    code.nodes = [
        node
        for node in code.nodes
        if not (isinstance(node, Tag) and str(node.tag) == "table")
        and not (isinstance(node, Wikilink) and str(node.title).partition(":")[0].strip().lower() in marks)
    ]
    text = re.sub(r"__[A-Z]+__", "", str(code.strip_code(normalize=True, collapse=True)))
    plain = "\n".join(line.strip() for line in text.strip().splitlines())
    if not plain:
        raise NoRecord("pages without text")
    return {"text": plain, "title": title}


def _needs(found: Collected, error: ImportError) -> UserError:
    return Unreachable(f"{found.file}: reading it needs {error.name}, which is not here", "pip install 'danlu[corpus]'")
