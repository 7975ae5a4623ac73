"""Reading: every format, every trouble named by file and line with its fix, nothing dropped in silence."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import re
import tracemalloc
from contextlib import suppress

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from danlu.core.errors import UserError
from danlu.data.formats import BATCH, arrow, guess_encoding
from danlu.data.rows import Collected
from danlu.data.source import Rejected, cell, column, read


ROWS = [
    {"text": "crème brûlée", "label": "food"},
    {"text": "你好，世界", "label": "greeting"},
    {"text": 'a "b", c\nd', "label": "odd"},
]


def write(folder, name, content):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    raw = content.encode() if isinstance(content, str) else content
    file.write_bytes(PACK.get(file.suffix, bytes)(raw))
    return file


PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda raw: pa.compress(raw, codec="zstd", asbytes=True),
}


def jsonl(rows=ROWS):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def parquet_bytes(rows=ROWS):
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def arrow_bytes(new=ipc.new_stream, rows=ROWS, about=None):
    sink, table = pa.BufferOutputStream(), pa.Table.from_pylist(rows).replace_schema_metadata(about)
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


CSV = pd.DataFrame(ROWS).to_csv(index=False)
CONTENT = {
    "a.jsonl": (jsonl(), "JSONL"),
    "a.ndjson": (jsonl(), "JSONL"),
    "a.json": (json.dumps(ROWS, indent=1), "JSON"),
    "lines.json": (jsonl(), "JSONL"),
    "a.csv": (CSV, "CSV"),
    "a.tsv": (pd.DataFrame(ROWS).to_csv(index=False, sep="\t"), "TSV"),
    "semicolon.csv": (pd.DataFrame(ROWS).to_csv(index=False, sep=";"), "CSV separated by ';'"),
    "a.parquet": (parquet_bytes(), "Parquet"),
    "a.arrow": (arrow_bytes(), "Arrow"),
    "file.arrow": (arrow_bytes(ipc.new_file), "Arrow"),
    "lines": (jsonl(), "JSONL"),
    "table": (CSV, "CSV"),
    "crlf.jsonl": (jsonl().replace("}\n", "}\r\n"), "JSONL"),
    "bom.jsonl": (b"\xef\xbb\xbf" + jsonl().encode(), "JSONL"),
    "bom.csv": (b"\xef\xbb\xbf" + CSV.encode(), "CSV"),
    "blank.jsonl": ("\n" + jsonl().replace("\n", "\n\n") + "  \n", "JSONL"),
}


@pytest.mark.parametrize("packed", ["", *PACK])
@pytest.mark.parametrize("name", CONTENT)
def test_every_format_gives_the_same_rows(tmp_path, name, packed):
    content, expected = CONTENT[name]
    file = write(tmp_path, name + packed, content)
    source = read(file)
    assert [row.values for row in source.rows] == ROWS
    assert (source.format, source.total, source.rejected) == (expected, 3, ())
    assert source.columns == ("text", "label")
    assert source.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_line_numbers_count_blank_lines_and_records_do_not(tmp_path):
    source = read(write(tmp_path, "a.jsonl", '\n{"a": 1}\n\n{"a": 2}\n'))
    assert [row.place for row in source.rows] == ["a.jsonl:2", "a.jsonl:4"]
    source = read(write(tmp_path, "a.csv", 'text,label\n"two\nlines",x\n\nb,y\n'))
    assert [row.number for row in source.rows] == [1, 2]


TEXT = {
    "blocks.txt": ("\ufeffone\n  two\n\n \t\n你好\n\n\n", ["one\n  two", "你好"], [1, 5], "text, a document between blank lines"),
    "lines.txt": ("\n\none\ntwo\r\nthree\n\n\n", ["one", "two", "three"], [3, 4, 5], "text, a document a line"),
    "braces.txt": ("{one}\n{two}", ["{one}", "{two}"], [1, 2], "text, a document a line"),
    "page.md": ("# One\n\ntwo\n", ["# One\n\ntwo"], [1], "text, a document a file"),
}  # fmt: skip


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("name", TEXT)
def test_text_is_documents_between_blank_lines_or_lines(tmp_path, name, packed):
    content, texts, numbers, expected = TEXT[name]
    source = read(write(tmp_path, name + packed, content))
    assert [row.values for row in source.rows] == [{"text": text} for text in texts]
    assert [row.place for row in source.rows] == [f"{name}{packed}:{number}" for number in numbers]
    assert (source.format, source.total) == (expected, len(texts))


def test_records_in_a_text_file_are_records(tmp_path):
    assert read(write(tmp_path, "a.txt", jsonl())).format == "JSONL"


BAD = {
    "nul.txt": ("one\ntwo\n\nthr\0ee\n\nfour\n", "nul.txt:4", "NUL byte at byte 4"),
    "latin.txt": (b"one\n\ntwo\ncaf\xe9 noir\n\nfour\n", "latin.txt:4", "WINDOWS-1252"),
    "broken.jsonl": ('{"a": 1}\n{"a": 2,}\n{"a": 3}\n', "broken.jsonl:2", "column 9"),
    "cut.jsonl": ('{"a": 1}\n{"a": "two\n{"a": 3}\n', "cut.jsonl:2", "broken JSON"),
    "list.jsonl": ('{"a": 1}\n[1, 2]\n{"a": 3}\n', "list.jsonl:2", "found a list"),
    "text.jsonl": ('{"a": 1}\n"hello"\n{"a": 3}\n', "text.jsonl:2", "found text"),
    "twice.jsonl": ('{"a": 1}\n{"a": 2, "a": 3}\n{"a": 3}\n', "twice.jsonl:2", "'a' stands twice"),
    "half.jsonl": ('{"a": 1}\n{"a": "\\ud83d"}\n{"a": 3}\n', "half.jsonl:2", "surrogate"),
    "nul.jsonl": ('{"a": 1}\n{"a": "\0"}\n{"a": 3}\n', "nul.jsonl:2", "NUL byte at byte 8"),
    "deep.jsonl": ('{"a": 1}\n' + "[" * 100_000 + '\n{"a": 3}\n', "deep.jsonl:2", "JSON"),
    "huge.jsonl": ('{"a": 1}\n{"a": ' + "9" * 5000 + '}\n{"a": 3}\n', "huge.jsonl:2", "JSON"),
    "latin.jsonl": (b'{"a": 1}\n{"a": "caf\xe9 noir"}\n{"a": 3}\n', "latin.jsonl:2", "WINDOWS-1252"),
    "many.csv": ("a,b\n1,2\n1,2,3\n4,5\n", "many.csv:3", "found 3 columns, expected 2 (a, b)"),
    "few.csv": ("a,b\n1,2\n1\n4,5\n", "few.csv:3", "found 1 columns, expected 2"),
    "quote.csv": ('a,b\n1,2\n"x" y,2\n4,5\n', "quote.csv:3", "broken CSV"),
    "nul.csv": ("a,b\n1,2\n1,\0\n4,5\n", "nul.csv:3", "NUL byte"),
    "number.json": ('[{"a": 1}, 7, {"a": 3}]', "number.json record 2", "found a number (7)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_an_error_at_its_place_or_is_skipped_and_listed(tmp_path, name):
    content, place, reason = BAD[name]
    file = write(tmp_path, name, content)
    with pytest.raises(UserError) as raised:
        read(file)
    assert raised.value.message.startswith(f"{place}: ")
    assert reason in raised.value.message
    assert raised.value.fix
    source = read(file, bad_rows="skip")
    assert (len(source.rows), source.total) == (2, 3)
    (rejected,) = source.rejected
    assert isinstance(rejected, Rejected) and rejected.place == place and reason in rejected.reason


def test_an_unclosed_quote_is_named_where_it_opens(tmp_path):
    file = write(tmp_path, "a.csv", 'a,b\n1,2\n"open,2\n4,5\n')
    with pytest.raises(UserError, match=r"a\.csv:3: a quote is opened here and not closed"):
        read(file)
    assert [row.values for row in read(file, bad_rows="skip").rows] == [{"a": "1", "b": "2"}]


WHOLE = {
    "empty.jsonl": ("", "empty"),
    "blank.jsonl": ("\n\n", "no row"),
    "blank.txt": ("\n \n", "no row"),
    "blank.md": ("\n \n", "no row"),
    "utf16.txt": ("one two\n".encode("utf-16"), "found UTF-16 text"),
    "header.csv": ("a,b\n", "no row"),
    "nothing.json": ("[]", "no row"),
    "twice.csv": ("a,b,a\n1,2,3\n", "column 'a' stands 2 times"),
    "pretty.jsonl": ('{\n  "a": 1\n}\n', "one JSON object on each line"),
    "broken.json": ('[{"a": 1},\n {"a": 2]', "broken.json:2: broken JSON at column"),
    "utf16.jsonl": (jsonl().encode("utf-16"), "found UTF-16 text"),
    "utf16.csv": ("text,label\nhello,world\n".encode("utf-16-le"), "found UTF-16LE text"),
    "book.csv": (b"PK\x03\x04rest", "Excel"),
    "not.parquet": (b"hello", "expected a Parquet file"),
    "cut.parquet": (parquet_bytes()[:-10], "broken Parquet"),
    "not.arrow": (b"hello", "expected an Arrow stream"),
    "odd.arrow": (arrow_bytes(about={"huggingface": '{"info": 7}'}), "broken Arrow"),
    "cut.arrow": (arrow_bytes()[:-8], "broken Arrow: the stream has no end"),
    "short.arrow": (arrow_bytes(ipc.new_file)[:-20], "broken Arrow"),
    "not.warc.gz": (b"hello", "expected a web archive"),
    "unknown": ("just some words", "not recognised"),
    "every.jsonl": ("{\n{\n", "every.jsonl:1"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_cannot_be_read_says_why_and_what_to_do(tmp_path, name):
    content, message = WHOLE[name]
    file = write(tmp_path, name, content)
    with pytest.raises(UserError, match=re.escape(name)) as raised:
        read(file)
    assert message in raised.value.message
    assert raised.value.fix


def test_the_encoding_is_recognised_and_the_command_given_works(tmp_path):
    chinese = "".join(json.dumps({"text": "这本书很好看，内容丰富"}, ensure_ascii=False) + "\n" for _ in range(3))
    file = write(tmp_path, "reviews.jsonl", chinese.encode("gb18030"))
    with pytest.raises(UserError) as raised:
        read(file)
    assert raised.value.fix.startswith("iconv -f GB18030 -t UTF-8 'reviews.jsonl' > 'reviews.utf8.jsonl'")
    file = write(tmp_path, "reviews.jsonl.gz", "text\nname\n".encode("utf-16"))
    with pytest.raises(UserError) as raised:
        read(file)
    assert raised.value.fix == (
        "gzip -dc 'reviews.jsonl.gz' | iconv -f UTF-16 -t UTF-8 | gzip -c > 'reviews.utf8.jsonl.gz'"
    )


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Größe über alles, à la carte, naïve café", "WINDOWS-1252"),
        ("我们今天去看电影吧", "GB18030"),
        ("これは日本語の文章です。とても", "SHIFT_JIS"),
    ],
)
def test_guess_encoding(text, encoding):
    assert guess_encoding(text.encode(encoding)) == encoding


def test_a_line_that_differs_from_its_file_gets_no_command_that_would_break_the_others(tmp_path):
    file = write(tmp_path, "mixed.jsonl", '{"a": "é"}\n'.encode() + b'{"a": "\xe9"}\n')
    with pytest.raises(UserError, match="though earlier lines are") as raised:
        read(file)
    assert "iconv" not in raised.value.fix


def test_missing_files_and_folders(tmp_path):
    write(tmp_path, "reviews.jsonl", jsonl())
    with pytest.raises(UserError, match=r"did you mean 'reviews.jsonl'"):
        read(tmp_path / "review.jsonl")
    with pytest.raises(UserError, match=r"no file matches"):
        read(tmp_path / "*.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: found no file"):
        read(tmp_path / "empty")
    with pytest.raises(UserError, match="there is no folder"):
        read(tmp_path / "no" / "a.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read("x" * 5000)


@pytest.mark.parametrize("packed", PACK)
def test_a_damaged_archive_is_told_whether_it_ends_early_or_has_other_bytes_in_it(tmp_path, packed):
    file = write(tmp_path, f"a.jsonl{packed}", jsonl([{"text": f"{n * n}"} for n in range(3000)]))
    whole = file.read_bytes()
    half = len(whole) // 2
    for damaged in (whole[:-9], whole[:half], whole[:half] + bytes(40) + whole[half + 40 :]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"^a\.jsonl{packed}: broken \w+ data after \d+ rows"):
            read(file, bad_rows="skip")


@pytest.mark.parametrize("packed", PACK)
def test_archives_written_one_behind_the_other_are_one(tmp_path, packed):
    file = write(tmp_path, f"a.txt{packed}", "one\n")
    file.write_bytes(file.read_bytes() * 2)
    assert [row.values["text"] for row in read(file).rows] == ["one", "one"]


def test_a_file_that_grows_without_measure_is_refused(tmp_path):
    file = write(tmp_path, "a.txt.zst", (b"a" * (1 << 20) + b"\n") * 257)
    with pytest.raises(UserError, match="over 200 times as much"):
        read(file)


def test_several_files_are_one_source_in_order_and_each_row_keeps_its_place(tmp_path, monkeypatch):
    one, two = jsonl(ROWS[:1]), "\n" + jsonl(ROWS[1:])
    write(tmp_path, "deep/b.jsonl.gz", two)
    write(tmp_path, "deep/a.jsonl", one)
    write(tmp_path, "deep/README.md", "about")
    monkeypatch.chdir(tmp_path)
    for place, named in (("deep", ""), ("deep/*.jsonl*", "deep/"), ("deep/a.jsonl,deep/b.jsonl.gz", "deep/")):
        source = read(place)
        assert [row.values for row in source.rows] == ROWS
        assert source.name == place
        assert [row.place for row in source.rows] == [
            f"{named}{each}" for each in ("a.jsonl:1", "b.jsonl.gz:2", "b.jsonl.gz:3")
        ]
        assert source.format == "JSONL, 2 files" + (" (not read: README.md)" if place == "deep" else "")
        sums = "".join(
            f"{hashlib.sha256((tmp_path / 'deep' / name).read_bytes()).hexdigest()}  {named}{name}\n"
            for name in ("a.jsonl", "b.jsonl.gz")
        )
        assert source.sha256 == hashlib.sha256(sums.encode()).hexdigest()
    assert [row.values for row in read("deep/b.jsonl.gz,deep/a.jsonl").rows] == [*ROWS[1:], ROWS[0]]
    assert (read("deep", max_rows=2).total, len(read("deep", max_rows=2).rows)) == (3, 2)
    with pytest.raises(UserError, match=r"c\.jsonl: no such file"):
        read("deep/a.jsonl,deep/c.jsonl")


def test_a_name_with_commas_and_brackets_is_a_name(tmp_path):
    assert len(read(write(tmp_path, "a,b[1]*.jsonl", jsonl())).rows) == 3


def test_a_folder_of_texts_is_a_document_a_file(tmp_path):
    write(tmp_path, "b.txt", "one\n\ntwo\n")
    write(tmp_path, "a/z.md.gz", "# three")
    write(tmp_path, ".git/c.txt", "hidden")
    source = read(tmp_path)
    assert [row.values for row in source.rows] == [
        {"text": "# three", "file": "a/z.md.gz"},
        {"text": "one\n\ntwo", "file": "b.txt"},
    ]
    assert source.format == "text, a document a file, 2 files"


def test_files_that_do_not_belong_together_are_not_mixed(tmp_path):
    write(tmp_path, "kinds/a.csv", CSV)
    write(tmp_path, "kinds/b.jsonl", jsonl())
    with pytest.raises(UserError, match=r"found CSV: a\.csv; JSONL: b\.jsonl, expected files of one kind"):
        read(tmp_path / "kinds")
    with pytest.raises(UserError, match=r"b\.jsonl: found JSONL, but .*a\.csv is CSV"):
        read(f"{tmp_path}/kinds/a.csv,{tmp_path}/kinds/b.jsonl")
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        write(tmp_path, f"hub/data/{name}.parquet", parquet_bytes())
    with pytest.raises(UserError, match=r"holds the splits test, train") as raised:
        read(tmp_path / "hub")
    named = re.findall("data='([^']*)'", raised.value.fix)
    assert [read(each).total for each in named] == [3, 6]


def test_a_folder_of_hugging_face_datasets_is_its_shards_in_their_order(tmp_path):
    names = [f"data-{number:05d}-of-00003.arrow" for number in (2, 0, 1)]
    for name, row in zip(names, ROWS, strict=True):
        write(tmp_path, f"all/train/{name}", arrow_bytes(rows=[row]))
    write(
        tmp_path,
        "all/train/state.json",
        json.dumps({"_data_files": [{"filename": name} for name in names], "_split": "train"}),
    )
    write(tmp_path, "all/train/dataset_info.json", "{}")
    write(tmp_path, "all/train/cache-1f2e.arrow", arrow_bytes())  # left behind by map(); not the dataset's
    write(tmp_path, "all/dataset_dict.json", json.dumps({"splits": ["train"]}))
    source = read(tmp_path / "all" / "train")
    assert [row.values for row in source.rows] == ROWS
    assert source.rows[0].place == f"{names[0]} record 1"
    assert source.format == "Arrow, 3 files"
    with pytest.raises(UserError, match="holds the splits train") as raised:
        read(tmp_path / "all")
    assert str(tmp_path / "all" / "train") in raised.value.fix
    (tmp_path / "all" / "train" / names[1]).unlink()
    with pytest.raises(UserError, match=rf"{names[1]}: no such file"):
        read(tmp_path / "all" / "train")
    write(tmp_path, "all/train/state.json", "[]")
    with pytest.raises(UserError, match=r"state\.json: not the file"):
        read(tmp_path / "all" / "train")


def test_a_date_that_python_does_not_know_costs_its_row_alone(tmp_path):
    dates = pa.array([0, 10**9, 5], pa.date32())
    parquet.write_table(pa.table({"text": list("abc"), "day": dates}), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet", bad_rows="skip")
    assert [row.values["text"] for row in found.rows] == ["a", "c"] and found.total == 3
    assert [each.place for each in found.rejected] == ["a.parquet record 2"]


@pytest.mark.parametrize("name", ["a.arrow", "a.parquet"])
def test_classes_that_hugging_face_datasets_writes_as_numbers_have_their_names(tmp_path, name):
    features = {
        "text": {"dtype": "string", "_type": "Value"},
        "label": {"names": ["bad", "good"], "_type": "ClassLabel"},
    }
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"text": list("abcd"), "label": [1, 0, -1, None]}).replace_schema_metadata(about)

    def write_table(table):
        with (tmp_path / name).open("wb") as out:
            if name == "a.parquet":
                parquet.write_table(table, out)
            else:
                with ipc.new_stream(out, table.schema) as writer:
                    writer.write_table(table)

    write_table(table)
    assert [row.values["label"] for row in read(tmp_path / name).rows] == ["good", "bad", None, None]
    write_table(pa.table({"label": [0, 2]}).replace_schema_metadata(about))
    with pytest.raises(
        UserError, match=rf"{name} record 2: class 2 in column 'label', which has the 2 classes bad, good"
    ):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.arrow", "a.parquet"])
def test_of_a_file_of_long_records_a_part_is_unpacked_at_a_time(tmp_path, name):
    class Counted(Collected):
        def add(self, number, where, place, record):
            self.total += len(record()["text"])

    table = pa.table({"text": [f"{row} " + "x" * 200_000 for row in range(300)], "row": list(range(300))})
    with (tmp_path / name).open("wb") as out:
        if name == "a.parquet":
            parquet.write_table(table, out, row_group_size=250)
        else:
            with ipc.new_stream(out, table.schema) as writer:
                writer.write_table(table)
    found = Counted(name, "error", None)
    tracemalloc.start()
    arrow(tmp_path / name, None, found, "Parquet" if name == "a.parquet" else "Arrow")
    assert tracemalloc.get_traced_memory()[1] < 2.2 * BATCH < found.total / 1.6
    tracemalloc.stop()
    assert found.total == sum(map(len, table["text"].to_pylist()))


def test_max_rows_keeps_the_first_and_counts_all(tmp_path):
    for name, content in {
        "a.jsonl": jsonl(ROWS * 10),
        "a.csv": "a\n" + "1\n" * 30,
        "a.parquet": parquet_bytes(ROWS * 10),
        "a.arrow": arrow_bytes(rows=ROWS * 10),
    }.items():
        source = read(write(tmp_path, name, content), max_rows=4)
        assert (len(source.rows), source.total) == (4, 30)


def test_long_fields_are_read_and_the_limit_of_csv_is_left_as_it_was(tmp_path):
    import csv

    before = csv.field_size_limit()
    long = "x" * 300_000
    assert read(write(tmp_path, "a.csv", f"a\n{long}\n")).rows[0].values == {"a": long}
    assert read(write(tmp_path, "a.jsonl", json.dumps({"a": long}))).rows[0].values == {"a": long}
    assert csv.field_size_limit() == before


PYTHON = {
    "list of dicts": ROWS,
    "generator": (row for row in ROWS),
    "pandas": pd.DataFrame(ROWS),
    "arrow": pa.Table.from_pylist(ROWS),
    "columns": {"text": [row["text"] for row in ROWS], "label": np.array([row["label"] for row in ROWS])},
}


@pytest.mark.parametrize("name", PYTHON)
def test_python_data_gives_the_same_rows_and_the_same_hash(name):
    source = read(PYTHON[name])
    assert [row.values for row in source.rows] == ROWS
    assert source.sha256 == read(ROWS).sha256
    assert source.name == "Python"


def test_python_numbers_become_pythons_own_and_missing_ones_none():
    source = read(
        pd.DataFrame(
            {
                "n": [1.5, float("nan")],
                "when": pd.to_datetime(["2020-01-01", None]),
                "x": list(np.eye(2, dtype=np.float32)),
            }
        )
    )
    assert [row.values["n"] for row in source.rows] == [1.5, None]
    assert source.rows[1].values["when"] is None
    assert source.rows[0].values["x"] == [1.0, 0.0]
    assert (
        read({"n": np.array([1, 2])}).sha256 == read([{"n": 1}, {"n": 2}]).sha256 != read([{"n": 2}, {"n": 1}]).sha256
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (7, "found int"),
        ([], "no row"),
        (["text"], "row 1: found text"),
        ([{1: "a"}], "column's name"),
        ([{"a": object()}], "cannot be kept"),
        ([{"a": "\ud800"}], "surrogate"),
        ({"a": [1, 2], "b": [1]}, "different lengths (a: 2, b: 1)"),
        ({"a": "text"}, "expected a list"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "2 columns named 'a'"),
    ],
)
def test_bad_python_data(data, message):
    with pytest.raises(UserError) as raised:
        read(data)
    assert message in raised.value.message and raised.value.fix


def test_column():
    source = read([{"Text": "a", "stars": 1}, {"Text": "b", "note": 2}])
    assert column(source, None, ("text", "sentence"), "text") == "Text"
    assert column(source, "note", (), "label") == "note"
    with pytest.raises(UserError, match=r"no column 'star'.*'Text', 'stars', 'note'.*(?s:.)*did you mean 'stars'"):
        column(source, "star", (), "label")
    with pytest.raises(
        UserError, match=r"no column for label: looked for label, class; it has 'Text'.*(?s:.)*label=COLUMN"
    ):
        column(source, None, ("label", "class"), "label")


def test_cell_names_the_row():
    source = read([{"text": "a", "label": 0}, {"text": "", "label": None}, {"label": 1}])
    assert cell(source.rows[0], "label") == 0
    for row, name, found in ((1, "text", "is empty"), (1, "label", "is null"), (2, "text", "is missing")):
        with pytest.raises(UserError, match=f"row {row + 1}: column '{name}' {found}"):
            cell(source.rows[row], name)


@given(content=st.binary(max_size=300), name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a", "a.jsonl.gz", "a.txt", "a.md", "a.arrow", "a.jsonl.bz2", "a.jsonl.xz", "a.jsonl.zst", "a.warc", "a.xml"]), start=st.sampled_from([b"", b"PAR1", b"\x1f\x8b\x08\x00", b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"ARROW1", b"\xff\xff\xff\xff", b"WARC/1.0\r\n", b"<mediawiki>", b"[", b"{", b"a,b\n", b"\xff\xfe", b'{"a": 1}\n']), bad_rows=st.sampled_from(["error", "skip"]))  # fmt: skip
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_bytes_only_a_user_error_is_raised_and_every_row_is_accounted_for(
    tmp_path, content, name, start, bad_rows
):
    file = tmp_path / name
    file.write_bytes(start + content)
    with suppress(UserError):
        source = read(file, bad_rows=bad_rows)
        assert source.total == len(source.rows) + len(source.rejected) > 0


@given(rows=st.lists(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), st.text(st.characters(codec="utf-8")) | st.integers() | st.none(), min_size=1), min_size=1))  # fmt: skip
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_as_jsonl_is_read_back(tmp_path, rows):
    file = tmp_path / "a.jsonl"
    file.write_text(jsonl(rows), encoding="utf-8", newline="")
    assert [row.values for row in read(file).rows] == rows


def test_addresses_of_fsspec_are_read_where_they_lie(tmp_path):
    import fsspec

    there = fsspec.filesystem("memory")
    for name, word in (("one", "fire"), ("two", "water")):
        with there.open(f"/bucket/{name}.jsonl.gz", "wb") as file:
            file.write(gzip.compress(b'{"text": "%s"}\n' % word.encode(), mtime=0))
    one = read("memory://bucket/one.jsonl.gz")
    assert (one.name, one.format, one.rows[0].values, one.rows[0].place) == (
        "one.jsonl.gz", "JSONL", {"text": "fire"}, "one.jsonl.gz:1",
    )  # fmt: skip
    both = read("memory://bucket/*.jsonl.gz")
    assert [row.values["text"] for row in both.rows] == ["fire", "water"]
    assert [row.place for row in both.rows] == ["memory:///bucket/one.jsonl.gz:1", "memory:///bucket/two.jsonl.gz:1"]
    here = tmp_path / "one.jsonl.gz"
    here.write_bytes(gzip.compress(b'{"text": "fire"}\n', mtime=0))
    assert one.sha256 == read(here).sha256
    for address, said in (
        ("memory://bucket/three.jsonl", "no such file"),
        ("memory://bucket/*.csv", "no file matches"),
        ("nowhere://bucket/one", "does not know this address"),
    ):
        with pytest.raises(UserError, match=said):
            read(address)


def test_what_a_stray_quote_swallows_is_said(tmp_path):
    file = write(tmp_path, "a.csv", 'text,label\nfine,1\n"open,2\ngood one,3\ngood two,4\nend" x,5\nlast,6\n')
    found = read(file, bad_rows="skip")
    assert [row.values["text"] for row in found.rows] == ["fine", "last"]
    assert found.rejected[0].place == "a.csv:3" and "lines 3 to 6 were taken for one record" in found.rejected[0].reason


def test_what_a_text_file_holds_is_known_only_at_its_end(tmp_path):
    lines = [f"line {number}" for number in range(20_000)]
    file = tmp_path / "long.txt"
    file.write_text("\n".join(lines) + "\n")
    assert len(read(file).rows) == 20_000
    file.write_text("\n".join(lines) + "\n\nthe end\n")
    found = read(file)
    assert [row.place for row in found.rows] == ["long.txt:1", "long.txt:20002"]
    assert found.rows[0].values["text"] == "\n".join(lines)


def test_offsets_that_lead_out_of_the_file_are_damage(tmp_path):
    import pyarrow as pa

    file = tmp_path / "a.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, pa.schema([("text", pa.string())])) as writer:
        writer.write(pa.record_batch([pa.array(["one", "two", "three"])], names=["text"]))
    content = bytearray(file.read_bytes())
    at = content.index((3).to_bytes(4, "little") + (6).to_bytes(4, "little"))
    content[at : at + 4] = (0x70000000).to_bytes(4, "little")
    file.write_bytes(content)
    with pytest.raises(UserError, match="broken Arrow"):
        read(file)


def test_a_pipe_is_told(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="is a pipe or a device"):
        read(tmp_path / "a.jsonl")
