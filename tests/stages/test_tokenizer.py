"""`danlu prepare tokenizer`: the folder it leaves, what other programs make of it, and its figures."""

import json

import pytest
from tests.stages.conftest import EXAMPLES, lines, rows_of
from transformers import AutoTokenizer

from danlu.data.source import read
from danlu.data.tokenizer import Tokenizer
from danlu.data.vocabulary import survey


HARD = "Hello,  wörld!\n\tdef f(x): 12345 中文 😀 龘"
ENGLISH = """\
# sent_id = 1
# text = Don't go, 3 km.
1-2	Don't	_	_	_	_	_	_	_	_
1	Do	do	AUX	_	_	3	aux	_	_
2	n't	not	PART	_	_	3	advmod	_	_
3	go	go	VERB	_	_	0	root	_	SpaceAfter=No
4	,	,	PUNCT	_	_	3	punct	_	_
4.1	go	go	VERB	_	_	_	_	_	_
5	3	3	NUM	_	_	6	nummod	_	_
6	km	km	NOUN	_	_	3	obj	_	SpaceAfter=No
7	.	.	PUNCT	_	_	3	punct	_	_
"""
CHINESE = (
    "\n".join(f"{n}\t{word}\t_\t_\t_\t_\t_\t_\t_\t_" for n, word in enumerate(["我", "爱", "北京", "。"], 1)) + "\n"
)


@pytest.mark.parametrize(
    "settings",
    [
        ["kind=bpe"],
        ["kind=bpe", "specials=encoder"],
        ["kind=wordpiece"],
        ["kind=wordpiece", "lowercase=true"],
        ["kind=unigram"],
    ],
)
def test_transformers_reads_the_folder_and_gives_the_same_ids(danlu, settings):
    result = danlu("prepare", "tokenizer", f"data={EXAMPLES / 'sections.jsonl'}", "out=mine", "size=2000", *settings)
    assert result.code == 0, result.err
    theirs, ours = AutoTokenizer.from_pretrained("mine"), Tokenizer.load("mine")
    for text in [HARD, "", " ", *(row["text"] for row in rows_of("reviews.jsonl")[:50])]:
        assert theirs(text)["input_ids"] == ours.encode(text, special=True)
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
    assert len(theirs) == ours.size == 2000
    named = {name: getattr(theirs, name) for name in ours.named}
    assert named == ours.named
    if ours.has_template:
        said = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]
        assert theirs.apply_chat_template(said, tokenize=False) == ours.render(said)


def test_figures_are_of_documents_held_out_and_duplicates_are_on_one_side(danlu, tmp_path):
    rows = rows_of("sections.jsonl")[:400]
    twice = [{"text": row["text"].upper()} for row in rows]  # says the same
    data = lines(tmp_path / "all.jsonl", rows + twice)
    found = danlu("prepare", "tokenizer", f"data={data}", "out=mine", "validation_share=0.2", "--json").json
    assert found == json.loads((tmp_path / "mine/figures.json").read_text("utf-8"))
    held = found["held_out"]
    assert held["texts"] + found["learned_from"]["documents"] == 800
    assert held["texts"] == pytest.approx(160, abs=2)
    assert held["texts"] % 2 == 0  # both or none of each pair
    assert (held["unknown_share"], held["exact_share"]) == (0, 1)
    assert found["size"] == found["settings"]["size"] == 2048
    page = (tmp_path / "mine/tokenizer.md").read_text("utf-8")
    assert f"| this one | 2,048 | all | {held['texts']} | {held['bytes_per_token']:.2f} |" in page


def test_the_same_command_gives_the_same_files(danlu, tmp_path):
    for out in ("a/mine", "b/mine"):
        assert danlu("prepare", "tokenizer", f"data={EXAMPLES / 'games.jsonl'}", f"out={out}", "size=1000").code == 0
    files = sorted(path.name for path in (tmp_path / "a/mine").iterdir())
    assert files == ["chat_template.jinja", "figures.json", "special_tokens_map.json", "tokenizer.json", "tokenizer.md", "tokenizer_config.json"]  # fmt: skip
    for name in files:
        assert (tmp_path / "a/mine" / name).read_bytes() == (tmp_path / "b/mine" / name).read_bytes()


