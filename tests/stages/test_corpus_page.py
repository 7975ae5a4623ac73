"""The data card of a corpus, and what the page of a run says of the corpus it learned from."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.stages.conftest import lines
from tests.stages.test_curate import CHINESE, documents, made
from tests.stages.test_report import HOSTILE, Page, put

from danlu.core.errors import UserError
from danlu.stages import report
from danlu.stages.plots import number


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Sources of two kinds with everything that can happen to a record: (corpus.json, its page)."""
    folder = tmp_path_factory.mktemp("page")
    notes = documents(60)
    rows = [{"text": text} for text in [*notes, notes[3].upper(), notes[4].replace("Note", "Entry"), CHINESE * 4]]
    rows += [
        {"text": "clay\nash.\nsalt\n" * 9},
        *({"text": f"{HOSTILE} {where} says \x01 and \u202e"} for where in ("one", "two")),
    ]
    rows += [{"text": f"{notes[0]} Write to {name}@mail.example.org or 8.8.8.8."} for name in ("ann", "ben")]
    (folder / "sources").mkdir()
    lines(folder / "sources" / "<b onclick=x>.jsonl", rows)
    (folder / "sources" / "z.jsonl").write_text('{"text": 7}\n{"other": "<i>"}\n', "utf-8")
    made(
        folder / "mine", data=folder / "sources", bad_share=0.1, cleaning="encoding,language,personal,quality", quality="fineweb",
        data_licence="CC-BY-4.0 <u>",
    )  # fmt: skip
    return json.loads((folder / "mine" / "corpus.json").read_bytes()), Page(folder / "mine" / "corpus.html")


def leaves(found, path=()):
    if isinstance(found, (dict, list)):
        for key, value in found.items() if isinstance(found, dict) else enumerate(found):
            yield from leaves(value, (*path, key))
    else:
        yield path, found


def test_every_figure_of_the_corpus_is_on_its_page(corpus):
    found, page = corpus
    shown = {key: value for key, value in found.items() if key not in ("format", "asked")}
    shown["settings"] = found["asked"]["settings"]
    assert {"dropped", "languages", "personal", "near", "tokenizer", "steps", "sources", "files"} <= shown.keys()
    for path, value in leaves(shown):
        words = [str(each) for each in path if isinstance(each, str)][1:] if path[0] in ("dropped", "personal") else []
        said = [
            number(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value),
            *words,
        ]
        for each in said if value is not None and not isinstance(value, bool) else words:
            each = each.partition(": ")[2] if path[0] == "dropped" and ": " in each else each
            assert re.sub(r"\s+", " ", each) in page.text, (path, value)
    assert f"{found['bytes'] / found['tokens']:.4g}" in page.text and page.open == []


def test_every_record_is_in_the_picture(corpus):
    """Bars that add up: what is lost and what is kept are all records, and each bar ends where the one before begins."""
    found, page = corpus
    looks = [
        attrs["class"].split()[1:]
        for tag, attrs in page.tags
        if tag == "div" and attrs.get("class", "").startswith("row ")
    ]
    numbers = [
        int(each.replace("−", "").replace(",", ""))
        for each in re.findall(r'<div class="num"><b>([−\d,]+)</b>', page.source)
    ]
    spans = [tuple(map(float, each)) for each in re.findall(r"--low:([\d.e-]+);--high:([\d.e-]+)", page.source)]
    assert len(looks) == len(numbers) == len(spans)
    ends = [(look[0], look[-1] == "part", *rest) for look, *rest in zip(looks, numbers, spans, strict=True)]
    assert ends[0][:3] == ("whole", False, found["records"]) and ends[0][3] == (0, 1)
    accounted = [(count, span) for look, part, count, span in ends if look != "whole" and not part]
    assert sum(count for count, _ in accounted) == found["records"]
    left = 1.0
    for count, (low, high) in accounted:
        assert high == pytest.approx(left) and high - low == pytest.approx(count / found["records"])
        left = low
    assert left == pytest.approx(0)


