"""Crawls and encyclopedias, as warcio and MediaWiki write them: what is a document, what is left out, and damage."""

from __future__ import annotations

import bz2
import gzip
import io
import warnings

import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from danlu.core.errors import UserError
from danlu.data.source import read


PAGE = """<html><head><title>T</title><script>var x = 1;</script></head><body><nav><a href="/">Home</a></nav>
<main><h1>Tea</h1><p>{}</p></main><footer><a href="x">imprint</a></footer></body></html>"""
STORY = "Green tea is steamed &amp; dried, black tea is left to oxidise before it is dried."
HTML = [("Content-Type", "text/html")]


def response(url, body, headers=HTML, status="200 OK"):
    return {
        "uri": url,
        "record_type": "response",
        "payload": io.BytesIO(body),
        "http_headers": StatusAndHeaders(status, headers, protocol="HTTP/1.1"),
    }


def conversion(url, text):
    return {
        "uri": url,
        "record_type": "conversion",
        "payload": io.BytesIO(text),
        "warc_content_type": "text/plain",
        "warc_headers_dict": {"WARC-Date": "2024-05-01T10:00:00Z"},
    }


def write(file, records, packed=True):
    with file.open("wb") as out, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # warcio leaves a temporary file open for each record
        writer = WARCWriter(out, gzip=packed)
        writer.write_record(writer.create_warcinfo_record(file.name, {"software": "test"}))
        for record in records:
            writer.write_record(writer.create_warc_record(**record))
    return file


WET = [conversion(f"http://a.org/{n}", text.encode()) for n, text in enumerate(("Tea é 茶\nis hot\n", " \n", "third"))]


@pytest.mark.parametrize("name", ["a.wet.gz", "a.wet", "a.warc.wet.gz", "named-otherwise"])
def test_wet_is_text_url_and_date(tmp_path, name):
    for record in WET:
        record["payload"].seek(0)
    source = read(write(tmp_path / name, WET, packed=name.endswith(".gz")))
    assert [row.values for row in source.rows] == [
        {"text": "Tea é 茶\nis hot", "url": "http://a.org/0", "date": "2024-05-01T10:00:00Z"},
        {"text": "third", "url": "http://a.org/2", "date": "2024-05-01T10:00:00Z"},
    ]
    assert source.rows[1].place == f"{name} record 4"
    assert (source.total, source.format) == (2, "WARC; left out: 1 documents without text")


def test_warc_is_the_main_text_of_html_pages_in_their_own_encoding(tmp_path):
    chinese = "我们今天去看电影吧，内容丰富，大家都很喜欢。"
    records = [
        response("http://a.org/utf8", PAGE.format(STORY).encode()),
        response("http://a.org/gbk", b'<meta charset="gb2312">' + PAGE.format(chinese).encode("gb18030")),
        response("http://a.org/packed", gzip.compress(PAGE.format(STORY).encode()), [*HTML, ("Content-Encoding", "gzip")]),
        response("http://a.org/image", b"\x89PNG", [("Content-Type", "image/png")]),
        response("http://a.org/gone", gzip.compress(PAGE.encode() * 99), [*HTML, ("Content-Encoding", "gzip")], "404 Not Found"),
        response("http://a.org/script", b"<script>document.write('x')</script>"),
        {"uri": "http://a.org/utf8", "record_type": "request", "payload": io.BytesIO(b"GET / HTTP/1.1\r\n\r\n")},
    ]  # fmt: skip
    source = read(write(tmp_path / "a.warc.gz", records))
    story = STORY.replace("&amp;", "&")
    assert [(row.values["url"], row.values["text"]) for row in source.rows] == [
        ("http://a.org/utf8", f"Tea\n\n{story}"),
        ("http://a.org/gbk", f"Tea\n\n{chinese}"),
        ("http://a.org/packed", f"Tea\n\n{story}"),
    ]
    assert source.format == (
        "WARC; left out: 1 answers other than HTML, 1 answers other than 200, 1 documents without text"
    )