def test_conll_u_gives_sentences_and_their_words(tmp_path):
    (tmp_path / "s.conllu").write_text(f"{ENGLISH}\n{CHINESE}", "utf-8")
    source = read(tmp_path / "s.conllu")
    assert source.format == "CoNLL-U"
    assert [row.values for row in source.rows] == [
        {"text": "Don't go, 3 km.", "words": ["Don't", "go", ",", "3", "km", "."]},
        {"text": "我爱北京。", "words": ["我", "爱", "北京", "。"]},
    ]
    assert [row.place for row in source.rows] == ["s.conllu:3", "s.conllu:13"]


def test_a_broken_line_of_conll_u_is_named_or_its_sentence_counted(danlu, tmp_path):
    (tmp_path / "s.conllu").write_text(f"{CHINESE}\n1 我 我\n\n{ENGLISH}", "utf-8")
    result = danlu("prepare", "tokenizer", "data=s.conllu", "out=mine")
    assert result.code == 2
    assert "s.conllu:6: line 6: found 1 columns" in result.err
    result = danlu("prepare", "tokenizer", "data=s.conllu", "out=mine", "bad_rows=skip", "--json")
    assert result.json["left_out"][0]["examples"] == ["s.conllu:6"]


def test_words_of_conll_u_are_kept_to(danlu, tmp_path):
    sentences = [CHINESE.replace("我", who) for who in "我你他她它谁"]
    (tmp_path / "s.conllu").write_text("\n".join(sentences * 30), "utf-8")
    for out, settings in (("words", ["segment=words"]), ("plain", [])):
        assert danlu("prepare", "tokenizer", "data=s.conllu", f"out={out}", "size=300", *settings).code == 0
    kept, plain = ({Tokenizer.load(tmp_path / out).decode([n]) for n in range(259, 300)} for out in ("words", "plain"))
    assert "北京" in kept
    assert not any("爱北" in token or "京。" in token for token in kept)
    assert any("爱北" in token for token in plain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out=there"], "out=there exists"),
        (["out=new", "size=many"], "size: found 'many'"),
        (["out=new", "size=0"], "size=0: expected at least 1 token"),
        (["out=new", "size=10"], "size=10: expected at least 259"),
        (["out=new", "kind=word"], "kind=word"),
        (["out=new", "lowercase=yes"], "expected true or false"),
        (["out=new", "validation_share=1.5"], "validation_share=1.5"),
        (["out=new", "text=body"], "no column 'body'"),
        (["out=new", "segment=words"], "column 'words' is missing"),
        (["out=new", "segment=words", "kind=unigram"], "segment=words: kind=unigram"),
        ([], "out= is missing"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(danlu, tmp_path, arguments, message):
    (tmp_path / "there").mkdir()
    result = danlu("prepare", "tokenizer", f"data={EXAMPLES / 'games.jsonl'}", *arguments)
    assert result.code == 2
    assert message in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_prepare_says_what_it_prepares(danlu):
    result = danlu("prepare", "vector")
    assert result.code == 2
    assert "expected one of corpus, tokenizer, vectors" in result.err
    assert "danlu prepare vectors data=FILE out=DIR" in danlu("prepare", "vectors").err


def test_a_tokenizer_of_an_installed_model_stands_beside(danlu, monkeypatch, tmp_path):
    """Only those that are in the cache: an empty one gives none, and is not filled."""
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "cache"))
    found = danlu("prepare", "tokenizer", f"data={EXAMPLES / 'games.jsonl'}", "out=mine", "size=1000", "--json").json
    assert found["beside"] == {}
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    again = survey(Tokenizer.load(tmp_path / "mine"), ["one text"])
    assert again["vocabulary"] == 1000