def test_texts_of_the_data_stay_texts_and_what_hides_in_them_is_seen(corpus):
    _, page = corpus
    assert not {tag for tag, _ in page.tags} & {"script", "img", "u"}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert HOSTILE not in page.source and html.escape(HOSTILE, quote=False)[:40] in page.source
    assert "{{ 7*7 }}" in page.text and "<b onclick=x>.jsonl" in page.text and "CC-BY-4.0 <u>" in page.text
    assert r"says \x01 and \x202e" in page.text and "\x01" not in page.source and "\u202e" not in page.source
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_the_page_needs_no_network(corpus):
    _, page = corpus
    for _, attrs in page.tags:
        assert not {"src", "srcset", "action", "data"} & set(attrs) and attrs.get("href", "#").startswith("#")
    style = page.source.split("<style>")[1].split("</style>")[0]
    assert "@import" not in style and "url(" not in style and "http" not in page.source.replace("http-equiv", "")


def test_what_repeats_another_stands_beside_the_place_of_it(corpus):
    found, page = corpus
    assert found["dropped"]["duplicates: nearly an earlier document"] >= 1
    assert re.search(r"NOTE 3\..{0,900}?jsonl:61\s*repeats<b onclick=x>\.jsonl:4(?!\d)", page.text)


@pytest.mark.parametrize(
    ("rows", "settings", "said", "unsaid"),
    [
        ([{"text": f"{number} {CHINESE * 2}"} for number in range(30)], ("tokenize=false", "duplicates=exact"), ["None: texts only", "zh", "30 documents stay (100.0 %)", "What was dropped Nothing."], ["training tokens", "Near copies"]),
        ([{"text": text} for text in documents(30)], ("cleaning=unicode", "duplicates=keep", "vocabulary=300", "test_share=0"), ["Not identified", "Nothing was looked for", "Nothing."], ["for the test", "that repeat an earlier one"]),
    ],
)  # fmt: skip
def test_a_page_without_what_was_not_done(tmp_path, danlu, rows, settings, said, unsaid):
    lines(tmp_path / "a.jsonl", rows)
    assert danlu("prepare", "corpus", "data=a.jsonl", "out=c", "workers=1", *settings).code == 0
    page = Page(tmp_path / "c" / "corpus.html")
    assert page.open == []
    for words in said:
        assert words in page.text, words
    for words in unsaid:
        assert words not in page.text, words


def test_a_run_says_what_its_corpus_was(corpus, tmp_path):
    found, _ = corpus
    card = {key: value for key, value in found.items() if key not in ("files", "asked")}
    dropped = [{"reason": rule, "count": count, "examples": []} for rule, count in found["dropped"].items()]
    dropped.append({"reason": "behind the first 20 (max_rows)", "count": 9, "examples": []})
    data = {"rows": {"read": 60, "kept": 20, "dropped": dropped}, "splits": found["documents"], "corpus": card}
    put(tmp_path, {"run.json": {"name": "r", "task": "language-model"}, "data.json": data})
    page = Page(report.write(tmp_path))
    assert page.open == [] and ("a", {"href": "#corpus"}) in page.tags
    assert f"Of {found['records']} records {sum(found['documents'].values())} documents stay" in page.text
    for rule, count in found["dropped"].items():
        assert re.search(rf"{re.escape(rule.partition(': ')[2])}\s*−{count}(?!\d)", page.text), rule
        assert rule not in page.text, "once, in the picture"
    for name, count in {**found["languages"], **found["personal"]}.items():
        assert re.search(rf"{name}\s*{count}(?!\d)", page.text), name
    assert found["sources"][0]["sha256"] in page.text and "behind the first 20 (max_rows)" in page.text
    assert page.text.count("Near copies that are found") == 1
    put(tmp_path, {"data.json": data | {"corpus": card | {"dropped": ["a rule"]}}})
    with pytest.raises(UserError, match=r"data\.json: corpus\.dropped is \[\"a rule\"\], expected an object"):
        report.write(tmp_path)


def test_a_corpus_is_read_without_danlu_as_its_documents_say(tmp_path, capfd):
    page = Path(__file__).parents[2] / "docs" / "corpus.md"
    (block,) = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    rows = [{"text": text} for text in documents(40)]
    card, _ = made(tmp_path / "mine", data=rows, cleaning="", duplicates="keep", test_share=0, validation_share=0)
    assert "danlu" not in re.sub(r"#.*", "", block)
    subprocess.run([sys.executable, "-c", block], cwd=tmp_path, check=True)
    assert capfd.readouterr().out.splitlines() == [f"40 documents, {card['tokens']} tokens of uint16", rows[6]["text"]]