def test_a_page_nested_beyond_measure_costs_no_time(tmp_path):
    deep = response("http://a.org/deep", b"<div>" * 100_000 + b"hello")
    file = write(tmp_path / "a.warc", [response("http://a.org/", PAGE.format(STORY).encode()), deep], packed=False)
    with pytest.raises(UserError, match=r"a\.warc record 3: HTML with more than 512 elements within each other"):
        read(file)


def test_a_page_packed_to_fill_the_memory_is_a_rejected_row(tmp_path):
    packed = gzip.compress(b"<p>tea" * (12 << 20), 1)
    bomb = response("http://a.org/", packed, [*HTML, ("Content-Encoding", "gzip")])
    source = read(
        write(tmp_path / "a.warc", [bomb, response("http://b.org/", b"<p>tea")], packed=False), bad_rows="skip"
    )
    assert [row.values["text"] for row in source.rows] == ["tea"]
    assert [(each.place, each.reason) for each in source.rejected] == [
        ("a.warc record 2", "a page of more than 67,108,864 bytes")
    ]


def test_text_that_is_not_utf8_is_a_rejected_row(tmp_path):
    file = write(tmp_path / "a.wet", [conversion("http://a.org/", b"caf\xe9"), conversion("http://b.org/", b"tea")])
    with pytest.raises(UserError, match=r"a\.wet record 2: byte 0xe9 at byte 4"):
        read(file)
    source = read(file, bad_rows="skip")
    assert (len(source.rows), len(source.rejected), source.total) == (1, 1, 2)


def test_wherever_a_web_archive_is_cut_off_it_is_an_error(tmp_path):
    page = response("http://a.org/", PAGE.format(STORY).encode(), [*HTML, ("X", "y" * 40)])
    whole = write(tmp_path / "a.warc", [conversion("http://b.org/", b"tea" * 9), page], packed=False).read_bytes()
    file = tmp_path / "cut.warc"
    ends = {whole.find(b"WARC/1.0", start) for start in range(len(whole))} | {len(whole)}
    for length in set(range(8, len(whole), 7)) - ends:
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.warc record \d: broken WARC"):
            read(file)
    file.write_bytes(whole[:300] + b"\0" * 60 + whole[360:])
    with pytest.raises(UserError, match=r"cut\.warc record \d: broken WARC"):
        read(file)


DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
<siteinfo><sitename>Wikipedia</sitename><namespaces>
<namespace key="0" case="first-letter" /><namespace key="1">Diskussion</namespace>
<namespace key="6">Datei</namespace><namespace key="14">Kategorie</namespace></namespaces></siteinfo>
{}</mediawiki>
"""
ARTICLE = """{{Infobox|name=Tee}}
'''Tee''' ist ein [[Getränk|Getränk aus Blättern]].&lt;ref&gt;{{cite|a}}&lt;/ref&gt; Er enthält 3&amp;nbsp;% [[Koffein]].
[[Datei:Tee.jpg|mini|Eine [[Tasse]] Tee]]
== Arten ==
* grün
* schwarz
{| class="wikitable"
| 1 || 2
|}
__NOTOC__ &lt;!-- still --&gt;
[[Kategorie:Getränk]] [[Category:Tea]]"""
PLAIN = "Tee ist ein Getränk aus Blättern. Er enthält 3\xa0% Koffein.\n\nArten\ngrün\nschwarz"


def page(title, text, ns=0, more=""):
    return f'<page><title>{title}</title><ns>{ns}</ns><id>1</id>{more}<revision><id>2</id><contributor><username>u</username></contributor><model>wikitext</model><text bytes="9" xml:space="preserve">{text}</text></revision></page>\n'


PAGES = [
    page("Tea", "#REDIRECT [[Tee]]", more='<redirect title="Tee" />'),
    page("Tee", ARTICLE),
    page("Diskussion:Tee", "talk", ns=1),
    page("Leer", "{{only a template}}"),
    page("R&amp;D", "one &lt; two"),
]


@pytest.mark.parametrize("name", ["dewiki-pages-articles.xml.bz2", "dewiki.xml", "dewiki"])
def test_a_dump_of_wikipedia_is_its_articles_as_plain_text(tmp_path, name):
    raw = DUMP.format("".join(PAGES)).encode()
    half = len(raw) // 2  # Wikimedia's dumps are many bzip2 streams one behind the other
    file = tmp_path / name
    file.write_bytes(bz2.compress(raw[:half]) + bz2.compress(raw[half:]) if name.endswith("bz2") else raw)
    source = read(file)
    assert [row.values for row in source.rows] == [
        {"text": PLAIN, "title": "Tee"},
        {"text": "one < two", "title": "R&D"},
    ]
    assert [row.place for row in source.rows] == [f"{name} page 2", f"{name} page 5"]
    assert (source.total, source.format) == (
        2,
        "Wikipedia XML; left out: 1 redirects, 1 pages of other namespaces, 1 pages without text",
    )


def test_of_several_revisions_the_last_is_read(tmp_path):
    two = page("A", "old").replace("</page>", "<revision><text>new</text></revision></page>")
    (tmp_path / "a.xml").write_text(DUMP.format(two))
    assert [row.values["text"] for row in read(tmp_path / "a.xml").rows] == ["new"]


BROKEN = {
    "cut": (DUMP.format("".join(PAGES))[:-40], r"a\.xml:\d+: broken XML after 4 pages"),
    "other": ("<rss><channel/></rss>", "found XML of <rss>, expected a dump of MediaWiki"),
    "bomb": (
        '<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>' + DUMP.format(page("A", "&b;")),
        "declaration of the entity 'a'",
    ),
    "file": (
        '<!DOCTYPE m [<!ENTITY a SYSTEM "file:///etc/hostname">]>' + DUMP.format(page("A", "&a;")),
        "declaration of the entity 'a'",
    ),
    "nothing": (DUMP.format(""), "no row"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_dump_that_is_damaged_or_made_to_harm_is_refused(tmp_path, name):
    content, message = BROKEN[name]
    (tmp_path / "a.xml").write_text(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.xml")


def test_the_first_articles_of_a_dump_are_kept_and_all_are_counted(tmp_path):
    (tmp_path / "a.xml").write_text(DUMP.format("".join(page(f"A{n}", f"text {n}") for n in range(9))))
    source = read(tmp_path / "a.xml", max_rows=3)
    assert ([row.values["title"] for row in source.rows], source.total) == (["A0", "A1", "A2"], 9)


@pytest.mark.parametrize("mark", ["<b ", "{{a|", "[[", "{|"])
def test_markup_that_is_opened_and_never_closed_is_refused(tmp_path, mark):
    text = mark.replace("<", "&lt;") * 50_000
    file = tmp_path / "a.xml"
    file.write_text(
        f"<mediawiki><page><title>T</title><ns>0</ns><revision><text>{text}</text></revision></page></mediawiki>"
    )
    with pytest.raises(UserError, match="times more often than"):
        read(file)


@pytest.mark.parametrize("encoding", ["utf-7", "nonsense"])
def test_a_dump_in_no_encoding(tmp_path, encoding):
    (tmp_path / "a.xml").write_text(f'<?xml version="1.0" encoding="{encoding}"?><mediawiki></mediawiki>')
    with pytest.raises(UserError, match="broken XML"):
        read(tmp_path / "a.xml")


def test_a_page_with_many_paragraphs_is_read_in_time_that_grows_with_it():
    from danlu.data.archives import html_text

    text = html_text("<p>A fine line of text." * 20_000, main=False)
    assert text.count("fine") == 20_000
